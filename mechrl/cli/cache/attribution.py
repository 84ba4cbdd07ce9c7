"""`mechrl-cache attribution`: how well gradients predict damage."""

from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@app.existing
@click.option("--task", "tasks", default="", callback=app.names, help="Which tasks.  [default: all, and control]")
@app.as_json
def attribution(path: Path, tasks: list[str], as_json: bool) -> None:
    """How well gradients predict damage: rank correlation over the heads.

    Spearman's, of the heads' mean attribution with their mean damage over all prompts; one-step costs 3 runs a batch,
    integrated 15.
    """
    from mechrl.cache.agreement import agreement
    from mechrl.cache.reader import Cache

    opened = Cache.open(path)
    agreements = {task: agreement(opened, task) for task in tasks or opened.tasks}
    if not tasks:
        agreements["control"] = agreement(opened, None)
    if as_json:
        return app.print_json(
            {task: {name: vars(a) for name, a in kinds.items()} for task, kinds in agreements.items()}
        )
    from mechrl.display import print_table

    for task, kinds in agreements.items():
        rows = [["all heads", *(a.heads for a in kinds.values())]]
        rows += [[f"layer {i}", *pair] for i, pair in enumerate(zip(*(a.layers for a in kinds.values()), strict=True))]
        print_table(task, ["", *kinds], rows)
    click.echo("Spearman's rank correlation of mean attribution with mean damage; –: all heads of the layer are alike")
