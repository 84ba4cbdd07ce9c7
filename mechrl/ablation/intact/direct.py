"""The direct effect of a head: what it writes straight into the logits, through the final norm with its scale kept.

The direct logit attribution of arXiv 2211.00593, for whatever an ablation takes away.
"""

from typing import Any

import numpy as np
import torch

from mechrl.ablation import NOTHING, Replacement
from mechrl.ablation.forward import CleanRun, Forward, finite
from mechrl.ablation.measures import measure
from mechrl.models import Model
from mechrl.models.running import at
from mechrl.tasks import Prompts


def direct_effect(forward: Forward, prompts: Prompts, replacement: Replacement = NOTHING) -> np.ndarray | None:
    """The direct effect of every head on the logit difference of one batch, in nats, float32 [prompt, site].

    What the ablation takes away of a head's output at the position that is read, through the output projection
    and the final norm with its scale kept, times the slope of the logit difference there (with one answer and one
    wrong: the difference of their unembeddings).

    :param replacement: what is put in, on these prompts.
    :returns: None for a model that does more with a head's output than add it to the residual stream.
    :raises MachineError: a number is not finite, or one prompt alone does not fit in memory.
    """
    if not adds_plainly(forward):
        return None

    def direct(rows: np.ndarray) -> torch.Tensor:
        return direct_of_run(forward, forward.clean_prompts(prompts[rows], replacement[rows]), prompts[rows])

    return finite(forward.in_groups(direct, prompts.length), "prompt", forward.named())


@torch.inference_mode()
def adds_plainly(forward: Forward) -> bool:
    """Whether the blocks add to the residual stream what their heads and their MLP write, and nothing else."""
    bridge = forward.model.bridge
    if not bridge.blocks[-1].mlp.name:
        return False
    block = f"blocks.{forward.model.n_layers - 1}"
    seen: list[torch.Tensor] = []
    names = ("hook_in", "attn.hook_z", "mlp.hook_out", "hook_out")
    hooks = [(f"{block}.{name}", lambda tensor, hook: seen.append(tensor)) for name in names]
    bridge.run_with_hooks(forward.model.some_tokens(4)[None], fwd_hooks=hooks)
    before, z, mlp, after = seen
    rest = after - before - bridge.blocks[-1].attn.o(z.flatten(2)) - mlp
    return bool(rest.abs().max() <= 1e-3 * after.abs().max())


def written_alone(block: Any, z: torch.Tensor) -> torch.Tensor:
    """What each head of a block writes by itself, through its part of the output projection and without the bias.

    :param z: [row, position, head, head width].
    :returns: [head, row, position, width].
    """
    n_heads = z.shape[2]
    alone = z.new_zeros(n_heads, *z.shape)
    for head in range(n_heads):
        alone[head, :, :, head] = z[:, :, head]
    bias = block.attn.o(torch.zeros_like(z[:1]).flatten(2))
    written: torch.Tensor = block.attn.o(alone.flatten(3).flatten(0, 1)) - bias
    return written.view(n_heads, len(z), *written.shape[1:])


def unscaled(model: Model, norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The linear map that a norm of the model is before it divides by the scale of its input, [..., width]."""
    linear: torch.Tensor = norm(hidden) - norm(torch.zeros_like(hidden))
    return linear * _scale(model, hidden)


def direct_of_run(forward: Forward, clean: CleanRun, prompts: Prompts) -> torch.Tensor:
    """The direct effect of every head on a clean run's prompts, [prompt, site]; of a model that `adds_plainly`."""
    model, norm, columns = forward.model, forward.model.bridge.ln_final, []
    slope = _slope(forward, norm(clean.final), *forward.tensors(prompts.answers, prompts.wrongs))
    with torch.inference_mode():
        scale = _scale(model, clean.final)[None, :, 0]
        for layer, block in zip(clean.layers, model.bridge.blocks, strict=True):
            taken = at(layer.z if layer.other is None else layer.z - layer.other, clean.end)
            written = written_alone(block, taken).flatten(0, 1)
            kept = unscaled(model, norm, written)  # and then divided by the clean scale
            effect = (kept.view(model.n_heads, len(clean.end), -1).float() / scale * slope).sum(-1)
            columns.append(effect.T)
    return torch.cat(columns, 1)


def _scale(model: Model, hidden: torch.Tensor) -> torch.Tensor:
    """What a norm of the model divides its input by, float32 [..., 1]."""
    cfg = model.bridge.cfg
    hidden = hidden.float()
    centred = hidden if cfg.normalization_type.startswith("RMS") else hidden - hidden.mean(-1, keepdim=True)
    variance: torch.Tensor = centred.pow(2).mean(-1, keepdim=True) + cfg.eps
    return variance.sqrt()


def _slope(forward: Forward, normed: torch.Tensor, answers: torch.Tensor, wrongs: torch.Tensor) -> torch.Tensor:
    """The gradient of the logit difference by what leaves the final norm, float32 [row, width]."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = normed.clone().requires_grad_()
        logits = forward.unembed(normed.clone(), normed=leaf)
        difference = measure(logits, logits.detach(), answers.clone(), wrongs.clone())["logit_diff"]
        return torch.autograd.grad(difference.sum(), leaf)[0][:, 0].float()
