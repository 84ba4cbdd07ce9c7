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
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from mechrl.ablation import reference
from mechrl.ablation.measures import measure
from mechrl.errors import MachineError
from mechrl.models import Model
from mechrl.tasks import Prompts

# The widest tensor of a pass on a CPU: about what its caches hold, and what malloc still recycles instead of asking the
# system for fresh pages. Larger passes are slower.
CPU_BYTES = 24 * 2**20
GPU_TOKENS = 2**17  # more at once fills no GPU any better
FINAL_NORM = "ln_final.hook_in"  # what enters it is what leaves the last block
# The largest error of a logit that a self-check lets pass, divided by max(1, the largest |logit|).
SELF_CHECK_LIMITS = {"float32": 1e-5, "tf32": 0.01, "float16": 0.01, "bfloat16": 0.05}


class Entry(NamedTuple):
    """The clean run at one layer: what enters it, and its heads' outputs before the output projection.

    residual [row, position, width]; z [row, position, head, head width].
    """

    residual: torch.Tensor
    z: torch.Tensor


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

    def task(self, prompts: Prompts) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Clean measures float32 [prompt] and ablated ones float32 [prompt, site] of one batch of prompts.

        :raises MachineError: a number is not finite (the message names the prompt and the head), or one prompt alone
            does not fit in memory.
        """
        groups = self._fitting_memory(self._task, prompts, int(prompts.length.max()))
        clean, ablated = ({name: [part[i][name] for part in groups] for name in groups[0][i]} for i in (0, 1))
        return (
            {name: _numpy(torch.cat(parts), "prompt") for name, parts in clean.items()},
            {name: _numpy(torch.cat(parts), "prompt", self.model.n_heads) for name, parts in ablated.items()},
        )

    def control(self, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean next-token loss in nats of one batch of spans: clean float32 [span], ablated float32 [span, site].

        :param spans: tokens int32 [span, position], nothing padded.
        :raises MachineError: a number is not finite (the message names the span and the head), or one span alone does
            not fit in memory.
        """
        clean, ablated = zip(*self._fitting_memory(self._control, spans, spans.shape[1]), strict=True)
        return _numpy(torch.cat(clean), "span"), _numpy(torch.cat(ablated), "span", self.model.n_heads)

    @torch.inference_mode()
    def _task(self, prompts: Prompts) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        tokens, last, answers, wrongs = self._tensors(prompts)
        entries, final = self._clean(tokens, last)
        logits = self._unembed(final)
        clean_logprobs = logits.log_softmax(-1)
        clean = measure(logits, clean_logprobs, answers, wrongs)
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in clean}
        for layer, heads in self._passes(tokens):
            ablated = self.logits(entries[layer], layer, heads, last)
            for name, values in measure(ablated, clean_logprobs, answers, wrongs).items():
                columns[name].append(values)
        return clean, {name: torch.cat(values).T for name, values in columns.items()}

    @torch.inference_mode()
    def _control(self, spans: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.from_numpy(spans).long().to(self.model.device)
        entries, final = self._clean(tokens, None)
        columns = [
            self._loss(self._ablated(entries[layer], layer, heads, None), tokens)
            for layer, heads in self._passes(tokens)
        ]
        return self._loss(final, tokens)[0], torch.cat(columns).T

    @torch.inference_mode()
    def logits(self, entry: Entry, layer: int, heads: Sequence[int], last: torch.Tensor) -> torch.Tensor:
        """Logits at one position of each row, with each of some heads of one layer ablated, float32.

        :param entry: the clean run at that layer.
        :param last: the position to read of each row, int64 [row].
        :returns: [head, row, vocabulary].
        """
        final = self._ablated(entry, layer, heads, last)
        return self._unembed(final).view(len(heads), len(last), -1)

    def self_check(self, prompts: Prompts, expected: torch.Tensor, arithmetic: str = "float32") -> float:
        """The largest difference to the slow reference, over heads of the first, the middle and the last layer.

        :param expected: what `check_logits` gave for these prompts, in float32.
        :param arithmetic: what the sweep computes in; a key of SELF_CHECK_LIMITS.
        :returns: the largest |difference| of a logit, divided by max(1, the largest |logit|).
        :raises MachineError: it is above the limit: this model cannot be swept correctly.
        """
        tokens, last, _, _ = self._tensors(prompts)
        with torch.inference_mode():
            entries, final = self._clean(tokens, last)
            # A model that looks ahead would see the padding: rows of full length must not change when they get some.
            longer = torch.nn.functional.pad(tokens, (0, int(tokens.shape[1] < self.model.n_ctx)))
            found = [self._unembed(final), self._unembed(self._clean(longer, last)[1])]
        for layer, heads in check_sites(self.model):
            found += self.logits(entries[layer], layer, heads, last)
        error = (torch.stack(found) - torch.cat([expected[:1], expected])).abs().max().item()
        largest = max(1.0, expected.abs().max().item())
        if not error <= SELF_CHECK_LIMITS[arithmetic] * largest:
            raise MachineError(
                f"self-check failed: the sweep in {arithmetic} differs from one hook per head in float32 by "
                f"{error:.2g} at logits up to {largest:.3g}. {self.model.name!r} cannot be swept correctly on "
                f"{self.model.device}"
            )
        return error / largest

    def _fitting_memory(self, sweep: Callable, rows: Any, positions: int) -> list:
        """`sweep` of the rows in as many equal groups as memory needs; out of memory, once more with half of it."""
        while True:
            n_groups = -(-len(rows) // max(1, self.pass_tokens // positions))
            groups = np.array_split(np.arange(len(rows)), n_groups)
            try:
                return [sweep(rows[group]) for group in groups]
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
            if self.pass_tokens <= positions:
                raise MachineError(
                    f"out of memory on {self.model.device} with a single prompt of {positions} tokens: this model "
                    "needs a larger machine, or --dtype float16"
                )
            self.pass_tokens //= 2
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()

    def _tensors(self, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """tokens, last position, answers and wrongs on the model's device, cut to the longest prompt."""
        columns = (prompts.tokens[:, : prompts.length.max()], prompts.length - 1, prompts.answers, prompts.wrongs)
        tokens, last, answers, wrongs = (torch.from_numpy(c).long().to(self.model.device) for c in columns)
        return tokens, last, answers, wrongs

    def _clean(self, tokens: torch.Tensor, last: torch.Tensor | None) -> tuple[list[Entry], torch.Tensor]:
        """The clean run at each layer, and the residual stream that leaves the last (at `last`, if given)."""
        seen: list[torch.Tensor] = []
        hooks: list[tuple[str, Any]] = [
            (f"blocks.{layer}.{name}", lambda tensor, hook: seen.append(tensor))
            for layer in range(self.model.n_layers)
            for name in ("hook_in", "attn.hook_z")
        ]
        final = self._run(hooks, last, tokens)
        return [Entry(*pair) for pair in zip(seen[::2], seen[1::2], strict=True)], final

    def _ablated(self, entry: Entry, layer: int, heads: Sequence[int], last: torch.Tensor | None) -> torch.Tensor:
        """The residual stream that leaves the last block, with each of some heads of one layer ablated.

        :returns: [head × row, position, width]; with `last` given, [head × row, 1, width].
        """
        n = len(entry.residual)
        z = entry.z.repeat(len(heads), 1, 1, 1)
        for i, head in enumerate(heads):
            z[i * n : (i + 1) * n, :, head] = 0
        blocks = self.model.bridge.blocks
        attention = blocks[layer].attn  # it has run already, and only its output projection is still to come
        with skipped(blocks[:layer]), replaced([attention], lambda *_, **__: (attention.o(z.flatten(2)), None)):
            return self._run(
                [],
                None if last is None else last.repeat(len(heads)),
                entry.residual.repeat(len(heads), 1, 1),
                start_at_layer=layer,
            )

    def _run(self, hooks: list[tuple[str, Any]], last: torch.Tensor | None, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The residual stream that leaves the last block, read at `last`, if given."""
        final: list[torch.Tensor] = []
        if last is not None:
            # What the last block's attention and MLP write is wanted at one position, and broadcast to the others.
            block = f"blocks.{self.model.n_layers - 1}"
            hooks = [*hooks, (f"{block}.attn.hook_z", lambda hidden, hook: _at(hidden, last))]
            if self.model.bridge.blocks[-1].mlp.name:  # else its matrices lie in the block (OPT), which flattens rows
                hooks = [*hooks, (f"{block}.mlp.hook_in", lambda hidden, hook: _at(hidden, last))]
        hooks = [*hooks, (FINAL_NORM, lambda hidden, hook: final.append(hidden))]
        # The unembedding comes later, of fewer positions or in chunks.
        hooks = [*hooks, ("unembed.hook_in", lambda hidden, hook: hidden[:1, :1])]
        self.model.bridge.run_with_hooks(*args, fwd_hooks=hooks, **kwargs)
        return final[0] if last is None else _at(final[0], last)

    def _unembed(self, final: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [row, vocabulary], from what leaves the last block, [row, 1, width].

        The model itself does it, with its final norm, its bias and its soft cap, and without its blocks.
        """
        with skipped(self.model.bridge.blocks):
            logits = self.model.bridge.run_with_hooks(
                final,
                start_at_layer=self.model.n_layers - 1,
                fwd_hooks=[(FINAL_NORM, lambda hidden, hook: final)],
                return_type="logits",
            )
        return logits[:, 0].float()

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
        return torch.equal(unembed(bridge.ln_final(some))[:, 0].float(), self._unembed(some))

    def _loss(self, final: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Mean next-token loss in nats, [head, row], from what leaves the last block, [head × row, position, width]."""
        heads = len(final) // len(tokens)
        targets = tokens[:, 1:].repeat(heads, 1).flatten()
        positions = final[:, :-1].flatten(0, 1).unsqueeze(1)
        size = self.pass_tokens * _width(self.model)  # of a chunk's logits: as large as the widest tensor of a pass
        if self._bare:
            unembed = self.model.bridge.unembed.original_component
            hidden = self.model.bridge.ln_final(positions)[:, 0]
            loss = _chunked_loss(hidden, unembed.weight, unembed.bias, targets, max(1, size // len(hidden)))
        else:
            step = max(1, size // self.model.bridge.cfg.d_vocab)
            chunks = zip(positions.split(step), targets.split(step), strict=True)
            loss = torch.cat(
                [torch.nn.functional.cross_entropy(self._unembed(p), t, reduction="none") for p, t in chunks]
            )
        return loss.view(heads, len(tokens), -1).mean(-1)

    def _passes(self, tokens: torch.Tensor) -> Iterator[tuple[int, range]]:
        """(layer, heads) of each pass through the model, in the order of the sites."""
        n_heads = self.model.n_heads
        n_passes = min(n_heads, -(-n_heads * tokens.numel() // self.pass_tokens))
        step = -(-n_heads // n_passes)
        for layer in range(self.model.n_layers):
            for first in range(0, n_heads, step):
                yield layer, range(first, min(first + step, n_heads))


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


def check_sites(model: Model) -> list[tuple[int, list[int]]]:
    """(layer, heads) that a self-check looks at."""
    heads = sorted({0, model.n_heads // 2, model.n_heads - 1})
    return [(layer, heads) for layer in sorted({0, model.n_layers // 2, model.n_layers - 1})]


@torch.inference_mode()
def check_logits(model: Model, prompts: Prompts) -> torch.Tensor:
    """What the slow reference gives for a self-check: clean, then each of its heads, [1 + head, row, vocabulary].

    Ask before the model is cast to another dtype, and the check compares that dtype with float32.
    """
    tokens = torch.from_numpy(prompts.tokens[:, : prompts.length.max()]).long().to(model.device)
    sites = [layer * model.n_heads + head for layer, heads in check_sites(model) for head in heads]
    rows = np.arange(len(prompts))
    return torch.stack([reference.logits(model, tokens, site)[rows, prompts.length - 1] for site in (None, *sites)])


def skipped(blocks: Any) -> AbstractContextManager[None]:
    """For the time of the call these blocks hand on their input and compute nothing."""
    return replaced(blocks, lambda hidden_states, *args, **kwargs: hidden_states)


@contextmanager
def replaced(modules: Any, forward: Callable) -> Iterator[None]:
    """For the time of the call these modules do something else.

    The entry goes into the module's own `__dict__`: plain assignment would write through to the Hugging Face module.
    """
    for module in modules:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]


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


def _at(hidden: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """Position `last` [row] of each row, [row, 1, …]."""
    return hidden[torch.arange(len(last), device=last.device), last].unsqueeze(1)


def _out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or in torch's allocator for the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _numpy(values: torch.Tensor, row_name: str, n_heads: int = 0) -> np.ndarray:
    """As float32 on the CPU; a number that is not finite is an error that names its place."""
    array = np.ascontiguousarray(values.to("cpu", torch.float32).numpy())
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, *site = bad[0].tolist()
        head = f" with head {site[0] // n_heads}.{site[0] % n_heads} ablated" if site else ""
        raise MachineError(f"{array[tuple(bad[0])]} on {row_name} {row} of the batch{head}")
    return array
