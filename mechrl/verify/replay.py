"""Replaying picks on the live model: on the cached prompts number by number, and on fresh prompts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mechrl.ablation import MEASURES, reference
from mechrl.ablation.replacement import NOTHING, Replacement
from mechrl.ablation.sweep import SELF_CHECK_LIMITS, Sweep
from mechrl.agents.checkpoint import CheckpointNote
from mechrl.agents.policy_search import policy_search
from mechrl.agents.ppo import PlanningPolicy
from mechrl.agents.protocol import Evaluation, evaluate
from mechrl.cache.format import FROM_FILE
from mechrl.cache.intervals import LEAST_GROUPS, bootstrap_means, interval
from mechrl.cache.reader import Cache
from mechrl.errors import FileError, UsageError
from mechrl.models import Model
from mechrl.tasks import EVALUATION, TASKS, TRAIN, Prompts, TaskFile, generate, join
from mechrl.tasks.base import tokenize
from mechrl.tasks.files import check_file

TOLERANCE = 1e-3  # nats; a float32 cache and another device differ by about 1e-4 at GPT-2's logits
EVALUATION_PROMPTS = "evaluation prompts"
FRESH_SEED = 20_000_000  # added to the cache's seed
SPOT_ROWS = 8  # prompts or spans of each split on which every head is replayed
SPOT_MEASURES = tuple(name for name in MEASURES if name != "top1")  # a rounding can flip top1


@dataclass(frozen=True)
class HeadResult:
    """One picked head.

    Scores are means over the evaluation split, in nats. `difference` is the largest one between a live and a cached
    number, over prompts and control spans. `fresh_low` and `fresh_high` bound the fresh score at 95 %. `rank` is its
    place among all heads by cached score, 1 being the best.
    """

    head: str
    cached: float
    live: float
    difference: float
    fresh: float
    fresh_low: float
    fresh_high: float
    rank: int
    confirmed: bool


@dataclass(frozen=True)
class TaskResult:
    """The picked heads of one task.

    :param trained: whether the agent was trained on the task; only then its heads decide the verdict.
    :param evaluation: what the agent did on the task's evaluation episodes.
    :param spot_difference: the largest difference between cache and model over all heads, on a few prompts.
    :param fresh_from: where the fresh prompts come from: the task's generator, a file, or the cache's own evaluation
        prompts, which stand in for them where a task has neither.
    :param fresh_groups: how many groups they form; with fewer than 8 nothing is confirmed.
    """

    task: str
    trained: bool
    evaluation: Evaluation
    heads: list[HeadResult]
    spot_difference: float
    fresh_from: str
    fresh_groups: int


@dataclass(frozen=True)
class Verification:
    """Everything that `mechrl-verify` found; `replayed` says whether the cache equals the model."""

    tasks: list[TaskResult]
    control_difference: float
    tolerance: float

    @property
    def replayed(self) -> bool:
        differences = [r.spot_difference for r in self.tasks] + [h.difference for r in self.tasks for h in r.heads]
        return all(difference <= self.tolerance for difference in (self.control_difference, *differences))

    @property
    def confirmed(self) -> bool:
        """The verdict: the cache equals the model, and every head picked on a trained task is confirmed."""
        return self.replayed and all(h.confirmed for r in self.tasks if r.trained for h in r.heads)


def check_fits(cache: Cache, note: CheckpointNote, model_sha256: str | None = None) -> None:
    """Whether checkpoint, cache and (where given) the loaded model belong together.

    :raises FileError: they do not; the message says in what they differ.
    :raises MachineError: the cache is imported.
    """
    cache.check_replayable()
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
            f"{cache.attributes['model_sha256'][:12]}, the loaded one has {model_sha256[:12]}. Name it with --model "
            "and --revision"
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
        raise FileError(f"{cache.path} was built with another tokenizer than the model's")
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
    if arithmetic not in SELF_CHECK_LIMITS:
        raise FileError(f"{cache.path}: no such arithmetic as {arithmetic!r}")
    if arithmetic == "float32":
        return TOLERANCE
    error = min(abs(cache.attributes["self_check_error"]), SELF_CHECK_LIMITS[arithmetic])
    tokens = torch.from_numpy(cache.content.arrays["/control/tokens"][:4]).long().to(model.device)
    return max(TOLERANCE, 10 * error * float(reference.logits(model, tokens).abs().max()))


def top_heads(evaluation: Evaluation, top: int) -> np.ndarray:
    """The heads most often best over the episodes, then those with the highest mean score seen, sites [top]."""
    n_sites = evaluation.scores.shape[1]
    best = evaluation.picked[np.arange(len(evaluation.picked)), evaluation.seen.argmax(1)]
    wins = np.bincount(best, minlength=n_sites)
    times = np.bincount(evaluation.picked.ravel(), minlength=n_sites)
    seen = np.bincount(evaluation.picked.ravel(), evaluation.seen.ravel(), minlength=n_sites) / np.maximum(times, 1)
    seen[times == 0] = -np.inf
    return np.lexsort((-seen, -wins))[: min(top, int((times > 0).sum()))]


def verify(
    model: Model,
    cache: Cache,
    policy: PlanningPolicy,
    note: CheckpointNote,
    *,
    plan_k: int = 1,
    top: int = 3,
    fresh_batches: int = 4,
    tolerance: float | None = None,
    seed: int = 0,
    fresh_files: Mapping[str, TaskFile] | None = None,
    on_task: Callable[[str], None] = lambda task: None,
) -> Verification:
    """Pick on the evaluation episodes, then ablate the picked heads on the live model.

    Every picked head is ablated by the slow reference on all evaluation prompts. The spot check replays all heads by
    the sweep on a few prompts of each split, drawn anew at every call, so that nobody can know which to leave alone.
    Clean and ablated numbers are compared apart: what shifts both alike is no damage, but it is a change.

    :param policy: the agent; it gets the task signal on the tasks it was trained on, and none on held-out ones.
    :param plan_k: heads looked at before each pick.
    :param top: how many heads of each task to replay.
    :param tolerance: the largest difference between a live and a cached number that passes, in nats; by default
        what the cache's arithmetic calls for, see `default_tolerance`.
    :param seed: of the fresh prompts; another one draws others.
    :param fresh_files: fresh prompts by task, for tasks that were built from files.
    :param on_task: called with what is about to be replayed.
    :raises FileError: the cache's tokens are not the model's, or its prompts are of another generator version.
    :raises UsageError: the cache lacks a task, or a task's pools hold too few fresh prompts.
    """
    check_tokens(cache, model)
    tolerance = default_tolerance(cache, model) if tolerance is None else tolerance
    weight = note.control_weight
    rng = np.random.default_rng()
    control = cache.in_split(None, EVALUATION)
    spans = cache.content.arrays["/control/tokens"]
    evaluations = {
        task: evaluate(
            cache, task, policy_search(policy, note.signals, task, plan_k), note.picks, control_weight=weight
        )
        for task in [*note.tasks, *note.hold_out]
    }
    chosen = {task: top_heads(evaluation, top) for task, evaluation in evaluations.items()}
    sites = sorted({int(site) for heads in chosen.values() for site in heads})

    on_task("control")
    sweep = Sweep(model)
    replacements = cache.replacements(sweep)
    other = replacements.of_control()
    _check_replacement(cache, "/control", other)
    rows = _spot_rows(rng, cache.in_split(None, TRAIN))
    cached_loss, cached_ablated = cache.content.arrays["/control/clean"], cache.content.arrays["/control/ablated"]
    clean, ablated = sweep.control(spans[rows], other[rows])
    spot = max(largest(clean - cached_loss[rows]), largest(ablated - cached_ablated[rows]))
    clean = live_control_loss(model, cache, spans[control])
    control_difference = max(spot, largest(clean - cached_loss[control]))
    live_control = {}
    for site in sites:
        live = live_control_loss(model, cache, spans[control], site, other[control])
        control_difference = max(control_difference, largest(live - cached_ablated[control, site]))
        live_control[site] = live - clean

    results = []
    for task, evaluation in evaluations.items():
        on_task(task)
        prompts = cache.prompts(task)
        damage = cache.damage(task)
        cached_ablated = cache.content.arrays[f"/tasks/{task}/ablated/logit_diff"]
        train = cache.in_split(task, TRAIN)
        other = replacements.of_task(task, prompts)
        _check_replacement(cache, f"/tasks/{task}", other)
        rows = _spot_rows(rng, train)
        clean_measures, ablated_measures = sweep.task(prompts[rows], other[rows])
        spot = 0.0
        for name in SPOT_MEASURES:
            stored = cache.content.arrays[f"/tasks/{task}/ablated/{name}"][rows]
            spot = max(spot, largest(clean_measures[name] - cache.clean(task, name)[rows]))
            spot = max(spot, largest(ablated_measures[name] - stored))
        old = cache.in_split(task, EVALUATION)
        file = (fresh_files or {}).get(task)
        if file is not None:
            fresh, fresh_from = file_prompts(model, cache, task, file), str(file.path)
        elif cache.task_attributes(task)["generator"] == FROM_FILE:
            fresh, fresh_from = prompts[old], EVALUATION_PROMPTS
        else:
            fresh = fresh_prompts(model, cache, task, fresh_batches * cache.batch_size, seed)
            fresh_from = "generator"
        other_fresh = replacements.of_task(task, join([prompts[train], fresh]))[int(train.sum()) :]
        groups = len(np.unique(fresh.group))
        order = np.argsort(-cache.scores(task, EVALUATION, weight), kind="stable")
        heads = []
        clean = live_logit_diff(model, cache, prompts[old])
        clean_fresh = live_logit_diff(model, cache, fresh)
        spot = max(spot, largest(clean - cache.clean(task)[old]))
        for site in (int(s) for s in chosen[task]):
            ablated = live_logit_diff(model, cache, prompts[old], site, other[old])
            difference = largest(ablated - cached_ablated[old, site])
            live = clean - ablated
            new = clean_fresh - live_logit_diff(model, cache, fresh, site, other_fresh)
            control_means = bootstrap_means(live_control[site][:, None], np.arange(control.sum()), seed=1)
            low, high = interval(bootstrap_means(new[:, None], fresh.group) - weight * control_means)
            cost = weight * live_control[site].mean()
            heads.append(
                HeadResult(
                    head=cache.head(site),
                    cached=float(damage[old, site].mean() - weight * cache.control_damage[control, site].mean()),
                    live=float(live.mean() - cost),
                    difference=difference,
                    fresh=float(new.mean() - cost),
                    fresh_low=float(low[0]),
                    fresh_high=float(high[0]),
                    rank=int(np.flatnonzero(order == site)[0]) + 1,
                    confirmed=bool(difference <= tolerance and low[0] > 0 and groups >= LEAST_GROUPS),
                )
            )
        results.append(TaskResult(task, task in note.tasks, evaluation, heads, spot, fresh_from, groups))
    return Verification(results, control_difference, tolerance)


def largest(differences: np.ndarray) -> float:
    """The largest absolute difference; infinity where one is not a number."""
    return float(np.nan_to_num(np.abs(differences), nan=np.inf).max())


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


def fresh_prompts(model: Model, cache: Cache, task: str, n: int, seed: int = 0) -> Prompts:
    """`n` prompts of the evaluation half of the pools that the cache does not hold.

    :raises UsageError: the task has no generator here, or its pools hold no more prompts.
    :raises FileError: the cache's prompts come from another version of the generator.
    """
    attributes = cache.task_attributes(task)
    generator = attributes["generator"]
    if generator not in TASKS:
        raise UsageError(f"no generator {generator!r} for fresh prompts of task {task!r}")
    if attributes["generator_version"] != TASKS[generator].version:
        raise FileError(
            f"the prompts of {task!r} are of version {attributes['generator_version']} of their generator, "
            f"and this mechrl has version {TASKS[generator].version}: build the cache again"
        )
    drawn = generate(
        TASKS[generator],
        model.vocabulary,
        n + len(cache.prompts(task)),
        EVALUATION,
        (FRESH_SEED + cache.attributes["seed"] + seed) % 2**32,
    )
    return _unknown(drawn, cache, task)[:n]


def file_prompts(model: Model, cache: Cache, task: str, file: TaskFile) -> Prompts:
    """The prompts of a file that the cache does not hold.

    :raises UsageError: there are none, or they do not fit the model.
    """
    check_file(file, model.vocabulary, model.n_ctx)
    new = _unknown(tokenize(file.name, file.examples, model.vocabulary, EVALUATION), cache, task)
    if not len(new):
        raise UsageError(f"{file.path}: all of its prompts are in {cache.path} already")
    return new


def _unknown(prompts: Prompts, cache: Cache, task: str) -> Prompts:
    old = cache.prompts(task)
    known = {tuple(row[:length]) for row, length in zip(old.tokens.tolist(), old.length, strict=True)}
    rows = zip(prompts.tokens.tolist(), prompts.length, strict=True)
    return prompts[np.array([i for i, (row, n) in enumerate(rows) if tuple(row[:n]) not in known], int)]


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
