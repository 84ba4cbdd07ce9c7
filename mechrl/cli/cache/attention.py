"""`mechrl-cache attention`: where heads look."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechrl.cli import app

if TYPE_CHECKING:
    from mechrl.ablation.intact.attention import Attention


@click.command()
@app.model
@app.revision
@app.device
@click.option("--head", "heads", multiple=True, required=True, help="Written layer.head, as 9.6; give it once a head.")
@click.option("--task", required=True, help="A built-in task, or a task file.")
@click.option(
    "--prompts", default=3, show_default=True, type=click.IntRange(1, 10), help="How many to show with whole patterns."
)
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Write a page (.html), or the JSON that `mechrl report` shows beside other results (.json).",
)  # fmt: skip
@app.seed
@app.threads(None)
@app.as_json
def attention(
    model: str, revision: str, device: str, heads: tuple[str, ...], task: str, prompts: int, out: Path | None,
    seed: int, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Where heads look: attention of the intact model on a task's prompts, tokens as labels.

    From the last position, where the answer is read: the share that goes to the first position, to the answers and to
    the wrongs, and the five positions looked at most, averaged over prompts of one length and on single prompts.
    Attention says what a head reads, not what the model makes of it.
    """
    if model == "mini":
        app.say(app.FIRST_LINE)
    app.use_threads(threads)
    from mechrl.api import attention as measure

    result = measure(heads, task, model, prompts=prompts, seed=seed, revision=revision, device=device, out=out)
    for note in result.notes:
        app.warn(note)
    if as_json:
        return app.print_json(result.model_dump(mode="json"))
    _print(result)
    if out is not None:
        click.echo(f"{out} written")
    return None


def _print(result: "Attention") -> None:
    from mechrl.ablation.intact.attention import most_attended
    from mechrl.display import print_table, shown

    bos = f"; BOS '{result.bos}' counts as neither" if result.bos else ""
    print_table(
        f"{result.model} on {result.task}: {result.prompts} prompts in {result.groups} groups",
        ["head", "to the first position", "to the answers", "to the wrongs"],
        [[of.head, *map(shown, (of.first, of.answers, of.wrongs))] for of in result.heads],
        "mean shares of attention from the last position; to the answers and wrongs over the prompts that hold such "
        f"({result.with_answer} and {result.with_wrong}){bos}",
    )
    for part in result.aligned:
        rows = []
        for head, attention in part.attention.items():
            for at in most_attended([estimate.mean for estimate in attention]):
                slot = part.slots[at]
                shares = (f"{share:.0%}" for share in (slot.share, slot.answer, slot.wrong))
                rows.append([head, at, f"'{slot.token}'", *shares, shown(attention[at])])
        print_table(
            f"{part.prompts} prompts of {len(part.slots)} tokens, in {part.groups} groups",
            ["head", "position", "token", "has it", "has an answer", "has a wrong", "attention"],
            rows,
            "position: -1 is the last; token: the most frequent there, then the shares of prompts that have it, an "
            "answer or a wrong there",
            secondary=["has a wrong", "has an answer"],
        )
    for prompt in result.drawn:
        rows = []
        for head, pattern in prompt.patterns.items():
            best = most_attended(pattern[-1])
            rows.append([head, *(f"'{prompt.tokens[at]}' ({at}) {pattern[-1][at]:.2f}" for at in best)])
        columns = ["head", *("most", "second", "third", "fourth", "fifth")[: len(rows[0]) - 1]]
        print_table(prompt.text, columns, rows, "token (position) attention")
