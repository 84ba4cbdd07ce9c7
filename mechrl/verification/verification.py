"""The verdict on a checkpoint's picks: faithful, replicated, no placebo effect, complete; each with its numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mechrl.ablation.forward import Forward
from mechrl.cache.reader import Cache
from mechrl.envs.live import replacement_maker
from mechrl.intervals import Estimate, bootstrap_means, interval
from mechrl.models import Model
from mechrl.score import best_first, score
from mechrl.search.ppo.checkpoint import CheckpointNote
from mechrl.search.ppo.policy_search import policy_search
from mechrl.search.ppo.training import PlanningPolicy
from mechrl.search.problem import Problem, episode_attribution, episode_scores
from mechrl.search.protocol import Evaluation, evaluate
from mechrl.tasks import EVALUATION, TRAIN, Prompts, TaskFile, join
from mechrl.verification.fresh import known_answers, placebo, unseen_prompts
from mechrl.verification.live_prompts import Live
from mechrl.verification.replay import check_tokens, default_tolerance, replay_control, replay_task
from mechrl.verification.replication import (
    PLACEBO_CLEAN,
    RANDOM_HEADS,
    Completeness,
    HeadTest,
    Measured,
    completeness,
    judge,
    rank_limit,
)
from mechrl.verification.sets import Curves, Joint, joint_damage, measure_curves

SWEEP_SECONDS = 60  # every head is measured on the fresh prompts where that takes no longer


@dataclass(frozen=True)
class HeadResult:
    """One picked head. Means in nats, estimates with their 95 % interval.

    :param cached: its score on the evaluation prompts, in the cache; `live`: the same, measured now.
    :param difference: the largest one between a live and a cached number, over prompts and control spans.
    :param test: its test on fresh prompts.
    :param direct: its direct effect on the fresh prompts, see `ablation.direct`; None where there is none.
    :param elsewhere: its mean damage on the cache's other tasks; None where there are none.
    """

    site: int
    cached: float
    live: float
    difference: float
    test: HeadTest
    direct: Estimate | None
    elsewhere: Estimate | None


@dataclass(frozen=True)
class TaskResult:
    """The picked heads of one task, and the four answers.

    :param trained: whether the agent was trained on the task; only then its answers decide the verdict.
    :param evaluation: what the agent did on the task's evaluation episodes.
    :param difference: the largest one between cache and model.
    :param faithful: whether the cache equals the model on this task.
    :param fresh_from: where the fresh prompts come from, see `verify.fresh.unseen_prompts`.
    :param fresh: the fresh prompts.
    :param known: how many of their answers are answers of training prompts too, and of how many.
    :param clean: mean logit difference of the intact model on them, in nats.
    :param swept: whether all heads were measured on them.
    :param searched: how many are answers of the evaluation prompts, on which the agent searched.
    :param placebo: the test of each head with answers and wrongs permuted among prompts; None where that is none,
        because nothing changes, or the model still does a fifth of the task. `placebo_clean`: its logit difference.
    :param complete: None unless all heads were measured.
    """

    task: str
    trained: bool
    evaluation: Evaluation
    difference: float
    faithful: bool
    fresh_from: str
    fresh: Prompts
    known: tuple[int, int]
    searched: int
    clean: float
    swept: bool
    heads: list[HeadResult]
    placebo: list[HeadTest] | None
    placebo_clean: float | None
    complete: Completeness | None
    joint: list[Joint] | None
    curves: Curves | None

    @property
    def replicates(self) -> bool:
        """Whether every picked head passes its test on fresh prompts."""
        return all(not head.test.why for head in self.heads)

    @property
    def placebo_passed(self) -> list[int]:
        """The sites that pass the placebo's test, which none should."""
        return [h.site for h, test in zip(self.heads, self.placebo or [], strict=False) if not test.why]

    @property
    def rank_limit(self) -> int:
        """How many heads are the top."""
        return rank_limit(self.evaluation.scores.shape[1], len(self.heads))

    @property
    def confirmed(self) -> bool:
        """Whether every answer that was asked for is yes, and the placebo's no."""
        complete = self.complete is None or self.complete.answer
        return self.faithful and self.replicates and not self.placebo_passed and complete


