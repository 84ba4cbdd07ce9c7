"""`mechrl-train`: train an agent on a cache."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mechrl.cli import app

if TYPE_CHECKING:
    from mechrl.cache.reader import Cache
    from mechrl.search.ppo.checkpoint import Checkpoint


@click.command()
@click.option("--from-cache", "path", type=app.CACHE, is_flag=False, flag_value=app.MINI_CACHE,
              default=app.MINI_CACHE, show_default=True, help="The cache to look scores up in.")  # fmt: skip
@click.option("--live", is_flag=True, help="Ask the model for every score; the cache gives prompts and evaluation.")
@app.model
@app.revision
@app.device
@click.option("--tasks", callback=app.names, help="To train on.  [default: induction,ioi; else all that are there]")
@click.option("--hold-out", callback=app.names, help="Only to evaluate on.  [default: docstring, if it is there]")
@click.option(
    "--policy",
    type=click.Choice(["paper", "heads"]),
    default="paper",
    show_default=True,
    help="paper: one output per head. heads: the same weights for every head; it infers the task and fits any model.",
)
@click.option("--preset", type=click.Choice(["default", "paper"]), default="default", show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Picks in all, in whole rollouts.  [default: the preset's]")
@click.option("--picks", type=click.IntRange(1), help="In an episode.  [default: 35 % of the heads]")
@click.option("--plan-k", default=1, show_default=True, type=click.IntRange(1), help="Heads to look at before a pick.")
@click.option(
    "--control-weight",
    default=1.0,
    show_default=True,
    callback=app.not_negative,
    help="Score = damage − this × control damage.",
)
@app.seed
@app.threads(1)
@click.option("--tensorboard", type=click.Path(path_type=Path), help="A folder for TensorBoard logs.")
@click.option("--out", type=click.Path(path_type=Path), default="checkpoint.zip", show_default=True)
@app.as_json
def train(
    path: Path, tasks: list[str] | None, hold_out: list[str] | None, threads: int, out: Path, as_json: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """Train PPO to find the heads that matter, and evaluate it on unseen prompts."""
    start = time.monotonic()
    if path == app.MINI_CACHE:
        app.say(app.FIRST_LINE)
    if not path.is_file() and not app.unfinished(path):
        option = "" if path == app.MINI_CACHE else " --model NAME"
        raise click.UsageError(f"there is no cache at {path}; mechrl-cache build{option} makes one")
    app.use_threads(threads)
    from mechrl.api import train as train_checkpoint
    from mechrl.cache.reader import Cache

    cache = Cache.open(path)
    began = time.monotonic() - start
    checkpoint = train_checkpoint(cache, tasks, hold_out, out=out, **settings)
    training, picks = checkpoint.training, checkpoint.note.steps
    assert training is not None
    app.say(f"{picks} picks in {training.seconds:.1f} s, {picks / training.seconds:.0f} a second; {out} written")
    if training.passes:
        app.say(f"{training.passes} passes of the model")
    if training.lasting is not None:
        seconds = began + training.lasting
        app.say(f"ratio@3 of all training tasks stays at 0.99 or above from {seconds:.1f} s after the start")
    _print_results(cache, checkpoint, as_json)


def _print_results(cache: "Cache", checkpoint: "Checkpoint", as_json: bool) -> None:
    """The agent beside random search and the static order: on each task, with the task signal and without."""
    from mechrl.search.comparison import compare

    note = checkpoint.note
    results = compare(cache, checkpoint.policy, note)
    if as_json:
        app.print_json(
            {task: {name: evaluation.summary() for name, evaluation in rows} for task, rows in results.items()}
        )
        return
    from mechrl.display import print_table
    from mechrl.reporting.terminal import search_rows

    for task, rows in results.items():
        role = "held out" if task in note.hold_out else "trained"
        columns, cells = search_rows(rows)
        left_out = rows[0][1].left_out()
        caption = f"means over {len(rows[0][1].picked)} evaluation episodes" + (
            f"; {left_out} without a ratio (oracle ≤ 0.05)" if left_out else ""
        )
        secondary = [column for column in columns[:0:-1] if column != "ratio\nafter 3"]
        print_table(f"{task} ({role})", columns, cells, caption, secondary)


def main() -> None:
    """Entry point of `mechrl-train`."""
    app.run(train)
