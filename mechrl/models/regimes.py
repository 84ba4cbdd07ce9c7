"""Which lengths of prompts a model treats alike, so that a number does not depend on a prompt's neighbours.

Right padding is exact for causal attention. But some rotary embeddings (longrope, dynamic NTK) change their frequencies
when the longest row of a batch passes a limit, for all rows of the batch. So lengths are measured: the same tokens at
the one width and at the other.
"""

from typing import Any

import numpy as np
import torch
from numpy.random import RandomState

from mechrl.errors import UsageError

# The largest difference of a position's state, relative to its norm, that is still rounding.
ROUNDING = {torch.float64: 1e-9, torch.float32: 3e-5, torch.float16: 0.02, torch.bfloat16: 0.1}


class Regimes:
    """The regimes of lengths of one model, found when they are asked for.

    :param bridge: its folded bridge.
    :param rows: how many rows its embedding has.
    :param name: of the model, for messages.
    """

    def __init__(self, bridge: Any, rows: int, name: str):
        self._bridge, self._rows, self._name = bridge, rows, name
        self._of: dict[int, int] = {}
        self._widest: list[torch.Tensor] = []  # of each regime, the states [position, width] at its greatest length

    def split(self, length: np.ndarray) -> list[np.ndarray]:
        """Rows that may share a batch, int [row] each, in the order of the shortest; together they are all rows.

        :param length: of each row, int [row].
        :raises UsageError: what the model computes depends on what it has computed before.
        """
        widths = np.unique(length).tolist()
        if len(widths) == 1:
            return [np.arange(len(length))]
        known = len(self._widest)
        for width in widths:
            if width not in self._of:
                self._of[width] = self._place(width)
        if 1 < len(self._widest) != known:
            self._check_memory(widths)
        of_row = np.array([self._of[n] for n in length.tolist()])
        return [np.flatnonzero(of_row == regime) for regime in dict.fromkeys(self._of[width] for width in widths)]

    def forget(self) -> None:
        """To be called when the model changes its dtype."""
        self._of.clear()
        self._widest.clear()

    def _place(self, width: int) -> int:
        states = self._states(width)
        for regime, widest in enumerate(self._widest):
            if _alike(states, widest):
                if width > len(widest):
                    self._widest[regime] = states
                return regime
        self._widest.append(states)
        return len(self._widest) - 1

    def _check_memory(self, widths: list[int]) -> None:
        """:raises UsageError: a short row comes out differently after a long one."""
        for width in widths:
            if not _alike(self._states(width), self._widest[self._of[width]]):
                raise UsageError(
                    f"{self._name!r} cannot be swept: what it computes for {width} tokens depends on the lengths that "
                    "it has seen before, as with rotary embeddings that grow. Give prompts of one length"
                )

    @torch.inference_mode()
    def _states(self, width: int) -> torch.Tensor:
        """What enters the unembedding, [position, model width], for the first `width` of some tokens."""
        seen: list[torch.Tensor] = []

        def keep(hidden: torch.Tensor, hook: object) -> torch.Tensor:
            seen.append(hidden[0])
            return hidden[:, :1]

        device = next(self._bridge.parameters()).device
        tokens = probe_tokens(self._bridge.original_model, width)[None].to(device)
        self._bridge.run_with_hooks(tokens, fwd_hooks=[("unembed.hook_in", keep)])
        return seen[0]


def probe_tokens(hf: Any, n: int) -> torch.Tensor:
    """`n` tokens at random, the same ones at the beginning for every n, int64 [position].

    Tokens whose embedding is not finite, as unused rows can be, are left out.
    """
    weight = hf.get_input_embeddings().weight
    usable = torch.isfinite(weight).all(1).nonzero()[:, 0].cpu()
    return usable[torch.from_numpy(RandomState(0).randint(len(usable), size=max(n, 1)))]


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the positions that both have are the same but for rounding; made in one dtype."""
    n = min(len(a), len(b))
    a, b, limit = a[:n].float(), b[:n].float(), ROUNDING[a.dtype]
    # Numbers that are not finite are for the sweep to report.
    return bool(((a - b).nan_to_num(0, 0, 0).norm(dim=-1) <= limit * b.nan_to_num(0, 0, 0).norm(dim=-1)).all())
