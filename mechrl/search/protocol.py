"""The evaluation that every method goes through: the same episodes, inputs and measures, and every query is paid.

docs/protocol.md says what is compared and how.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache as cache_calls
from functools import cached_property
from typing import Any

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.errors import UsageError
from mechrl.score import best_first, control_of_batch, score
from mechrl.search.problem import (
    ATTRIBUTION,
    SCORES,
    SearchEpisode,
    Start,
    episode_attribution,
    episode_features,
    episode_scores,
)  # fmt: skip
from mechrl.search.referee import Event, Referee
from mechrl.tasks import EVALUATION

RATIO_PICKS = (1, 3, 5, 10, 25, 50)
LEAST_ORACLE = 0.05  # episodes whose best head scores no more than this have no ratio
COVERAGE_SHARE, COVERAGE_LEAST = 0.07, 3


def coverage_k(n_sites: int) -> int:
    """The k of coverage@k: 7 % of the heads, at least 3 (10 of 144)."""
    return max(COVERAGE_LEAST, round(COVERAGE_SHARE * n_sites))


def exhaustive_runs(n_layers: int, n_heads: int) -> float:
    """What querying every head costs, in runs, the clean model included."""
    return 1 + n_heads * (n_layers + 1) / 2


@dataclass(frozen=True)
class Evaluation:
    """What a method did on the episodes of a task. An *event* is a pick, or a query on a few prompts.

    :param task: the task.
    :param picked: int64 [episode, event], sites.
    :param seen: float32 [episode, event], what the search saw of the head picked: its score, or an estimate of it.
    :param runs: float64 [episode, event], cost up to and with each event, see docs/protocol.md.
    :param scores: float32 [episode, site], the scores of all heads of each episode.
    :param true_scores: float32 [episode, site], mean scores over prompts of the split that the episode did not use.
    :param control_runs: float64 [episode, event], the cost with control charged for every query.
    :param whole: whether every event is a pick, seen on the whole batch.
    :param queried: int64 [episode, event, query], all heads that an event asked for, -1 for none; by default the pick.
    :param answers: float32 [episode, event, query], what was seen of them.
    """

    task: str
    picked: np.ndarray
    seen: np.ndarray
    runs: np.ndarray
    scores: np.ndarray
    true_scores: np.ndarray
    control_runs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    whole: bool = True
    queried: np.ndarray | None = None
    answers: np.ndarray | None = None

    def ratios(self, picks: int) -> np.ndarray:
        """Oracle ratio of each counted episode after so many picks: best score found ÷ best over all heads."""
        oracle = self.scores.max(1)
        counted = oracle > LEAST_ORACLE
        ratios: np.ndarray = self.seen[counted, :picks].max(1) / oracle[counted]
        return ratios

    def left_out(self) -> int:
        """How many episodes have no ratio because their oracle is ≤ 0.05."""
        return int((self.scores.max(1) <= LEAST_ORACLE).sum())

    @cached_property
    def best_heads(self) -> np.ndarray:
        """Which heads are the best k after each event, by what was seen of them last, bool [episode, event, site]."""
        queried = self.picked[:, :, None] if self.queried is None else self.queried
        answers = self.seen[:, :, None] if self.answers is None else self.answers
        n, n_events, width = queried.shape
        k = coverage_k(self.scores.shape[1])
        rows = np.arange(n)
        estimate = np.full(self.scores.shape, -np.inf, np.float32)
        best = np.zeros((n, n_events, self.scores.shape[1]), bool)
        for event in range(n_events):
            for query in range(width):
                there = queried[:, event, query] >= 0
                estimate[rows[there], queried[there, event, query]] = answers[there, event, query]
            top = best_first(estimate)[:, :k]
            best[rows[:, None], event, top] = np.take_along_axis(estimate, top, 1) > -np.inf
        return best

    def coverages(self) -> np.ndarray:
        """coverage@k of each episode after each event, float64 [episode, event].

        The best k of the heads queried so far, as ranked by what was seen; the sum of their true scores over the sum
        of the k largest true scores, negatives counted as 0.
        """
        reached: np.ndarray = coverages(self.best_heads, self.true_scores[None])[0]
        return reached

    def summary(self) -> dict[str, float | None]:
        """Means over episodes: oracle ratio after 1, 3, 5, … picks (None where no episode has one) and coverage."""
        reached = [p for p in RATIO_PICKS if p <= self.picked.shape[1]]
        coverages = self.coverages().mean(0)
        ratios = {f"ratio@{p}": float(self.ratios(p).mean()) if len(self.ratios(p)) else None for p in reached}
        return ratios | {f"coverage after {p}": float(coverages[p - 1]) for p in reached}


def coverages(best_heads: np.ndarray, true_scores: np.ndarray) -> np.ndarray:
    """coverage@k, float64 [resample, episode, event].

    :param best_heads: bool [episode, event, site], at most k of them after each event.
    :param true_scores: float [resample, episode, site].
    """
    worth = np.maximum(true_scores, 0).astype(np.float64)
    most = np.sort(worth, 2)[:, :, -coverage_k(worth.shape[2]) :].sum(2)
    reached = np.matmul(best_heads.astype(np.float64), worth.transpose(1, 2, 0)).transpose(2, 0, 1)
    share: np.ndarray = reached / np.maximum(most, np.finfo(np.float32).tiny)[:, :, None]
    return share


def mean_curve(reached: np.ndarray, runs: np.ndarray, weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Mean coverage over episodes at each cost of a grid, float64 [resample, cost].

    :param reached: coverage, float [resample, episode, event].
    :param runs: cost of each event, float [episode, event].
    :param weights: of the episodes, float [resample, episode].
    """
    curve = np.zeros((len(reached), len(grid)))
    for episode, costs in enumerate(runs):
        before = np.concatenate([np.zeros((len(reached), 1)), reached[:, episode]], 1)
        at = np.searchsorted(costs, grid, side="right")
        curve += (weights[:, episode] / weights.sum(1))[:, None] * before[:, at]
    return curve


