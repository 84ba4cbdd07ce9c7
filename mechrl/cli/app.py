"""What all commands share: how they end, the flags that mean the same everywhere, progress bars."""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from mechrl.cli.surroundings import prepare, settle, unheard
from mechrl.errors import MechrlError, is_out_of_memory

DEBUG = "--debug"
MINI_CACHE = Path("cache/mini.h5")
FIRST_LINE = "model: mini, the small one that comes with mechrl (GPT-2 small: --model gpt2 --device cuda)"

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
model = click.option("--model", default="mini", show_default=True, help="mini, a folder, or a name on the hub.")
revision = click.option("--revision", default="", help="Of a model on the hub: a branch, tag or commit.")
seed = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of what is drawn at random."
)


def not_negative(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A finite number from 0 on, or None."""
    if value is not None and not 0 <= value < 1e6:
        raise click.BadParameter(f"{value} is not between 0 and a million")
    return value


def threads(default: int | None) -> Callable:
    """The --threads flag; None means all cores."""
    shown = str(default) if default else "all cores"
    return click.option(
        "--threads", default=default, type=click.IntRange(1, 1024), show_default=shown, help="Of torch."
    )


def run(command: click.Command) -> NoReturn:
    """Runs a command as a program: one message on stderr and DESIGN's exit code for whatever goes wrong."""
    debug = DEBUG in sys.argv
    _accept_debug(command)
    try:
        prepare(debug)
        result = command.main(standalone_mode=False)
        sys.stdout.flush()
        sys.exit(result if isinstance(result, int) else 0)
    except SystemExit:
        raise
    except BaseException as error:  # a library in Rust panics with one that is no Exception
        settle(sys.stdout)
        if isinstance(error, click.Abort) and isinstance(error.__cause__, EOFError):
            error = error.__cause__  # click takes it for the end of the keyboard; nothing here reads one
        if debug:
            with unheard():
                traceback.print_exception(error)
        sys.exit(_explain(error))


def _explain(error: BaseException) -> int:
    """Says on stderr what went wrong, and gives the exit code."""
    code = 1
    with unheard():
        if isinstance(error, click.ClickException):
            code = error.exit_code
            error.show()
        elif isinstance(error, KeyboardInterrupt | click.Abort):
            code = 130
            click.echo("interrupted", err=True)
        elif not isinstance(error, BrokenPipeError):  # who closed the pipe has read enough
            if isinstance(error, MechrlError):
                code = error.exit_code
            click.secho(f"error: {_message(error)}", err=True, fg="red")
    return code


def _message(error: BaseException) -> str:
    if isinstance(error, MechrlError | OSError):
        text = str(error)
    elif is_out_of_memory(error):
        text = "out of memory"
    else:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        text = (
            f"{_doing(error)} ({what if len(what) < 300 else what[:300] + '…'}). This is a fault of mechrl's, or of a "
            f"library under it; {DEBUG} shows where"
        )
    return _printable(text)


def _printable(text: str) -> str:
    """A message that may hold what a file says of itself, which must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def _doing(error: BaseException) -> str:
    """Which command failed, and during what: the innermost of click's contexts in the trace, and progress's note."""
    contexts = [frame.f_locals.get("ctx") for frame, _ in traceback.walk_tb(error.__traceback__)]
    commands = [context.command_path for context in contexts if isinstance(context, click.Context)]
    notes = [note for note in getattr(error, "__notes__", []) if note.startswith("while ")]
    return " ".join([commands[-1] if commands else "mechrl", "failed", *notes[:1]])


def _accept_debug(command: click.Command) -> None:
    """Gives a command, and all below it, the flag that `run` looks for."""
    if all(parameter.name != "debug" for parameter in command.params):
        help = "Show the trace of an error, and what libraries warn of."
        command.params.append(click.Option([DEBUG], is_flag=True, expose_value=False, help=help))
    for below in getattr(command, "commands", {}).values():
        _accept_debug(below)


def unfinished(path: Path) -> bool:
    """Whether the build of a cache was interrupted; opening the cache then says what to do."""
    return path.with_name(path.name + ".build").is_dir()


def say(text: str) -> None:
    """A line for the person who waits, on stderr."""
    with unheard():
        click.echo(_printable(text), err=True)


def warn(text: str) -> None:
    """A warning that must not be overlooked, on stderr."""
    with unheard():
        click.secho(f"WARNING: {_printable(text)}", err=True, fg="yellow", bold=True)


def print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    """A comma-separated list as a list; None stays None."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


def use_threads(n: int | None) -> None:
    """Limits torch to `n` threads, if given."""
    if n:
        import torch

        torch.set_num_threads(n)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[float, float], None]]:
    """A progress bar on a terminal, elsewhere a line each quarter; yields a function of what is done and the total.

    The time left goes by what was done since the first call, so that call first with what is done already.

    :param what: what is going on, such as "sweeping"; an error on the way is given a note of it.
    """
    try:
        with _shown_progress(what) as show:
            yield show
    except Exception as error:
        error.add_note(f"while {what}")
        raise


@contextlib.contextmanager
def _shown_progress(what: str) -> Iterator[Callable[[float, float], None]]:
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

    if not sys.stderr.isatty():
        said = [0]

        def say_each_quarter(done: float, total: float) -> None:
            left = time_left(done, total)
            if (quarter := int(4 * done / total)) > said[0]:
                said[0] = quarter
                say(f"{what}: {min(1, done / total):.0%} done{', ' * bool(left)}{left}")

        yield say_each_quarter
        return
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}")
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None, left="")
        yield lambda done, total: bar.update(task, completed=done, total=total, left=time_left(done, total))
