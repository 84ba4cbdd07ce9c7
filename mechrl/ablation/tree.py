"""Heads ablated together: sets of them, as a tree over the layers.

A set is a path: its heads of layer 0, then those of layer 1, and so on. What sets have in common up to a layer is one
state of the model, and runs once for all of them; before the first head of a set it is the clean run. From one state to
the next, the attention of a layer runs once, and what its heads put out is projected without those that are ablated.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from mechrl.ablation.forward import CleanRun, Forward
from mechrl.models.running import resumed, resumed_until


class _States(NamedTuple):
    """States of the model that come to a layer, before its heads are ablated.

    :param residual: what enters the layer, [state × row, position, width].
    :param z: its heads' outputs, [state × row, position, head, head width].
    :param sets: the sets that go on from there, int [set], and each one's state `of`, int [set].
    """

    layer: int
    residual: torch.Tensor
    z: torch.Tensor
    sets: np.ndarray
    of: np.ndarray


class Tree:
    """Sets of heads, and the states of the model that they lead to.

    :param sets: bool [set, site].
    """

    def __init__(self, sets: np.ndarray, n_layers: int):
        self.n_layers = n_layers
        self.gone = sets.reshape(len(sets), n_layers, -1)
        self.masks = np.stack([_numbered(mask) for mask in self.gone.swapaxes(0, 1)], 1)  # int [set, layer]
        self.first = np.where(sets.any(1), self.gone.any(2).argmax(1), n_layers)  # layer of the first head

    def states(self) -> np.ndarray:
        """How many states there are after the heads of each layer, int [layer]: runs of a block that nothing can save.

        The clean run is none of them.
        """
        state, counts = np.zeros(len(self.masks), int), []
        for layer, mask in enumerate(self.masks.T):
            state = _numbered(np.column_stack([state, mask]))
            counts.append(len(np.unique(state[self.first <= layer])))
        return np.array(counts)

    def ablated(self, forward: Forward, clean: CleanRun) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """The model with the heads of each set ablated together, so many sets at a time as a pass holds.

        :returns: pairs of which sets, int [set], and the residual stream that leaves the last block for them,
            [set × row, position, width]; of a run that is read at one position, [set × row, 1, width].
        """
        for layer in np.unique(self.first).tolist():
            sets = np.flatnonzero(self.first == layer)
            if layer == self.n_layers:
                yield sets, clean.final.repeat(len(sets), 1, 1)
            else:
                residual, z, _ = clean.layers[layer]
                yield from self._below(forward, clean, _States(layer, residual, z, sets, np.zeros(len(sets), int)))

    def _below(self, forward: Forward, clean: CleanRun, came: _States) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """What `ablated` gives, of the sets that go on from some states."""
        layer, sets, bridge = came.layer, came.sets, forward.model.bridge
        state = _numbered(np.column_stack([came.of, self.masks[sets, layer]]))
        n_states = int(state.max()) + 1
        most = max(1, forward.pass_tokens // clean.tokens.numel())
        for states in np.array_split(np.arange(n_states), -(-n_states // most)):
            own = np.flatnonzero(np.isin(state, states))
            group, of = sets[own], state[own] - states[0]
            one_each = np.unique(of, return_index=True)[1]  # a set of each state
            stop = next((n for n in range(layer + 1, self.n_layers) if self._differ(group, of, n)), self.n_layers)
            with torch.inference_mode():
                start, hooks = self._start(clean, came, own[one_each], stop)
                if stop < self.n_layers:
                    reached = resumed_until(bridge, layer, *start, stop, hooks)
                else:
                    read = None if clean.read is None else clean.read.repeat(len(states))
                    final = resumed(bridge, layer, *start, read, hooks)
            forward.on_run(clean, len(states), range(layer, stop))
            if stop < self.n_layers:
                yield from self._below(forward, clean, _States(stop, *reached, group, of))
            elif len(group) == len(states):
                yield group[one_each], final
            else:  # a set was given twice
                yield group, _by_state(final, clean)[torch.from_numpy(of)].flatten(0, 1)

    def _differ(self, sets: np.ndarray, state: np.ndarray, layer: int) -> bool:
        """Whether sets that share a state differ in their heads of a layer."""
        masks = self.masks[sets, layer]
        return bool((masks != masks[np.unique(state, return_index=True)[1]][state]).any())

    def _start(
        self, clean: CleanRun, came: _States, one_each: np.ndarray, stop: int
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], list[tuple[str, object]]]:
        """What a run is resumed with, for one set of each state, and its hooks before the layer `stop`."""
        heads = torch.from_numpy(self.gone[came.sets[one_each]]).to(came.z.device)
        parents = torch.from_numpy(came.of[one_each]).to(came.z.device)

        def without(z: torch.Tensor, layer: int) -> torch.Tensor:
            """z [state × row, …] with each state's heads of a layer ablated."""
            z, gone, other = _by_state(z, clean), heads[:, layer, None, None, :, None], clean.layers[layer].other
            return (z.masked_fill(gone, 0) if other is None else torch.where(gone, other, z)).flatten(0, 1)

        residual, z = (_by_state(part, clean)[parents].flatten(0, 1) for part in (came.residual, came.z))
        hooks: list[tuple[str, object]] = [
            (f"blocks.{layer}.attn.hook_z", lambda z, hook, layer=layer: without(z, layer))
            for layer in range(came.layer + 1, stop)
            if heads[:, layer].any()
        ]
        return (residual, without(z, came.layer)), hooks


def logits(forward: Forward, clean: CleanRun, sets: np.ndarray) -> torch.Tensor:
    """Logits where a task is read, with the heads of each set ablated together, float32 [set, row, vocabulary].

    :param sets: bool [set, site].
    """
    found = [(of, forward.unembed(final)) for of, final in Tree(sets, forward.model.n_layers).ablated(forward, clean)]
    order = np.argsort(np.concatenate([of for of, _ in found]))
    return torch.cat([part.view(len(of), len(clean.tokens), -1) for of, part in found])[order]


def _by_state(tensor: torch.Tensor, clean: CleanRun) -> torch.Tensor:
    """[state × row, …] as [state, row, …]."""
    return tensor.view(-1, len(clean.tokens), *tensor.shape[1:])


def _numbered(rows: np.ndarray) -> np.ndarray:
    """A number for each row, the same for equal ones, from 0 in the order in which they first appear; int [row]."""
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[which.reshape(-1)])
