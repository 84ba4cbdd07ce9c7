"""What all commands share: how they end, the flags that mean the same everywhere, progress bars."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from mechrl.errors import MechrlError

if TYPE_CHECKING:
    from mechrl.models import Model
    from mechrl.tasks import TaskFile

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


task_names = click.option(
    "--name", "task_names", multiple=True, help="What to call the task of a file; one for each.  [default: as the file]"
)
skip_bad_lines = click.option(
    "--skip-bad-lines",
    is_flag=True,
    help="Leave out what does not fit of a file, up to a quarter of its lines.",
)


def task_files(
    flag: str, paths: Sequence[Path], names: Sequence[str], skip: bool, taken: Collection[str] = ()
) -> tuple["TaskFile", ...]:
    """Tasks from files; what was recognised in them, and what is ignored, is said.

    :param flag: which names the files, for messages.
    :param names: of the tasks, one for each file, or none.
    :param taken: names that are not free.
    """
    from mechrl.tasks.files import read_task_file

    if names and len(names) != len(paths):
        raise click.UsageError(f"{len(names)} × --name and {len(paths)} × {flag}: name each file, in their order")
    files = []
    for i, path in enumerate(paths):
        name = names[i] if names else None
        files.append(file := read_task_file(path, taken, name=name, skip_bad_lines=skip))
        if file.read_as:
            say(f"{path}: {file.read_as}")
        if file.ignored:
            shown = ", ".join(name[:40] for name in file.ignored[:5])
            more = f" and {len(file.ignored) - 5} more" if len(file.ignored) > 5 else ""
            warn(f"{path}: columns that are not read: {shown}{more}")
    return tuple(files)


def fitting(files: Iterable["TaskFile"], model: "Model") -> tuple["TaskFile", ...]:
    """Files as a model's tokenizer takes them; what their token ids mean to it, and how many lines go, is said."""
    from mechrl.tasks.files import check_file, ids_say

    fit = []
    for file in files:
        if said := ids_say(file, model.vocabulary):
            say(f"{file.path}: {said}")
        fit.append(found := check_file(file, model.vocabulary, model.n_ctx))
        if found.skipped:
            of = f"{found.skipped} of {found.skipped + len(found)} {file.unit}s"
            warn(f"{file.path}: {of} do not fit and are left out")
        if found.dropped:
            say(f"{file.path}: {found.dropped} answers and wrongs, digits that this tokenizer joins, are left out")
    return tuple(fit)


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
        click.secho(f"error: {_printable(str(error))}", err=True, fg="red")
        sys.exit(error.exit_code)
    except MemoryError:
        click.secho("error: out of memory", err=True, fg="red")
        sys.exit(1)
    except BrokenPipeError:
        _drop_stdout()
        sys.exit(1)
    except OSError as error:
        _drop_stdout()
        click.secho(f"error: {error}", err=True, fg="red")
        sys.exit(1)


def _printable(text: str) -> str:
    """A message that may hold what a file says of itself, which must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def _drop_stdout() -> None:
    """Sends what is still to be flushed nowhere, or Python would fail on it once more when it ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unfinished(path: Path) -> bool:
    """Whether the build of a cache was interrupted; opening the cache then says what to do."""
    return path.with_name(path.name + ".build").is_dir()


def say(text: str) -> None:
    """A line for the person who waits, on stderr."""
    click.echo(_printable(text), err=True)


def warn(text: str) -> None:
    """A warning that must not be overlooked, on stderr."""
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
    """
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
