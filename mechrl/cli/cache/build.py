"""`mechrl-cache build`: sweep every head."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechrl.cli import app, task_files
from mechrl.cli.cache.info import print_built

if TYPE_CHECKING:
    from mechrl.building.cost import Estimate


def _shard(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int]:
    """`3/16` as (3, 16)."""
    index, _, count = (value or "1/1").partition("/")
    if not index.isdigit() or not count.isdigit() or not 1 <= int(index) <= int(count):
        raise click.BadParameter(f"{value!r} is not i/n with 1 ≤ i ≤ n, such as 3/16")
    return int(index), int(count)


@click.command()
@app.model
@app.revision
@click.option(
    "--tasks",
    callback=app.names,
    help="Built-in ones, or all; `mechrl-cache tasks` lists them.  [default: induction,ioi,docstring]",
)
@click.option(
    "--task",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file of your own prompts (.jsonl, .json, .csv, .tsv, .txt); then --tasks defaults to none.",
)
@task_files.names
@task_files.skip
@click.option("--batches", type=int, help="Prompt batches of each task.  [default: 16 for mini, 64 otherwise]")
@click.option("--batch-size", type=int, help="Prompts in a batch.  [default: 32, or less for a small task file]")
@click.option("--control-batches", type=int, help="Batches of control text.  [default: as --batches]")
@click.option(
    "--control-text",
    help="A text file, or model: what it writes itself.  [default: WikiText-2; mini: prose; smollm2-135m: model]",
)
@click.option(
    "--ablation",
    "kinds",
    default="zero",
    show_default=True,
    callback=app.names,
    help="Of zero, zero_raw, mean_task, mean_control, resample, counterfactual; several make one file each.",
)
@click.option("--sets", type=click.Choice(["pairs"]), help="Ablate all pairs of heads together, too.")
@click.option("--shard", callback=_shard, help="i/n: build only the i-th of n parts, for `mechrl-cache merge`.")
@app.no_bos
@app.device
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="What to compute in; verify then allows for its error.",
)
@click.option("--tf32", is_flag=True, help="Let a CUDA GPU round the factors of float32 products.")
@click.option("--workers", type=click.IntRange(1), help="So many processes on this machine.  [needs mechrl[cluster]]")
@click.option("--scheduler", help="tcp://HOST:8786 of a running Dask cluster.  [needs mechrl[cluster]]")
@app.seed
@app.threads(None)
@click.option("--dry-run", is_flag=True, help="Say what the build would take, and do nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to.  [default: cache/<model>.h5]")
@app.as_json
def build(
    model: str, revision: str, tasks: list[str] | None, files: tuple[Path, ...], task_names: tuple[str, ...],
    skip_bad_lines: bool, batches: int | None, batch_size: int | None, control_batches: int | None,
    control_text: str | None, kinds: list[str], sets: str | None, shard: tuple[int, int], no_bos: bool, device: str,
    dtype: str, tf32: bool, workers: int | None, scheduler: str | None, seed: int, threads: int | None, dry_run: bool,
    out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Ablate every head on every prompt and store the damage."""
    if workers and scheduler:
        raise click.UsageError("--workers starts processes here and --scheduler names a cluster: give one of them")
    if not kinds or len(set(kinds)) < len(kinds):
        raise click.UsageError("--ablation needs one or more kinds, each once")
    if out is not None and len(kinds) > 1:
        raise click.UsageError(f"--out names one file and --ablation {','.join(kinds)} makes {len(kinds)}")
    if as_json and len(kinds) > 1:
        raise click.UsageError("--json prints one object: build one ablation at a time")
    app.use_threads(threads)
    if model == "mini":
        app.say(app.FIRST_LINE)
    from mechrl.building.build import build_files, estimate_build
    from mechrl.building.settings import choose_settings
    from mechrl.tasks import TASKS
    from mechrl.tasks.batches import LARGEST_BATCH

    own = task_files.read("--task", files, task_names, skip_bad_lines, TASKS)
    every = [
        choose_settings(
            model, tasks, own, batches=batches, batch_size=batch_size, control_batches=control_batches, ablation=kind,
            seed=seed, dtype=dtype, tf32=tf32, sets=sets or "",
        )
        for kind in kinds
    ]  # fmt: skip
    if batch_size is None and (chosen := every[0].batch_size) < LARGEST_BATCH:
        app.say(f"batches of {chosen}, for all tasks, because that is what a task file has prompts for")
    if dry_run:
        for wanted in every:
            cost = estimate_build(
                model, wanted, control_text=control_text, revision=revision, bos=False if no_bos else None,
                device=device, shard=shard,
            )  # fmt: skip
            _print_estimate(cost, as_json)
        return
    for path in build_files(
        model, every, out, control_text=control_text, revision=revision, bos=False if no_bos else None,
        device=device, workers=workers, scheduler=scheduler, threads=threads, shard=shard,
    ):  # fmt: skip
        if shard[1] == 1:
            print_built(path, as_json)
        elif as_json:
            app.print_json({"path": str(path), "shard": list(shard)})
        else:
            click.echo(f"{path}: shard {shard[0]} of {shard[1]}; mechrl-cache merge OUT PARTS… joins them")


def _print_estimate(estimate: "Estimate", as_json: bool) -> None:
    """What a build would take."""
    seconds = estimate.seconds
    if as_json:
        return app.print_json({**asdict(estimate), "seconds": seconds})
    from mechrl.display import print_table
    from mechrl.progress import duration, size

    rows = [
        [name, f"{n / 1e9:,.1f}", f"{estimate.operations_per_second[name] / 1e9:,.1f}", duration(seconds[name])]
        for name, n in estimate.operations.items()
    ]
    rows.append(["together", f"{sum(estimate.operations.values()) / 1e9:,.1f}", "", duration(sum(seconds.values()))])
    print_table(
        "", ["", "GFLOP", "GFLOP/s", "time, about"], rows,
        caption="An estimate, from heads that were swept for two seconds in this process; nothing is written.",
    )  # fmt: skip
    click.echo(
        f"memory: about {size(estimate.memory_bytes)} at the peak; file: about {size(estimate.file_bytes)}, and while "
        "it is built as much again for its shards"
    )
