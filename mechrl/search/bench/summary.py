"""The result of a benchmark from what its searches did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.intervals import LEVEL
from mechrl.search.bench.result import BUDGETS, Benchmark, MethodSummary, OrderPair, SearchedTask
from mechrl.search.bench.statistics import Cells, family_means, hierarchical
from mechrl.search.bench.verdict import Outcome, verdicts
from mechrl.search.methods.orders import task_order
from mechrl.search.methods.registry import Method
from mechrl.search.problem import REFERENCE, Problem
from mechrl.search.protocol import RATIO_PICKS, cost_to, evaluate, exhaustive_runs


@dataclass(frozen=True)
class BenchmarkRun:
    """A result, and what its figure needs beside it: the records of the methods, and the resamples."""

    result: Benchmark
    methods: list[Method]
    outcomes: list[Outcome]

    def curve(self, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean coverage over families and the ends of its 95 % band, [cost].

        Families, tasks, caches, seeds and groups are resampled.
        """
        return hierarchical(cells(self.outcomes, method, "curve"))


def cells(outcomes: Sequence[Outcome], method: str, what: str = "log_cost") -> Cells:
    """family → task → cache → the values of one method."""
    rows: dict[str, dict[str, dict[str, list[np.ndarray]]]] = {}
    for o in outcomes:
        if o.method == method:
            rows.setdefault(o.family, {}).setdefault(o.task, {}).setdefault(o.cache, []).append(getattr(o, what))
    return {
        family: {task: {cache: [(1, np.stack(of))] for cache, of in c.items()} for task, c in tasks.items()}
        for family, tasks in rows.items()
    }


def summarize(
    methods: Sequence[Method],
    outcomes: Sequence[Outcome],
    selection: Sequence[tuple[str, str, Outcome]],
    grid: np.ndarray,
    **fields: Any,
) -> Benchmark:
    """The result.

    :param selection: (track, held-out family, outcome of a candidate on another family).
    :param grid: the costs of the curves in runs, [cost].
    :param fields: the other fields of `Benchmark`.
    """
    there = {o.method for o in outcomes}
    return Benchmark(
        methods={m.name: _summary(m, outcomes, grid) for m in methods if m.name in there},
        tasks=[_searched(o) for o in outcomes],
        cost_grid=np.round(grid, 3).tolist(),
        verdicts=verdicts(outcomes, selection),
        **fields,
    )


def _searched(o: Outcome) -> SearchedTask:
    low, high = np.exp(np.percentile(o.log_cost[1:], LEVEL)).tolist()
    return SearchedTask(
        cache=o.cache, family=o.family, task=o.task, method=o.method, seed=o.seed, cost=float(np.exp(o.log_cost[0])),
        cost_interval=(low, high), censored=o.censored, ratios={str(p): ratio for p, ratio in o.ratios.items()},
        coverage=np.round(o.curve[0], 4).tolist(),
    )  # fmt: skip


def _summary(method: Method, outcomes: Sequence[Outcome], grid: np.ndarray) -> MethodSummary:
    """Means over families of means over tasks, caches and seeds; costs are geometric means, in runs."""
    costs = cells(outcomes, method.name)
    mean, low, high = np.exp(hierarchical(costs)).tolist()
    own = [o for o in outcomes if o.method == method.name]
    control = np.exp(np.mean(list(family_means(cells(own, method.name, "log_control_cost")).values())))
    by_picks: dict[str, Any] = {
        f"ratio_at_{p}": _over_families(own, [o.ratios.get(p) for o in own]) for p in RATIO_PICKS
    }
    by_budget: dict[str, Any] = {}
    for budget in BUDGETS:
        i = int(np.flatnonzero(grid == budget)[0])
        by_budget[f"coverage_at_{budget:g}_runs"] = _over_families(own, [float(o.curve[0, i]) for o in own])
    return MethodSummary(
        track=method.track, exploratory=method.exploratory, cost=mean, cost_low=low, cost_high=high,
        cost_by_family={family: float(np.exp(v)) for family, v in family_means(costs).items()},
        censored=float(np.mean([o.censored for o in own])),
        cost_with_control=float(control),
        set_up_runs=float(np.mean([o.set_up_runs for o in own])),
        set_up_seconds=float(np.mean([o.set_up_seconds for o in own])),
        **by_budget,
        **by_picks,
    )  # fmt: skip


def _over_families(outcomes: Sequence[Outcome], values: Sequence[float | None]) -> float | None:
    """Mean over families of means over tasks of means over caches, of the values of outcomes that have one."""
    nested: dict[str, dict[str, dict[str, list[float]]]] = {}
    for o, value in zip(outcomes, values, strict=True):
        if value is not None:
            nested.setdefault(o.family, {}).setdefault(o.task, {}).setdefault(o.cache, []).append(value)
    means = [[[np.mean(c) for c in task.values()] for task in family.values()] for family in nested.values()]
    return float(np.mean([np.mean([np.mean(task) for task in family]) for family in means])) if means else None


def order_pairs(cache: Cache, by_family: Mapping[str, list[str]], control_weight: float) -> dict[str, OrderPair]:
    """The order of each task's training episodes, on the evaluation episodes of every other: cost to 90 %, ratio@3."""
    tasks = [task for names in by_family.values() for task in names]
    most = exhaustive_runs(cache.n_layers, cache.n_heads)
    pairs: dict[str, OrderPair] = {}
    for of in tasks:
        search = task_order(Problem(cache, of, (), REFERENCE, control_weight))
        for on in tasks:
            if on != of:
                evaluation = evaluate(cache, on, search, cache.n_sites, control_weight=control_weight)
                ones = np.ones((1, len(evaluation.picked)))
                cost = float(cost_to(evaluation.coverages()[None], evaluation.runs, ones, most)[0])
                ratios = evaluation.ratios(3)
                ratio = float(ratios.mean()) if len(ratios) else None
                pairs[f"{of} on {on}"] = OrderPair(cost=cost, ratio_at_3=ratio)
    return pairs
