"""`mechrl audit`: somebody's claim that some heads are a circuit, judged."""

from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@click.argument("claim", type=click.Path(path_type=Path))
@app.model
@app.revision
@app.no_bos
@app.device
@click.option("--task", help="A file with the prompts of a task that is not built in.")
@click.option("--keep", default=0.8, show_default=True, help="The share of the behaviour that has to be kept.")
@click.option("--ablation", callback=app.names, help="Only these.  [default: all that the task allows]")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON there, too; `mechrl report` shows it.")
@click.option(
    "--seed",
    default=1,
    show_default=True,
    type=click.IntRange(0, 2**32 - 1),
    help="Of prompts and random sets: another than the search's.",
)
@app.threads(None)
@app.as_json
@click.pass_context
def audit(
    ctx: click.Context, claim: Path, model: str, revision: str, no_bos: bool, device: str, task: str | None,
    keep: float, ablation: list[str] | None, out: Path | None, seed: int, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Judge the claim that some heads are the circuit of a behaviour.

    CLAIM is a JSON file such as {"task": "ioi", "heads": ["3.1", "5.0"]}, or what `mechrl circuit --out` wrote. Under
    every ablation and on two halves of unseen prompts it asks: are the heads sufficient, necessary, minimal, and better
    than random sets of their size? Ends with 3 where the claim stands in none of them.
    """
    if model == "mini":
        app.say(app.FIRST_LINE)
    app.use_threads(threads)
    from mechrl.api import audit as judge

    result = judge(
        claim, model, task=task, keep=keep, ablations=ablation or (), seed=seed, revision=revision,
        bos=False if no_bos else None, device=device, out=out,
    )  # fmt: skip
    if as_json:
        app.print_json(result.model_dump(mode="json"))
    else:
        from mechrl.reporting.terminal_circuits import print_audit

        print_audit(result)
        if out is not None:
            click.echo(f"{out} written")
    ctx.exit(0 if result.stands else 3)
