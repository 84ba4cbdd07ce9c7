"""`mechrl report`: pictures of a cache."""

from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=app.MINI_CACHE, required=False)
@click.option("--out", "-o", type=click.Path(path_type=Path), default="heatmap.png", show_default=True)
def report(path, out):
    """Draw layer × head heat maps of every task's scores and of the control damage."""
    from mechrl.cache.reader import Cache
    from mechrl.report.heatmap import draw_heatmaps

    draw_heatmaps(Cache.open(path), out)
    click.echo(f"{out} written")
