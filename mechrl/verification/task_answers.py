"""The four answers for the picked heads of one task, each with its numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.intervals import Estimate, bootstrap_means, interval
from mechrl.results import safe_text
from mechrl.score import best_first, score
from mechrl.search.ppo.checkpoint import CheckpointNote
from mechrl.search.problem import Problem, episode_attribution, episode_scores
from mechrl.search.protocol import Evaluation
from mechrl.tasks import EVALUATION, TRAIN
from mechrl.verification.fresh import known_answers, placebo
from mechrl.verification.live_prompts import LivePrompts
from mechrl.verification.replay import Replay
from mechrl.verification.replication import (
    BEST,
    PLACEBO_CLEAN,
    RANDOM_HEADS,
    Measured,
    completeness,
    head_tests,
    random_tests,
    rank_limit,
)  # fmt: skip
from mechrl.verification.result import (
    EVALUATION_PROMPTS,
    FaithfulTask,
    HeadTest,
    Replicates,
    Specific,
    VerifiedHead,
    VerifiedTask,
    tells_apart,
)
from mechrl.verification.sets import joint_damage, measure_curves


@dataclass(frozen=True)
class PickedHeads:
    """The picked heads of one task, and the fresh prompts on which they are tested.

    :param evaluation: what the agent did on the task's evaluation episodes.
    :param fresh_from: where the prompts come from, see `fresh.unseen_prompts`.
    :param sweep_all: whether all heads are to be measured on the fresh prompts.
    """

    cache: Cache
    note: CheckpointNote
    task: str
    picks: list[int]
    evaluation: Evaluation
    live: LivePrompts
    fresh_from: str
    sweep_all: bool
    seed: int

    @property
    def limit(self) -> int:
        """How many heads are the top."""
        return rank_limit(self.cache.n_sites, len(self.picks))

    @cached_property
    def best(self) -> list[int]:
        """The cache's best heads for the task, three times as many as are the top, sites, the best first.

        By score on all of its prompts. Beside them a picked head has about the place that it would have among all
        heads: one that is not measured would have to overtake two thirds of them on other prompts to be in the top.
        """
        cache, weight = self.cache, self.note.control_weight
        scores = score(cache.damage(self.task).mean(0), cache.control_damage.mean(0), weight)
        return [int(site) for site in best_first(scores)[: BEST * self.limit]]

    @cached_property
    def others(self) -> list[int]:
        """Twenty heads at random, or as many as there are, that are neither picked nor among the best, sites."""
        known = {*self.picks, *self.best}
        rest = [site for site in range(self.cache.n_sites) if site not in known]
        return sorted(np.random.default_rng(self.seed).permutation(rest)[:RANDOM_HEADS].astype(int).tolist())

    @cached_property
    def measured(self) -> np.ndarray:
        """The heads that are measured on the fresh prompts, int [column]."""
        return np.arange(self.cache.n_sites) if self.sweep_all else np.unique([*self.picks, *self.best, *self.others])

    @property
    def swept(self) -> bool:
        """Whether those are all heads, as they are anyway in a model of few."""
        return len(self.measured) == self.cache.n_sites

    @property
    def said(self) -> str:
        """What is measured, for whom waits."""
        parts = f"{len(self.picks)} tested, the {len(self.best)} best, {len(self.others)} random others"
        heads = f"all {self.cache.n_sites} heads" if self.swept else f"{len(self.measured)} heads ({parts})"
        prompts = EVALUATION_PROMPTS if self.fresh_from == EVALUATION_PROMPTS else "fresh prompts"
        return f"{prompts} of {self.task}: {heads}"

    @property
    def names(self) -> list[str]:
        """The names of all sites."""
        return [self.cache.head(site) for site in range(self.cache.n_sites)]


def verify_task(
    heads: PickedHeads,
    control: Replay,
    replay: Replay,
    tolerance: float,
    joint: bool,
    curves: bool,
    on_batch: Callable[[int, int], None] = lambda batch, batches: None,
) -> VerifiedTask:
    """The four answers for a task, and what its heads do together.

    :param on_batch: see `LivePrompts.ablate_each`.
    """
    cache, picks, fresh = heads.cache, heads.picks, heads.live.prompts
    measured, permuted, permuted_clean = _measure(heads, on_batch)
    tests, placebos = head_tests(measured, picks, heads.limit), None
    if permuted is not None and permuted_clean is not None and permuted_clean < PLACEBO_CLEAN * measured.clean:
        placebos = head_tests(permuted, picks, heads.limit)
    faithful = FaithfulTask(answer=replay.difference <= tolerance, difference=replay.difference)
    replicates = Replicates(
        answer=all(not test.why for test in tests),
        fresh_from=safe_text(heads.fresh_from),
        prompts=len(fresh),
        groups=len(np.unique(fresh.group)),
        known_answers=known_answers(cache, heads.task, fresh),
        clean=measured.clean,
        swept=heads.swept,
        searched_answers=known_answers(cache, heads.task, fresh, EVALUATION)[0],
        measured=len(measured.sites),
        best=len(heads.best),
        rank_limit=heads.limit,
    )
    specific = _specific(heads, measured, placebos, permuted_clean)
    complete = completeness(measured, picks, heads.names) if heads.swept else None
    answers = (faithful.answer, replicates.answer, specific.answer, complete and complete.answer)
    ablate = heads.live.ablate_sets
    return VerifiedTask(
        trained=heads.task in heads.note.tasks,
        confirmed=all(answer is not False for answer in answers),
        runs=float(heads.evaluation.runs[:, -1].mean()),
        search=heads.evaluation.summary(),
        faithful=faithful,
        replicates=replicates,
        specific=specific,
        complete=complete,
        heads=_verified_heads(heads, control, replay, tests, placebos),
        joint=joint_damage(ablate, heads.names, picks, fresh.group) if joint else None,
        curves=measure_curves(ablate, heads.names, _rankings(heads)) if curves else None,
    )


def _measure(
    heads: PickedHeads, on_batch: Callable[[int, int], None]
) -> tuple[Measured, Measured | None, float | None]:
    """Damages on the fresh prompts; the same with the answers permuted, and the clean logit difference there."""
    cache, fresh, sites = heads.cache, heads.live.prompts, heads.measured
    control = cache.control_damage[cache.in_split(None, EVALUATION)][:, sites]
    permuted = placebo(fresh, heads.seed)
    measures = heads.live.ablate_each([fresh] if permuted is None else [fresh, permuted], sites, on_batch)
    clean = float(measures[0][0].mean())
    measured = [
        Measured(sites, intact[:, None] - ablated, fresh.group, control, clean, heads.note.control_weight)
        for intact, ablated in measures
    ]
    if permuted is None:
        return measured[0], None, None
    return measured[0], measured[1], float(measures[1][0].mean())


def _specific(
    heads: PickedHeads, measured: Measured, placebos: Sequence[HeadTest] | None, clean: float | None
) -> Specific:
    """:param clean: mean logit difference with the answers permuted."""

    def passing(sites: Sequence[int], tests: Sequence[HeadTest]) -> list[str]:
        return [heads.cache.head(site) for site, test in zip(sites, tests, strict=True) if not test.why]

    passed = [] if placebos is None else passing(heads.picks, placebos)
    random_passed = passing(heads.others, random_tests(measured, heads.others, heads.limit))
    random_failed = (len(heads.others) - len(random_passed), len(heads.others))
    answers = [None if placebos is None else not passed, tells_apart(*random_failed)]
    return Specific(
        answer=None if answers == [None, None] else False not in answers,
        permuted=placebos is not None,
        passed=passed,
        clean=clean,
        random_failed=random_failed,
        random_passed=random_passed,
    )


def _verified_heads(
    heads: PickedHeads, control: Replay, replay: Replay, tests: Sequence[HeadTest], placebos: Sequence[HeadTest] | None
) -> list[VerifiedHead]:
    weight = heads.note.control_weight
    scores = heads.cache.scores(heads.task, EVALUATION, weight)
    direct, elsewhere = heads.live.direct_effects(heads.picks), _elsewhere(heads.cache, heads.task, heads.picks)
    return [
        VerifiedHead(
            **dict(test),
            head=heads.cache.head(site),
            cached=float(scores[site]),
            live=score(replay.effect[site], control.effect[site], weight),
            difference=max(replay.by_head[site], control.by_head[site]),
            direct=direct[i] if direct else None,
            elsewhere=elsewhere[i] if elsewhere else None,
            answer=not test.why,
            placebo=placebos[i] if placebos else None,
        )
        for i, (site, test) in enumerate(zip(heads.picks, tests, strict=True))
    ]


def most_picked(evaluation: Evaluation, top: int) -> np.ndarray:
    """The heads most often best over the episodes, then those with the highest mean score seen, sites [top]."""
    n_sites = evaluation.scores.shape[1]
    best = evaluation.picked[np.arange(len(evaluation.picked)), evaluation.seen.argmax(1)]
    wins = np.bincount(best, minlength=n_sites)
    times = np.bincount(evaluation.picked.ravel(), minlength=n_sites)
    seen = np.bincount(evaluation.picked.ravel(), evaluation.seen.ravel(), minlength=n_sites) / np.maximum(times, 1)
    seen[times == 0] = -np.inf
    return np.lexsort((-seen, -wins))[: min(top, int((times > 0).sum()))]


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


def _rankings(heads: PickedHeads) -> dict[str, list[int]]:
    """Heads by importance, all of them: as the agent saw them, and as what it competes with does.

    Heads that the agent never looked at follow in the model's order. It searched this task's evaluation episodes,
    attribution and the task's own order are of its training prompts, the static order is of the other tasks'.
    """
    cache, task, weight = heads.cache, heads.task, heads.note.control_weight
    others = tuple(other for other in heads.note.tasks if other != task)
    problem = Problem(cache, task, others, control_weight=weight)
    picked = most_picked(heads.evaluation, cache.n_sites).tolist()
    rankings = {"agent": picked + [site for site in range(cache.n_sites) if site not in picked]}
    if problem.train:
        rankings["static order"] = best_first(problem.static_mean).tolist()
    if cache.attribution(task, True) is not None and cache.control_attribution(True) is not None:
        attribution = episode_attribution(cache, task, TRAIN, True, weight).mean(0)
        rankings["attribution"] = best_first(attribution).tolist()
    rankings["the task's own order"] = best_first(episode_scores(cache, task, TRAIN, weight).mean(0)).tolist()
    return rankings
