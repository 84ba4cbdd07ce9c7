"""Attribution: every head's damage estimated from a few gradients.

The estimate is the change of the measure to first order, as a head's output z goes to what the ablation puts in its
place, z': Σ (z − z') · ∂measure/∂z over positions (attribution patching, arXiv 2310.10348). One backward pass gives it
for all heads at once. Two variants:

- one-step: the gradient of the clean run, through everything that follows the head, later heads included.
- integrated: every head's output is z' + α (z − z'), with one α for all heads, and the gradients at the midpoints of
  `STEPS` parts of α from 0 to 1 are averaged (integrated gradients, arXiv 1703.01365, over the gates of arXiv
  1905.10650). z is the head's output in that run, so that what one head does through a later one counts for both.
  Summed over heads it is what ablating all of them at once costs, up to the rule for the integral.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from mechrl.ablation import NOTHING, Replacement
from mechrl.ablation.forward import CleanRun, Forward, finite
from mechrl.ablation.measures import measure
from mechrl.tasks import Prompts

STEPS = 5
RUNS = 1 + 2 * STEPS  # that attribution takes beyond the clean run, a backward pass counted as one

# From what leaves the last block [row, position, width] to its gradient, that of what is attributed.
Slope = Callable[[torch.Tensor], torch.Tensor]


def attribute_task(forward: Forward, prompts: Prompts, replacement: Replacement = NOTHING) -> dict[str, np.ndarray]:
    """Estimated damage of one batch of prompts in nats, float32 [prompt, site].

    :param replacement: what the ablation puts in, on these prompts.
    :returns: `attribution`, the one-step estimate, and `attribution_integrated`.
    :raises MachineError: a number is not finite, or one prompt alone does not fit in memory.
    """

    def attribute(rows: np.ndarray) -> dict[str, torch.Tensor]:
        clean = forward.clean_prompts(prompts[rows], replacement[rows], gradients=True)
        return attribute_run(forward, clean, task_slope(forward, prompts[rows]))

    estimates = forward.in_groups(attribute, prompts.length, memory_weight(forward))
    return {name: finite(values, "prompt", forward.named()) for name, values in estimates.items()}


def attribute_control(forward: Forward, spans: np.ndarray, replacement: Replacement = NOTHING) -> dict[str, np.ndarray]:
    """Estimated control damage of one batch of spans in nats per token, float32 [span, site].

    :param spans: tokens int32 [span, position], nothing padded.
    :param replacement: what the ablation puts in, on these spans.
    :returns: `attribution`, the one-step estimate, and `attribution_integrated`.
    :raises MachineError: a number is not finite, or one span alone does not fit in memory.
    """

    def attribute(rows: np.ndarray) -> dict[str, torch.Tensor]:
        clean = forward.clean_spans(spans[rows], replacement[rows], gradients=True)
        return attribute_run(forward, clean, control_slope(forward, clean))

    estimates = forward.in_groups(attribute, np.full(len(spans), spans.shape[1]), memory_weight(forward))
    return {name: finite(values, "span", forward.named()) for name, values in estimates.items()}


def memory_weight(forward: Forward) -> int:
    """How many times the memory of a pass a run with gradients needs.

    A backward pass keeps every layer's tensors. On a CPU a pass is as large as its caches, and so many of them fit.
    """
    return 1 if forward.model.device.type == "cpu" else forward.model.n_layers


def task_slope(forward: Forward, prompts: Prompts) -> Slope:
    """The gradient of the logit difference of some prompts."""
    answers, wrongs = forward.tensors(prompts.answers, prompts.wrongs)

    def slope(final: torch.Tensor) -> torch.Tensor:
        logits = forward.unembed(final)
        difference = measure(logits, logits.detach(), answers, wrongs)["logit_diff"]
        return torch.autograd.grad(difference.sum(), final)[0]

    return slope


def control_slope(forward: Forward, clean: CleanRun) -> Slope:
    """The gradient of minus the mean next-token loss of a run's spans, a few positions of the vocabulary at a time."""
    tokens = clean.tokens

    def slope(final: torch.Tensor) -> torch.Tensor:
        hidden = final[:, :-1].flatten(0, 1).unsqueeze(1).detach()
        targets = tokens[:, 1:].flatten()
        step = max(1, forward.chunk_numbers // forward.model.bridge.cfg.d_vocab)
        slopes = []
        for part, target in zip(torch.split(hidden, step), torch.split(targets, step), strict=True):
            leaf = part.clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(forward.unembed(leaf), target, reduction="sum")
            slopes.append(torch.autograd.grad(loss, leaf)[0])
        gradient = torch.cat(slopes).view(len(tokens), -1, final.shape[-1]) / -(tokens.shape[1] - 1)
        return torch.nn.functional.pad(gradient, (0, 0, 0, 1))

    return slope


def attribute_run(forward: Forward, clean: CleanRun, slope: Slope) -> dict[str, torch.Tensor]:
    """Both estimates, [row, site], on the rows of a clean run that was made with gradients; these are used up."""
    assert clean.graph is not None
    final, outputs = clean.graph
    with torch.inference_mode(False), torch.enable_grad():
        gradients = torch.autograd.grad(final, outputs, slope(final.detach().requires_grad_()))
    forward.on_run(clean, 1, None)
    taken = [layer.z if layer.other is None else layer.z - layer.other for layer in clean.layers]
    one_step = _times(gradients, taken)
    n_sites = forward.model.n_layers * forward.model.n_heads
    steps = [mask_gradients(forward, clean, slope, np.full(n_sites, (k + 0.5) / STEPS)) for k in range(STEPS)]
    return {"attribution": one_step, "attribution_integrated": torch.stack(steps).mean(0)}


def mask_gradients(forward: Forward, clean: CleanRun, slope: Slope, mask: np.ndarray) -> torch.Tensor:
    """The gradient by the mask of heads, [row, site]: what is attributed grows by so much for each head put back.

    Each head's output is other + mask × (z − other), z being what it is in that run: 1 is the intact head and 0 the
    ablated one.

    :param clean: a clean run of the rows, with or without gradients.
    :param mask: from 0 to 1, float [site].
    """
    share = torch.from_numpy(mask.astype(np.float32)).view(forward.model.n_layers, -1).to(forward.model.device)
    gated: list[torch.Tensor] = []
    taken: list[torch.Tensor] = []

    def hook(z: torch.Tensor, hook: object, layer: int) -> torch.Tensor:
        if layer == 0:
            z = z.detach().requires_grad_()  # the others depend on it
        other = clean.layers[layer].other
        away = z if other is None else z - other
        taken.append(away.detach())
        gated.append(z - (1 - share[layer, :, None].to(z.dtype)) * away)
        return gated[-1]

    hooks = [(f"blocks.{layer}.attn.hook_z", partial(hook, layer=layer)) for layer in range(forward.model.n_layers)]
    with torch.inference_mode(False), torch.enable_grad():
        final = forward.run(hooks, clean.read, clean.tokens)
        gradients = torch.autograd.grad(final, gated, slope(final.detach().requires_grad_()))
    forward.on_run(clean, 2, None)
    return _times(gradients, taken)


def _times(gradients: tuple[torch.Tensor, ...], taken: list[torch.Tensor]) -> torch.Tensor:
    pairs = zip(gradients, taken, strict=True)
    return torch.cat([(gradient.float() * z.float()).sum((1, 3)) for gradient, z in pairs], 1)
