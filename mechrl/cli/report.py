"""`mechrl report`: what was found, on one page; or the heat maps of a cache as a picture."""

from pathlib import Path

import click

from mechrl.cli import app

USUAL = (app.MINI_CACHE, Path("checkpoint.zip"), Path("verification.json"), Path("bench.json"), Path("attention.json"))


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1, type=app.RUN)
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), default="report.html", show_default=True,
    help="A page (.html), or the heat maps of one cache (.png, .svg, .pdf).",
)  # fmt: skip
@click.option("--files", is_flag=True, help="Also write all numbers (CSV) and heat maps (PNG) into <report>_files.")
def report(runs: tuple[Path, ...], out: Path, files: bool) -> None:
    """Write one page about everything in the RUNs, that needs no network and sends nothing.

    A RUN is a folder, or a file of it: caches (.h5), checkpoints (.zip), and what `mechrl-verify --out`, `mechrl-cache
    attention --out` and `mechrl bench --json` wrote (.json). Without one: cache/mini.h5 and, where they are,
    checkpoint.zip, verification.json, bench.json and attention.json.
    """
    if out.suffix != ".html":
        _heat_maps(runs, out, files)
        return
    if not runs:
        runs = tuple(path for path in USUAL if path.is_file() or app.unfinished(path))
        if not runs:
            raise click.UsageError(f"name a RUN; there is no cache at {app.MINI_CACHE}, mechrl-cache build makes one")
    from mechrl.cache.storage import check_writable
    from mechrl.reporting.files import files_folder, write_files
    from mechrl.reporting.page import write_page
    from mechrl.reporting.run import collect

    folder = files_folder(out)
    found = collect(runs, leave_out=[out, folder])
    check_writable(out)
    for _, message in found.damaged:
        app.warn(message)
    write_page(found, out)
    click.echo(f"{out} written")
    if files:
        click.echo(f"{len(write_files(found, folder))} files written to {folder}")


def _heat_maps(runs: tuple[Path, ...], out: Path, files: bool) -> None:
    if files or len(runs) > 1:
        raise click.UsageError(f"{out} would be a picture of one cache; a page ends in .html")
    from mechrl.cache.reader import Cache
    from mechrl.reporting.files import draw_heatmaps

    draw_heatmaps(Cache.open(runs[0] if runs else app.MINI_CACHE), out)
    click.echo(f"{out} written")
