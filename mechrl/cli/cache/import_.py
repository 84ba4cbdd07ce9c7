"""`mechrl-cache import`: a cache of scores that others measured."""

from pathlib import Path

import click

from mechrl.cli import app
from mechrl.cli.cache.info import print_info


@click.command("import")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="What the scores are of, such as docstring.")
@click.option("--n-layers", required=True, type=click.IntRange(1, 4096), help="Of the model.")
@click.option("--n-heads", required=True, type=click.IntRange(1, 4096), help="Of each layer.")
@click.option("--model", default="unknown", show_default=True, help="What to call the model.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where to.")
@app.as_json
def import_(table: Path, task: str, n_layers: int, n_heads: int, model: str, out: Path, as_json: bool) -> None:
    """Make a cache from scores that others measured.

    TABLE is a .csv file: a row for each episode, a column for each head, named layer.head in the header; the first
    column may name the episodes. The scores contain the control term, and there are no prompts: such a cache can be
    searched and trained on, not verified.
    """
    from mechrl.cache.imported import import_table
    from mechrl.cache.reader import Cache
    from mechrl.cache.storage import check_writable, manifest_path

    check_writable(out)
    if table.resolve() in (out.resolve(), manifest_path(out).resolve()):
        raise click.UsageError(f"--out {out} would overwrite the table")
    if out.exists():
        app.say(f"{out} is there already and will be replaced")
    print_info(Cache.open(import_table(table, task, n_layers, n_heads, out, model)), as_json)
