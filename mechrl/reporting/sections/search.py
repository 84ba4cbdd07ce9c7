"""What the page says of searches: coverage against cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mechrl.reporting.blocks import Block, Figure, Table, lines, number
from mechrl.reporting.run import CheckpointFile, OfModel
from mechrl.reporting.terminal import search_rows
from mechrl.search.bench.result import BUDGETS, Benchmark, SearchedTask
from mechrl.search.bench.verdict import AGENTS
from mechrl.search.problem import REFERENCE
from mechrl.search.protocol import coverage_k, mean_curve

MOST_CURVES = 6  # baselines in a figure of the benchmark; its table has all


@dataclass(frozen=True)
class BenchOnCache:
    """What a benchmark measured on one cache; nothing is averaged over caches, which may be of different models."""

    content: Benchmark
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

    def censored(self, method: str) -> float:
        """On what share of the tasks and seeds 90 % took as much as looking at every head."""
        return float(np.mean([row.censored for row in self._rows(method)]))

    def curve(self, method: str) -> list[float]:
        """Mean coverage at the costs of the grid."""
        return list(map(float, self._mean(method, [np.array(row.coverage) for row in self._rows(method)])))

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

    def _mean(self, method: str, values: Sequence[Any]) -> Any:
        """Mean over families of means over tasks of means over seeds."""
        nested: dict[str, dict[str, list[Any]]] = {}
        for row, value in zip(self._rows(method), values, strict=True):
            nested.setdefault(row.family, {}).setdefault(row.task, []).append(value)
        return np.mean([np.mean([np.mean(v, 0) for v in tasks.values()], 0) for tasks in nested.values()], 0)


def bench_on_caches(model: OfModel) -> list[BenchOnCache]:
    """The benchmarks of a model, one for each cache that was searched."""
    return [
        BenchOnCache(file.content, cache)
        for file in model.benches
        for cache in dict.fromkeys(row.cache for row in file.content.tasks)
        if file.content.caches[cache].model_sha256 == model.sha256
    ]


def searched(checkpoint: CheckpointFile, task: str) -> Block:
    """Coverage against cost of the agent and its baselines."""
    evaluations = (checkpoint.evaluations or {})[task]
    curves = {}
    for name, evaluation in evaluations:
        grid = np.unique(evaluation.runs)
        ones = np.ones((1, len(evaluation.runs)))
        curve = mean_curve(evaluation.coverages()[None], evaluation.runs, ones, grid)[0]
        curves[name] = grid.tolist(), curve.tolist()
    k = coverage_k(evaluations[0][1].scores.shape[1])
    columns, rows = search_rows(evaluations)
    table = Table(
        [c.replace("\n", " ") for c in columns], [[r[0], *(number(v, 3) for v in r[1:])] for r in rows],
        f"Means over {len(evaluations[0][1].picked)} evaluation episodes, by picks.",
    )  # fmt: skip
    role = "trained on" if task in checkpoint.note.tasks else "held out"
    caption = (
        f"Coverage@{k}, the share of the worth of the {k} best heads that is found, against the cost of the search "
        "(a run is one batch through the whole model)."
    )
    plot = lines(curves, "cost of the search, runs", f"coverage@{k}", steps=True, share=True)
    return Block(
        f"The search of {checkpoint.path.name} ({role})",
        figures=[Figure(f"Coverage against cost on {task}", caption, plot, table)],
    )


def compared(bench: BenchOnCache) -> list[Block]:
    """A block a track: coverage against cost, and the costs of all methods."""
    blocks = []
    for track, methods in bench.tracks.items():
        agent = [name for name in methods if name == AGENTS.get(track)]
        others = [name for name in methods if name not in agent and not bench.exploratory(name)][:MOST_CURVES]
        curves = {name: (bench.grid, bench.curve(name)) for name in agent + others}
        rows = [
            [
                name + (" (exploratory)" if bench.exploratory(name) else ""),
                number(bench.cost(name)),
                f"{bench.censored(name):.0%}",
            ]
            for name in methods
        ]
        table = Table(
            ["method", "cost to 90 %, runs", "never"],
            rows,
            "Geometric means over families of tasks; never: no cheaper than looking at every head.",
        )
        shown = [i for i, cost in enumerate(bench.grid) if cost in BUDGETS]
        at = [[name, *(number(curve[i]) for i in shown)] for name, (_, curve) in curves.items()]
        coverage = Table(["method", *(f"at {bench.grid[i]:g} runs" for i in shown)], at, "Coverage.")
        plot = lines(
            curves, "cost of the search, runs", "coverage@k", steps=True, log=True, share=True, levels={"90 %": 0.9}
        )
        caption = (
            f"Track {track}: coverage against cost, mean over held-out families; the agent and the cheapest others."
        )
        blocks.append(
            Block(
                f"Searches compared: track {track}, cache {bench.cache}",
                bench.verdicts(track),
                figures=[Figure(f"Coverage against cost, track {track}, {bench.cache}", caption, plot, coverage)],
                tables=[table],
            )
        )
    return blocks
