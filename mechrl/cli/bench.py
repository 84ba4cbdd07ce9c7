"""`mechrl bench`: all methods of search on held-out families."""

from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@click.option("--cache", "paths", multiple=True, type=app.CACHE, default=[app.MINI_CACHE],
              show_default=True, help="Once for each cache.")  # fmt: skip
@click.option("--track", type=click.Choice(["scores", "attribution", "both"]), default="both", show_default=True,
              help="What methods may use: looks alone, or attribution as well.")  # fmt: skip
@click.option(
    "--method", "methods", multiple=True, help="Only this one, and others named so.  [default: all of the track]"
)
@click.option("--list", "list_methods", is_flag=True, help="Print the methods' names and stop.")
@click.option("--plugin", type=click.Path(path_type=Path), help="A Python file that adds methods; it is executed.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="An agent of mechrl-train as one more method.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 100), help="Of whatever is random.")
@click.option("--control-weight", default=1.0, show_default=True, callback=app.not_negative,
              help="Score = damage − this × control damage.")  # fmt: skip
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="A figure: coverage against cost (.png, .svg, .pdf)."
)
@app.as_json
def bench(
    paths: tuple[Path, ...], track: str, methods: tuple[str, ...], list_methods: bool, plugin: Path | None,
    checkpoint: Path | None, seeds: int, control_weight: float, workers: int, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Search every family of behaviours held out in turn, with every method, and say what wins.

    docs/protocol.md says what is compared and how.
    """
    for path in (plugin, checkpoint):
        if path is not None and not path.is_file():
            raise click.UsageError(f"{path}: no such file")
    from mechrl.search.problem import TRACKS

    tracks = TRACKS if track == "both" else (track,)
    if list_methods:
        _list_methods(plugin, checkpoint, as_json)
        return
    for path in paths:
        if not path.is_file() and not app.unfinished(path):
            raise click.UsageError(f"there is no cache at {path}; mechrl-cache build --tasks all makes one for mini")
    if out is not None:
        from mechrl.cache.storage import check_writable
        from mechrl.reporting.files import PICTURES

        if out.suffix not in PICTURES:
            raise click.UsageError(f"{out}: a figure ends in one of {', '.join(PICTURES)}")
        check_writable(out)
    from mechrl.search.bench.run import run_benchmark

    with app.progress("comparing methods") as progress:
        run = run_benchmark(
            paths, names=methods or None, tracks=tracks, seeds=seeds, control_weight=control_weight, workers=workers,
            plugin=plugin, checkpoint=checkpoint, on_progress=progress,
        )  # fmt: skip
    if out is not None:
        from mechrl.reporting.files import draw_curves

        draw_curves(run, out)
    if as_json:
        app.print_json(run.result.model_dump(mode="json"))
    else:
        from mechrl.reporting.terminal import print_benchmark

        print_benchmark(run.result)


def _list_methods(plugin: Path | None, checkpoint: Path | None, as_json: bool) -> None:
    from mechrl.display import print_table
    from mechrl.search.methods.registry import all_methods

    methods = all_methods(plugin, checkpoint).values()
    if as_json:
        app.print_json({m.name: {"track": m.track, "exploratory": m.exploratory} for m in methods})
        return
    rows = [[m.name, m.track, "exploratory" if m.exploratory else ""] for m in methods]
    print_table("", ["method", "track", "status"], rows)