def cost_to(
    reached: np.ndarray, runs: np.ndarray, weights: np.ndarray, censored: float, level: float = 0.9
) -> np.ndarray:
    """The smallest cost in runs at which mean coverage is at least `level`, float64 [resample]; see `mean_curve`.

    :param censored: the cost of the exhaustive sweep, which stands for everything that takes more.
    """
    grid = np.unique(runs)
    enough = mean_curve(reached, runs, weights, grid) >= level - 1e-9
    return np.where(enough.any(1), np.minimum(grid[enough.argmax(1)], censored), censored)


def evaluate(
    cache: Cache,
    task: str,
    method: Start,
    picks: int,
    *,
    split: int = EVALUATION,
    control_weight: float = 1.0,
    track: str = SCORES,
    prompts: int = 0,
    seed: int = 0,
    episodes: int | None = None,
    shuffled: bool = False,
) -> Evaluation:
    """Run a method on every episode of a task: the i-th task batch with the i-th control batch, modulo their number.

    :param method: begins a search; see `mechrl.search.problem.Search`.
    :param picks: an episode ends after so many picks.
    :param track: whether attribution may be asked for.
    :param prompts: query heads on only so many prompts of each batch; 0 for all.
    :param seed: of what the search draws at random.
    :param episodes: at most so many.
    :param shuffled: tell the search the score of another head, one permutation of the heads an episode; what it picks
        is evaluated as ever.
    :raises UsageError: there are fewer heads than picks, or the method asks for what it must not.
    """
    if not 1 <= picks <= cache.n_sites:
        raise UsageError(f"picks must be between 1 and the {cache.n_sites} heads, not {picks}")
    if not 0 <= prompts <= cache.batch_size:
        raise UsageError(f"a query is on 1 to {cache.batch_size} prompts, the batch size, not {prompts}")
    scores = episode_scores(cache, task, split, control_weight)[:episodes]
    known = _known(cache, task, split, control_weight, prompts) if track == ATTRIBUTION else None
    played = []
    for i in range(len(scores)):
        rng = np.random.default_rng([seed, i])
        episode = SearchEpisode(cache.n_layers, cache.n_heads, picks, rng, *(known(i) if known else ()))
        referee = Referee(cache, task, split, i, scores[i], control_weight, prompts)
        played.append(referee.play(method, episode, shuffled))
    damage, control = cache.batch_damage(task, split), cache.batch_control(split)
    others = mean_of_others(control)[control_of_batch(len(scores), len(control))]
    true_scores = score(mean_of_others(damage)[: len(scores)], others, control_weight)
    return _as_arrays(task, [events for events, _ in played], scores, true_scores, all(whole for _, whole in played))


def _as_arrays(
    task: str, played: Sequence[list[Event]], scores: np.ndarray, true_scores: np.ndarray, whole: bool
) -> Evaluation:
    """The events of all episodes, as many of each: the last event of a shorter episode is repeated."""
    most = max(map(len, played))
    rows = [events + events[-1:] * (most - len(events)) for events in played]
    width = max(len(event.queried) for row in rows for event in row)

    def each(value: Callable[[Event], Any]) -> np.ndarray:
        return np.array([[value(event) for event in row] for row in rows])

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, (0, width - len(values)), constant_values=-1)

    return Evaluation(
        task,
        picked=each(lambda event: event.picked).astype(np.int64),
        seen=each(lambda event: event.seen).astype(np.float32),
        runs=each(lambda event: event.runs),
        scores=scores,
        true_scores=true_scores,
        control_runs=each(lambda event: event.control_runs),
        whole=whole,
        queried=each(lambda event: padded(event.queried)),
        answers=each(lambda event: padded(event.answers)),
    )


def _known(
    cache: Cache, task: str, split: int, control_weight: float, prompts: int
) -> Callable[[int], tuple[Callable[[bool], np.ndarray], Callable[[], dict[str, np.ndarray]]]]:
    """What the i-th episode of the track `attribution` may ask for: attribution and head features."""

    @cache_calls
    def attribution(integrated: bool) -> np.ndarray:
        return episode_attribution(cache, task, split, integrated, control_weight, prompts)

    @cache_calls
    def features() -> dict[str, np.ndarray]:
        return episode_features(cache, task, split, prompts)

    return lambda i: (
        lambda integrated: attribution(integrated)[i],
        lambda: {name: values[i] for name, values in features().items()},
    )


def mean_of_others(batches: np.ndarray) -> np.ndarray:
    """For each batch [batch, site] the mean over all other batches."""
    means: np.ndarray = (batches.sum(0) - batches) / np.float32(len(batches) - 1)
    return means
