"""The numbers that an environment looks up: damage and control damage of every head, by batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.errors import UsageError
from mechrl.score import score
from mechrl.tasks import TRAIN

PICKS_PERCENT = 35  # of all heads, in an episode


@dataclass(frozen=True)
class ScoreTable:
    """Batch means of some tasks and of control, one split.

    :param tasks: names of the tasks.
    :param damage: float32 [row, site], in nats: the batches of all tasks, one task after the other.
    :param first: int64 [task], the first row of each task; `count` int64 [task], how many rows it has.
    :param control: float32 [control batch, site], in nats per token.
    :param control_weight: the score is damage − control_weight × control damage.
    :param hints: float32 [row, site] or None, an estimate of each head's score that a method is allowed to see, such as
        attribution; the observation then ends with the row's hints.
    """

    tasks: tuple[str, ...]
    damage: np.ndarray
    first: np.ndarray
    count: np.ndarray
    control: np.ndarray
    control_weight: float = 1.0
    hints: np.ndarray | None = None

    @classmethod
    def from_cache(
        cls, cache: Cache, tasks: Sequence[str], split: int = TRAIN, control_weight: float = 1.0
    ) -> "ScoreTable":
        """The table of some tasks of a cache.

        :raises UsageError: the cache has no such task, or none is named, or its scores are of another control weight.
        """
        cache.check_control_weight(control_weight)
        if not tasks:
            raise UsageError("name at least one task")
        damage = [cache.batch_damage(task, split) for task in tasks]
        count = np.array([len(rows) for rows in damage])
        first = np.concatenate([[0], np.cumsum(count)[:-1]])
        return cls(tuple(tasks), np.concatenate(damage), first, count, cache.batch_control(split), control_weight)

    @property
    def n_sites(self) -> int:
        return int(self.damage.shape[1])

    def scores(self, rows: np.ndarray, control_rows: np.ndarray) -> np.ndarray:
        """Scores of all heads, float32 [episode, site], of the episodes on these batches."""
        return score(self.damage[rows], self.control[control_rows], self.control_weight)


def default_picks(n_sites: int) -> int:
    """35 % of the heads: 50 of 144."""
    return max(1, PICKS_PERCENT * n_sites // 100)
