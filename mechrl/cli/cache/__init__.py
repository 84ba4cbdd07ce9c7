"""`mechrl-cache`: build a cache, look into it and hand its results over."""

import click

from mechrl.cli import app
from mechrl.cli.cache.add import add
from mechrl.cli.cache.attention import attention
from mechrl.cli.cache.attribution import attribution
from mechrl.cli.cache.build import build
from mechrl.cli.cache.check import check
from mechrl.cli.cache.export import export
from mechrl.cli.cache.import_ import import_
from mechrl.cli.cache.info import info
from mechrl.cli.cache.kept import kept
from mechrl.cli.cache.merge import merge
from mechrl.cli.cache.pairs import pairs
from mechrl.cli.cache.roles import roles
from mechrl.cli.cache.tables import tables
from mechrl.cli.cache.tasks import tasks
from mechrl.cli.cache.top import top
from mechrl.cli.cache.validate import validate


@click.group()
def cache() -> None:
    """Build the file with every head's damage, and look into it."""


for command in (
    build, add, check, tasks, tables, kept, merge, import_, info, validate, top, pairs, attribution, roles, attention,
    export,
):  # fmt: skip
    cache.add_command(command)


def main() -> None:
    """Entry point of `mechrl-cache`."""
    app.run(cache)
