"""The verdict on a checkpoint's picks: faithful, replicated, specific, complete; each with its numbers."""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path

import numpy as np

import mechrl
from mechrl.ablation.forward import Forward
from mechrl.ablation.replacement import ReplacementMaker
from mechrl.cache.reader import Cache
from mechrl.envs.live import replacement_maker
from mechrl.errors import UsageError, check_range, unknown_name
from mechrl.models import Model, load_model
from mechrl.results import library_versions, safe_text
from mechrl.search.ppo.checkpoint import Checkpoint, CheckpointNote, adapt_to_cache
from mechrl.search.ppo.policy_search import policy_search
from mechrl.search.ppo.training import PlanningPolicy
from mechrl.search.protocol import evaluate
from mechrl.tasks import TRAIN, Prompts, TaskFile, join
from mechrl.tasks.fitting import fit_files
from mechrl.verification.fresh import unseen_prompts
from mechrl.verification.live_prompts import LivePrompts
from mechrl.verification.replay import check_fits, check_tokens, default_tolerance, replay_control, replay_task
from mechrl.verification.result import Faithful, Verification, VerifiedTask
from mechrl.verification.task_answers import PickedHeads, most_picked, verify_task

SWEEP_SECONDS = 60  # every head is measured on the fresh prompts where that takes no longer


def verify_checkpoint(
    checkpoint: Path,
    cache: Cache | Path,
    model: str = "mini",
    *,
    revision: str = "",
    device: str = "auto",
    top: int = 3,
    plan_k: int | None = None,
    fresh_batches: int = 4,
    fresh_files: Sequence[TaskFile] = (),
    tolerance: float | None = None,
    sweep_all: bool | None = None,
    joint: bool = False,
    curves: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    on_step: Callable[[float, float, str], None] = lambda done, total, doing: None,
) -> Verification:
    """Verify the agent in a file on the model that a cache was built from.

    :param cache: that cache, or its path.
    :param model: `mini`, a folder, or a name on the hub; `revision` of the latter.
    :param plan_k: heads looked at before each pick; by default as many as the checkpoint says.
    :param fresh_files: fresh prompts for tasks that were built from files, each called like its task.
    :param say: told what a user should know before the result; what is not named here is as in `verify`.
    :raises UsageError: no such file, or fresh prompts of a task that the agent does not know.
    :raises FileError: checkpoint, cache and model do not belong together, or one of them is damaged.
    :raises MachineError: the cache is imported and has no prompts, or the model cannot be run.
    """
    check_range(
        top=(top, 1, 50),
        fresh_batches=(fresh_batches, 1, inf),
        tolerance=(tolerance, 0.0, 1e6),
        seed=(seed, 0, 2**32 - 1),
    )
    agent = Checkpoint.load(checkpoint)
    try:
        opened = cache if isinstance(cache, Cache) else Cache.load(cache)
    except UsageError as error:
        raise UsageError(f"there is no cache at {cache}; mechrl-cache build makes one") from error
    note = adapt_to_cache(agent.policy, agent.note, opened)
    check_range(heads_queried_before_a_pick=(plan_k, 1, opened.n_sites))
    by_task = {file.name: file for file in fresh_files}
    if len(by_task) < len(fresh_files):
        raise UsageError("fresh prompts: two files of one name")
    for name in by_task:
        if name not in [*note.tasks, *note.hold_out]:
            raise unknown_name("task", name, [*note.tasks, *note.hold_out])
    check_fits(opened, note)
    built_from = opened.attributes["model"], opened.attributes.get("model_revision", "")
    if built_from != (model, revision):
        say(f"the cache says it was built from {' of revision '.join(repr(part) for part in built_from if part)}")
    if opened.sha256 != note.cache_sha256:
        say("this is not the very cache that the checkpoint was trained on")
    loaded = load_model(model, device=device, revision=revision, bos=opened.attributes.get("prepend_bos"))
    check_fits(opened, note, loaded.sha256)
    by_task = {file.name: file for file in fit_files(fresh_files, loaded.vocabulary, loaded.n_ctx)}
    result = verify(
        loaded, opened, agent.policy, note, plan_k=note.plan_k if plan_k is None else plan_k, top=top,
        fresh_batches=fresh_batches, tolerance=tolerance, seed=int(seed), fresh_files=by_task, sweep_all=sweep_all,
        joint=joint, curves=curves, on_step=on_step,
    )  # fmt: skip
    return result.model_copy(update={"checkpoint_sha256": agent.sha256})


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
    sweep_all: bool | None = None,
    joint: bool = False,
    curves: bool = False,
    on_step: Callable[[float, float, str], None] = lambda done, total, doing: None,
) -> Verification:
    """Pick on the evaluation episodes, then ablate the picked heads on the live model.

    :param policy: the agent; it gets the task signal on the tasks it was trained on, and none on held-out ones.
    :param plan_k: heads looked at before each pick.
    :param top: how many heads of each task to test.
    :param tolerance: the largest difference between a live and a cached number that passes, in nats; by default
        what the cache's arithmetic calls for, see `default_tolerance`.
    :param seed: of the fresh prompts; another one draws others.
    :param fresh_files: fresh prompts by task, for tasks that were built from files.
    :param sweep_all: whether to measure all heads on the fresh prompts, or the picked ones, the cache's best 30 and 20
        others at random (fewer in a small model, see `rank_limit`); by default all, where that takes less than a minute
        a task.
    :param joint: ablate the picked heads together, too; `curves`: measure necessity and sufficiency of rankings.
    :param on_step: called with the steps done and all of them, and with what is next in words. Control is a step; a
        task has two, its cached prompts and its fresh ones, of which each batch is a part.
    :raises FileError: the cache's tokens are not the model's, or its prompts are of another generator version.
    :raises UsageError: the cache lacks a task, or a task's pools hold too few fresh prompts.
    """
    check_tokens(cache, model)
    tolerance = default_tolerance(cache, model) if tolerance is None else tolerance
    searches = {task: policy_search(policy, note.signals, task, plan_k) for task in [*note.tasks, *note.hold_out]}
    evaluations = {
        task: evaluate(cache, task, search, note.picks, control_weight=note.control_weight)
        for task, search in searches.items()
    }
    picks = {task: [int(site) for site in most_picked(found, top)] for task, found in evaluations.items()}
    forward, rng = Forward(model), np.random.default_rng()
    replacements = replacement_maker(cache, forward)
    n_steps = 1 + 2 * len(picks)
    on_step(0, n_steps, "control text")
    every_pick = sorted({site for sites in picks.values() for site in sites})
    control = replay_control(cache, forward, replacements.for_control(), every_pick, rng)
    tasks: dict[str, VerifiedTask] = {}
    for task, sites in picks.items():
        step = 1 + 2 * len(tasks)
        on_step(step, n_steps, f"cached prompts of {task}")
        replay = replay_task(cache, forward, task, replacements.for_task(task, cache.prompts(task)), sites, rng)
        n, file = fresh_batches * cache.batch_size, (fresh_files or {}).get(task)
        fresh, fresh_from = unseen_prompts(model, cache, task, n, seed, file)
        live = _on_model(cache, task, fresh, forward, replacements)
        swept = replay.seconds * len(fresh) < SWEEP_SECONDS if sweep_all is None else sweep_all
        picked = PickedHeads(cache, note, task, sites, evaluations[task], live, fresh_from, swept, seed)
        on_batch = _part_of_step(on_step, step + 1, n_steps, picked.said)
        tasks[task] = verify_task(picked, control, replay, tolerance, joint, curves, on_batch)
    return _verification(cache, note, seed, tolerance, control.difference, tasks)


