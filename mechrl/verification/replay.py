"""Whether a cache equals the live model: number by number, on cached prompts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mechrl.ablation import MEASURES, NOTHING, Replacement, reference
from mechrl.ablation.forward import Forward
from mechrl.ablation.reference import LIMITS
from mechrl.ablation.sweep import sweep_control, sweep_task
from mechrl.cache.reader import Cache
from mechrl.errors import FileError
from mechrl.models import Model
from mechrl.search.ppo.checkpoint import CheckpointNote
from mechrl.tasks import EVALUATION, TRAIN, Prompts

TOLERANCE = 1e-3  # nats; a float32 cache and another device differ by about 1e-4 at GPT-2's logits
SPOT_ROWS = 8  # prompts or spans of each split on which every head is replayed
SPOT_MEASURES = tuple(name for name in MEASURES if name != "top1")  # a rounding can flip top1


@dataclass(frozen=True)
class Replay:
    """Heads replayed on the evaluation half of a task, or of control.

    :param difference: the largest one between a live and a cached number, over all of them, in nats.
    :param by_head: the same of each head, by site.
    :param effect: mean live damage, or control damage, of each head, in nats, by site.
    :param seconds: what the sweep of a row took, in the spot check.
    """

    difference: float
    by_head: dict[int, float]
    effect: dict[int, float]
    seconds: float


def check_fits(cache: Cache, note: CheckpointNote, model_sha256: str | None = None) -> None:
    """Whether checkpoint, cache and (where given) the loaded model belong together.

    :raises FileError: they do not, the message says in what they differ; or the policy searches with attribution.
    :raises MachineError: the cache is imported.
    """
    cache.check_replayable()
    if note.hints:
        raise FileError(
            "the checkpoint searches with attribution: mechrl bench tries such agents, mechrl-verify does not"
        )
    alike: list[tuple[str, Any, Any]] = [
        ("ablation", note.ablation, cache.attributes["ablation"]),
        ("weight processing", note.weight_processing, cache.attributes["weight_processing"]),
    ]
    if note.policy == "paper":  # has one output per head of its model
        alike += [
            ("model", note.model_sha256, cache.attributes["model_sha256"]),
            ("layers and heads", (note.n_layers, note.n_heads), (cache.n_layers, cache.n_heads)),
        ]
    for what, ours, theirs in alike:
        if ours != theirs:
            raise FileError(f"the checkpoint does not fit {cache.path}: its {what} is {ours}, the cache's {theirs}")
    if model_sha256 is not None and model_sha256 != cache.attributes["model_sha256"]:
        raise FileError(
            f"{cache.path} was built from another model: it says {cache.attributes['model']!r} with fingerprint "
            f"{cache.attributes['model_sha256'][:12]}, the loaded one has {model_sha256[:12]}. Name the model, "
            "and its revision"
        )
    for task in [*note.tasks, *note.hold_out]:
        if task not in cache.tasks:
            raise FileError(
                f"the checkpoint does not fit {cache.path}: it knows task {task!r}, the cache {', '.join(cache.tasks)}"
            )


def check_tokens(cache: Cache, model: Model) -> None:
    """Whether the cache's prompts are ones that the model can read, made with its tokenizer.

    :raises FileError: they are not.
    :raises MachineError: the cache is imported, and has none.
    """
    cache.check_replayable()
    attributes = cache.attributes
    ours = (model.tokenizer_sha256, model.vocabulary.bos is not None)
    if ours != (attributes["tokenizer_sha256"], attributes["prepend_bos"]):
        raise FileError(f"{cache.path} was built with another tokenizer than the model's, or another use of its BOS")
    for path, array in cache.content.arrays.items():
        column = path.rpartition("/")[2]
        if column in ("tokens", "corrupted", "answers", "wrongs") and array.max(initial=0) >= model.bridge.cfg.d_vocab:
            raise FileError(f"{cache.path}: {path} holds ids beyond the model's vocabulary")
        if column == "tokens" and array.shape[1] > model.n_ctx:
            raise FileError(f"{cache.path}: {path} is longer than the model's context of {model.n_ctx}")


def default_tolerance(cache: Cache, model: Model) -> float:
    """How far live and cached numbers may lie apart, in nats.

    For a file in reduced precision ten times the error of its self-check, which saw a few heads on four prompts where
    verification sees thousands of numbers. The file is believed up to the error that a build would have let pass.

    :raises FileError: the file says it was computed in an arithmetic that there is not.
    """
    arithmetic = "tf32" if cache.attributes.get("tf32") else cache.attributes["dtype"]
    if arithmetic not in LIMITS:
        raise FileError(f"{cache.path}: no such arithmetic as {arithmetic!r}")
    if arithmetic == "float32":
        return TOLERANCE
    error = min(abs(float(cache.attributes["self_check_error"])), LIMITS[arithmetic])
    tokens = torch.from_numpy(cache.content.arrays["/control/tokens"][:4]).long().to(model.device)
    return max(TOLERANCE, 10 * error * float(reference.logits(model, tokens).abs().max()))


def replay_control(cache: Cache, forward: Forward, other: Replacement, sites: Sequence[int], rng: Any) -> Replay:
    """Replays some heads on all evaluation spans by the slow reference, and every head on a few spans by the sweep.

    :param other: what the ablation puts in, on all spans.
    :raises FileError: the cache was made with other replacements.
    """
    _check_replacement(cache, "/control", other)
    arrays, split = cache.content.arrays, cache.in_split(None, EVALUATION)
    rows, start = _spot_rows(rng, cache.in_split(None, TRAIN)), time.monotonic()
    clean, ablated = sweep_control(forward, arrays["/control/tokens"][rows], other[rows])
    seconds = (time.monotonic() - start) / len(rows)
    cached, cached_clean = arrays["/control/ablated"], arrays["/control/clean"]
    difference = max(largest(clean - cached_clean[rows]), largest(ablated - cached[rows]))
    spans = arrays["/control/tokens"][split]
    clean = live_control_loss(forward.model, cache, spans)
    by_head, effect = {}, {}
    for site in sites:
        live = live_control_loss(forward.model, cache, spans, site, other[split])
        by_head[site], effect[site] = largest(live - cached[split, site]), float((live - clean).mean())
    return Replay(max(difference, largest(clean - cached_clean[split]), *by_head.values()), by_head, effect, seconds)


def replay_task(
    cache: Cache, forward: Forward, task: str, other: Replacement, sites: Sequence[int], rng: Any
) -> Replay:
    """Replays some heads on all evaluation prompts by the slow reference, and every head on a few by the sweep.

    Clean and ablated numbers are compared apart: what shifts both alike is no damage, but it is a change. The few
    prompts, of both splits, are drawn anew at every call, so that nobody can know which to leave alone.

    :param other: what the ablation puts in, on all prompts of the task.
    :raises FileError: the cache was made with other replacements.
    """
    _check_replacement(cache, f"/tasks/{task}", other)
    arrays, split, prompts = cache.content.arrays, cache.in_split(task, EVALUATION), cache.prompts(task)
    rows, start = _spot_rows(rng, cache.in_split(task, TRAIN)), time.monotonic()
    clean_measures, ablated_measures = sweep_task(forward, prompts[rows], other[rows])
    seconds, difference = (time.monotonic() - start) / len(rows), 0.0
    for name in SPOT_MEASURES:
        stored = arrays[f"/tasks/{task}/ablated/{name}"][rows]
        difference = max(difference, largest(clean_measures[name] - cache.clean(task, name)[rows]))
        difference = max(difference, largest(ablated_measures[name] - stored))
    cached = arrays[f"/tasks/{task}/ablated/logit_diff"]
    clean = live_logit_diff(forward.model, cache, prompts[split])
    by_head, effect = {}, {}
    for site in sites:
        live = live_logit_diff(forward.model, cache, prompts[split], site, other[split])
        by_head[site], effect[site] = largest(live - cached[split, site]), float((clean - live).mean())
    return Replay(
        max(difference, largest(clean - cache.clean(task)[split]), *by_head.values()), by_head, effect, seconds
    )


def largest(differences: np.ndarray) -> float:
    """The largest absolute difference, a million at most; a million where one is not a number."""
    return float(np.nan_to_num(np.abs(differences), nan=1e6).clip(max=1e6).max())


def live_logit_diff(
    model: Model, cache: Cache, prompts: Prompts, site: int | None = None, other: Replacement = NOTHING
) -> np.ndarray:
    """The logit difference of each prompt, clean or with one head ablated, measured now, float32 [prompt]."""
    return np.concatenate(
        [reference.logit_diff(model, prompts[rows], site, other[rows]) for rows in _batches(cache, prompts)]
    )


def live_control_loss(
    model: Model, cache: Cache, spans: np.ndarray, site: int | None = None, other: Replacement = NOTHING
) -> np.ndarray:
    """The mean next-token loss of each span, clean or with one head ablated, measured now, float32 [span]."""
    return np.concatenate(
        [reference.control_loss(model, spans[rows], site, other[rows]) for rows in _batches(cache, spans)]
    )


def _batches(cache: Cache, rows: Prompts | np.ndarray) -> list[slice]:
    return [slice(first, first + cache.batch_size) for first in range(0, len(rows), cache.batch_size)]


def _check_replacement(cache: Cache, place: str, other: Replacement) -> None:
    """:raises FileError: the cache was made with other replacements than its prompts, seed and ablation give."""
    noted = cache.content.attributes.get(place, {}).get("replacement_sha256", "")
    if noted != other.sha256:
        raise FileError(
            f"{cache.path}: {place} was ablated with other replacements than its prompts and its seed give "
            f"(fingerprint {str(noted)[:12]!r}, not {other.sha256[:12]!r})"
        )


def _spot_rows(rng: np.random.Generator, train: np.ndarray) -> np.ndarray:
    """A few rows of each split."""
    splits = (np.flatnonzero(train), np.flatnonzero(~train))
    return np.sort(np.concatenate([rng.permutation(rows)[:SPOT_ROWS] for rows in splits]))
