"""`mechrl-cache pairs`: the pairs of heads that do not add up."""

from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@app.existing
@app.some_tasks
@click.option("--n", "-n", default=10, show_default=True, type=click.IntRange(1), help="How many pairs.")
@app.as_json
def pairs(path: Path, tasks: list[str], n: int, as_json: bool) -> None:
    """Pairs of heads whose damage together is furthest from the sum, with 95 % intervals.

    Interaction above zero: together they cost more than one by one, as heads that stand in for one another do.
    """
    from mechrl.cache.reader import Cache
    from mechrl.cache.top import top_pairs

    opened = Cache.open(path)
    pairs_of = {task: top_pairs(opened, task, n) for task in tasks or opened.tasks}
    if as_json:
        return app.print_json({task: [vars(pair) for pair in best] for task, best in pairs_of.items()})
    from mechrl.display import print_table, shown

    for task, best in pairs_of.items():
        print_table(
            task,
            ["heads", "joint damage", "summed", "interaction"],
            [[" ".join(p.heads), *map(shown, (p.joint, p.summed, p.interaction))] for p in best],
            "means in nats over the evaluation prompts; the pairs were chosen on the training prompts",
            secondary=["summed", "joint damage"],
        )
