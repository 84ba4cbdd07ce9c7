"""The fast sweep: every head of a model ablated on a batch, without running anything twice.

A head at layer l leaves the layers below l untouched. So the clean model runs once; then, for each layer, all its heads
are carried through the rest of the model as one batch that starts from the clean residual stream. One position per
prompt goes through the unembedding for a task, every position for control.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mechrl.ablation import reference
from mechrl.ablation.measures import measure, next_token_loss
from mechrl.errors import MachineError
from mechrl.models import Model
from mechrl.tasks import Prompts

LOGIT_BYTES = 512 * 2**20  # how much the logits of one pass may take
ROWS = {"cpu": 128}  # prompts × heads in a pass: what caches hold on a CPU, what fills a GPU elsewhere
GPU_ROWS = 1024


class Sweep:
    """Sweeps the heads of one model.

    :param model: a folded model in eval mode.
    :param rows: how many rows (prompts × heads) go through the model at once; at least one head's prompts do.
    """

    def __init__(self, model: Model, rows: int | None = None):
        self.model = model
        self.rows = rows or ROWS.get(model.device.type, GPU_ROWS)

    @torch.inference_mode()
    def task(self, prompts: Prompts) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Clean measures float32 [prompt] and ablated ones float32 [prompt, site] of one batch of prompts.

        :raises MachineError: a number is not finite; the message names the prompt and the head.
        """
        tokens, last, answers, wrongs = self._tensors(prompts)
        residuals, logits = self._clean(tokens, last)
        clean_logprobs = logits.log_softmax(-1)
        clean = measure(logits, clean_logprobs, answers, wrongs)
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in clean}
        for layer, heads in self._passes(len(prompts), positions=1):
            ablated = self.logits(residuals[layer], layer, heads, last)
            for i in range(len(heads)):
                for name, values in measure(ablated[i], clean_logprobs, answers, wrongs).items():
                    columns[name].append(values)
        return (
            {name: _numpy(values, "prompt") for name, values in clean.items()},
            {name: _numpy(torch.stack(values, 1), "prompt", self.model.n_heads) for name, values in columns.items()},
        )

    @torch.inference_mode()
    def control(self, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean next-token loss in nats of one batch of spans: clean float32 [span], ablated float32 [span, site].

        :param spans: tokens int32 [span, position], nothing padded.
        :raises MachineError: a number is not finite; the message names the span and the head.
        """
        tokens = torch.from_numpy(spans).long().to(self.model.device)
        residuals, logits = self._clean(tokens, None)
        columns = []
        for layer, heads in self._passes(len(spans), positions=tokens.shape[1]):
            ablated = self.logits(residuals[layer], layer, heads, None)
            columns += [next_token_loss(head_logits, tokens) for head_logits in ablated]
        return (
            _numpy(next_token_loss(logits, tokens), "span"),
            _numpy(torch.stack(columns, 1), "span", self.model.n_heads),
        )

    @torch.inference_mode()
    def logits(
        self, residual: torch.Tensor, layer: int, heads: Sequence[int], last: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits with each of some heads of one layer ablated.

        :param residual: the clean residual stream that enters the layer, [row, position, width].
        :param last: the position to read of each row, int64 [row]; None for all of them.
        :returns: [head, row, vocabulary], or [head, row, position, vocabulary] with `last` None.
        """
        n = len(residual)

        def zero_own_head(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z = z.clone()
            for i, head in enumerate(heads):
                z[i * n : (i + 1) * n, :, head] = 0
            return z

        hooks = [(f"blocks.{layer}.attn.hook_z", zero_own_head)]
        if last is not None:
            hooks.append(_read_at(last.repeat(len(heads))))
        with passed_through(self.model.bridge.blocks[:layer]):
            logits = self.model.bridge.run_with_hooks(
                residual.repeat(len(heads), 1, 1), start_at_layer=layer, fwd_hooks=hooks, return_type="logits"
            )
        logits = logits.view(len(heads), n, *logits.shape[1:])
        return logits if last is None else logits[:, :, 0]

    def self_check(self, prompts: Prompts) -> float:
        """The largest difference to the slow reference, over heads of the first, the middle and the last layer.

        :returns: the largest |difference| of a logit, divided by max(1, the largest |logit|).
        :raises MachineError: it is above 1e-5 (float32): this model cannot be swept correctly.
        """
        prompts = prompts[:4]
        tokens, last, _, _ = self._tensors(prompts)
        rows = torch.arange(len(tokens), device=tokens.device)
        heads = sorted({0, self.model.n_heads // 2, self.model.n_heads - 1})
        residuals, clean = self._clean(tokens, last)
        # A model that looks ahead would see the padding: rows of full length must not change when they get some.
        longer = torch.nn.functional.pad(tokens, (0, int(tokens.shape[1] < self.model.n_ctx)))
        error = (self._clean(longer, last)[1] - clean).abs().max().item()
        largest = max(1.0, clean.abs().max().item())
        for layer in sorted({0, self.model.n_layers // 2, self.model.n_layers - 1}):
            fast = self.logits(residuals[layer], layer, heads, last)
            for i, head in enumerate(heads):
                slow = reference.logits(self.model, tokens, layer * self.model.n_heads + head)[rows, last]
                error = max(error, (fast[i] - slow).abs().max().item())
                largest = max(largest, slow.abs().max().item())
        if not error <= 1e-5 * largest:
            raise MachineError(
                f"self-check failed: the sweep differs from one hook per head by {error:.2g} at logits up to "
                f"{largest:.3g}. {self.model.name!r} cannot be swept correctly on {self.model.device}"
            )
        return error / largest

    def _tensors(self, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """tokens, last position, answers and wrongs on the model's device, cut to the longest prompt."""
        columns = (prompts.tokens[:, : prompts.length.max()], prompts.length - 1, prompts.answers, prompts.wrongs)
        tokens, last, answers, wrongs = (torch.from_numpy(c).long().to(self.model.device) for c in columns)
        return tokens, last, answers, wrongs

    def _clean(self, tokens: torch.Tensor, last: torch.Tensor | None) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The clean residual stream entering each layer, and the clean logits (at `last`, if given)."""
        residuals: list[torch.Tensor] = []
        hooks: list[tuple[str, Any]] = [
            (f"blocks.{layer}.hook_in", lambda residual, hook: residuals.append(residual))
            for layer in range(self.model.n_layers)
        ]
        if last is not None:
            hooks.append(_read_at(last))
        logits = self.model.bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
        return residuals, logits if last is None else logits[:, 0]

    def _passes(self, prompts: int, positions: int) -> Iterator[tuple[int, range]]:
        """(layer, heads) of each pass through the model, in the order of the sites."""
        row_bytes = 4 * positions * self.model.bridge.cfg.d_vocab
        rows = min(self.rows, LOGIT_BYTES // row_bytes)
        step = max(1, rows // prompts)
        for layer in range(self.model.n_layers):
            for first in range(0, self.model.n_heads, step):
                yield layer, range(first, min(first + step, self.model.n_heads))


@contextmanager
def passed_through(blocks: Any) -> Iterator[None]:
    """For the time of the call these blocks hand on their input and compute nothing.

    The entry goes into the block's own `__dict__`: plain assignment would write through to the Hugging Face module.
    """
    for block in blocks:
        block.__dict__["forward"] = lambda hidden_states, *args, **kwargs: hidden_states
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


def _read_at(last: torch.Tensor) -> tuple[str, Any]:
    """A hook that lets only position `last` [row] of each row into the unembedding."""
    rows = torch.arange(len(last), device=last.device)
    return "unembed.hook_in", lambda hidden, hook: hidden[rows, last].unsqueeze(1)


def _numpy(values: torch.Tensor, row_name: str, n_heads: int = 0) -> np.ndarray:
    """As float32 on the CPU; a number that is not finite is an error that names its place."""
    array = values.to("cpu", torch.float32).numpy()
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        row, *site = bad[0].tolist()
        head = f" with head {site[0] // n_heads}.{site[0] % n_heads} ablated" if site else ""
        raise MachineError(f"{array[tuple(bad[0])]} on {row_name} {row} of the batch{head}")
    return array
