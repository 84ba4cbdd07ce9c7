"""`mechrl-cache merge`: parts of a build joined."""

from pathlib import Path

import click

from mechrl.cli import app
from mechrl.cli.cache.info import print_built


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("parts", type=click.Path(path_type=Path), nargs=-1, required=True)
@app.as_json
def merge(out: Path, parts: tuple[Path, ...], as_json: bool) -> None:
    """Join the parts that `build --shard` wrote into OUT."""
    from mechrl.building.build import merge_files
    from mechrl.cache.storage import check_writable

    check_writable(out)
    merge_files(out, parts)
    print_built(out, as_json)
