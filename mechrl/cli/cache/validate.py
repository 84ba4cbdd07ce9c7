"""`mechrl-cache validate`: whether a byte was changed."""

from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@app.existing
def validate(path: Path) -> None:
    """Check every byte of a cache against its manifest, and every number for sense."""
    from mechrl.cache.reader import Cache
    from mechrl.cache.storage import check_manifest, manifest_path
    from mechrl.errors import FileError

    opened = Cache.open(path)
    if not check_manifest(path, opened.content):
        raise FileError(f"{path}: the content is sound, but {manifest_path(path)} is missing")
    click.echo(f"{path}: sound; sha256 of the content {opened.sha256}")
