"""Training the policy `heads`: on every episode it knows only tasks of other families, as on a task it never saw."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from sb3_contrib import MaskablePPO

from mechrl.cache.reader import Cache
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable, default_picks
from mechrl.search.ppo.heads_policy import HeadsPolicy
from mechrl.search.ppo.training import PRESETS, train
from mechrl.search.protocol import coverage_k
from mechrl.search.structure import blank_structure, family_folds, head_structure


class TrainingEpisodes(ParallelEpisodes):
    """Episodes as the policy `heads` is trained on them.

    The observation ends with one number more: which of the policy's structures leaves the episode's task out. The
    reward is what a pick adds to the sum of the k best scores seen, negatives as 0, over the sum of the k best of the
    episode: to coverage. So a task with large scores counts as much as one with small ones.

    :param fold: for each task of the table the number of its structure.
    """

    def __init__(self, table: ScoreTable, n: int, picks: int, fold: Sequence[int]):
        super().__init__(table, n, picks, signals=())
        self.fold = np.array(fold, np.float32)
        self.best = np.zeros((n, coverage_k(table.n_sites)), np.float32)
        self.most = np.ones(n, np.float32)

    @property
    def observation(self) -> np.ndarray:
        """float32 [episode, 2 × site (+ site) + 1]."""
        return np.column_stack([super().observation, self.fold[self.state.task]])

    def draw(self, rows: np.ndarray) -> None:
        super().draw(rows)
        scores = self.table.scores(self.state.row[rows], self.state.control[rows]).clip(0)
        self.best[rows] = 0
        self.most[rows] = np.sort(scores, 1)[:, -self.best.shape[1] :].sum(1).clip(1e-3)

    def step(self, actions: np.ndarray) -> None:
        super().step(actions)
        best = np.sort(np.column_stack([self.best, self.rewards]), 1)[:, 1:]
        self.rewards[:] = (best.sum(1) - self.best.sum(1)) / self.most
        self.best = best


def train_heads(
    cache: Cache,
    tasks: Sequence[str],
    *,
    picks: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    control_weight: float = 1.0,
    structure: bool = True,
    hints: np.ndarray | None = None,
    **others: Any,
) -> MaskablePPO:
    """Train the policy `heads` on tasks of a cache; it comes back with the structure of all of them.

    :param picks: in an episode; 35 % of the heads by default.
    :param structure: without it, the policy knows nothing of a head but its layer and what the episode shows.
    :param hints: float32 [row, site], of the training batches of the tasks, one task after the other.
    :param others: of `train`.
    :raises UsageError: the cache has no such task, or `picks` is not between 1 and the number of heads.
    """
    preset = PRESETS["heads"]
    others_of = family_folds(tasks)
    parts = [tuple(tasks), *sorted(set(others_of.values()) - {tuple(tasks)})]
    structures = [
        head_structure(cache, part, control_weight) if structure else blank_structure(cache.n_sites, len(part))
        for part in parts
    ]
    episodes = TrainingEpisodes(
        replace(ScoreTable.from_cache(cache, tasks, control_weight=control_weight), hints=hints),
        preset.n_envs,
        default_picks(cache.n_sites) if picks is None else picks,
        [parts.index(others_of[task]) for task in tasks],
    )
    ppo = train(
        episodes,
        preset,
        steps=steps or preset.steps,
        seed=seed,
        policy_class=HeadsPolicy,
        policy_kwargs={"structures": structures, "hints": hints is not None},
        **others,
    )
    cast(HeadsPolicy, ppo.policy).use(structures[:1])
    return ppo