@dataclass(frozen=True)
class Verification:
    """Everything that `mechrl-verify` found."""

    cache: Cache
    note: CheckpointNote
    seed: int
    tasks: list[TaskResult]
    control_difference: float
    tolerance: float

    @property
    def faithful(self) -> bool:
        """Whether the cache equals the model, on control text and on every task."""
        return self.control_difference <= self.tolerance and all(result.faithful for result in self.tasks)

    @property
    def confirmed(self) -> bool:
        """The verdict: the cache equals the model, and every trained task is confirmed."""
        return self.faithful and all(result.confirmed for result in self.tasks if result.trained)


def most_picked(evaluation: Evaluation, top: int) -> np.ndarray:
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
    sweep_all: bool | None = None,
    joint: bool = False,
    curves: bool = False,
    on_step: Callable[[float, float], None] = lambda done, total: None,
) -> Verification:
    """Pick on the evaluation episodes, then ablate the picked heads on the live model.

    :param policy: the agent; it gets the task signal on the tasks it was trained on, and none on held-out ones.
    :param plan_k: heads looked at before each pick.
    :param top: how many heads of each task to test.
    :param tolerance: the largest difference between a live and a cached number that passes, in nats; by default
        what the cache's arithmetic calls for, see `default_tolerance`.
    :param seed: of the fresh prompts; another one draws others.
    :param fresh_files: fresh prompts by task, for tasks that were built from files.
    :param sweep_all: whether to measure all heads on the fresh prompts, or the picked ones and 20 others of their
        layers; by default all, where that takes less than a minute a task.
    :param joint: ablate the picked heads together, too; `curves`: measure necessity and sufficiency of rankings.
    :param on_step: called with the number of tasks done, control being one, and of all.
    :raises FileError: the cache's tokens are not the model's, or its prompts are of another generator version.
    :raises UsageError: the cache lacks a task, or a task's pools hold too few fresh prompts.
    """
    check_tokens(cache, model)
    tolerance = default_tolerance(cache, model) if tolerance is None else tolerance
    names = [*note.tasks, *note.hold_out]
    evaluations = {
        task: evaluate(
            cache,
            task,
            policy_search(policy, note.signals, task, plan_k),
            note.picks,
            control_weight=note.control_weight,
        )
        for task in names
    }
    chosen = {task: [int(s) for s in most_picked(evaluation, top)] for task, evaluation in evaluations.items()}
    forward, rng = Forward(model), np.random.default_rng()
    replacements = replacement_maker(cache, forward)
    on_step(0, 1 + len(names))
    sites = sorted({site for heads in chosen.values() for site in heads})
    control = replay_control(cache, forward, replacements.of_control(), sites, rng)
    cached_control = cache.control_damage[cache.in_split(None, EVALUATION)]
    results = []
    for i, task in enumerate(names):
        on_step(1 + i, 1 + len(names))
        picks, prompts = chosen[task], cache.prompts(task)
        replay = replay_task(cache, forward, task, replacements.of_task(task, prompts), picks, rng)
        fresh, fresh_from = unseen_prompts(
            model, cache, task, fresh_batches * cache.batch_size, seed, (fresh_files or {}).get(task)
        )
        train = prompts[prompts.split == TRAIN]
        live = Live(forward, fresh, replacements.of_task(task, join([train, fresh]))[len(train) :], cache.batch_size)
        swept = replay.seconds * len(fresh) < SWEEP_SECONDS if sweep_all is None else sweep_all
        swept = swept or len(picks) == cache.n_sites
        measured_sites = np.arange(cache.n_sites) if swept else _with_random_heads(cache, picks, seed)
        permuted = placebo(fresh, seed)
        readings = live.readings([fresh] if permuted is None else [fresh, permuted], measured_sites)
        clean = float(readings[0][0].mean())
        placebo_clean = None if permuted is None else float(readings[1][0].mean())
        is_placebo = placebo_clean is not None and placebo_clean < PLACEBO_CLEAN * clean
        of_read = [
            Measured(measured_sites, c[:, None] - a, fresh.group, cached_control[:, measured_sites], clean,
                     note.control_weight)
            for c, a in readings
        ]  # fmt: skip
        tests = judge(of_read[0], picks, swept)
        direct, elsewhere = live.direct(picks), _elsewhere(cache, task, picks)
        scores = cache.scores(task, EVALUATION, note.control_weight)
        heads = [
            HeadResult(
                site=site,
                cached=float(scores[site]),
                live=score(replay.effect[site], control.effect[site], note.control_weight),
                difference=max(replay.of_head[site], control.of_head[site]),
                test=test,
                direct=direct[j] if direct else None,
                elsewhere=elsewhere[j] if elsewhere else None,
            )
            for j, (site, test) in enumerate(zip(picks, tests, strict=True))
        ]
        results.append(
            TaskResult(
                task=task,
                trained=task in note.tasks,
                evaluation=evaluations[task],
                difference=replay.difference,
                faithful=replay.difference <= tolerance,
                fresh_from=fresh_from,
                fresh=fresh,
                known=known_answers(cache, task, fresh),
                searched=known_answers(cache, task, fresh, EVALUATION)[0],
                clean=clean,
                swept=swept,
                heads=heads,
                placebo=judge(of_read[1], picks, swept) if is_placebo else None,
                placebo_clean=placebo_clean,
                complete=completeness(of_read[0], picks) if swept else None,
                joint=joint_damage(live.of_sets, cache.n_sites, picks, fresh.group) if joint else None,
                curves=measure_curves(live.of_sets, cache.n_sites, _rankings(cache, note, evaluations[task], task))
                if curves
                else None,
            )
        )
    return Verification(cache, note, seed, results, control.difference, tolerance)


