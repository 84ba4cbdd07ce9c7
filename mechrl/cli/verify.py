"""`mechrl-verify`: confirm a checkpoint's picks on the live model."""

import json
import shlex
import sys
from pathlib import Path

import click

from mechrl.cli import app, task_files


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), default="checkpoint.zip", required=False)
@click.option("--cache", "path", type=click.Path(path_type=Path), default=app.MINI_CACHE, show_default=True)
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
    help="Measure all heads on the fresh prompts, or the picks and 20 others.  [default: all, if within a minute]",
)
@click.option("--joint", is_flag=True, help="Ablate the picked heads together, too.")
@click.option("--curves", is_flag=True, help="Keep, and ablate, the first k heads of rankings, for each k.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON there, too; `mechrl report` shows it.")
@app.seed
@app.threads(None)
@app.as_json
@click.pass_context
def verify(
    ctx, checkpoint, path, model, revision, device, top, plan_k, fresh_batches, files, task_names, skip_bad_lines,
    tolerance, sweep, joint, curves, out, seed, threads, as_json,
):  # fmt: skip
    """Ablate the picked heads on the live model, on the cached prompts and on fresh ones.

    Of each task it answers four questions. Faithful: does the cache equal the model? Replicates: does every pick do on
    fresh prompts what was claimed (5 % of the clean measure, a score above zero, in the top)? Placebo: does it do so
    with the answers permuted among prompts, which must be a no? Complete: do the picks reach 90 % of the best heads?
    """
    if model == "mini":
        app.say(app.FIRST_LINE)
    app.use_threads(threads)
    from mechrl.cache.reader import Cache
    from mechrl.cache.storage import check_writable, file_sha256, write_whole
    from mechrl.search.ppo.checkpoint import adapt_to_cache, load_checkpoint

    policy, note = load_checkpoint(checkpoint)
    if not path.is_file() and not app.unfinished(path):
        raise click.UsageError(f"there is no cache at {path}; mechrl-cache build makes one, --cache names another")
    if out is not None:
        check_writable(out)
        if out.resolve() in (checkpoint.resolve(), path.resolve()):
            raise click.UsageError(f"--out {out} would overwrite what is verified")
    cache = Cache.open(path)
    note = adapt_to_cache(policy, note, cache)
    from mechrl.errors import unknown_name

    fresh_files = {file.name: file for file in task_files.read("--fresh", files, task_names, skip_bad_lines)}
    if len(fresh_files) < len(files):
        raise click.UsageError("--fresh: two files of one name")
    for name in fresh_files:
        if name not in [*note.tasks, *note.hold_out]:
            raise unknown_name("task", name, [*note.tasks, *note.hold_out])
    from mechrl.models import load_model
    from mechrl.verification.record import as_dict
    from mechrl.verification.replay import check_fits
    from mechrl.verification.verification import verify as replay

    check_fits(cache, note)
    built_from = cache.attributes["model"], cache.attributes.get("model_revision", "")
    if built_from != (model, revision):
        named = " of revision ".join(repr(part) for part in built_from if part)
        app.say(f"the cache says it was built from {named}; --model and --revision name what is loaded")
    if cache.sha256 != note.cache_sha256:
        app.say("this is not the very cache that the checkpoint was trained on")
    loaded = load_model(model, device=device, revision=revision)
    check_fits(cache, note, loaded.sha256)
    fresh_files = {file.name: file for file in task_files.fitting(fresh_files.values(), loaded)}
    with app.progress("verifying") as progress:
        result = replay(
            loaded, cache, policy, note, plan_k=plan_k or note.plan_k, top=top, fresh_batches=fresh_batches,
            tolerance=tolerance, seed=seed, fresh_files=fresh_files, sweep_all=sweep, joint=joint, curves=curves,
            on_step=progress,
        )  # fmt: skip
    found = as_dict(result, _command(), file_sha256(checkpoint))
    if out is not None:
        write_whole(out, lambda temporary: temporary.write_text(json.dumps(found, indent=1, allow_nan=False)))
    if as_json:
        app.print_json(found)
    else:
        _print(result)
    ctx.exit(0 if result.confirmed else 3)


