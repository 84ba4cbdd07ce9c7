"""`mechrl-cache add`: further behaviours for a cache."""

from pathlib import Path

import click

from mechrl.cli import app, task_files
from mechrl.cli.cache.info import print_built


@click.command()
@app.existing
@click.option("--tasks", callback=app.names, help="Built-in ones, or all that the cache has not.")
@click.option(
    "--task",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file of your own prompts (.jsonl, .json, .csv, .tsv, .txt).",
)
@task_files.names
@task_files.skip
@click.option("--batches", type=click.IntRange(3), help="Of each built-in task.  [default: as the cache's first task]")
@app.model
@app.revision
@app.device
@app.threads(None)
@click.option("--out", type=click.Path(path_type=Path), help="Where to.  [default: in place of the cache]")
@app.as_json
def add(
    path: Path, tasks: list[str] | None, files: tuple[Path, ...], task_names: tuple[str, ...], skip_bad_lines: bool,
    batches: int | None, model: str, revision: str, device: str, threads: int | None, out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Add behaviours to a cache: only they are swept, with its model, ablation and control text."""
    app.use_threads(threads)
    from mechrl.cache.reader import Cache
    from mechrl.tasks import TASKS

    if not tasks and not files:
        raise click.UsageError("nothing to add: name built-in tasks with --tasks, or a file with --task")
    own = task_files.read("--task", files, task_names, skip_bad_lines, TASKS)
    cache = Cache.open(path)
    if tasks == ["all"]:
        tasks = [name for name in TASKS if name not in cache.tasks]
    from mechrl.building.add import add_tasks

    print_built(
        add_tasks(cache, model, tasks or (), own, out, batches=batches, revision=revision, device=device), as_json
    )
