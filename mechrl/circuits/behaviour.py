"""A behaviour on the live model, with some heads kept and all others ablated: what a set keeps, and its gradient."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from mechrl.ablation import Replacement
from mechrl.ablation.attribution import mask_gradients
from mechrl.ablation.forward import CleanRun, Forward
from mechrl.ablation.measures import measure
from mechrl.ablation.sweep import ablated_measures
from mechrl.circuits.search import KEPT, Numbers, objective
from mechrl.tasks import Prompts


class Behaviour:
    """Some prompts of a task, run intact once; every set of heads starts from there.

    :param other: what the ablation puts in, on these prompts.
    :param batch_size: how many prompts go through the model at once.
    """

    def __init__(self, forward: Forward, prompts: Prompts, other: Replacement, batch_size: int = 32):
        self.forward, self.prompts, self.other, self.batch_size = forward, prompts, other, batch_size
        self.n_sites = forward.model.n_layers * forward.model.n_heads
        self._few: list[tuple[np.ndarray, CleanRun]] | None = None

    def _clean(self) -> Iterator[tuple[np.ndarray, CleanRun]]:
        """Clean runs of all prompts, a batch at a time; those of a single batch are kept in memory."""
        if self._few is None:
            alike = self.forward.model.regimes.split(self.prompts.length)
            batches = [part for rows in alike for part in np.array_split(rows, -(-len(rows) // self.batch_size))]
            runs = ((rows, self.forward.clean_prompts(self.prompts[rows], self.other[rows])) for rows in batches)
            if len(self.prompts) > self.batch_size:
                yield from runs
                return
            self._few = list(runs)
        yield from self._few

    def measure(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """What each set keeps: `logit_diff`, `kl` and `top1_agreement`, float64 [prompt, set].

        :param kept: bool [set, site]; all other heads are ablated.
        """
        found = {name: np.empty((len(self.prompts), len(kept))) for name in KEPT}
        for rows, clean in self._clean():
            ((_, ablated),) = ablated_measures(self.forward, clean, [self.prompts[rows]], ~kept)
            for name, column in found.items():
                column[rows] = ablated[name].cpu().numpy()
        return found

    def gradient(self, mask: np.ndarray, numbers: Numbers) -> np.ndarray:
        """The gradient of the search's objective by the mask of heads, float64 [site].

        :param mask: from 0, ablated, to 1, kept; float [site].
        :param numbers: of the intact and the empty model, see `search.objective`.
        """
        total = np.zeros(self.n_sites)
        for rows, clean in self._clean():
            per_row = mask_gradients(self.forward, clean, self._slope(clean, rows, numbers), mask)
            total += per_row.sum(0).double().cpu().numpy()
        return total / len(self.prompts)

    def _slope(self, clean: CleanRun, rows: np.ndarray, numbers: Numbers) -> Any:
        answers, wrongs = self.forward.tensors(self.prompts.answers[rows], self.prompts.wrongs[rows])
        with torch.inference_mode():
            intact = self.forward.unembed(clean.final).log_softmax(-1)

        def slope(final: torch.Tensor) -> torch.Tensor:
            measures = measure(self.forward.unembed(final), intact.clone(), answers, wrongs)
            value = objective(measures["logit_diff"].mean(), measures["kl"].mean(), numbers)
            return torch.autograd.grad(len(rows) * value, final)[0]

        return slope
