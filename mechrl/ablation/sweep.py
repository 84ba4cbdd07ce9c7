"""The fast sweep: every head of a model ablated on a batch, without running anything twice.

A head at layer l leaves the layers below l untouched. So the clean model runs once; then, for each layer, its heads are
carried through the rest of the model as one batch that starts from the clean residual stream. The attention of that
layer is not run again, only projected without the head. For a task one position per prompt goes through the last
block's MLP and the unembedding. Control needs every position, and takes the vocabulary in chunks, because its logits
would be far larger than the model.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from mechrl.ablation.measures import measure
from mechrl.ablation.replacement import NOTHING, Replacement
from mechrl.errors import MachineError
from mechrl.models import Model
from mechrl.models.running import resumed, run, unembed
from mechrl.tasks import Prompts

# The widest tensor of a pass on a CPU: about what its caches hold, and what malloc still recycles instead of asking the
# system for fresh pages. Larger passes are slower.
CPU_BYTES = 24 * 2**20
GPU_TOKENS = 2**17  # more at once fills no GPU any better


class Entry(NamedTuple):
    """The clean run at one layer: what enters it, and its heads' outputs before the output projection.

    residual [row, position, width]; z [row, position, head, head width]; other, of the same shape, is what an ablation
    puts in their place, or None for zero.
    """

    residual: torch.Tensor
    z: torch.Tensor
    other: torch.Tensor | None = None


class Sweep:
    """Sweeps the heads of one model.

    :param model: a folded model in eval mode.
    :param pass_tokens: how many tokens (prompts × heads × positions) go through the model at once, one prompt at
        least; by default what the device holds. Halved whenever memory runs out.
    """

    def __init__(self, model: Model, pass_tokens: int | None = None):
        self.model = model
        self.pass_tokens = pass_tokens or fitting_tokens(model)
        if model.device.type == "cpu":
            _keep_freed_memory()
        self._bare = self._ends_bare()
        self.plain = self._adds_plainly()

    def task(
        self, prompts: Prompts, replacement: Replacement = NOTHING, sets: np.ndarray | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Clean measures float32 [prompt] and ablated ones float32 [prompt, set] of one batch of prompts.

        :param replacement: what is put in, on these prompts.
        :param sets: which heads are ablated together, bool [set, site]; by default every head alone, so that a set is
            a site.
        :raises MachineError: a number is not finite (the message names the prompt and the heads), or one prompt alone
            does not fit in memory.
        """
        return self.readings(prompts, [prompts], replacement, sets)[0]

    def readings(
        self,
        prompts: Prompts,
        read: Sequence[Prompts],
        replacement: Replacement = NOTHING,
        sets: np.ndarray | None = None,
    ) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """What `task` gives, for several answers and wrongs on the same tokens; the model runs once.

        :param read: the same prompts, each with answers and wrongs of its own.
        """
        sets = self.singles() if sets is None else sets

        def sweep(rows: np.ndarray) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
            return self._task(prompts[rows], [of[rows] for of in read], replacement[rows], sets)

        return [
            (
                {name: finite(values, "prompt") for name, values in clean.items()},
                {name: finite(values, "prompt", self.named(sets)) for name, values in ablated.items()},
            )
            for clean, ablated in self.fitting_memory(sweep, prompts.length)
        ]

    def control(
        self, spans: np.ndarray, replacement: Replacement = NOTHING, sets: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean next-token loss in nats of one batch of spans: clean float32 [span], ablated float32 [span, set].

        :param spans: tokens int32 [span, position], nothing padded.
        :param replacement: what is put in, on these spans.
        :param sets: as in `task`.
        :raises MachineError: a number is not finite (the message names the span and the heads), or one span alone does
            not fit in memory.
        """
        sets = self.singles() if sets is None else sets

        def sweep(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
            return self._control(spans[rows], replacement[rows], sets)

        clean, ablated = self.fitting_memory(sweep, np.full(len(spans), spans.shape[1]))
        return finite(clean, "span"), finite(ablated, "span", self.named(sets))

    def singles(self, sites: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Sets of one head each, bool [set, site]: of every head, or of some sites."""
        return np.eye(self.model.n_layers * self.model.n_heads, dtype=bool)[slice(None) if sites is None else sites]

    def named(self, sets: np.ndarray | None = None) -> Callable[[int], str]:
        """Gives the names of the heads of a set, for messages; by default a set is a site."""
        sets = self.singles() if sets is None else sets
        return lambda i: ", ".join(f"{s // self.model.n_heads}.{s % self.model.n_heads}" for s in sets[i].nonzero()[0])

    @torch.inference_mode()
    def clean(self, prompts: Prompts) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Measures of the intact model on one batch, float32 [prompt], and the most probable next token, [prompt]."""

        def read(rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            tokens, last, answers, wrongs = self.tensors(prompts[rows])
            logits = self.unembed(self.clean_run(tokens, last)[1])
            return measure(logits, logits.log_softmax(-1), answers, wrongs), logits.argmax(-1)

        measures, said = self.fitting_memory(read, prompts.length)
        return {name: finite(values, "prompt") for name, values in measures.items()}, said.cpu().numpy()

    @torch.inference_mode()
    def head_outputs(self, tokens: np.ndarray) -> list[torch.Tensor]:
        """`hook_z` of each layer in the intact model, [row, position, head, head width], of tokens [row, position].

        Of rows that may share a batch; see `Regimes`.
        """
        return [entry.z for entry in self.clean_run(torch.from_numpy(tokens).long().to(self.model.device), None)[0]]

    @torch.inference_mode()
    def _adds_plainly(self) -> bool:
        """Whether the blocks add to the residual stream what their heads and their MLP write, and nothing else."""
        bridge = self.model.bridge
        if not bridge.blocks[-1].mlp.name:
            return False
        block = f"blocks.{self.model.n_layers - 1}"
        seen: list[torch.Tensor] = []
        names = ("hook_in", "attn.hook_z", "mlp.hook_out", "hook_out")
        hooks = [(f"{block}.{name}", lambda tensor, hook: seen.append(tensor)) for name in names]
        bridge.run_with_hooks(self.model.some_tokens(4)[None], fwd_hooks=hooks)
        before, z, mlp, after = seen
        rest = after - before - bridge.blocks[-1].attn.o(z.flatten(2)) - mlp
        return bool(rest.abs().max() <= 1e-3 * after.abs().max())

    def with_other(
        self, entries: list[Entry], replacement: Replacement, last: torch.Tensor, positions: int
    ) -> list[Entry]:
        """The clean run with what is put in place of its heads."""
        if replacement.sources is not None:
            sources = torch.from_numpy(replacement.sources[:, :positions]).long().to(last.device)
            others = [entry.z for entry in self.clean_run(sources, last)[0]]
        elif replacement.table is not None:
            table = torch.from_numpy(replacement.table).to(last.device, entries[0].z.dtype)
            back = last[:, None] - torch.arange(positions, device=last.device)
            others = [of_layer[back.clamp(0, len(of_layer) - 1)] for of_layer in table]
        else:
            return entries
        return [entry._replace(other=other) for entry, other in zip(entries, others, strict=True)]

    @torch.inference_mode()
    def _task(
        self, prompts: Prompts, read: Sequence[Prompts], replacement: Replacement, sets: np.ndarray
    ) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        tokens, last, _, _ = self.tensors(prompts)
        entries, final = self.clean_run(tokens, last)
        entries = self.with_other(entries, replacement, last, tokens.shape[1])
        logits = self.unembed(final)
        clean_logprobs = logits.log_softmax(-1)
        asked = [self.tensors(of)[2:] for of in read]
        clean = [measure(logits, clean_logprobs, *answers) for answers in asked]
        ablated = [{name: torch.empty(len(tokens), len(sets), device=tokens.device) for name in of} for of in clean]
        for which in self._passes(tokens, sets):
            changed = self.logits(entries, sets[which], last)
            for columns, answers in zip(ablated, asked, strict=True):
                for name, values in measure(changed, clean_logprobs, *answers).items():
                    columns[name][:, which] = values.T
        return list(zip(clean, ablated, strict=True))

    @torch.inference_mode()
    def _control(
        self, spans: np.ndarray, replacement: Replacement, sets: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.from_numpy(spans).long().to(self.model.device)
        entries, final = self.clean_run(tokens, None)
        last = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        entries = self.with_other(entries, replacement, last, tokens.shape[1])
        ablated = torch.empty(len(tokens), len(sets), device=tokens.device)
        for which in self._passes(tokens, sets):
            ablated[:, which] = self._loss(self._ablated(entries, sets[which], None), tokens).T
        return self._loss(final, tokens)[0], ablated

    @torch.inference_mode()
    def logits(self, entries: Sequence[Entry], sets: np.ndarray, last: torch.Tensor) -> torch.Tensor:
        """Logits at one position of each row, with the heads of each set ablated together, float32.

        :param entries: the clean run at each layer.
        :param sets: bool [set, site], whose first heads are all of one layer.
        :param last: the position to read of each row, int64 [row].
        :returns: [set, row, vocabulary].
        """
        return self.unembed(self._ablated(entries, sets, last)).view(len(sets), len(last), -1)

    def fitting_memory(self, sweep: Callable, length: np.ndarray, weight: int = 1) -> Any:
        """`sweep` of all rows, a group of them at a time; out of memory, once more with groups of half the size.

        Rows of a group may share a batch: the model treats their lengths alike.

        :param sweep: from the rows of a group, int [row], to tensors [row, …], in tuples, lists and dicts.
        :param length: of each row, in tokens, int [row].
        :param weight: how many times the memory of a pass a token needs.
        :returns: what `sweep` gives, of all rows in their order.
        """
        alike = self.model.regimes.split(length)
        while True:
            groups: list[np.ndarray] = []
            for rows in alike:
                positions = int(length[rows].max())
                groups += np.array_split(rows, -(-len(rows) // max(1, self.pass_tokens // (positions * weight))))
            try:
                return _in_order([sweep(rows) for rows in groups], np.argsort(np.concatenate(groups)))
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
            if self.pass_tokens <= length.max() * weight:
                raise MachineError(
                    f"out of memory on {self.model.device} with a single prompt of {length.max()} tokens: this model "
                    "needs a larger machine, or --dtype float16"
                )
            self.pass_tokens //= 2
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def tensors(self, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """tokens, last position, answers and wrongs on the model's device, cut to the longest prompt."""
        columns = (prompts.tokens[:, : prompts.length.max()], prompts.length - 1, prompts.answers, prompts.wrongs)
        tokens, last, answers, wrongs = (torch.from_numpy(c).long().to(self.model.device) for c in columns)
        return tokens, last, answers, wrongs

    def clean_run(self, tokens: torch.Tensor, last: torch.Tensor | None) -> tuple[list[Entry], torch.Tensor]:
        """The clean run at each layer, and the residual stream that leaves the last (at `last`, if given)."""
        seen: list[torch.Tensor] = []
        hooks: list[tuple[str, Any]] = [
            (f"blocks.{layer}.{name}", lambda tensor, hook: seen.append(tensor))
            for layer in range(self.model.n_layers)
            for name in ("hook_in", "attn.hook_z")
        ]
        final = self.run(hooks, last, tokens)
        return [Entry(*pair) for pair in zip(seen[::2], seen[1::2], strict=True)], final

    def _ablated(self, entries: Sequence[Entry], sets: np.ndarray, last: torch.Tensor | None) -> torch.Tensor:
        """The residual stream that leaves the last block, with the heads of each set ablated together.

        :param sets: bool [set, site], whose first heads are all of one layer.
        :returns: [set × row, position, width]; with `last` given, [set × row, 1, width].
        """
        first = self._first_layers(sets[:1])[0]
        of_layer = torch.from_numpy(sets).to(self.model.device).view(len(sets), self.model.n_layers, -1).unbind(1)

        def put_in(z: torch.Tensor, layer: int) -> torch.Tensor:
            """z [set or 1, row, position, head, head width] without the heads of each set, [set × row, …]."""
            other, gone = entries[layer].other, of_layer[layer][:, None, None, :, None]
            return (z.masked_fill(gone, 0) if other is None else torch.where(gone, other, z)).flatten(0, 1)

        hooks = [
            (f"blocks.{layer}.attn.hook_z", lambda z, hook, layer=layer: put_in(z.unflatten(0, (len(sets), -1)), layer))
            for layer in range(first + 1, self.model.n_layers)
            if of_layer[layer].any()
        ]
        z = put_in(entries[first].z.expand(len(sets), *entries[first].z.shape), first)
        return resumed(
            self.model.bridge,
            first,
            entries[first].residual.repeat(len(sets), 1, 1),
            z,
            None if last is None else last.repeat(len(sets)),
            hooks,
        )

    def _first_layers(self, sets: np.ndarray) -> np.ndarray:
        """The layer of each set's first head, int [set]; 0 for an empty one."""
        return sets.argmax(1) // self.model.n_heads

    def run(self, hooks: list[tuple[str, Any]], last: torch.Tensor | None, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The residual stream that leaves the last block, read at `last`, if given."""
        return run(self.model.bridge, hooks, last, *args, **kwargs)

    def unembed(self, final: torch.Tensor, normed: torch.Tensor | None = None) -> torch.Tensor:
        """Logits, float32 [row, vocabulary], from what leaves the last block; see `models.running.unembed`."""
        return unembed(self.model.bridge, final, normed)

    @torch.inference_mode()
    def _ends_bare(self) -> bool:
        """Whether nothing but the final norm and one matrix follows the blocks: no soft cap, no scaling.

        Then control can take the vocabulary a slice at a time, for all positions at once, which is faster than all of
        it for a few positions.
        """
        bridge = self.model.bridge
        unembed = bridge.unembed.original_component
        if not isinstance(unembed, torch.nn.Linear) or unembed.bias is None:
            return False
        some = torch.randn(4, 1, bridge.cfg.d_model, generator=torch.Generator().manual_seed(0))
        some = some.to(self.model.device, unembed.weight.dtype)
        return torch.equal(unembed(bridge.ln_final(some))[:, 0].float(), self.unembed(some))

    @property
    def chunk_numbers(self) -> int:
        """How many logits to compute at once: as many as the widest tensor of a pass has numbers."""
        return self.pass_tokens * _width(self.model)

    def _loss(self, final: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mean next-token loss in nats, [head, row], from what leaves the last block, [head × row, position, width]."""
        heads = len(final) // len(tokens)
        targets = tokens[:, 1:].repeat(heads, 1).flatten()
        positions = final[:, :-1].flatten(0, 1).unsqueeze(1)
        size = self.chunk_numbers
        if self._bare:
            unembed = self.model.bridge.unembed.original_component
            hidden = self.model.bridge.ln_final(positions)[:, 0]
            loss = _chunked_loss(hidden, unembed.weight, unembed.bias, targets, max(1, size // len(hidden)))
        else:
            step = max(1, size // self.model.bridge.cfg.d_vocab)
            chunks = zip(positions.split(step), targets.split(step), strict=True)
            loss = torch.cat(
                [torch.nn.functional.cross_entropy(self.unembed(p), t, reduction="none") for p, t in chunks]
            )
        return loss.view(heads, len(tokens), -1).mean(-1)

    def _passes(self, tokens: torch.Tensor, sets: np.ndarray) -> Iterator[np.ndarray]:
        """The sets that go through the model at once, int [set] each: all begin at one layer."""
        layers = self._first_layers(sets)
        for layer in np.unique(layers):
            group = np.flatnonzero(layers == layer)
            n_passes = min(len(group), -(-len(group) * tokens.numel() // self.pass_tokens))
            step = -(-len(group) // n_passes)
            yield from np.split(group, range(step, len(group), step))


def fitting_tokens(model: Model) -> int:
    """How many tokens a pass should take on the model's device: half of what its free memory holds, a power of two."""
    device, cfg = model.device, model.bridge.cfg
    dtype = next(model.bridge.parameters()).dtype
    if device.type == "cpu":
        return max(1, CPU_BYTES // (dtype.itemsize * _width(model)))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    token_bytes = dtype.itemsize * (12 * cfg.d_model + 4 * _width(model))
    return min(GPU_TOKENS, 2 ** int(np.log2(max(1, free // 2 // token_bytes))))


def _keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for the next tensor: fresh pages for each cost up to half of a sweep's time."""
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no tensor gets pages of its own
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: none go back to the system


def _chunked_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor, step: int
) -> torch.Tensor:
    """Cross-entropy [position] of hidden [position, width] with `step` columns of the vocabulary at a time.

    :param weight: [vocabulary, width]; bias [vocabulary].
    """
    normaliser = torch.full(targets.shape, -torch.inf, device=hidden.device)
    of_target = torch.zeros_like(normaliser)
    for first in range(0, len(weight), step):
        columns = slice(first, first + step)
        logits = torch.nn.functional.linear(hidden, weight[columns], bias[columns]).float()
        here = (targets >= first) & (targets < first + logits.shape[1])
        own = logits.gather(1, (targets - first).clamp(0, logits.shape[1] - 1).unsqueeze(1))[:, 0]
        of_target = torch.where(here, own, of_target)
        peak = logits.amax(-1, keepdim=True)
        normaliser = torch.logaddexp(normaliser, logits.sub_(peak).exp_().sum(-1).log() + peak[:, 0])
    return normaliser - of_target


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
    return type(first)(_in_order(of_place, order) for of_place in zip(*parts, strict=True))


def _out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or in torch's allocator for the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def finite(values: torch.Tensor, row_name: str, heads: Callable[[int], str] | None = None) -> np.ndarray:
    """As float32 on the CPU; a number that is not finite is an error that names its place.

    :param heads: the names of the heads that were ablated in a column; None for numbers of the intact model.
    """
    array = np.ascontiguousarray(values.to("cpu", torch.float32).numpy())
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, *column = bad[0].tolist()
        gone = f" with head {heads(*column)} ablated" if heads else ""
        raise MachineError(f"{array[tuple(bad[0])]} on {row_name} {row} of the batch{gone}")
    return array
