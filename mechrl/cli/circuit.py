"""`mechrl circuit`: the smallest set of heads that keeps a behaviour."""

from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@click.argument("task")
@app.model
@app.revision
@app.no_bos
@app.device
@click.option("--keep", default=0.8, show_default=True, help="The share of the behaviour to be kept.")
@click.option(
    "--ablation",
    help="What is put in place of the other heads.  [default: counterfactual, or mean_task without twins]",
)
@click.option("--stability", is_flag=True, help="Measure other sizes, other prompts and other ablations, too.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON there, too; `mechrl report` shows it.")
@app.seed
@app.threads(None)
@app.as_json
def circuit(
    task: str, model: str, revision: str, no_bos: bool, device: str, keep: float, ablation: str | None,
    stability: bool, out: Path | None, seed: int, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Find the smallest set of heads that keeps a behaviour while all other heads are ablated.

    TASK is a built-in task, or a file of your own prompts. Kept means three things at once, on prompts that the search
    did not see: the ratio of the logit difference, how often the model's own next token still comes first, and KL
    fidelity. What an interrupted search has measured is kept: the same command goes on.
    """
    if model == "mini":
        app.say(app.FIRST_LINE)
    app.use_threads(threads)
    from mechrl.api import circuit as find

    result = find(
        task, model, keep=keep, ablation=ablation, stability=stability, seed=seed, revision=revision,
        bos=False if no_bos else None, device=device, out=out,
    )  # fmt: skip
    if as_json:
        return app.print_json(result.model_dump(mode="json"))
    from mechrl.reporting.terminal_circuits import print_circuit

    print_circuit(result)
    if out is not None:
        click.echo(f"{out} written")
    return None
