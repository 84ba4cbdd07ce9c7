"""What commands that take a user's task files share: their flags, and what is said of the files."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechrl.cli import app

if TYPE_CHECKING:
    from mechrl.models import Model
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
    """Tasks from files; what was recognised in them, and what is ignored, is said.

    :param flag: which names the files, for messages.
    :param called: the names of the tasks, one for each file, or none.
    :param taken: names that are not free.
    """
    from mechrl.tasks.task_file import read_task_file

    if called and len(called) != len(paths):
        raise click.UsageError(f"{len(called)} × --name and {len(paths)} × {flag}: name each file, in their order")
    files = []
    for i, path in enumerate(paths):
        name = called[i] if called else None
        files.append(file := read_task_file(path, taken, name=name, skip_bad_lines=skip_bad_lines))
        if file.read_as:
            app.say(f"{path}: {file.read_as}")
        if file.ignored:
            shown = ", ".join(name[:40] for name in file.ignored[:5])
            more = f" and {len(file.ignored) - 5} more" if len(file.ignored) > 5 else ""
            app.warn(f"{path}: columns that are not read: {shown}{more}")
    return tuple(files)


def fitting(files: Iterable["TaskFile"], model: "Model") -> tuple["TaskFile", ...]:
    """Files as a model's tokenizer takes them; what their token ids mean to it, and how many lines go, is said."""
    from mechrl.tasks.fitting import check_file, ids_say

    fit = []
    for file in files:
        if said := ids_say(file, model.vocabulary):
            app.say(f"{file.path}: {said}")
        fit.append(found := check_file(file, model.vocabulary, model.n_ctx))
        if found.skipped:
            of = f"{found.skipped} of {found.skipped + len(found)} {file.unit}s"
            app.warn(f"{file.path}: {of} do not fit and are left out")
        if found.dropped:
            app.say(f"{file.path}: {found.dropped} answers and wrongs, digits that this tokenizer joins, are left out")
    return tuple(fit)
