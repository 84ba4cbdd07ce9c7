"""The live game: every pick asks the model. What the lookup must equal, and what it is timed against."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mechrl.ablation import Replacement, reference
from mechrl.ablation.forward import Forward
from mechrl.ablation.replacement import ReplacementMaker
from mechrl.cache.reader import Cache
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable
from mechrl.models import Model
from mechrl.tasks import TRAIN, Prompts


def replacement_maker(cache: Cache, forward: Forward) -> ReplacementMaker:
    """Makes what a cache's ablation put in place of the heads' outputs.

    :param forward: of the cache's model.
    :raises FileError: the cache is of an ablation that this mechrl does not know.
    :raises MachineError: the cache is imported.
    """
    arrays, seed = cache.content.arrays, cache.attributes["seed"]
    return ReplacementMaker(cache.ablation, forward, arrays["/control/tokens"], arrays["/control/split"], seed)


class LiveScores:
    """Damage and control damage of one head on one batch, measured when asked: one hook, one head at a time.

    :param model: the model of the cache.
    :param cache: gives the prompts and the control spans, and no number.
    :param tasks: which of its tasks, in the order of a `ScoreTable`.
    :param split: which of their batches.
    """

    def __init__(self, model: Model, cache: Cache, tasks: Sequence[str], split: int = TRAIN):
        self.model = model
        self.passes = 0  # of the whole model on one batch
        size = cache.batch_size
        replacements = replacement_maker(cache, Forward(model))

        def batches(
            rows: Prompts | np.ndarray, replacement: Replacement, chosen: np.ndarray
        ) -> list[tuple[Any, Replacement]]:
            rows, replacement = rows[chosen], replacement[chosen]
            return [(rows[i : i + size], replacement[i : i + size]) for i in range(0, len(rows), size)]

        self._prompts = [
            batch
            for task in tasks
            for batch in batches(
                cache.prompts(task), replacements.for_task(task, cache.prompts(task)), cache.in_split(task, split)
            )
        ]
        spans = cache.content.arrays["/control/tokens"]
        self._spans = batches(spans, replacements.for_control(), cache.in_split(None, split))
        self._clean: dict[tuple[str, int], np.ndarray] = {}

    def damage(self, row: int, site: int) -> np.float32:
        """Mean damage of a head on a task batch, in nats."""

        def ask(site: int | None) -> np.ndarray:
            prompts, replacement = self._prompts[row]
            return reference.logit_diff(self.model, prompts, site, replacement)

        return np.float32((self._clean_once("task", row, ask) - self._ask(ask, site)).mean())

    def control_damage(self, row: int, site: int) -> np.float32:
        """Mean control damage of a head on a control batch, in nats per token."""

        def ask(site: int | None) -> np.ndarray:
            spans, replacement = self._spans[row]
            return reference.control_loss(self.model, spans, site, replacement)

        return np.float32((self._ask(ask, site) - self._clean_once("control", row, ask)).mean())

    def _ask(self, ask: Callable[[int | None], np.ndarray], site: int | None) -> np.ndarray:
        self.passes += 1
        return ask(site)

    def _clean_once(self, kind: str, row: int, ask: Callable[[int | None], np.ndarray]) -> np.ndarray:
        if (kind, row) not in self._clean:
            self._clean[kind, row] = self._ask(ask, None)
        return self._clean[kind, row]


class LiveEpisodes(ParallelEpisodes):
    """The same game as `ParallelEpisodes`; the model fills in its table, anew at every pick.

    :param scores: the model's answers.
    :param table: whose tasks, batches and control weight to play; its numbers are not used.
    """

    def __init__(self, scores: LiveScores, table: ScoreTable, n: int, picks: int, drop_signal: float = 0.0):
        blank = replace(table, damage=np.full_like(table.damage, np.nan), control=np.full_like(table.control, np.nan))
        super().__init__(blank, n, picks, drop_signal=drop_signal)
        self.scores = scores

    def step(self, actions: np.ndarray) -> None:
        self._ask(actions)
        super().step(actions)

    def query(self, sites: np.ndarray) -> np.ndarray:
        self._ask(sites)
        return super().query(sites)

    def _ask(self, sites: np.ndarray) -> None:
        for row, control, site in zip(self.state.row, self.state.control, sites, strict=True):
            self.table.damage[row, site] = self.scores.damage(row, site)
            self.table.control[control, site] = self.scores.control_damage(control, site)
