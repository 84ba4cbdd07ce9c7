"""Attribution: every head's damage estimated from a few gradients, and what each head attends to and writes.

The estimate is the change of the measure to first order, as a head's output z goes to what the ablation puts in its
place, z': Σ (z − z') · ∂measure/∂z over positions (attribution patching, arXiv 2310.10348). One backward pass gives it
for all heads at once. Two variants:

- one-step: the gradient of the clean run, through everything that follows the head, later heads included.
- integrated: every head's output is z' + α (z − z'), with one α for all heads, and the gradients at the midpoints of
  `STEPS` parts of α from 0 to 1 are averaged (integrated gradients, arXiv 1703.01365, over the gates of arXiv
  1905.10650). z is the head's output in that run, so that what one head does through a later one counts for both.
  Summed over heads it is what ablating all of them at once costs, up to the rule for the integral.
"""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from mechrl.ablation.direct import written_alone
from mechrl.ablation.measures import measure
from mechrl.ablation.replacement import NOTHING, Replacement
from mechrl.ablation.sweep import Sweep, finite
from mechrl.models.running import at
from mechrl.tasks import Prompts

STEPS = 5
SUM_ERROR = 0.01  # of a pattern's rows; reduced precision rounds that much

# From what leaves the last block [row, position, width] to its gradient, that of what is attributed.
Slope = Callable[[torch.Tensor], torch.Tensor]


