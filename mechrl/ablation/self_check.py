"""The self-check of a build: the fast sweep against one hook per head, on a few heads, before anything is stored."""

import numpy as np
import torch

from mechrl.ablation import NOTHING, Replacement, reference
from mechrl.ablation.forward import Forward
from mechrl.errors import MachineError
from mechrl.models import Model
from mechrl.tasks import Prompts

# The largest error of a logit that passes, divided by max(1, the largest |logit|).
LIMITS = {"float32": 1e-5, "tf32": 0.01, "float16": 0.01, "bfloat16": 0.05}


@torch.inference_mode()
def check_logits(model: Model, prompts: Prompts, replacement: Replacement = NOTHING) -> torch.Tensor:
    """What the slow reference gives, each prompt alone and unpadded: clean, then each head that is looked at.

    [1 + head, row, vocabulary].

    Ask before the model is cast to another dtype, and the check compares that dtype with float32.
    """
    sites = [None, *(site for layer in _sites(model) for site in layer)]

    def alone(row: np.ndarray) -> torch.Tensor:
        return torch.cat([reference.last_logits(model, prompts[row], site, replacement[row]) for site in sites])

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
            logits += forward.logits(clean, forward.singles(sites))
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
