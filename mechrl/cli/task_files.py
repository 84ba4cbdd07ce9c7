"""The flags of commands that take a user's task files."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from mechrl.tasks import TaskFile

names = click.option(
    "--name", "task_names", multiple=True, help="What to call the task of a file; one for each.  [default: as the file]"
)
skip = click.option(
    "--skip-bad-lines",
    is_flag=True,
    help="Leave out what does not fit of a file, up to a quarter of its lines.",
)


def read(
    flag: str, paths: Sequence[Path], called: Sequence[str], skip_bad_lines: bool, taken: Collection[str] = ()
) -> tuple["TaskFile", ...]:
    """Tasks from files.

    :param flag: which names the files, for messages.
    :param called: the names of the tasks, one for each file, or none.
    :param taken: names that are not free.
    """
    from mechrl.tasks.task_file import read_task_files

    if called and len(called) != len(paths):
        raise click.UsageError(f"{len(called)} × --name and {len(paths)} × {flag}: name each file, in their order")
    return read_task_files(paths, taken, names=called, skip_bad_lines=skip_bad_lines)
