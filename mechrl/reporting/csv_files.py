"""The numbers of a report as CSV, and its heat maps as PNG."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mechrl.cache.storage import write_whole
from mechrl.errors import MachineError
from mechrl.reporting.findings import bench_on_caches, control_weight, heads_in_order
from mechrl.reporting.heatmap import draw_heatmaps
from mechrl.reporting.run import Run

INTERVAL = ("", "_low", "_high")
HEAD_NUMBERS = ("damage", "control", "score", "direct", "indirect", "specificity")
REPLAYED = ("damage", "score", "rank", "direct", "elsewhere")  # with intervals
REPLAYED_PLAIN = ("cached", "live", "difference", "share", "p", "p_adjusted", "stands", "answer")


def files_folder(report: Path) -> Path:
    """Where the files of a report go: `<report>_files`."""
    return report.with_name(report.stem + "_files")


def write_files(run: Run, folder: Path) -> list[Path]:
    """Write the files; a table without rows is left out.

    :raises MachineError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write {folder}: {error.strerror or error}") from error
    tables = {
        "heads": _heads(run), "roles": _roles(run), "coverage": _coverage(run), "verification": _verification(run),
        "joint": _joint(run), "curves": _curves(run), "bench": _bench(run),
    }  # fmt: skip
    written = []
    for name, (columns, rows) in tables.items():
        if rows := list(rows):
            written.append(folder / f"{name}.csv")
            _write_csv(written[-1], columns, rows)
    for cache in (cache for model in run.models for cache in model.caches):
        written.append(folder / f"heatmap-{cache.sha256[:12]}.png")
        draw_heatmaps(cache, written[-1])
    return written


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8", errors="replace") as file:
            csv.writer(file).writerows([columns, *rows])

    write_whole(path, write)


Rows = tuple[Sequence[str], Iterable[Sequence[Any]]]


def _with_ends(names: Sequence[str]) -> list[str]:
    return [name + end for name in names for end in INTERVAL]


def _numbers(values: Iterable[Sequence[float] | None]) -> list[Any]:
    return [number for value in values for number in (value or ("", "", ""))]


def _heads(run: Run) -> Rows:
    columns = ["model_sha256", "cache_sha256", "task", "head", "layer", "index", *_with_ends(HEAD_NUMBERS), "marks"]
    return columns, (
        [
            cache.attributes["model_sha256"], cache.sha256, task, head.head, *head.head.split("."),
            *_numbers(getattr(head, name) for name in HEAD_NUMBERS), "; ".join(head.marks),
        ]
        for model in run.models
        for cache in model.caches
        for task in cache.tasks
        for head in heads_in_order(cache, task, control_weight(model, cache))
    )  # fmt: skip


def _roles(run: Run) -> Rows:
    return ["model_sha256", "cache_sha256", "role", "head", "value"], (
        [cache.attributes["model_sha256"], cache.sha256, role, cache.head(site), float(value)]
        for model in run.models
        for cache in model.caches
        for role, values in cache.roles.items()
        for site, value in enumerate(values)
    )


def _coverage(run: Run) -> Rows:
    columns = ["cache_sha256", "checkpoint_sha256", "task", "method", "pick", "mean_runs", "mean_coverage"]
    return columns, (
        [c.note.cache_sha256, c.sha256, task, method, pick + 1, float(runs), float(coverage)]
        for model in run.models
        for c in model.checkpoints
        for task, rows in (c.evaluations or {}).items()
        for method, evaluation in rows
        for pick, (runs, coverage) in enumerate(
            zip(evaluation.runs.mean(0), evaluation.coverages().mean(0), strict=True)
        )
    )


def _tasks(run: Run):
    return (
        (file.content.cache_sha256, file.content.checkpoint_sha256, name, task)
        for model in run.models
        for file in model.verifications
        for name, task in file.content.tasks.items()
    )


OF_A_TASK = ("cache_sha256", "checkpoint_sha256", "task")


def _verification(run: Run) -> Rows:
    return [*OF_A_TASK, "head", *_with_ends(REPLAYED), *REPLAYED_PLAIN, "why"], (
        [
            *of, head.head, *_numbers(getattr(head, name) for name in REPLAYED),
            *(getattr(head, name) for name in REPLAYED_PLAIN), head.why,
        ]
        for *of, task in _tasks(run)
        for head in task.heads
    )  # fmt: skip


def _joint(run: Run) -> Rows:
    return [*OF_A_TASK, "heads", *_with_ends(("joint", "summed", "interaction"))], (
        [*of, " ".join(joint.heads), *_numbers((joint.joint, joint.summed, joint.interaction))]
        for *of, task in _tasks(run)
        for joint in task.joint or ()
    )


def _curves(run: Run) -> Rows:
    return [*OF_A_TASK, "ranking", "k", "kept", "ablated"], (
        [*of, name, k, *(values[i] if values else "" for values in (ranking.kept, ranking.ablated))]
        for *of, task in _tasks(run)
        if task.curves
        for name, ranking in task.curves.rankings.items()
        for i, k in enumerate(task.curves.counts)
    )


def _bench(run: Run) -> Rows:
    return ["cache", "track", "method", "runs", "coverage"], (
        [bench.cache, track, method, runs, coverage]
        for model in run.models
        for bench in bench_on_caches(model)
        for track, methods in bench.tracks.items()
        for method in methods
        for runs, coverage in zip(bench.grid, bench.curve(method), strict=True)
    )
