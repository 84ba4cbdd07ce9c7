"""`mechrl`: all commands under one name."""

import click

from mechrl import __version__
from mechrl.cli import app
from mechrl.cli.audit import audit
from mechrl.cli.bench import bench
from mechrl.cli.cache import cache
from mechrl.cli.circuit import circuit
from mechrl.cli.report import report
from mechrl.cli.train import train
from mechrl.cli.verify import verify


@click.group()
@click.version_option(__version__)
def mechrl() -> None:
    """Which attention heads does this behaviour depend on?"""


for command in (circuit, audit, cache, train, verify, bench, report):
    mechrl.add_command(command)


def main() -> None:
    """Entry point of `mechrl`."""
    app.run(mechrl)


if __name__ == "__main__":
    main()
