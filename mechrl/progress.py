"""What is said, on stderr, to the person who waits: lines, warnings, and how far the work has come."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from math import inf
from typing import Any, Protocol

import click

from mechrl.process import resident_bytes

# Seconds to the first line where there is no terminal, and from one to the next: with work that is told of every ten
# seconds, the first comes within 20 and the others at least every minute.
FIRST_LINE, NEXT_LINE = 10, 50
SLOW = 2.0  # seconds


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


def duration(seconds: float) -> str:
    """A time to read, such as "12 min"."""
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"


def size(n_bytes: float) -> str:
    """A number of bytes to read, such as "1.2 GB"."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


@contextmanager
def progress(what: str, shown: bool = True, operations: bool = False) -> Iterator[Show]:
    """A bar on a terminal or in a notebook, elsewhere a line a minute; yields a function of done and total.

    Both say the time gone and about the time left, the rate where it is known, and the memory that the process holds.
    Times go by what was done since the first call, so make that call, with what is done already, when the work begins.
    A line can only be said when the function is called: call it several times a minute. Where it is told what is being
    done, too, both say that, and a line comes sooner when that changes.

    :param what: what is going on, such as "sweeping"; an error on the way is given a note of it.
    :param shown: False to show nothing.
    :param operations: whether what is done are floating-point operations, whose rate is shown.
    """
    try:
        with _shown(what, operations) if shown else nullcontext(lambda done, total, doing="": None) as show:
            yield show
    except Exception as error:
        error.add_note(f"while {what}")
        raise


class _Pace:
    """How fast work goes, from its first call on."""

    def __init__(self, operations: bool):
        self.operations = operations
        self.seconds = 0.0  # since the first call
        self._start: tuple[float, float] | None = None

    def __call__(self, done: float, total: float) -> str:
        """Time gone and left, rate and memory."""
        now = time.monotonic()
        began, before = self._start = self._start or (now, done)
        self.seconds = now - began
        said = [f"{duration(self.seconds)} gone"]
        if self.seconds > 0 and done > before:
            rate = (done - before) / self.seconds
            said += [f"about {duration((total - done) / rate)} left"] * (done < total)
            said += [f"{rate / 1e9:.3g} GFLOP/s"] * self.operations
        if memory := resident_bytes():
            said.append(size(memory))
        return ", ".join(said)


@contextmanager
def _shown(what: str, operations: bool) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    console, pace = Console(stderr=True), _Pace(operations)
    if not sys.stderr.isatty() and not (console.is_jupyter and find_spec("ipywidgets")):
        due: float = FIRST_LINE
        soonest: float = FIRST_LINE
        told = ""

        def say_now_and_then(done: float, total: float, doing: str = "") -> None:
            nonlocal due, soonest, told
            text, share = pace(done, total), done / total
            changed = doing != told and pace.seconds >= soonest
            if pace.seconds >= due or changed or (share >= 1 and due < inf):
                due, soonest, told = pace.seconds + NEXT_LINE, pace.seconds + FIRST_LINE, doing
                due = inf if share >= 1 else due
                say(", ".join(filter(None, [f"{what}: {min(1, share):.0%} done", text, doing])))

        yield say_now_and_then
        return
    bar_column = BarColumn(12, table_column=Column(no_wrap=True))  # a narrow terminal breaks the words alone
    said = TextColumn("{task.fields[said]}", markup=False, table_column=Column())
    columns = TextColumn("{task.description}"), bar_column, TaskProgressColumn(), said
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, said="")

        def show_bar(done: float, total: float, doing: str = "") -> None:
            bar.update(task, completed=done, total=total, said=", ".join(filter(None, [pace(done, total), doing])))

        yield show_bar


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
