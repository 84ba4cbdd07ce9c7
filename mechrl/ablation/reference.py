"""The slow reference, what the sweep must equal: the whole model once per head or set of heads, with hooks.

And the self-check of a build: the sweep against it on a few heads, before anything is stored.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mechrl.ablation import NOTHING, Replacement, tree
from mechrl.ablation.forward import Forward
from mechrl.ablation.measures import measure, next_token_loss
from mechrl.errors import MachineError
from mechrl.models import Model
from mechrl.tasks import Prompts

# The largest error of a logit that passes, divided by max(1, the largest |logit|).
LIMITS = {"float32": 1e-5, "tf32": 0.01, "float16": 0.01, "bfloat16": 0.05}


@torch.inference_mode()
def logits(
    model: Model,
    tokens: torch.Tensor,
    sites: int | Sequence[int] | None = None,
    replacement: Replacement = NOTHING,
    length: np.ndarray | None = None,
) -> torch.Tensor:
    """Logits [row, position, vocabulary], clean or with `hook_z` of one head, or of several, replaced.

    :param length: of each row, int [row]; None where all are as long as `tokens`.
    """
    hooks = []
    for site in [] if sites is None else np.atleast_1d(sites).tolist():
        layer, head = divmod(site, model.n_heads)
        new = _head_output(model, tokens, layer, head, replacement, length)
        hooks.append((f"blocks.{layer}.attn.hook_z", partial(_replace_head, head=head, new=new)))
    read: torch.Tensor = model.bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
    return read


def _replace_head(z: torch.Tensor, hook: Any, head: int, new: torch.Tensor) -> torch.Tensor:
    z = z.clone()
    z[:, :, head] = new
    return z


def _head_output(
    model: Model, tokens: torch.Tensor, layer: int, head: int, replacement: Replacement, length: np.ndarray | None
) -> torch.Tensor:
    """What one head puts out instead, [row, position, head width]; a single zero for nothing."""
    if replacement.sources is not None:
        seen: list[torch.Tensor] = []
        hook = (f"blocks.{layer}.attn.hook_z", lambda z, hook: seen.append(z[:, :, head].clone()))
        sources = torch.from_numpy(replacement.sources[:, : tokens.shape[1]]).long().to(tokens.device)
        model.bridge.run_with_hooks(sources, fwd_hooks=[hook])
        return seen[0]
    if replacement.table is None:
        return torch.zeros(1, device=tokens.device)
    by_back = replacement.table[layer, :, head]
    rows, positions = tokens.shape
    new = np.zeros((rows, positions, by_back.shape[1]), np.float32)
    for row in range(rows):
        for position in range(positions):
            back = (positions if length is None else int(length[row])) - 1 - position
            if back >= 0:
                new[row, position] = by_back[min(back, len(by_back) - 1)]
    return torch.from_numpy(new).to(tokens.device)


def logit_diff(
    model: Model, prompts: Prompts, sites: int | Sequence[int] | None = None, replacement: Replacement = NOTHING
) -> np.ndarray:
    """The logit difference of each prompt of a batch in nats, float32 [prompt]."""
    answers, wrongs = (torch.from_numpy(column).long().to(model.device) for column in (prompts.answers, prompts.wrongs))
    read = last_logits(model, prompts, sites, replacement)
    return measure(read, read.log_softmax(-1), answers, wrongs)["logit_diff"].float().cpu().numpy()


@torch.inference_mode()
def last_logits(
    model: Model, prompts: Prompts, sites: int | Sequence[int] | None = None, replacement: Replacement = NOTHING
) -> torch.Tensor:
    """Logits at the position that is read of each prompt, [prompt, vocabulary]; prompts share a batch if they may."""
    by_row: dict[int, torch.Tensor] = {}
    for rows in model.regimes.split(prompts.length):
        length = prompts.length[rows]
        tokens = torch.from_numpy(prompts.tokens[rows, : length.max()]).long().to(model.device)
        every = logits(model, tokens, sites, replacement[rows], length)
        by_row |= zip(rows.tolist(), every[np.arange(len(rows)), length - 1], strict=True)
    return torch.stack([by_row[row] for row in range(len(prompts))])


def control_loss(
    model: Model, spans: np.ndarray, sites: int | Sequence[int] | None = None, replacement: Replacement = NOTHING
) -> np.ndarray:
    """The mean next-token loss of each span of a batch in nats, float32 [span]."""
    tokens = torch.from_numpy(spans).long().to(model.device)
    return next_token_loss(logits(model, tokens, sites, replacement), tokens).float().cpu().numpy()


@torch.inference_mode()
def check_logits(model: Model, prompts: Prompts, replacement: Replacement = NOTHING) -> torch.Tensor:
    """What the slow reference gives, each prompt alone and unpadded: clean, then each head that is looked at.

    [1 + head, row, vocabulary].

    Ask before the model is cast to another dtype, and the check compares that dtype with float32.
    """
    sites = [None, *(site for layer in _sites(model) for site in layer)]

    def alone(row: np.ndarray) -> torch.Tensor:
        return torch.cat([last_logits(model, prompts[row], site, replacement[row]) for site in sites])

    return torch.stack([alone(np.array([row])) for row in range(len(prompts))], 1)


@torch.inference_mode()
def self_check(
    forward: Forward,
    prompts: Prompts,
    expected: torch.Tensor,
    arithmetic: str = "float32",
    replacement: Replacement = NOTHING,
) -> float:
    """The largest difference to the slow reference, over heads of the first, the middle and the last layer.

    :param expected: what `check_logits` gave for these prompts, in float32.
    :param arithmetic: what the sweep computes in; a key of LIMITS.
    :param replacement: what is put in, on these prompts.
    :returns: the largest absolute difference of a logit, divided by that of a logit, or by 1 if it is smaller.
    :raises MachineError: it is above the limit: this model cannot be swept correctly.
    """
    model = forward.model

    def together(rows: np.ndarray) -> torch.Tensor:
        clean = forward.clean_prompts(prompts[rows], replacement[rows])
        logits = [forward.unembed(clean.final)]
        for sites in _sites(model):
            logits += tree.logits(forward, clean, forward.singles(sites))
        return torch.stack(logits, 1)

    swept = forward.in_groups(together, prompts.length).transpose(0, 1)
    error = (swept - expected).abs().max().item()
    largest = max(1.0, expected.abs().max().item())
    if not error <= LIMITS[arithmetic] * largest:
        raise MachineError(
            f"self-check failed: the sweep in {arithmetic} differs from one hook per head in float32 by "
            f"{error:.2g} at logits up to {largest:.3g}. {model.name!r} cannot be swept correctly on {model.device}"
        )
    return error / largest


def _sites(model: Model) -> list[list[int]]:
    """The sites that are looked at, those of one layer together."""
    heads = sorted({0, model.n_heads // 2, model.n_heads - 1})
    layers = sorted({0, model.n_layers // 2, model.n_layers - 1})
    return [[layer * model.n_heads + head for head in heads] for layer in layers]
