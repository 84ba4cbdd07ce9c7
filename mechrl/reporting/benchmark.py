"""What `mechrl bench` measured, as tables, as a dictionary and as a figure."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mechrl.cache.storage import write_whole
from mechrl.search.bench.run import BUDGETS, Benchmark
from mechrl.search.bench.statistics import family_means, hierarchical
from mechrl.search.bench.verdict import AGENTS, Verdict
from mechrl.search.methods.registry import Method
from mechrl.search.problem import REFERENCE, TRACKS
from mechrl.search.protocol import RATIO_PICKS
from mechrl.tables import print_table

SHOWN_PICKS = (1, 3, 5, 10, 25)


def print_benchmark(result: Benchmark) -> None:
    """All tables on stdout, a closing sentence for each track last."""
    for name, found in result.families.items():
        said = "; ".join(f"{family}: {', '.join(tasks)}" for family, tasks in found.items())
        print(textwrap.fill(f"{name}: {said}", 160, subsequent_indent="  "))
    print()
    for track in _shown_tracks(result):
        _print_track(result, track, _of_track(result, track))
    _print_pairs(result)
    for verdict in result.verdicts:
        label = "" if result.by_protocol else "exploratory, for this is not the run that docs/protocol.md describes: "
        print(textwrap.fill(label + sentence(verdict), 160, subsequent_indent="  "))


def _shown_tracks(result: Benchmark) -> list[str]:
    """The tracks that have methods of their own; the first where there are references alone."""
    return [track for track in TRACKS if any(m.track == track for m in result.methods)] or [TRACKS[0]]


def _of_track(result: Benchmark, track: str) -> list[Method]:
    """The methods of a track and the references, cheapest first, exploratory ones last."""
    methods = [m for m in result.methods if m.track in (track, REFERENCE) and result.cells(m.name)]
    costs = {m.name: np.mean(list(family_means(result.cells(m.name)).values())) for m in methods}
    return sorted(methods, key=lambda m: (m.exploratory, costs[m.name]))


def _print_track(result: Benchmark, track: str, methods: Sequence[Method]) -> None:
    families = sorted({family for found in result.families.values() for family in found})
    summaries = {m.name: summary(result, m.name) for m in methods}
    rows = []
    for m in methods:
        s = summaries[m.name]
        costs = [f"{s['cost_by_family'][f]:.2f}" if f in s["cost_by_family"] else None for f in families]
        rows.append([_label(m), f"{s['cost']:.2f} ({s['cost_low']:.2f} to {s['cost_high']:.2f})", *costs])
    print_table(
        f"track {track}: cost to 90 % coverage, in runs",
        ["method", "mean (95 % interval)", *families],
        rows,
        "geometric means over held-out tasks; (R) reference, (E) exploratory; the exhaustive cost stands for more",
        secondary=families[::-1],
    )
    columns = ["method", "with control\nper look", "never\n90 %", "set-up\nruns", "set-up\nseconds"]
    columns += [f"coverage\nat {b:g} runs" for b in BUDGETS] + [f"ratio\nafter {p}" for p in SHOWN_PICKS]
    rows = []
    for m in methods:
        s = summaries[m.name]
        rows.append(
            [
                *(_label(m), s["cost_with_control"], f"{s['censored']:.0%}"),
                *(round(s["set_up_runs"]), f"{s['set_up_seconds']:.1f}"),
            ]
            + [s[f"coverage_at_{b:g}_runs"] for b in BUDGETS]
            + [s[f"ratio@{p}"] for p in SHOWN_PICKS]
        )
    print_table(
        "",
        columns,
        rows,
        "means over families of means over tasks; – where looks are no picks; never: no cheaper than the sweep",
        secondary=columns[:2:-1],
    )


def _label(method: Method) -> str:
    return method.name + " (R)" * (method.track == REFERENCE) + " (E)" * method.exploratory


def _print_pairs(result: Benchmark) -> None:
    for name, pairs in result.pairs.items():
        tasks = list(dict.fromkeys(of for of, _ in pairs))
        rows = [[of, *(f"{pairs[of, on][0]:.1f}" if of != on else None for on in tasks)] for of in tasks]
        print_table(
            f"exploratory: {name}, the static order of one task (row) on another (column), cost to 90 % in runs",
            ["order of", *(task.replace("_", "\n") for task in tasks)],
            rows,
        )


def summary(result: Benchmark, method: str) -> dict[str, Any]:
    """Means over families of means over tasks, caches and seeds; costs are geometric means, in runs."""
    cells = result.cells(method)
    mean, low, high = np.exp(hierarchical(cells))
    outcomes = [o for o in result.outcomes if o.method == method]

    def over_families(value) -> float | None:
        nested: dict[str, dict[str, dict[str, list[float]]]] = {}
        for o in outcomes:
            if (found := value(o)) is not None:
                nested.setdefault(o.family, {}).setdefault(o.task, {}).setdefault(o.cache, []).append(found)
        means = [[[np.mean(c) for c in task.values()] for task in family.values()] for family in nested.values()]
        return float(np.mean([np.mean([np.mean(task) for task in family]) for family in means])) if means else None

    def coverage_at(budget: float):
        column = int(np.flatnonzero(result.cost_grid == budget)[0])
        return lambda outcome: float(outcome.curve[0, column])

    control = np.exp(np.mean(list(family_means(result.cells(method, "log_control_cost")).values())))
    return {
        "cost": float(mean), "cost_low": float(low), "cost_high": float(high),
        "cost_by_family": {family: float(np.exp(v)) for family, v in family_means(cells).items()},
        "censored": float(np.mean([o.censored for o in outcomes])),
        "cost_with_control": float(control),
        "set_up_runs": float(np.mean([o.set_up_runs for o in outcomes])),
        "set_up_seconds": float(np.mean([o.set_up_seconds for o in outcomes])),
        **{f"coverage_at_{b:g}_runs": over_families(coverage_at(b)) for b in BUDGETS},
        **{f"ratio@{p}": over_families(lambda o, p=p: o.ratios.get(p)) for p in RATIO_PICKS},
    }  # fmt: skip


def sentence(verdict: Verdict) -> str:
    """The closing sentence of a track, with its numbers."""
    names = sorted({name for of in verdict.comparators.values() for name in of.values()})
    ratio, low, high = np.exp([verdict.mean, verdict.low, verdict.high])
    return (
        f"{verdict.track}: {verdict.sentence}. {verdict.agent} costs {ratio:.2f} times ({low:.2f} to {high:.2f}) what "
        f"the baseline chosen on the other families costs ({', '.join(names)}); p = {verdict.p:.3f}, "
        f"{verdict.adjusted:.3f} after Holm"
        + f"; on {verdict.censored:.0%} of the tasks neither gets there before the exhaustive sweep"
        * bool(verdict.censored)
        + "; too few families to claim transfer" * verdict.too_few
    )


def as_dict(result: Benchmark) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "by_protocol": result.by_protocol,
        "caches": result.fingerprints,
        "families": result.families,
        "methods": {
            m.name: {"track": m.track, "exploratory": m.exploratory, **summary(result, m.name)}
            for m in result.methods
            if result.cells(m.name)
        },
        "tasks": [
            {
                "cache": o.cache, "family": o.family, "task": o.task, "method": o.method, "seed": o.seed,
                "cost": float(np.exp(o.log_cost[0])),
                "cost_interval": np.exp(np.percentile(o.log_cost[1:], (2.5, 97.5))).tolist(),
                "censored": o.censored, "ratios": {str(p): ratio for p, ratio in o.ratios.items()},
                "coverage": np.round(o.curve[0], 4).tolist(),
            }
            for o in result.outcomes
        ],
        "cost_grid": np.round(result.cost_grid, 3).tolist(),
        "pairs": {
            name: {f"{of} on {on}": {"cost": cost, "ratio@3": ratio} for (of, on), (cost, ratio) in pairs.items()}
            for name, pairs in result.pairs.items()
        },
        "verdicts": [
            {
                "track": v.track, "agent": v.agent, "sentence": v.sentence, "too_few_families": v.too_few,
                "censored": v.censored,
                "cost_ratio": float(np.exp(v.mean)), "low": float(np.exp(v.low)), "high": float(np.exp(v.high)),
                "p": v.p, "p_adjusted": v.adjusted, "comparators": v.comparators,
                "family_cost_ratios": {family: float(np.exp(value)) for family, value in v.families.items()},
            }
            for v in result.verdicts
        ],
    }  # fmt: skip


def draw_curves(result: Benchmark, path: Path, most: int = 6) -> None:
    """Coverage against cost, a panel a track: the agent, the cheapest baselines and the references.

    The agent and the cheapest baseline have a 95 % band.

    :raises MachineError: the path cannot be written to.
    """
    shown_tracks = _shown_tracks(result)
    figure = Figure(figsize=(6.4 * len(shown_tracks), 4.6), layout="constrained")
    for i, track in enumerate(shown_tracks):
        axes = figure.add_subplot(1, len(shown_tracks), i + 1)
        methods = _of_track(result, track)
        agents = [m for m in methods if m.name == AGENTS[track]]
        plain = [m for m in methods if m.track == track and not m.agent and not m.exploratory][:most]
        references = [m for m in methods if m.track == REFERENCE]
        for m in agents + plain:
            mean, low, high = curve_with_band(result, m.name)
            (line,) = axes.plot(result.cost_grid, mean, label=m.name, linewidth=2.6 if m.agent else 1.4)
            if m in agents + plain[:1]:
                axes.fill_between(result.cost_grid, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        for m, style in zip(references, ("--", ":", "-."), strict=False):
            axes.plot(result.cost_grid, curve_with_band(result, m.name)[0], style, label=m.name, color="0.3")
        axes.axhline(0.9, color="0.6", linewidth=0.8)
        axes.set(
            title=f"track {track}", xlabel="cost of the search, runs", ylabel="coverage@k", xscale="log", ylim=(0, 1.02)
        )
        axes.legend(fontsize=7, loc="lower right")
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=130))


def curve_with_band(result: Benchmark, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean coverage over families and its 95 % band (families, tasks, caches, seeds and groups resampled), [cost]."""
    return hierarchical(result.cells(method, "curve"))
