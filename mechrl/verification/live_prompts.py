"""Prompts on the live model, batch by batch: heads ablated alone, or together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mechrl.ablation import Replacement
from mechrl.ablation.forward import Forward
from mechrl.ablation.intact.direct import direct_effect
from mechrl.ablation.sweep import sweep_readings, sweep_task
from mechrl.intervals import Estimate
from mechrl.tasks import Prompts
from mechrl.verification.replication import estimate


@dataclass(frozen=True)
class LivePrompts:
    """Some prompts on the live model.

    :param other: what the ablation puts in, on these prompts.
    :param batch_size: how many prompts go through the model at once.
    """

    forward: Forward
    prompts: Prompts
    other: Replacement
    batch_size: int

    def _batches(self) -> list[slice]:
        return [slice(first, first + self.batch_size) for first in range(0, len(self.prompts), self.batch_size)]

    def ablate_each(
        self,
        answered: Sequence[Prompts],
        sites: np.ndarray,
        on_batch: Callable[[int, int], None] = lambda batch, batches: None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Clean logit difference [prompt] and with each site ablated [prompt, column].

        :param answered: the same prompts with other answers and wrongs; a pair of arrays is given for each.
        :param on_batch: called before each batch with the number of those before it, and of all.
        """
        sets, slices, batches = self.forward.singles(sites), self._batches(), []
        for i, rows in enumerate(slices):
            on_batch(i, len(slices))
            readings = [prompts[rows] for prompts in answered]
            batches.append(sweep_readings(self.forward, self.prompts[rows], readings, self.other[rows], sets))
        return [
            (
                np.concatenate([clean["logit_diff"] for clean, _ in measures]),
                np.concatenate([ablated["logit_diff"] for _, ablated in measures]),
            )
            for measures in zip(*batches, strict=True)
        ]

    def ablate_sets(self, sets: np.ndarray) -> np.ndarray:
        """The logit difference with the heads of each set ablated, [prompt, set], of bool [set, site]."""
        parts = [sweep_task(self.forward, self.prompts[rows], self.other[rows], sets)[1] for rows in self._batches()]
        return np.concatenate([part["logit_diff"] for part in parts])

    def direct_effects(self, sites: Sequence[int]) -> list[Estimate] | None:
        """The direct effect of each site."""
        parts = [direct_effect(self.forward, self.prompts[rows], self.other[rows]) for rows in self._batches()]
        effects = [part for part in parts if part is not None]
        if not effects:
            return None
        effect = np.concatenate(effects)
        return [estimate(effect[:, site], self.prompts.group) for site in sites]
