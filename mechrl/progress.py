"""What is said, on stderr, to the person who waits: lines, warnings, and how far the work has come."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from typing import Any, Protocol

import click

QUIET_SECONDS = 10  # between two lines that differ in what is being done alone


class Show(Protocol):
    """Shows how far the work has come: what is done, the total, and what is being done, in words."""

    def __call__(self, done: float, total: float, doing: str = "") -> None: ...


def say(text: str) -> None:
    """A line for the person who waits."""
    with unheard():
        click.echo(printable(text), err=True)


def warn(text: str) -> None:
    """A warning that must not be overlooked."""
    with unheard():
        click.secho(f"WARNING: {printable(text)}", err=True, fg="yellow", bold=True)


def printable(text: str) -> str:
    """A message that may hold what a file says of itself, which must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


@contextmanager
def progress(what: str, shown: bool = True) -> Iterator[Show]:
    """A bar on a terminal or in a notebook, elsewhere a line each quarter; yields a function of done and total.

    Where it is told what is being done, too, it shows that, elsewhere in a line every ten seconds at most.
    The time left goes by what was done since the first call, so that call first with what is done already.

    :param what: what is going on, such as "sweeping"; an error on the way is given a note of it.
    :param shown: False to show nothing.
    """
    try:
        with _shown(what) if shown else nullcontext(lambda done, total, doing="": None) as show:
            yield show
    except Exception as error:
        error.add_note(f"while {what}")
        raise


@contextmanager
def _shown(what: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    start: list[float] = []

    def time_left(done: float, total: float) -> str:
        start.extend(() if start else (time.monotonic(), done))
        if done <= start[1] or done >= total:
            return ""
        seconds = (time.monotonic() - start[0]) / (done - start[1]) * (total - done)
        return (
            f"about {seconds / 3600:.1f} h left"
            if seconds > 5400
            else (f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left")
        )

    console = Console(stderr=True)
    if not sys.stderr.isatty() and not (console.is_jupyter and find_spec("ipywidgets")):
        quarter, said_at = 0, 0.0

        def say_each_quarter(done: float, total: float, doing: str = "") -> None:
            nonlocal quarter, said_at
            left, before = time_left(done, total), quarter
            quarter = int(4 * done / total)
            if quarter > before or (doing and time.monotonic() > max(said_at, *start[:1]) + QUIET_SECONDS):
                said_at = time.monotonic() if doing else said_at
                say(", ".join(filter(None, [f"{what}: {min(1, done / total):.0%} done", left, doing])))

        yield say_each_quarter
        return
    bar_column = BarColumn(table_column=Column(no_wrap=True))  # a narrow terminal breaks the words alone
    said = TextColumn("{task.fields[said]}", markup=False, table_column=Column())
    columns = TextColumn("{task.description}"), bar_column, TaskProgressColumn(), said
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, said="")

        def show_bar(done: float, total: float, doing: str = "") -> None:
            parts = filter(None, [time_left(done, total), doing])
            bar.update(task, completed=done, total=total, said=", ".join(parts))

        yield show_bar


@contextmanager
def unheard() -> Iterator[None]:
    """Lets writing to stderr fail: work goes on though nobody can read about it."""
    try:
        yield
        sys.stderr.flush()
    except OSError:
        settle(sys.stderr)


def settle(stream: Any) -> None:
    """Writes what is still to be written, or else sends it nowhere: Python would fail on it once more when it ends."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