def attribute_task(sweep: Sweep, prompts: Prompts, replacement: Replacement = NOTHING) -> dict[str, np.ndarray]:
    """Estimated damage of one batch of prompts in nats, float32 [prompt, site].

    :param replacement: what the ablation puts in, on these prompts.
    :returns: `attribution`, the one-step estimate, and `attribution_integrated`.
    :raises MachineError: a number is not finite, or one prompt alone does not fit in memory.
    """

    def attribute(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, last, answers, wrongs = sweep.tensors(prompts[rows])

        def slope(final: torch.Tensor) -> torch.Tensor:
            logits = sweep.unembed(final)
            damage = measure(logits, logits.detach(), answers, wrongs)["logit_diff"]
            return torch.autograd.grad(damage.sum(), final)[0]

        return _attribute(sweep, tokens, last, replacement[rows], slope, read=last)

    return _collect(sweep, attribute, prompts.length, "prompt")


def attribute_control(sweep: Sweep, spans: np.ndarray, replacement: Replacement = NOTHING) -> dict[str, np.ndarray]:
    """Estimated control damage of one batch of spans in nats per token, float32 [span, site].

    :param spans: tokens int32 [span, position], nothing padded.
    :param replacement: what the ablation puts in, on these spans.
    :returns: `attribution`, the one-step estimate, and `attribution_integrated`.
    :raises MachineError: a number is not finite, or one span alone does not fit in memory.
    """

    def attribute(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.from_numpy(spans[rows]).long().to(sweep.model.device)
        last = torch.full((len(tokens),), tokens.shape[1] - 1, device=tokens.device)
        return _attribute(sweep, tokens, last, replacement[rows], partial(_gain_slope, sweep, tokens), read=None)

    return _collect(sweep, attribute, np.full(len(spans), spans.shape[1]), "span")


def _collect(sweep: Sweep, attribute: Callable, length: np.ndarray, row_name: str) -> dict[str, np.ndarray]:
    # A backward pass keeps every layer's tensors. On a CPU a pass is as large as its caches, and so many of them fit.
    weight = 1 if sweep.model.device.type == "cpu" else sweep.model.n_layers
    estimates = sweep.fitting_memory(attribute, length, weight)
    names = ("attribution", "attribution_integrated")
    return {name: finite(values, row_name, sweep.named()) for name, values in zip(names, estimates, strict=True)}


def _gain_slope(sweep: Sweep, tokens: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """The gradient of minus the mean next-token loss, a few positions of the vocabulary at a time."""
    hidden = final[:, :-1].flatten(0, 1).unsqueeze(1).detach()
    targets = tokens[:, 1:].flatten()
    step = max(1, sweep.chunk_numbers // sweep.model.bridge.cfg.d_vocab)
    slopes = []
    for part, target in zip(hidden.split(step), targets.split(step), strict=True):
        leaf = part.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(sweep.unembed(leaf), target, reduction="sum")
        slopes.append(torch.autograd.grad(loss, leaf)[0])
    slope = torch.cat(slopes).view(len(tokens), -1, final.shape[-1]) / -(tokens.shape[1] - 1)
    return torch.nn.functional.pad(slope, (0, 0, 0, 1))


def _attribute(
    sweep: Sweep,
    tokens: torch.Tensor,
    last: torch.Tensor,
    replacement: Replacement,
    slope: Slope,
    read: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both estimates, [row, site].

    :param last: the last position of each row.
    :param read: the position that `slope` reads, if it reads one alone.
    """
    with torch.no_grad():
        entries = sweep.with_other(sweep.clean_run(tokens, read)[0], replacement, last, tokens.shape[1])
    others = [entry.other for entry in entries]
    one_step = _times(*_gradients(sweep, tokens, read, slope, others, 1.0))
    steps = [_times(*_gradients(sweep, tokens, read, slope, others, (k + 0.5) / STEPS)) for k in range(STEPS)]
    return one_step, torch.stack(steps).mean(0)


def _gradients(
    sweep: Sweep, tokens: torch.Tensor, read: torch.Tensor | None, slope: Slope, others: list, share: float
) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
    """With every head's output at other + share × (z − other): the gradient by it, and z − other, of each layer.

    Both [row, position, head, head width].

    :param others: what an ablation puts in, by layer; None for zero.
    """
    gated: list[torch.Tensor] = []
    taken: list[torch.Tensor] = []

    def hook(z: torch.Tensor, hook: object, layer: int) -> torch.Tensor:
        if layer == 0:
            z = z.detach().requires_grad_()  # the others depend on it
        away = z if others[layer] is None else z - others[layer]
        taken.append(away.detach())
        gated.append(z - (1 - share) * away)
        return gated[-1]

    hooks = [(f"blocks.{layer}.attn.hook_z", partial(hook, layer=layer)) for layer in range(sweep.model.n_layers)]
    with torch.inference_mode(False), torch.enable_grad():
        final = sweep.run(hooks, read, tokens)
        return torch.autograd.grad(final, gated, slope(final.detach().requires_grad_())), taken


def _times(gradients: tuple[torch.Tensor, ...], taken: list[torch.Tensor]) -> torch.Tensor:
    pairs = zip(gradients, taken, strict=True)
    return torch.cat([(gradient.float() * z.float()).sum((1, 3)) for gradient, z in pairs], 1)


def shows_patterns(sweep: Sweep) -> bool:
    """Whether `hook_pattern` is, in every layer, what mixes the positions of `hook_z`.

    Its rows must sum to one, and when they are changed so that all attend to the first position alone, z must be the
    same at all positions.
    """
    sites = [f"blocks.{layer}.attn." for layer in range(sweep.model.n_layers)]
    if any(site + "hook_pattern" not in sweep.model.bridge.hook_dict for site in sites):
        return False
    tokens = sweep.model.some_tokens(8)[None]
    sums: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def attend_to_the_first(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        sums.append(pattern.float().sum(-1))
        changed = torch.zeros_like(pattern)
        changed[..., 0] = 1
        return changed

    hooks: list[tuple[str, Callable]] = [(site + "hook_pattern", attend_to_the_first) for site in sites]
    hooks += [(site + "hook_z", lambda z, hook: outputs.append(z.float())) for site in sites]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens warns of what some families do with a changed pattern
        sweep.run(hooks, None, tokens)
    shape = (1, sweep.model.n_heads, 8)
    return [s.shape for s in sums] == [shape] * len(sites) and all(
        bool((s - 1).abs().max() <= SUM_ERROR) and bool((z - z[:, :1]).abs().max() <= SUM_ERROR * z.abs().max())
        for s, z in zip(sums, outputs, strict=True)
    )


@torch.inference_mode()
def head_features(sweep: Sweep, prompts: Prompts) -> dict[str, np.ndarray]:
    """What the heads of the intact model do on one batch of prompts, float32 [prompt, site] each.

    Of a model that `shows_patterns`, over the queries up to the position that is read:

    - `attention_entropy`: of a query's attention, in nats, mean over queries.
    - `previous_token`: attention to the token before, mean over all queries but the first; 0 where there is no other.
    - `bos_attention`: attention to the first position, mean likewise.

    Of a model that adds to the residual stream just what its heads write:

    - `output_norm`: Euclidean norm of what a head writes at the position that is read.
    """
    patterns = shows_patterns(sweep)
    features = sweep.fitting_memory(lambda rows: _features(sweep, prompts[rows], patterns), prompts.length)
    return {name: finite(values, "prompt", sweep.named()) for name, values in features.items()}


def _features(sweep: Sweep, prompts: Prompts, patterns: bool) -> dict[str, torch.Tensor]:
    tokens, last, _, _ = sweep.tensors(prompts)
    query = torch.arange(tokens.shape[1], device=last.device)
    read = (query <= last[:, None]).float()[:, None]  # [row, 1, query]
    later = read * (query > 0)
    columns: dict[str, list[torch.Tensor]] = {"attention_entropy": [], "previous_token": [], "bos_attention": []}

    def keep(pattern: torch.Tensor, hook: object) -> None:
        pattern = pattern.float()
        previous = torch.nn.functional.pad(pattern.diagonal(-1, -2, -1), (1, 0))
        for name, values, counted in (
            ("attention_entropy", torch.special.entr(pattern).sum(-1), read),
            ("previous_token", previous, later),
            ("bos_attention", pattern[..., 0], later),
        ):
            columns[name].append((values * counted).sum(-1) / counted.sum(-1).clamp(min=1))

    layers = range(sweep.model.n_layers)
    outputs: list[torch.Tensor] = []
    hooks: list[tuple[str, Callable]] = [(f"blocks.{layer}.attn.hook_pattern", keep) for layer in layers]
    hooks = hooks if patterns else []
    hooks += [(f"blocks.{layer}.attn.hook_z", lambda z, hook: outputs.append(at(z, last))) for layer in layers]
    sweep.run(hooks, last, tokens)
    if sweep.plain:
        pairs = zip(sweep.model.bridge.blocks, outputs, strict=True)
        columns["output_norm"] = [written_alone(block, z).float().norm(dim=-1)[..., 0].T for block, z in pairs]
    return {name: torch.cat(values, 1) for name, values in columns.items() if values}