def _with_random_heads(cache: Cache, picks: Sequence[int], seed: int) -> np.ndarray:
    """The picks and, at random, 20 other heads: of their layers, and where those hold fewer, of the other layers."""
    layers = {site // cache.n_heads for site in picks}
    others = np.random.default_rng(seed).permutation([site for site in range(cache.n_sites) if site not in picks])
    near = np.isin(others // cache.n_heads, list(layers))
    drawn = np.concatenate([others[near], others[~near]])[:RANDOM_HEADS]
    return np.sort(np.concatenate([picks, drawn]).astype(int))


def _elsewhere(cache: Cache, task: str, sites: Sequence[int]) -> list[Estimate] | None:
    """The mean damage of each site on the cache's other tasks."""
    others = [other for other in cache.tasks if other != task]
    if not others:
        return None
    damages = [cache.damage(other)[:, list(sites)] for other in others]
    drawn = np.mean(
        [
            bootstrap_means(d, cache.prompts(o).group, seed=i)
            for i, (d, o) in enumerate(zip(damages, others, strict=True))
        ],
        axis=0,
    )
    low, high = interval(drawn)
    means = np.mean([damage.mean(0) for damage in damages], axis=0)
    return [Estimate(float(m), float(a), float(b)) for m, a, b in zip(means, low, high, strict=True)]


def _rankings(cache: Cache, note: CheckpointNote, evaluation: Evaluation, task: str) -> dict[str, list[int]]:
    """Heads by importance, all of them: as the agent saw them, and as what it competes with does.

    Heads that the agent never looked at follow in the model's order. It searched this task's evaluation episodes,
    attribution and the task's own order are of its training prompts, the static order is of the other tasks'.
    """
    problem = Problem(
        cache, task, tuple(other for other in note.tasks if other != task), control_weight=note.control_weight
    )
    picked = most_picked(evaluation, cache.n_sites).tolist()
    rankings = {"agent": picked + [site for site in range(cache.n_sites) if site not in picked]}

    def by(values: np.ndarray) -> list[int]:
        return best_first(values).tolist()

    if problem.train:
        rankings["static order"] = by(problem.static_mean)
    if cache.attribution(task, True) is not None and cache.control_attribution(True) is not None:
        rankings["attribution"] = by(episode_attribution(cache, task, TRAIN, True, note.control_weight).mean(0))
    rankings["the task's own order"] = by(episode_scores(cache, task, TRAIN, note.control_weight).mean(0))
    return rankings
