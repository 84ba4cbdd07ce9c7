"""The slow reference: the whole model once per head or set of heads, with hooks. What the sweep must equal."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from mechrl.ablation import NOTHING, Replacement
from mechrl.ablation.measures import measure, next_token_loss
from mechrl.models import Model
from mechrl.tasks import Prompts


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