def _print(result) -> None:
    from mechrl.reporting.rows import verification_rows
    from mechrl.tables import print_table, shown

    head = result.cache.head
    for r in result.tasks:
        columns, rows = verification_rows(r, head)
        print_table(
            f"{r.task} ({'trained' if r.trained else 'held out, no task signal: does not decide'})",
            columns,
            rows,
            secondary=[
                "direct", "damage on other tasks", "cached score", "live score", "fresh damage", "difference",
                "rank" if r.swept else "above random", "of the clean", "p (Holm)",
            ],
            text="replicates",
        )  # fmt: skip
        top = f"{len(r.heads)} picks" if len(r.heads) != 1 else "1 pick"
        click.echo(f"  faithful    {_yes(r.faithful)}: cache and model differ by {r.difference:.1e} nats at most")
        click.echo(
            f"  replicates  {_yes(r.replicates)}: {len(r.fresh)} {_fresh(r)}, clean logit difference {r.clean:.2f}; "
            f"of their {r.known[1]} answers {r.known[0]} occur in training and {r.searched} where the agent searched; "
            + (f"the top is {r.rank_limit} heads" if r.swept else "against random heads")
        )
        if r.placebo is None:
            still = (
                "nothing changes" if r.placebo_clean is None else f"the logit difference is still {r.placebo_clean:.2f}"
            )
            click.echo(f"  placebo     not asked: with the answers permuted among the prompts {still}")
        else:
            passed = ", ".join(map(head, r.placebo_passed))
            click.echo(
                f"  placebo     {_yes(bool(passed))}: with answers permuted, logit difference {r.placebo_clean:.2f}, "
                + (f"{passed} pass the same test" if passed else "no pick passes the same test")
            )
        if r.complete is None:
            click.echo("  complete    not asked: --sweep measures every head")
        else:
            click.echo(
                f"  complete    {_yes(r.complete.answer)}: {top} reach {shown(r.complete.coverage)} of the best "
                f"{len(r.heads)} ({', '.join(map(head, r.complete.best))}), the best of them {shown(r.complete.ratio)} "
                "of the best"
            )
        if not _is_fresh(r):
            app.say(
                f"{r.task} was built from a file and has no fresh prompts: its evaluation prompts, on which the heads "
                "were picked, stand in for them; --fresh FILE gives others"
            )
        elif r.fresh_from != "generator":
            app.say(f"{r.task}: the fresh prompts are those of {r.fresh_from}")
        if r.joint:
            print_table(
                f"\nablated together, {_fresh(r)}",
                ["heads", "joint damage", "summed", "interaction"],
                [[" ".join(map(head, j.sites)), *map(shown, (j.joint, j.summed, j.interaction))] for j in r.joint],
                "above zero: together they cost more than one by one, as heads that stand in for one another do",
                secondary=["summed", "joint damage"],
            )
        if r.curves and r.curves.refused:
            click.echo(f"  no curves: {r.curves.refused}")
        elif r.curves:
            print_table(
                f"\nnecessity and sufficiency of rankings, {_fresh(r)}",
                ["ranking", "head-CPR", "head-CMD", "necessity"],
                [[name, c.cpr, c.cmd, c.necessity] for name, c in r.curves.rankings.items()],
                f"areas over the share of heads, MLPs kept; logit difference {r.curves.full:.2f} with all heads, "
                f"{r.curves.empty:.2f} without any; sufficiency: CPR high, CMD low; necessity: low",
                secondary=["head-CMD", "necessity"],
            )
    click.echo(
        f"cache and model {'agree' if result.faithful else 'DISAGREE'} within {result.tolerance:g} nats "
        f"(control: {result.control_difference:.1e})"
    )
    if result.confirmed:
        click.echo("CONFIRMED: every head tested on a trained task passed on the live model")
    else:
        no = [f"{r.task}: {', '.join(_failed(r))}" for r in result.tasks if r.trained and not r.confirmed]
        click.echo("NOT CONFIRMED: " + "; ".join(no or ["the numbers of the cache are not those of the model"]))


def _command() -> str:
    """What was called, to be called again."""
    arguments = sys.argv[1:]
    return shlex.join(["mechrl-verify", *arguments[arguments[:1] == ["verify"] :]])


def _fresh(result) -> str:
    """What the prompts are called."""
    return "fresh prompts" if _is_fresh(result) else "prompts on which the heads were picked"


def _is_fresh(result) -> bool:
    from mechrl.verification.fresh import EVALUATION_PROMPTS

    return result.fresh_from != EVALUATION_PROMPTS


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _failed(result) -> list[str]:
    """Which answers of a task are not as they should be."""
    complete = result.complete is None or result.complete.answer
    answers = {
        "not faithful": result.faithful,
        "not replicated": result.replicates,
        "the placebo passes": not result.placebo_passed,
        "not complete": complete,
    }
    return [name for name, good in answers.items() if not good]


def main() -> None:
    """Entry point of `mechrl-verify`."""
    app.run(verify)
