"""What all commands share: how they end, and the flags that mean the same everywhere."""

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from mechrl.cli.surroundings import prepare
from mechrl.errors import LibraryError, MechrlError, is_out_of_memory
from mechrl.progress import printable, settle, unheard
from mechrl.progress import progress as progress
from mechrl.progress import say as say
from mechrl.progress import warn as warn

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)
DEBUG = "--debug"
MINI_CACHE = Path("cache/mini.h5")
FIRST_LINE = "model: mini, the small one that comes with mechrl (GPT-2 small: --model gpt2 --device cuda)"


class CachePath(click.Path):
    """A cache: a file, or by its bare name a table that comes with mechrl."""

    def convert(self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None) -> Any:
        from mechrl.tables import cache_file

        return cache_file(value)


class RunPath(click.Path):
    """What a report is about: a table by its bare name, or any file or folder."""

    def convert(self, value: Any, parameter: click.Parameter | None, ctx: click.Context | None) -> Any:
        from mechrl.tables import cache_file, table_names

        return cache_file(value) if str(value) in table_names() else Path(value)


CACHE, RUN = CachePath(path_type=Path), RunPath(path_type=Path)
existing = click.argument("path", type=CACHE, default=MINI_CACHE, required=False)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
model = click.option(
    "--model", default="mini", show_default=True, help="mini, smollm2-135m, a folder, a .gguf file, or a hub name."
)
no_bos = click.option("--no-bos", is_flag=True, help="Put no BOS before prompts.  [default: BOS, but for smollm2-135m]")
revision = click.option("--revision", default="", help="Of a model on the hub: a branch, tag or commit.")
seed = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1), help="Of what is drawn at random."
)


def not_negative(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """A finite number from 0 on, or None."""
    if value is not None and not 0 <= value < 1e6:
        raise click.BadParameter(f"{value} is not between 0 and a million")
    return value


def threads(default: int | None) -> Callable[[FC], FC]:
    """The --threads flag; None means all cores."""
    shown = str(default) if default else "all cores"
    return click.option(
        "--threads", default=default, type=click.IntRange(1, 1024), show_default=shown, help="Of torch."
    )


def run(command: click.Command) -> NoReturn:
    """Runs a command as a program: one message on stderr and its exit code for whatever goes wrong."""
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
        text = str(error) + f" ({DEBUG} shows the library's error)" * isinstance(error, LibraryError)
    elif is_out_of_memory(error):
        text = "out of memory"
    else:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        text = (
            f"{_doing(error)} ({what if len(what) < 300 else what[:300] + '…'}). This is a fault of mechrl's, or of a "
            f"library under it; {DEBUG} shows where"
        )
    return printable(text)


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


def print_json(value: Mapping[str, Any]) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def names(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    """A comma-separated list as a list; None stays None."""
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


some_tasks = click.option("--task", "tasks", default="", callback=names, help="Which tasks.  [default: all]")


def use_threads(n: int | None) -> None:
    """Limits torch to `n` threads, if given."""
    if n:
        import torch

        torch.set_num_threads(n)
