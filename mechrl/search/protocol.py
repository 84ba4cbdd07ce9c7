"""The evaluation that every method goes through: the same episodes, inputs and measures, and every look is paid.

docs/protocol.md says what is compared and how.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.errors import UsageError
from mechrl.score import best_first, control_of_batch, score
from mechrl.search.problem import (
    ATTRIBUTION,
    SCORES,
    Episode,
    Few,
    Search,
    Start,
    episode_attribution,
    episode_features,
    episode_scores,
)  # fmt: skip
from mechrl.tasks import EVALUATION

RATIO_PICKS = (1, 3, 5, 10, 25, 50)
MOST_EVENTS = 64  # looks at few prompts, times the number of heads; what goes on longer is stopped
LEAST_ORACLE = 0.05  # episodes whose best head scores no more than this have no ratio
COVERAGE_SHARE, COVERAGE_LEAST = 0.07, 3


def coverage_k(n_sites: int) -> int:
    """The k of coverage@k: 7 % of the heads, at least 3 (10 of 144)."""
    return max(COVERAGE_LEAST, round(COVERAGE_SHARE * n_sites))


def exhaustive_runs(n_layers: int, n_heads: int) -> float:
    """What looking at every head costs, in runs, the clean model included."""
    return 1 + n_heads * (n_layers + 1) / 2


@dataclass(frozen=True)
class Evaluation:
    """What a method did on the episodes of a task. An *event* is a pick, or a look on a few prompts.

    :param task: the task.
    :param picked: int64 [episode, event], sites.
    :param seen: float32 [episode, event], what the search saw of the head picked: its score, or an estimate of it.
    :param runs: float64 [episode, event], cost up to and with each event, see docs/protocol.md.
    :param scores: float32 [episode, site], the scores of all heads of each episode.
    :param true_scores: float32 [episode, site], mean scores over prompts of the split that the episode did not use.
    :param control_runs: float64 [episode, event], the cost with control charged for every look.
    :param whole: whether every event is a pick, seen on the whole batch.
    :param looked: int64 [episode, event, look], all heads looked at for a pick, -1 for none; by default the pick alone.
    :param shown: float32 [episode, event, look], what was seen of them.
    """

    task: str
    picked: np.ndarray
    seen: np.ndarray
    runs: np.ndarray
    scores: np.ndarray
    true_scores: np.ndarray
    control_runs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    whole: bool = True
    looked: np.ndarray | None = None
    shown: np.ndarray | None = None

    def ratios(self, picks: int) -> np.ndarray:
        """Oracle ratio of each counted episode after so many picks: best score found ÷ best over all heads."""
        oracle = self.scores.max(1)
        counted = oracle > LEAST_ORACLE
        return self.seen[counted, :picks].max(1) / oracle[counted]

    def left_out(self) -> int:
        """How many episodes have no ratio because their oracle is ≤ 0.05."""
        return int((self.scores.max(1) <= LEAST_ORACLE).sum())

    @cached_property
    def best_heads(self) -> np.ndarray:
        """Which heads are the best k after each event, by what was seen of them last, bool [episode, event, site]."""
        looked = self.picked[:, :, None] if self.looked is None else self.looked
        shown = self.seen[:, :, None] if self.shown is None else self.shown
        n, n_events, width = looked.shape
        k = coverage_k(self.scores.shape[1])
        rows = np.arange(n)
        estimate = np.full(self.scores.shape, -np.inf, np.float32)
        best = np.zeros((n, n_events, self.scores.shape[1]), bool)
        for event in range(n_events):
            for look in range(width):
                there = looked[:, event, look] >= 0
                estimate[rows[there], looked[there, event, look]] = shown[there, event, look]
            top = best_first(estimate)[:, :k]
            best[rows[:, None], event, top] = np.take_along_axis(estimate, top, 1) > -np.inf
        return best

    def coverages(self) -> np.ndarray:
        """coverage@k of each episode after each event, float64 [episode, event].

        The best k of the heads looked at so far, as ranked by what was seen; the sum of their true scores over the sum
        of the k largest true scores, negatives counted as 0.
        """
        return coverages(self.best_heads, self.true_scores[None])[0]

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
    found = np.matmul(best_heads.astype(np.float64), worth.transpose(1, 2, 0)).transpose(2, 0, 1)
    return found / np.maximum(most, np.finfo(np.float32).tiny)[:, :, None]


def mean_curve(reached: np.ndarray, runs: np.ndarray, weights: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Mean coverage over episodes at each cost of a grid, float64 [resample, cost].

    :param reached: coverage, float [resample, episode, event].
    :param runs: cost of each event, float [episode, event].
    :param weights: of the episodes, float [resample, episode].
    """
    curve = np.zeros((len(reached), len(grid)))
    for episode, of_episode in enumerate(runs):
        before = np.concatenate([np.zeros((len(reached), 1)), reached[:, episode]], 1)
        at = np.searchsorted(of_episode, grid, side="right")
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
    :param prompts: look at only so many prompts of each batch; 0 for all.
    :param seed: of what the search draws at random.
    :param episodes: at most so many.
    :param shuffled: tell the search the score of another head, one permutation of the heads an episode; what it picks
        is evaluated as ever.
    :raises UsageError: there are fewer heads than picks, or the method asks for what it must not.
    """
    if not 1 <= picks <= cache.n_sites:
        raise UsageError(f"picks must be between 1 and the {cache.n_sites} heads, not {picks}")
    if not 0 <= prompts <= cache.batch_size:
        raise UsageError(f"a look is at 1 to {cache.batch_size} prompts, the batch size, not {prompts}")
    scores = episode_scores(cache, task, split, control_weight)[:episodes]
    known = _known(cache, task, split, control_weight, prompts) if track == ATTRIBUTION else (None, None)
    played = []
    for i in range(len(scores)):
        rng = np.random.default_rng([seed, i])
        attribution, features = (ask and partial(ask, i) for ask in known)
        episode = Episode(cache.n_layers, cache.n_heads, picks, rng, attribution, features)
        referee = _Referee(cache, task, split, i, scores[i], control_weight, prompts)
        played.append(referee.play(method, episode, shuffled))
    most = max(len(events) for events, _ in played)
    padded = [events + events[-1:] * (most - len(events)) for events, _ in played]
    picked, seen, runs, control_runs = (np.array([[e[i] for e in of] for of in padded]) for i in range(4))
    width = max(len(event[4]) for of in padded for event in of)
    looked, shown = (
        np.array([[np.pad(e[i], (0, width - len(e[i])), constant_values=-1) for e in of] for of in padded])
        for i in (4, 5)
    )
    damage, control = cache.batch_damage(task, split), cache.batch_control(split)
    others = mean_of_others(control)[control_of_batch(len(scores), len(control))]
    true_scores = score(mean_of_others(damage)[: len(scores)], others, control_weight)
    return Evaluation(
        task, picked.astype(np.int64), seen.astype(np.float32), runs, scores, true_scores, control_runs,
        all(whole for _, whole in played), looked, shown,
    )  # fmt: skip


def _known(cache: Cache, task: str, split: int, control_weight: float, prompts: int) -> tuple[Callable, Callable]:
    """What the i-th episode of the track `attribution` may ask for: attribution and head features."""

    @lru_cache(maxsize=2)
    def of_all(integrated: bool) -> np.ndarray:
        return episode_attribution(cache, task, split, integrated, control_weight, prompts)

    def attribution(i: int, integrated: bool) -> np.ndarray:
        return of_all(integrated)[i]

    def features(i: int) -> dict[str, np.ndarray]:
        return {name: values[i] for name, values in episode_features(cache, task, split, prompts).items()}

    return attribution, features


class _Referee:
    """Answers the looks of one episode and keeps the account."""

    def __init__(
        self, cache: Cache, task: str, split: int, i: int, scores: np.ndarray, control_weight: float, prompts: int
    ):
        self.cache, self.scores, self.prompts = cache, scores, prompts
        self.layer_cost = 1 - np.arange(cache.n_sites) // cache.n_heads / cache.n_layers
        self.prompts_of = np.zeros(cache.n_sites, np.int64)  # prompts that each head was looked at on
        self._where = task, split, i, control_weight
        self._rows: np.ndarray | None = None

    def play(self, method: Start, episode: Episode, shuffled: bool) -> tuple[list[tuple], bool]:
        """(site, seen, runs, control runs, all looks, what they showed) of every event; whether all were picks."""
        told = episode.rng.permutation(len(self.scores)) if shuffled else None
        events: list[tuple] = []
        whole, answer = True, None
        looks = method(episode)
        search: Search = looks if isinstance(looks, Generator) else (look for look in looks)
        while len(events) < (episode.picks if whole else MOST_EVENTS * len(self.scores)):
            try:
                look = search.send(answer)
            except StopIteration:
                break
            sites = np.atleast_1d(np.asarray(look.site if isinstance(look, Few) else look))
            few = look.prompts if isinstance(look, Few) else self.prompts
            if sites.dtype.kind not in "iu" or sites.ndim > 1 or not len(sites):
                raise UsageError(f"a method looks at {look!r:.80}: a look is a site, a list of sites, or a Few")
            if sites.min() < 0 or sites.max() >= len(self.scores):
                raise UsageError(f"a method looks at {look!r:.80}: heads are 0 to {len(self.scores) - 1}")
            whole = whole and not few
            seen = self._seen(sites, few)
            told_scores = seen if told is None else self.scores[told[sites]]
            answer = told_scores if not isinstance(look, Few) and np.ndim(look) else told_scores[0]
            best = int(seen.argmax())
            events.append((sites[best], seen[best], *self._cost(episode), sites, seen))
        if not events:
            raise UsageError("a method looked at no head at all")
        return events, whole

    def _seen(self, sites: np.ndarray, few: int) -> np.ndarray:
        size = self.cache.batch_size
        if not 0 <= few <= size:
            raise UsageError(f"a look is at 1 to {size} prompts, the batch size, not {few}")
        self.prompts_of[sites] = np.maximum(self.prompts_of[sites], few or size)
        if not few or few == size:
            return self.scores[sites]
        task, split, i, weight = self._where
        if self._rows is None:
            rows = np.flatnonzero(self.cache.in_split(task, split))[i * size : (i + 1) * size]
            control = self.cache.batch_control(split)
            paired = control[control_of_batch(i + 1, len(control))[i]]
            self._rows = score(self.cache.damage(task)[rows], paired, weight)
        return self._rows[:few, sites].mean(0)

    def _cost(self, episode: Episode) -> tuple[float, float]:
        size = self.cache.batch_size
        known = sum(episode.charged.values())
        looks = (self.prompts_of / size * self.layer_cost).sum()
        clean = max(self.prompts_of.max(), (self.prompts or size) if episode.charged else 0)
        runs = float(clean / size + looks + known * (self.prompts or size) / size)
        return runs, runs + 1 + float(self.layer_cost[self.prompts_of > 0].sum()) + known


def mean_of_others(batches: np.ndarray) -> np.ndarray:
    """For each batch [batch, site] the mean over all other batches."""
    return (batches.sum(0) - batches) / np.float32(len(batches) - 1)
