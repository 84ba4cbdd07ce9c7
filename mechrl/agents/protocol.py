"""The evaluation that every method goes through: the same episodes, the same inputs, the same measures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechrl.agents.methods import Method
from mechrl.cache.reader import Cache
from mechrl.envs.episodes import Episodes
from mechrl.envs.table import ScoreTable
from mechrl.tasks import EVALUATION

RATIO_PICKS = (1, 3, 5, 10, 25, 50)
LEAST_ORACLE = 0.05  # episodes whose best head scores no more than this have no ratio
COVERAGE_SHARE, COVERAGE_LEAST = 0.07, 3


def coverage_k(n_sites: int) -> int:
    """The k of coverage@k: 7 % of the heads, at least 3 (10 of 144)."""
    return max(COVERAGE_LEAST, round(COVERAGE_SHARE * n_sites))


@dataclass(frozen=True)
class Evaluation:
    """What a method did on the evaluation episodes of a task.

    :param task: the task.
    :param picked: int64 [episode, pick], sites.
    :param seen: float32 [episode, pick], the scores of the picks.
    :param runs: float64 [episode, pick], cost up to and with each pick in runs: one for the clean model, then
        (L − layer) / L for each head looked at. Control is paid once per model and the same for all methods.
    :param scores: float32 [episode, site], the scores of all heads of each episode.
    :param true_scores: float32 [episode, site], mean scores over evaluation prompts that the episode did not use.
    """

    task: str
    picked: np.ndarray
    seen: np.ndarray
    runs: np.ndarray
    scores: np.ndarray
    true_scores: np.ndarray

    def ratios(self, picks: int) -> np.ndarray:
        """Oracle ratio of each counted episode after so many picks: best score found ÷ best over all heads."""
        oracle = self.scores.max(1)
        counted = oracle > LEAST_ORACLE
        return self.seen[counted, :picks].max(1) / oracle[counted]

    def left_out(self) -> int:
        """How many episodes have no ratio because their oracle is ≤ 0.05."""
        return int((self.scores.max(1) <= LEAST_ORACLE).sum())

    def coverages(self) -> np.ndarray:
        """coverage@k of each episode after each pick, float64 [episode, pick].

        The best k of the heads picked so far, as ranked by the scores seen; the sum of their true scores over the sum
        of the k largest true scores, negatives counted as 0.
        """
        k = coverage_k(self.scores.shape[1])
        worth = np.maximum(self.true_scores, 0)
        best = np.sort(worth, 1)[:, -k:].sum(1)
        result = np.zeros(self.picked.shape)
        for pick in range(self.picked.shape[1]):
            top = np.argsort(-self.seen[:, : pick + 1], 1, kind="stable")[:, :k]
            found = np.take_along_axis(worth, np.take_along_axis(self.picked, top, 1), 1).sum(1)
            result[:, pick] = found / np.maximum(best, np.finfo(np.float32).tiny)
        return result

    def summary(self) -> dict[str, float | None]:
        """Means over episodes: oracle ratio after 1, 3, 5, … picks (None where no episode has one) and coverage."""
        reached = [p for p in RATIO_PICKS if p <= self.picked.shape[1]]
        coverages = self.coverages().mean(0)
        ratios = {f"ratio@{p}": float(self.ratios(p).mean()) if len(self.ratios(p)) else None for p in reached}
        return ratios | {f"coverage after {p}": float(coverages[p - 1]) for p in reached}


def evaluate(
    cache: Cache,
    task: str,
    method: Method,
    picks: int,
    signals: Sequence[str] = (),
    signalled: bool = True,
    control_weight: float = 1.0,
) -> Evaluation:
    """Run a method on every evaluation episode of a task: the i-th task batch with the i-th control batch.

    :param signals: the tasks of the agent's one-hot.
    :param signalled: whether the episodes show their task signal, if the task has one.
    """
    table = ScoreTable.from_cache(cache, [task], EVALUATION, control_weight)
    n = len(table.damage)
    controls = np.arange(n) % len(table.control)
    episodes = Episodes(table, n, picks, signals)
    for i in range(n):
        episodes.start(i, 0, i, int(controls[i]), signalled)
    scores = table.scores(np.arange(n), controls)
    picked, seen = np.zeros((n, picks), np.int64), np.zeros((n, picks), np.float32)
    looks = np.zeros((n, picks))
    for pick in range(picks):
        candidates = method(episodes)
        chosen = np.take_along_axis(scores, candidates, 1).argmax(1)
        picked[:, pick] = candidates[np.arange(n), chosen]
        looks[:, pick] = (1 - candidates // cache.n_heads / cache.n_layers).sum(1)
        episodes.step(picked[:, pick])
        seen[:, pick] = episodes.rewards
    others_damage, others_control = mean_of_others(table.damage), mean_of_others(table.control)
    true_scores = others_damage - np.float32(control_weight) * others_control[controls]
    return Evaluation(task, picked, seen, 1 + looks.cumsum(1), scores, true_scores)


def mean_of_others(batches: np.ndarray) -> np.ndarray:
    """For each batch [batch, site] the mean over all other batches."""
    return (batches.sum(0) - batches) / np.float32(len(batches) - 1)
