"""`mechrl-cache top`: the heads that matter most."""

from pathlib import Path

import click

from mechrl.cli import app

SECONDARY = ("rank", "damage - direct", "ranks", "direct", "roles", "marks", "specificity", "damage")


@click.command()
@app.existing
@app.some_tasks
@click.option("--by", type=click.Choice(["score", "damage", "abs"]), default="score", show_default=True)
@click.option("--n", "-n", default=10, show_default=True, type=click.IntRange(1), help="How many heads.")
@app.as_json
def top(path: Path, tasks: list[str], by: str, n: int, as_json: bool) -> None:
    """The heads that matter most, over all prompts, with 95 % intervals.

    Direct: what the head itself writes for the answer. Damage - direct: what goes through later layers; negative, the
    model repairs itself. Specificity: damage minus its mean on the other tasks of the cache. Roles: what a head scores
    0.4 or more as, see `mechrl-cache roles`.
    """
    from mechrl.cache.reader import Cache
    from mechrl.cache.top import WEIGHTS, top_heads

    opened = Cache.open(path)
    tops = {task: top_heads(opened, task, n, by) for task in tasks or opened.tasks}
    if as_json:
        return app.print_json({task: [vars(head) for head in heads] for task, heads in tops.items()})
    from mechrl.display import print_table

    for heads in tops.values():
        secondary = [column for column in SECONDARY if column in heads.columns]
        print_table(heads.title, heads.columns, heads.rows, heads.caption, secondary=secondary)
    if not opened.imported:
        click.echo(
            "Means in nats over all prompts, with 95 % intervals (bootstrap over groups); score = damage - control "
            f"damage; ranks by score at control weights {', '.join(f'{w:g}' for w in WEIGHTS)}"
        )
    return None
