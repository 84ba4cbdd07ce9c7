"""What is said, on stderr, to the person who waits: lines, warnings, and how far the work has come."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from typing import Any

import click

SLOW = 2.0  # seconds
Show = Callable[[float, float], None]  # of what is done and the total


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

    The time left goes by what was done since the first call, so that call first with what is done already.

    :param what: what is going on, such as "sweeping"; an error on the way is given a note of it.
    :param shown: False to show nothing.
    """
    try:
        with _shown(what) if shown else nullcontext(lambda done, total: None) as show:
            yield show
    except Exception as error:
        error.add_note(f"while {what}")
        raise


@contextmanager
def _shown(what: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

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
        said = [0]

        def say_each_quarter(done: float, total: float) -> None:
            left = time_left(done, total)
            if (quarter := int(4 * done / total)) > said[0]:
                said[0] = quarter
                say(f"{what}: {min(1, done / total):.0%} done{', ' * bool(left)}{left}")

        yield say_each_quarter
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}")
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, left="")
        yield lambda done, total: bar.update(task, completed=done, total=total, left=time_left(done, total))


@contextmanager
def said_if_slow(text: str) -> Iterator[None]:
    """Says what is being done once it has taken two seconds."""
    timer = threading.Timer(SLOW, say, [text])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
