"""Numbers as CSV, and heat maps and curves as pictures."""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mechrl.cache.reader import Cache
from mechrl.cache.storage import check_writable, write_whole
from mechrl.errors import MachineError, UsageError
from mechrl.reporting.run import Run
from mechrl.reporting.sections.cache import control_weight, heads_in_order
from mechrl.reporting.sections.search import bench_on_caches
from mechrl.reporting.terminal import methods_of_track, shown_tracks
from mechrl.search.bench.summary import BenchmarkRun
from mechrl.search.bench.verdict import AGENTS
from mechrl.search.problem import REFERENCE
from mechrl.verification.result import VerifiedTask

PICTURES = (".png", ".svg", ".pdf")  # endings
INTERVAL = ("", "_low", "_high")
HEAD_NUMBERS = ("damage", "control", "score", "direct", "indirect", "specificity")
REPLAYED = ("damage", "score", "rank", "direct", "elsewhere")  # with intervals
REPLAYED_PLAIN = ("cached", "live", "difference", "share", "p", "p_adjusted", "top_share", "answer")


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
        "attention": _attention(run),
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


def _tasks(run: Run) -> Iterator[tuple[str, str | None, str, VerifiedTask]]:
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
        [*of, name, k, ranking.kept[i], ranking.ablated[i]]
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


def _attention(run: Run) -> Rows:
    columns = ["model_sha256", "task", "head", "length", "position", "token", "token_share", "answer", "wrong"]
    return [*columns, *_with_ends(["attention"])], (
        [
            file.content.model_sha256, file.content.task, head, len(part.slots), at - len(part.slots), slot.token,
            slot.share, slot.answer, slot.wrong, *attention[at],
        ]
        for model in run.models
        for file in model.attentions
        for part in file.content.aligned
        for head, attention in part.attention.items()
        for at, slot in enumerate(part.slots)
    )  # fmt: skip


def draw_heatmaps(cache: Cache, path: Path) -> None:
    """Draws the mean score of every head on every task, and the control damage, over all prompts, in nats.

    Of an imported cache, the mean score over all episodes.

    :raises UsageError: the ending of the path is not that of a picture.
    :raises MachineError: the path cannot be written to.
    """
    if path.suffix not in PICTURES:
        raise UsageError(f"{path}: a heat map ends in one of {', '.join(PICTURES)}")
    check_writable(path)
    if cache.imported:
        panels = {f"{task}: score": cache.episode_scores(task).mean(0) for task in cache.tasks}
    else:
        control = cache.control_damage.mean(0)
        panels = {f"{task}: score": cache.damage(task).mean(0) - control for task in cache.tasks}
        panels["control damage"] = control
    figure = _heatmap_figure(panels, cache)
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=110))


def _heatmap_figure(panels: Mapping[str, np.ndarray], cache: Cache) -> Figure:
    width, height = 1.2 + 0.52 * cache.n_heads, 1.2 + 0.36 * cache.n_layers
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(columns * width, rows * height + 0.4), layout="constrained")
    source = "imported scores" if cache.imported else f"{cache.attributes['ablation']} ablation, nats"
    figure.suptitle(f"{cache.attributes['model']}: {source}", parse_math=False)
    for i, (title, values) in enumerate(panels.items()):
        grid = values.reshape(cache.n_layers, cache.n_heads)
        limit = float(np.abs(grid).max()) or 1.0
        axes = figure.add_subplot(rows, columns, i + 1)
        image = axes.imshow(grid, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set(title=title, xlabel="head", ylabel="layer", xticks=range(cache.n_heads), yticks=range(cache.n_layers))
        digits = 2 if limit > 0.5 else 3
        for (layer, head), value in np.ndenumerate(np.round(grid, digits) + 0.0):
            colour = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(head, layer, f"{value:.{digits}f}", ha="center", va="center", fontsize=6.5, color=colour)
        figure.colorbar(image, ax=axes)
    return figure


def draw_curves(run: BenchmarkRun, path: Path, most: int = 6) -> None:
    """Coverage against cost, a panel a track: the agent, the cheapest baselines and the references.

    The agent and the cheapest baseline have a 95 % band.

    :raises MachineError: the path cannot be written to.
    """
    result = run.result
    tracks, grid = shown_tracks(result), result.cost_grid
    figure = Figure(figsize=(6.4 * len(tracks), 4.6), layout="constrained")
    for i, track in enumerate(tracks):
        axes = figure.add_subplot(1, len(tracks), i + 1)
        names = methods_of_track(result, track)
        references = [name for name in names if result.methods[name].track == REFERENCE]
        agents = [name for name in names if name == AGENTS[track]]
        plain = [m.name for m in run.methods if m.track == track and not m.agent and not m.exploratory]
        plain = [name for name in names if name in plain][:most]
        for name in agents + plain:
            mean, low, high = run.curve(name)
            (line,) = axes.plot(grid, mean, label=name, linewidth=2.6 if name in agents else 1.4)
            if name in agents + plain[:1]:
                axes.fill_between(grid, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        for name, style in zip(references, ("--", ":", "-."), strict=False):
            axes.plot(grid, run.curve(name)[0], style, label=name, color="0.3")
        axes.axhline(0.9, color="0.6", linewidth=0.8)
        axes.set(
            title=f"track {track}", xlabel="cost of the search, runs", ylabel="coverage@k", xscale="log", ylim=(0, 1.02)
        )
        axes.legend(fontsize=7, loc="lower right")
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=130))
