"""The direct effect of a head: what it writes straight into the logits, through the final norm with its scale kept.

The direct logit attribution of arXiv 2211.00593, for whatever an ablation takes away.
"""

from typing import Any

import numpy as np
import torch

from mechrl.ablation.measures import measure
from mechrl.ablation.replacement import NOTHING, Replacement
from mechrl.ablation.sweep import Sweep, finite
from mechrl.models import Model
from mechrl.models.running import at
from mechrl.tasks import Prompts


def direct_effect(sweep: Sweep, prompts: Prompts, replacement: Replacement = NOTHING) -> np.ndarray | None:
    """The direct effect of every head on the logit difference of one batch, in nats, float32 [prompt, site].

    What the ablation takes away of a head's output at the position that is read, through the output projection
    and the final norm with its scale kept, times the slope of the logit difference there (with one answer and one
    wrong: the difference of their unembeddings).

    :param replacement: what is put in, on these prompts.
    :returns: None for a model that does more with a head's output than add it to the residual stream.
    """
    if not sweep.plain:
        return None

    def direct(rows: np.ndarray) -> torch.Tensor:
        return _direct(sweep, prompts[rows], replacement[rows])

    return finite(sweep.fitting_memory(direct, prompts.length), "prompt", sweep.named())


def written_alone(block: Any, z: torch.Tensor) -> torch.Tensor:
    """What each head of a block writes by itself, through its part of the output projection and without the bias.

    :param z: [row, position, head, head width].
    :returns: [head, row, position, width].
    """
    n_heads = z.shape[2]
    alone = z.new_zeros(n_heads, *z.shape)
    for head in range(n_heads):
        alone[head, :, :, head] = z[:, :, head]
    written = block.attn.o(alone.flatten(3).flatten(0, 1)) - block.attn.o(torch.zeros_like(z[:1]).flatten(2))
    return written.unflatten(0, (n_heads, len(z)))


def unscaled(model: Model, norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The linear map that a norm of the model is before it divides by the scale of its input, [..., width]."""
    return (norm(hidden) - norm(torch.zeros_like(hidden))) * _scale(model, hidden)


def _direct(sweep: Sweep, prompts: Prompts, replacement: Replacement) -> torch.Tensor:
    tokens, last, answers, wrongs = sweep.tensors(prompts)
    model, norm, columns = sweep.model, sweep.model.bridge.ln_final, []
    with torch.inference_mode():
        entries, final = sweep.clean_run(tokens, last)
        entries = sweep.with_other(entries, replacement, last, tokens.shape[1])
    slope = _slope(sweep, norm(final), answers, wrongs)
    with torch.inference_mode():
        for entry, block in zip(entries, model.bridge.blocks, strict=True):
            taken = at(entry.z if entry.other is None else entry.z - entry.other, last)
            written = written_alone(block, taken).flatten(0, 1)
            kept = unscaled(model, norm, written)  # and then divided by the clean scale
            effect = (kept.view(model.n_heads, len(last), -1).float() / _scale(model, final)[None, :, 0] * slope).sum(
                -1
            )
            columns.append(effect.T)
    return torch.cat(columns, 1)


def _scale(model: Model, hidden: torch.Tensor) -> torch.Tensor:
    """What a norm of the model divides its input by, float32 [..., 1]."""
    cfg = model.bridge.cfg
    hidden = hidden.float()
    centred = hidden if cfg.normalization_type.startswith("RMS") else hidden - hidden.mean(-1, keepdim=True)
    return (centred.pow(2).mean(-1, keepdim=True) + cfg.eps).sqrt()


def _slope(sweep: Sweep, normed: torch.Tensor, answers: torch.Tensor, wrongs: torch.Tensor) -> torch.Tensor:
    """The gradient of the logit difference by what leaves the final norm, float32 [row, width]."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = normed.clone().requires_grad_()
        logits = sweep.unembed(normed.clone(), normed=leaf)
        difference = measure(logits, logits.detach(), answers.clone(), wrongs.clone())["logit_diff"]
        return torch.autograd.grad(difference.sum(), leaf)[0][:, 0].float()
