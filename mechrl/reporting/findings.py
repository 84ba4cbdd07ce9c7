"""Numbers that the page and the files of a report share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.cache.top import TopHead, top_heads
from mechrl.reporting.documents import Bench, SearchedTask
from mechrl.reporting.run import OfModel
from mechrl.search.problem import REFERENCE


def control_weight(model: OfModel, cache: Cache) -> float:
    """The control weight of the first checkpoint that was trained on a cache; 1 where there is none."""
    weights = [c.note.control_weight for c in model.checkpoints if c.note.cache_sha256 == cache.sha256]
    return weights[0] if weights else 1.0


def heads_in_order(cache: Cache, task: str, weight: float = 1.0) -> list[TopHead]:
    """All heads with their intervals, in the order of the sites."""
    return sorted(
        top_heads(cache, task, n=cache.n_sites, control_weight=weight), key=lambda head: cache.site(head.head)
    )


@dataclass(frozen=True)
class BenchOnCache:
    """What a benchmark measured on one cache; nothing is averaged over caches, which may be of different models."""

    content: Bench
    cache: str

    @property
    def grid(self) -> Sequence[float]:
        """Costs of the curves, in runs."""
        return self.content.cost_grid

    @cached_property
    def tracks(self) -> dict[str, list[str]]:
        """The methods of each track and the references, cheapest first, exploratory ones last."""
        methods = {name: m for name, m in self.content.methods.items() if self._rows(name)}
        own = dict.fromkeys(m.track for m in methods.values() if m.track != REFERENCE)
        return {
            track: sorted(
                (name for name, m in methods.items() if m.track in (track, REFERENCE)),
                key=lambda name: (self.exploratory(name), self.cost(name)),
            )
            for track in own or [REFERENCE]
        }

    def exploratory(self, method: str) -> bool:
        return self.content.methods[method].exploratory

    def cost(self, method: str) -> float:
        """Cost to 90 % coverage in runs: the geometric mean over families of those over tasks and seeds."""
        return float(np.exp(self._mean(method, [np.log(row.cost) for row in self._rows(method)])))

    def never(self, method: str) -> float:
        """On what share of the tasks and seeds 90 % took as much as looking at every head."""
        return float(np.mean([row.censored for row in self._rows(method)]))

    def curve(self, method: str) -> list[float]:
        """Mean coverage at the costs of the grid."""
        return self._mean(method, [np.array(row.coverage) for row in self._rows(method)]).tolist()

    def verdicts(self, track: str) -> list[str]:
        """The closing sentence of a track; of several caches together it would not be about this one."""
        if len({row.cache for row in self.content.tasks}) > 1:
            return ["The benchmark's closing sentence is about several caches together, and is left out here."]
        return [
            (
                ""
                if self.content.by_protocol
                else "Exploratory, for this is not the run that docs/protocol.md describes: "
            )
            + f"{v.sentence}. {v.agent} costs {v.cost_ratio:.2f} times ({v.low:.2f} to {v.high:.2f}) what the baseline "
            f"chosen on the other families costs; p = {v.p_adjusted:.3f} after Holm."
            for v in self.content.verdicts
            if v.track == track
        ]

    def _rows(self, method: str) -> list[SearchedTask]:
        return [row for row in self.content.tasks if row.method == method and row.cache == self.cache]

    def _mean(self, method: str, values: Sequence) -> np.ndarray:
        """Mean over families of means over tasks of means over seeds."""
        nested: dict[str, dict[str, list]] = {}
        for row, value in zip(self._rows(method), values, strict=True):
            nested.setdefault(row.family, {}).setdefault(row.task, []).append(value)
        return np.mean([np.mean([np.mean(v, 0) for v in tasks.values()], 0) for tasks in nested.values()], 0)


def bench_on_caches(model: OfModel) -> list[BenchOnCache]:
    """The benchmarks of a model, one for each cache that was searched."""
    found = []
    for file in model.benches:
        fingerprints = file.content.caches
        for cache in dict.fromkeys(row.cache for row in file.content.tasks):
            of = fingerprints.get(cache) if fingerprints else None
            if (of.model_sha256 if of else "") == model.sha256:
                found.append(BenchOnCache(file.content, cache))
    return found