def _part_of_step(
    on_step: Callable[[float, float, str], None], step: int, n_steps: int, doing: str
) -> Callable[[int, int], None]:
    """What tells of each batch, given the number of those before it and of all."""
    return lambda batch, batches: on_step(step + batch / batches, n_steps, f"{doing}, batch {batch + 1} of {batches}")


def _on_model(cache: Cache, task: str, fresh: Prompts, forward: Forward, replacements: ReplacementMaker) -> LivePrompts:
    """Fresh prompts with what the ablation puts in on them, which may depend on the training prompts."""
    prompts = cache.prompts(task)
    train = prompts[prompts.split == TRAIN]
    replacement = replacements.for_task(task, join([train, fresh]))[len(train) :]
    return LivePrompts(forward, fresh, replacement, cache.batch_size)


def _verification(
    cache: Cache,
    note: CheckpointNote,
    seed: int,
    tolerance: float,
    control_difference: float,
    tasks: dict[str, VerifiedTask],
) -> Verification:
    faithful = Faithful(
        answer=control_difference <= tolerance and all(task.faithful.answer for task in tasks.values()),
        tolerance=tolerance,
        control_difference=control_difference,
    )
    return Verification(
        command=None,
        mechrl_version=mechrl.__version__,
        library_versions=library_versions(cache.attributes.get("library_versions", "{}")),
        model=safe_text(cache.attributes["model"]),
        model_sha256=safe_text(cache.attributes["model_sha256"]),
        cache_sha256=cache.sha256,
        checkpoint_sha256=None,
        ablation=cache.attributes["ablation"],
        control_weight=note.control_weight,
        seed=seed,
        confirmed=faithful.answer and all(task.confirmed for task in tasks.values() if task.trained),
        faithful=faithful,
        tasks=tasks,
    )
