"""The fast sweep: every head of a model, or every set of heads, ablated on a batch.

For a task one position per prompt goes through the last block's MLP and the unembedding. Control needs every position,
and takes the vocabulary in chunks, because its logits would be far larger than the model.
"""

from collections.abc import Sequence

import numpy as np
import torch

from mechrl.ablation import NOTHING, Replacement
from mechrl.ablation.forward import CleanRun, Forward, finite
from mechrl.ablation.measures import measure
from mechrl.ablation.tree import Tree
from mechrl.tasks import Prompts

Measures = dict[str, np.ndarray]


def sweep_task(
    forward: Forward, prompts: Prompts, replacement: Replacement = NOTHING, sets: np.ndarray | None = None
) -> tuple[Measures, Measures]:
    """Clean measures float32 [prompt] and ablated ones float32 [prompt, set] of one batch of prompts.

    :param replacement: what is put in, on these prompts.
    :param sets: which heads are ablated together, bool [set, site]; by default every head alone, so that a set is a
        site.
    :raises MachineError: a number is not finite (the message names the prompt and the heads), or one prompt alone does
        not fit in memory.
    """
    return sweep_readings(forward, prompts, [prompts], replacement, sets)[0]


def sweep_readings(
    forward: Forward,
    prompts: Prompts,
    readings: Sequence[Prompts],
    replacement: Replacement = NOTHING,
    sets: np.ndarray | None = None,
) -> list[tuple[Measures, Measures]]:
    """What `sweep_task` gives, for several answers and wrongs on the same tokens; the model runs once.

    :param readings: the same prompts, each with answers and wrongs of its own.
    """
    sets = forward.singles() if sets is None else sets

    def sweep(rows: np.ndarray) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
        clean = forward.clean_prompts(prompts[rows], replacement[rows])
        return ablated_measures(forward, clean, [reading[rows] for reading in readings], sets)

    return [
        (
            {name: finite(values, "prompt") for name, values in clean.items()},
            {name: finite(values, "prompt", forward.named(sets)) for name, values in ablated.items()},
        )
        for clean, ablated in forward.in_groups(sweep, prompts.length)
    ]


def sweep_control(
    forward: Forward, spans: np.ndarray, replacement: Replacement = NOTHING, sets: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean next-token loss in nats of one batch of spans: clean float32 [span], ablated float32 [span, set].

    :param spans: tokens int32 [span, position], nothing padded.
    :param replacement: what is put in, on these spans.
    :param sets: as in `sweep_task`.
    :raises MachineError: a number is not finite (the message names the span and the heads), or one span alone does not
        fit in memory.
    """
    sets = forward.singles() if sets is None else sets

    def sweep(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return ablated_loss(forward, forward.clean_spans(spans[rows], replacement[rows]), sets)

    clean, ablated = forward.in_groups(sweep, np.full(len(spans), spans.shape[1]))
    return finite(clean, "span"), finite(ablated, "span", forward.named(sets))


def clean_measures(forward: Forward, prompts: Prompts) -> tuple[Measures, np.ndarray]:
    """Measures of the intact model on one batch, float32 [prompt], and the most probable next token, int [prompt]."""

    @torch.inference_mode()
    def read(rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        logits = forward.unembed(forward.clean_prompts(prompts[rows]).final)
        answers, wrongs = forward.tensors(prompts.answers[rows], prompts.wrongs[rows])
        return measure(logits, logits.log_softmax(-1), answers, wrongs), logits.argmax(-1)

    measures, said = forward.in_groups(read, prompts.length)
    return {name: finite(values, "prompt") for name, values in measures.items()}, said.cpu().numpy()


@torch.inference_mode()
def ablated_measures(
    forward: Forward, clean: CleanRun, readings: Sequence[Prompts], sets: np.ndarray
) -> list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Clean measures [prompt] and ablated ones [prompt, set], for each reading of a clean run's prompts."""
    logits = forward.unembed(clean.final)
    clean_logprobs = logits.log_softmax(-1)
    asked = [forward.tensors(reading.answers, reading.wrongs) for reading in readings]
    intact = [measure(logits, clean_logprobs, *answers) for answers in asked]
    ablated = [
        {name: torch.empty(len(clean.tokens), len(sets), device=logits.device) for name in names} for names in intact
    ]
    for chosen, final in Tree(sets, forward.model.n_layers).ablated(forward, clean):
        changed = forward.unembed(final).view(len(chosen), len(clean.tokens), -1)
        for columns, answers in zip(ablated, asked, strict=True):
            for name, values in measure(changed, clean_logprobs, *answers).items():
                columns[name][:, chosen] = values.T
    return list(zip(intact, ablated, strict=True))


@torch.inference_mode()
def ablated_loss(forward: Forward, clean: CleanRun, sets: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean next-token loss of a clean run's spans in nats: clean [span], ablated [span, set]."""
    bare = _ends_bare(forward)
    ablated = torch.empty(len(clean.tokens), len(sets), device=clean.tokens.device)
    for chosen, final in Tree(sets, forward.model.n_layers).ablated(forward, clean):
        ablated[:, chosen] = _loss(forward, final, clean.tokens, bare).T
    return _loss(forward, clean.final, clean.tokens, bare)[0], ablated


def _ends_bare(forward: Forward) -> bool:
    """Whether nothing but the final norm and one matrix follows the blocks: no soft cap, no scaling.

    Then control can take the vocabulary a slice at a time, for all positions at once, which is faster than all of it
    for a few positions.
    """
    bridge = forward.model.bridge
    matrix = bridge.unembed.original_component
    if not isinstance(matrix, torch.nn.Linear) or matrix.bias is None:
        return False
    some = torch.randn(4, 1, bridge.cfg.d_model, generator=torch.Generator().manual_seed(0))
    some = some.to(forward.model.device, matrix.weight.dtype)
    return torch.equal(matrix(bridge.ln_final(some))[:, 0].float(), forward.unembed(some))


def _loss(forward: Forward, final: torch.Tensor, tokens: torch.Tensor, bare: bool) -> torch.Tensor:
    """Mean next-token loss in nats, [set, row], from what leaves the last block, [set × row, position, width]."""
    n_sets = len(final) // len(tokens)
    targets = tokens[:, 1:].repeat(n_sets, 1).flatten()
    positions = final[:, :-1].flatten(0, 1).unsqueeze(1)
    bridge, size = forward.model.bridge, forward.chunk_numbers
    if bare:
        matrix = bridge.unembed.original_component
        hidden = bridge.ln_final(positions)[:, 0]
        loss = _chunked_loss(hidden, matrix.weight, matrix.bias, targets, max(1, size // len(hidden)))
    else:
        step = max(1, size // bridge.cfg.d_vocab)
        chunks = zip(torch.split(positions, step), torch.split(targets, step), strict=True)
        entropy = torch.nn.functional.cross_entropy
        loss = torch.cat([entropy(forward.unembed(p), target, reduction="none") for p, target in chunks])
    return loss.view(n_sets, len(tokens), -1).mean(-1)


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
