"""`mechrl-verify`: confirm a checkpoint's picks on the live model."""

from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), default="checkpoint.zip", required=False)
@click.option("--cache", "path", type=click.Path(path_type=Path), default=app.MINI_CACHE, show_default=True)
@app.model
@app.revision
@app.device
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="Heads of each task to replay.")
@click.option("--plan-k", type=click.IntRange(1), help="Heads to look at before a pick.  [default: the checkpoint's]")
@click.option("--fresh-batches", default=4, show_default=True, type=click.IntRange(1), help="Of prompts never cached.")
@click.option(
    "--fresh",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A task file with further prompts, called like the task, for one that was built from a file.",
)
@click.option(
    "--tolerance",
    type=float,
    callback=app.not_negative,
    help="Largest difference to the cache, in nats.  [default: 0.001, more for a cache in reduced precision]",
)
@app.seed
@app.threads(None)
@app.as_json
@click.pass_context
def verify(
    ctx, checkpoint, path, model, revision, device, top, plan_k, fresh_batches, files, tolerance, seed, threads,
    as_json,
):  # fmt: skip
    """Ablate the picked heads on the live model: on the cached prompts and on fresh ones."""
    if model == "mini":
        app.say(app.FIRST_LINE)
    app.use_threads(threads)
    from mechrl.agents.checkpoint import load_checkpoint, move
    from mechrl.cache.reader import Cache

    policy, note = load_checkpoint(checkpoint)
    if not path.is_file() and not app.unfinished(path):
        raise click.UsageError(f"there is no cache at {path}; mechrl-cache build makes one, --cache names another")
    cache = Cache.open(path)
    note = move(policy, note, cache)
    from mechrl.errors import unknown_name
    from mechrl.tasks import read_task_file

    fresh_files = {file.name: file for file in map(read_task_file, files)}
    if len(fresh_files) < len(files):
        raise click.UsageError("--fresh: two files of one name")
    for name in fresh_files:
        if name not in [*note.tasks, *note.hold_out]:
            raise unknown_name("task", name, [*note.tasks, *note.hold_out])
    from mechrl.models import load_model
    from mechrl.verify.replay import check_fits
    from mechrl.verify.replay import verify as replay

    check_fits(cache, note)
    built_from = cache.attributes["model"], cache.attributes.get("model_revision", "")
    if built_from != (model, revision):
        named = " of revision ".join(repr(part) for part in built_from if part)
        app.say(f"the cache says it was built from {named}; --model and --revision name what is loaded")
    if cache.sha256 != note.cache_sha256:
        app.say("this is not the very cache that the checkpoint was trained on")
    loaded = load_model(model, device=device, revision=revision)
    check_fits(cache, note, loaded.sha256)
    with app.progress("replaying") as progress:
        replayed: list[str] = []
        total = len(note.tasks) + len(note.hold_out) + 1

        def on_task(task: str) -> None:
            progress(len(replayed), total)
            replayed.append(task)

        result = replay(
            loaded, cache, policy, note, plan_k=plan_k or note.plan_k, top=top, fresh_batches=fresh_batches,
            tolerance=tolerance, seed=seed, fresh_files=fresh_files, on_task=on_task,
        )  # fmt: skip
    _print(result, as_json)
    ctx.exit(0 if result.confirmed else 3)


def _print(result, as_json: bool) -> None:
    if as_json:
        return app.print_json(
            {
                "confirmed": result.confirmed,
                "cache_equals_model": result.replayed,
                "tolerance": result.tolerance,
                "control_difference": result.control_difference,
                "tasks": {
                    r.task: {
                        "trained": r.trained,
                        "runs": float(r.evaluation.runs[:, -1].mean()),
                        "spot_difference": r.spot_difference,
                        "fresh_from": r.fresh_from,
                        "search": r.evaluation.summary(),
                        "heads": [vars(h) for h in r.heads],
                    }
                    for r in result.tasks
                },
            }
        )
    from mechrl.report.tables import print_table, verification_rows
    from mechrl.verify.replay import EVALUATION_PROMPTS

    for r in result.tasks:
        columns, rows = verification_rows(r)
        print_table(
            f"{r.task} ({'trained' if r.trained else 'held out, no task signal: does not decide'})",
            columns,
            rows,
            f"scores in nats; {r.evaluation.runs[:, -1].mean():.1f} runs of search an episode; every head "
            f"on a few prompts: difference {r.spot_difference:.1e}",
        )
        if r.fresh_from == EVALUATION_PROMPTS:
            app.say(
                f"{r.task} was built from a file and has no fresh prompts: its evaluation prompts, on which the heads "
                "were picked, stand in for them; --fresh FILE gives others"
            )
        elif r.fresh_from != "generator":
            app.say(f"{r.task}: the fresh prompts are those of {r.fresh_from}")
    click.echo(
        f"cache and model {'agree' if result.replayed else 'DISAGREE'} within {result.tolerance:g} nats "
        f"(control: {result.control_difference:.1e})"
    )
    if result.confirmed:
        click.echo("CONFIRMED: every head picked on a trained task does on the live model what the cache says")
    else:
        click.echo(
            "NOT CONFIRMED: "
            + ("a head picked on a trained task was not confirmed on fresh prompts" if result.replayed else "")
            + ("" if result.replayed else "the numbers of the cache are not those of the model")
        )


def main() -> None:
    """Entry point of `mechrl-verify`."""
    app.run(verify)
