"""What the page says of searches: coverage against cost."""

import numpy as np

from mechrl.reporting.blocks import Block, Figure, Table
from mechrl.reporting.claims import number
from mechrl.reporting.figures import lines
from mechrl.reporting.findings import BenchOnCache
from mechrl.reporting.rows import search_rows
from mechrl.reporting.run import CheckpointFile
from mechrl.search.bench.run import BUDGETS
from mechrl.search.bench.verdict import AGENTS
from mechrl.search.protocol import coverage_k, mean_curve

MOST_CURVES = 6  # baselines in a figure of the benchmark; its table has all


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
                f"{bench.never(name):.0%}",
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
