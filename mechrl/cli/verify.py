"""`mechrl-verify`: confirm a checkpoint's picks on the live model."""

import shlex
import sys
from pathlib import Path

import click

from mechrl.cli import app, task_files


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), default="checkpoint.zip", required=False)
@click.option("--cache", "path", type=app.CACHE, default=app.MINI_CACHE, show_default=True)
@app.model
@app.revision
@app.device
@click.option("--top", default=3, show_default=True, type=click.IntRange(1, 50), help="Heads of each task to test.")
@click.option("--plan-k", type=click.IntRange(1), help="Heads to look at before a pick.  [default: the checkpoint's]")
@click.option("--fresh-batches", default=4, show_default=True, type=click.IntRange(1), help="Of prompts never cached.")
@click.option(
    "--fresh",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A task file with further prompts, called like the task, for one that was built from a file.",
)
@task_files.names
@task_files.skip
@click.option(
    "--tolerance",
    type=float,
    callback=app.not_negative,
    help="Largest difference to the cache, in nats.  [default: 0.001, more for a cache in reduced precision]",
)
@click.option(
    "--sweep/--no-sweep",
    default=None,
    help="Measure all heads on the fresh prompts, or the picks, the 30 best and 20 others.  [default: all, if within "
    "a minute]",
)
@click.option("--joint", is_flag=True, help="Ablate the picked heads together, too.")
@click.option("--curves", is_flag=True, help="Keep, and ablate, the first k heads of rankings, for each k.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON there, too; `mechrl report` shows it.")
@app.seed
@app.threads(None)
@app.as_json
@click.pass_context
def verify(
    ctx: click.Context, checkpoint: Path, path: Path, model: str, revision: str, device: str, top: int,
    plan_k: int | None, fresh_batches: int, files: tuple[Path, ...], task_names: tuple[str, ...], skip_bad_lines: bool,
    tolerance: float | None, sweep: bool | None, joint: bool, curves: bool, out: Path | None, seed: int,
    threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Ablate the picked heads on the live model, on the cached prompts and on fresh ones.

    Of each task it answers four questions. Faithful: does the cache equal the model? Replicates: does every pick do on
    fresh prompts what was claimed (5 % of the clean measure, a score above zero, in the top)? Specific: does the test
    find nothing with the answers permuted among prompts, and nothing in random heads? Complete: do the picks reach 90 %
    of the best heads?
    """
    if model == "mini":
        app.say(app.FIRST_LINE)
    app.use_threads(threads)
    from mechrl.cache.storage import check_writable, write_whole
    from mechrl.reporting.terminal import fresh_notes, print_verification
    from mechrl.results import safe_text
    from mechrl.verification.verify import verify_checkpoint

    if out is not None:
        check_writable(out)
        if out.resolve() in (checkpoint.resolve(), path.resolve()):
            raise click.UsageError(f"--out {out} would overwrite what is verified")
    fresh_files = task_files.read("--fresh", files, task_names, skip_bad_lines)
    with app.progress("verifying") as progress:
        result = verify_checkpoint(
            checkpoint, path, model, revision=revision, device=device, top=top, plan_k=plan_k,
            fresh_batches=fresh_batches, fresh_files=fresh_files, tolerance=tolerance, sweep_all=sweep, joint=joint,
            curves=curves, seed=seed, say=app.say, on_step=progress,
        )  # fmt: skip
    result = result.model_copy(update={"command": safe_text(_command())})
    if out is not None:
        text = result.model_dump_json(indent=1)
        write_whole(out, lambda temporary: temporary.write_text(text))
    if as_json:
        app.print_json(result.model_dump(mode="json"))
    else:
        print_verification(result)
        for note in fresh_notes(result):
            app.say(note)
    ctx.exit(0 if result.confirmed else 3)


def _command() -> str:
    """What was called, to be called again."""
    arguments = sys.argv[1:]
    return shlex.join(["mechrl-verify", *arguments[arguments[:1] == ["verify"] :]])


def main() -> None:
    """Entry point of `mechrl-verify`."""
    app.run(verify)
