"""The engine: the intact model once on a batch, and heads' outputs replaced from a layer on.

A head at layer l leaves the layers below l untouched. So the intact model runs once on a batch, as `Forward.clean`, and
whatever is measured there starts from what it left: the sweep, direct effects, attribution and head features share one
`CleanRun`. With heads ablated, the rest of the model runs from the clean residual stream of their first layer, whose
attention is not run again, only projected without them. Rows go through in groups, and sets of heads in passes, as
large as the memory of the device allows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from mechrl.ablation import NOTHING, Replacement
from mechrl.errors import MachineError, is_out_of_memory
from mechrl.models import Model
from mechrl.models.running import run, unembed
from mechrl.tasks import Prompts

# The widest tensor of a pass on a CPU: about what its caches hold, and what malloc still recycles instead of asking the
# system for fresh pages. Larger passes are slower.
CPU_BYTES = 24 * 2**20
GPU_TOKENS = 2**17  # more at once fills no GPU any better

Hooks = Sequence[tuple[str, Callable[..., Any]]]
T = TypeVar("T")
# Told of what has been run on the rows of a clean run, how often, and in which layers: from the heads of the first to
# those of the one where the range stops; None for the whole model. A backward pass counts as a run.
OnRun = Callable[["CleanRun", int, range | None], None]


class Layer(NamedTuple):
    """The clean run at one layer: what enters it, and its heads' outputs before the output projection.

    residual [row, position, width]; z [row, position, head, head width]; other, of the same shape, is what an ablation
    puts in their place, or None for zero.
    """

    residual: torch.Tensor
    z: torch.Tensor
    other: torch.Tensor | None = None


@dataclass(frozen=True)
class CleanRun:
    """The intact model on some rows, and what an ablation puts in there.

    :param tokens: int64 [row, position].
    :param end: the last position of each row, int64 [row].
    :param every_position: whether all positions are read (control), or the last of each row alone (a task).
    :param layers: the run at each layer.
    :param final: the residual stream that leaves the last block, [row, position, width]; for a task [row, 1, width].
    :param graph: for gradients: `final` and each layer's z as autograd knows them; None if they were not asked for.
    """

    tokens: torch.Tensor
    end: torch.Tensor
    every_position: bool
    layers: list[Layer]
    final: torch.Tensor
    graph: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    @property
    def read(self) -> torch.Tensor | None:
        """The position that is read of each row, int64 [row]; None for all of them."""
        return None if self.every_position else self.end


class Forward:
    """Runs one model, clean and ablated.

    :param model: a folded model in eval mode.
    :param pass_tokens: how many tokens (rows × sets × positions) go through the model at once, one row at least; by
        default what the device holds. Halved whenever memory runs out.
    :param on_run: called after each pass, and by attribution after each of its runs.
    """

    def __init__(self, model: Model, pass_tokens: int | None = None, on_run: OnRun = lambda clean, times, layers: None):
        self.model = model
        self.pass_tokens = pass_tokens or fitting_tokens(model)
        self.on_run = on_run

    def clean_prompts(
        self, prompts: Prompts, replacement: Replacement = NOTHING, gradients: bool = False, hooks: Hooks = ()
    ) -> CleanRun:
        """`clean` of prompts, cut to the longest of them, read at the last position of each."""
        tokens, end = self.tensors(prompts.tokens[:, : prompts.length.max()], prompts.length - 1)
        return self.clean(tokens, end, False, replacement, gradients, hooks)

    def clean_spans(self, spans: np.ndarray, replacement: Replacement = NOTHING, gradients: bool = False) -> CleanRun:
        """`clean` of control spans, int32 [span, position], read at every position."""
        tokens, end = self.tensors(spans, np.full(len(spans), spans.shape[1] - 1))
        return self.clean(tokens, end, True, replacement, gradients)

    def clean(
        self,
        tokens: torch.Tensor,
        end: torch.Tensor,
        every_position: bool,
        replacement: Replacement = NOTHING,
        gradients: bool = False,
        hooks: Hooks = (),
    ) -> CleanRun:
        """The intact model once on rows that may share a batch, see `in_groups`.

        :param replacement: what an ablation puts in on these rows; prompts that it takes outputs from run once, too.
        :param gradients: whether to keep what gradients by the heads' outputs need.
        :param hooks: whatever else is to be seen of the run.
        """
        seen: list[torch.Tensor] = []
        outputs: list[torch.Tensor] = []

        def keep_z(z: torch.Tensor, hook: object) -> torch.Tensor | None:
            if gradients and not outputs:
                z = z.detach().requires_grad_()  # the later layers depend on it
            outputs.append(z)
            return z if gradients else None

        keep: list[tuple[str, Callable[..., Any]]] = []
        for layer in range(self.model.n_layers):
            keep.append((f"blocks.{layer}.hook_in", lambda residual, hook: seen.append(residual.detach())))
            keep.append((f"blocks.{layer}.attn.hook_z", keep_z))
        read = None if every_position else end
        with torch.inference_mode(not gradients), torch.set_grad_enabled(gradients):
            final = self.run([*hooks, *keep], read, tokens)
        layers = [Layer(*pair) for pair in zip(seen, (z.detach() for z in outputs), strict=True)]
        with torch.inference_mode():
            layers = self._with_other(layers, replacement, end, tokens.shape[1])
        graph = (final, outputs) if gradients else None
        return CleanRun(tokens, end, every_position, layers, final.detach(), graph)

    def _with_other(
        self, layers: list[Layer], replacement: Replacement, end: torch.Tensor, positions: int
    ) -> list[Layer]:
        """The layers with what is put in place of their heads."""
        if replacement.sources is not None:
            (sources,) = self.tensors(replacement.sources[:, :positions])
            others: list[torch.Tensor] = [layer.z for layer in self.clean(sources, end, False).layers]
        elif replacement.table is not None:
            table = torch.from_numpy(replacement.table).to(end.device, layers[0].z.dtype)
            back = end[:, None] - torch.arange(positions, device=end.device)
            others = [by_back[back.clamp(0, len(by_back) - 1)] for by_back in table]
        else:
            return layers
        return [layer._replace(other=other) for layer, other in zip(layers, others, strict=True)]

    @torch.inference_mode()
    def head_outputs(self, tokens: np.ndarray) -> list[torch.Tensor]:
        """`hook_z` of each layer in the intact model, [row, position, head, head width], of tokens [row, position].

        Of rows that may share a batch; see `in_groups`.
        """
        return [layer.z for layer in self.clean_spans(tokens).layers]

    def in_groups(self, compute: Callable[[np.ndarray], T], length: np.ndarray, weight: int = 1) -> T:
        """`compute` of all rows, a group of them at a time; out of memory, once more with groups of half the size.

        Rows of a group may share a batch: the model treats their lengths alike.

        :param compute: from the rows of a group, int [row], to tensors [row, …], in tuples, lists and dicts.
        :param length: of each row, in tokens, int [row].
        :param weight: how many times the memory of a pass a token needs.
        :returns: what `compute` gives, of all rows in their order.
        :raises MachineError: one row alone does not fit in memory.
        """
        alike = self.model.regimes.split(length)
        while True:
            groups: list[np.ndarray] = []
            for rows in alike:
                positions = int(length[rows].max())
                groups += np.array_split(rows, -(-len(rows) // max(1, self.pass_tokens // (positions * weight))))
            try:
                found: T = _in_order([compute(rows) for rows in groups], np.argsort(np.concatenate(groups)))
                return found
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            if self.pass_tokens <= length.max() * weight:
                raise MachineError(
                    f"out of memory on {self.model.device} with a single prompt of {length.max()} tokens: this model "
                    "needs a larger machine, or the dtype float16"
                )
            self.pass_tokens //= 2
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def run(self, hooks: Hooks, read: torch.Tensor | None, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The residual stream that leaves the last block, read at `read`, if given; see `models.running.run`."""
        return run(self.model.bridge, list(hooks), read, *args, **kwargs)

    def unembed(self, final: torch.Tensor, normed: torch.Tensor | None = None) -> torch.Tensor:
        """Logits, float32 [row, vocabulary], from what leaves the last block; see `models.running.unembed`."""
        return unembed(self.model.bridge, final, normed)

    def tensors(self, *columns: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Arrays of integers as int64 tensors on the model's device."""
        return tuple(torch.from_numpy(np.ascontiguousarray(c)).long().to(self.model.device) for c in columns)

    def singles(self, sites: Sequence[int] | np.ndarray | range | None = None) -> np.ndarray:
        """Sets of one head each, bool [set, site]: of every head, or of some sites."""
        return np.eye(self.model.n_layers * self.model.n_heads, dtype=bool)[slice(None) if sites is None else sites]

    def named(self, sets: np.ndarray | None = None) -> Callable[[int], str]:
        """Gives the names of the heads of a set, for messages; by default a set is a site."""
        sets = self.singles() if sets is None else sets
        return lambda i: ", ".join(f"{s // self.model.n_heads}.{s % self.model.n_heads}" for s in sets[i].nonzero()[0])

    @property
    def chunk_numbers(self) -> int:
        """How many logits to compute at once: as many as the widest tensor of a pass has numbers."""
        return self.pass_tokens * _width(self.model)


def fitting_tokens(model: Model) -> int:
    """How many tokens a pass should take on the model's device: half of what its free memory holds, a power of two."""
    device, dtype = model.device, next(model.bridge.parameters()).dtype
    if device.type == "cpu":
        return max(1, int(CPU_BYTES // (dtype.itemsize * _width(model))))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(GPU_TOKENS, 1 << int(np.log2(max(1, free // 2 // token_bytes(model)))))


def token_bytes(model: Model) -> int:
    """How much memory a block needs for one token, about."""
    itemsize: int = next(model.bridge.parameters()).dtype.itemsize
    return itemsize * (12 * int(model.bridge.cfg.d_model) + 4 * _width(model))


def finite(values: torch.Tensor, row_name: str, heads: Callable[[int], str] | None = None) -> np.ndarray:
    """As float32 on the CPU; a number that is not finite is an error that names its place.

    :param heads: the names of the heads that were ablated in a column; None for numbers of the intact model.
    :raises MachineError: a number is not finite.
    """
    array = np.ascontiguousarray(values.to("cpu", torch.float32).numpy())
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, *column = bad[0].tolist()
        gone = f" with head {heads(*column)} ablated" if heads else ""
        raise MachineError(f"{array[tuple(bad[0])]} on {row_name} {row} of the batch{gone}")
    return array


def _width(model: Model) -> int:
    """The width of a block's widest tensor."""
    return int(getattr(model.bridge.cfg, "d_mlp", None) or 4 * model.bridge.cfg.d_model)


def _in_order(parts: Sequence[Any], order: np.ndarray) -> Any:
    """The tensors of several groups of rows joined, in the order of the rows."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts))[torch.from_numpy(order).to(first.device)]
    if isinstance(first, dict):
        return {name: _in_order([part[name] for part in parts], order) for name in first}
    return type(first)(_in_order(place, order) for place in zip(*parts, strict=True))
