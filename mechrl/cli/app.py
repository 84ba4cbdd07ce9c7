"""What all commands share: how they end, the flags that mean the same everywhere, progress bars."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import click

from mechrl.errors import MechrlError

MINI_CACHE = Path("cache/mini.h5")
FIRST_LINE = "model: mini, the small one that comes with mechrl (GPT-2 small: --model gpt2 --device cuda)"

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
model = click.option("--model", default="mini", show_default=True, help="mini, a folder, or a name on the hub.")
seed = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Of everything drawn at random."
)


def threads(default: int | None) -> Callable:
    """The --threads flag; None means all cores."""
    shown = str(default) if default else "all cores"
    return click.option("--threads", default=default, type=click.IntRange(1), show_default=shown, help="Of torch.")


def run(command: click.Command) -> NoReturn:
    """Runs a command as a program: one message on stderr and DESIGN's exit code for whatever goes wrong."""
    try:
        result = command.main(standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except MechrlError as error:
        click.secho(f"error: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    except MemoryError:
        click.secho("error: out of memory", err=True, fg="red")
        sys.exit(1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def say(text: str) -> None:
    """A line for the person who waits, on stderr."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """A warning that must not be overlooked, on stderr."""
    click.secho(f"WARNING: {text}", err=True, fg="yellow", bold=True)


def print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=1))


def names(ctx: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """A comma-separated list as a list."""
    return [name.strip() for name in value.split(",") if name.strip()]


def use_threads(n: int | None) -> None:
    """Limits torch to `n` threads, if given."""
    if n:
        import torch

        torch.set_num_threads(n)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal; yields a function of what is done and the total."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
