"""What the page says of attention: where heads look on a task's prompts."""

from mechrl.ablation.intact.attention import Aligned, Attention, DrawnPrompt
from mechrl.reporting.blocks import Block, Figure, Table, attention_map, estimate, number, plain
from mechrl.reporting.run import AttentionFile


def looked_at(file: AttentionFile) -> list[Block]:
    """The blocks of a task: means from the last position, then the whole patterns of single prompts."""
    content, name = file.content, file.path.name
    blocks = [
        Block(
            f"{content.task}: from the last position ({name})",
            [
                "The last position is where the answer is read. Attention says what a head reads there, not what the "
                "model makes of it.",
                *(f"{note[0].upper()}{note[1:]}." for note in content.notes),
            ],
            figures=[_mean_map(content, part, name) for part in content.aligned],
            tables=[_means(content)],
        )
    ]
    for i, prompt in enumerate(content.drawn):
        figures = [_pattern(prompt, head, f"prompt {i + 1} of {content.task} ({name})") for head in prompt.patterns]
        blocks.append(Block(f"{content.task}: prompt {i + 1} ({name})", [prompt.text], figures=figures))
    return blocks


def _means(content: Attention) -> Table:
    rows = [[of.head, *map(estimate, (of.first, of.answers, of.wrongs))] for of in content.heads]
    return Table(
        ["head", "to the first position", "to the answers", "to the wrongs"],
        rows,
        f"Mean shares of attention from the last position over {content.prompts} prompts, to the answers and wrongs "
        f"over the {content.with_answer} and {content.with_wrong} that hold such. 95 % intervals over {content.groups} "
        f"groups of prompts. {_first(content)}",
    )


def _first(content: Attention) -> str:
    if not content.bos:
        return "There is no BOS before the prompts."
    return f"The first position is BOS, '{content.bos}', which counts as neither answer nor wrong."


def _mean_map(content: Attention, part: Aligned, file: str) -> Figure:
    heads, n = list(part.attention), len(part.slots)
    named = [f"'{slot.token}'" + f" {slot.share:.0%}" * (slot.share < 1) for slot in part.slots]
    plot, limit = attention_map(
        [[of.mean for of in part.attention[head]] for head in heads],
        heads,
        [_bare(slot.token) + f" {slot.share:.0%}" * (slot.share < 1) for slot in part.slots],
        [
            [f"<b>{head}</b> → {at - n} {plain(named[at])}: {estimate(part.attention[head][at], 3)}" for at in range(n)]
            for head in heads
        ],
        ("looked at, the most frequent token of each position", "head"),
    )
    rows = [
        [str(at - n), f"'{slot.token}'", *(f"{share:.0%}" for share in (slot.share, slot.answer, slot.wrong)),
         *(estimate(part.attention[head][at], 3) for head in heads)]
        for at, slot in enumerate(part.slots)
    ]  # fmt: skip
    return Figure(
        f"attention from the last position on {content.task} ({file}), mean over prompts of {n} tokens",
        f"Mean attention from the last position over {part.prompts} prompts of {n} tokens, in {part.groups} groups. A "
        f"token that not all of them have is given with the share that has it. {_scale(limit)}",
        plot,
        Table(
            ["position", "token", "has it", "has an answer", "has a wrong", *heads],
            rows,
            "-1 is the last position; then the most frequent token there, and the shares of prompts that have it, an "
            "answer or a wrong there. Means with 95 % intervals.",
        ),
    )


def _pattern(prompt: DrawnPrompt, head: str, where: str) -> Figure:
    n, rows = len(prompt.tokens), prompt.patterns[head]
    named = [f"{at - n} '{token}'" for at, token in enumerate(prompt.tokens)]
    labels = [_bare(token) for token in prompt.tokens]
    plot, limit = attention_map(
        [[*row, *[None] * (n - len(row))] for row in rows],
        labels,
        labels,
        [
            [f"<b>{head}</b> {plain(named[query])} → {plain(named[key])}: {number(weight, 3)}"
             for key, weight in enumerate(row)] + [""] * (n - len(row))
            for query, row in enumerate(rows)
        ],
        ("key: what is looked at", "query: who looks"),
    )  # fmt: skip
    table = [
        [named[query], *(number(weight, 3) for weight in row), *[""] * (n - len(row))] for query, row in enumerate(rows)
    ]
    return Figure(
        f"attention of {head} on {where}, query by key",
        f"{head}: each row is a query, and shares sum to 1 along it. {_scale(limit)}",
        plot,
        Table(["query", *named], table, "A column is a key. Positions are counted from the end, -1 is the last."),
    )


def _bare(token: str) -> str:
    """A token without the space before it, if anything is left."""
    return token.strip() or token


def _scale(limit: float) -> str:
    return f"Colours end at {number(limit)}, the largest share off the first position, which may have more."
