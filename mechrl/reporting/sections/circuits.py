"""What the page says of circuits (which heads, what they keep) and of claims (in which analyses they stand)."""

import numpy as np

from mechrl.circuits.result import NUMBERS, Audit, Circuit, Judged, Stability
from mechrl.reporting.blocks import Block, Figure, Table, estimate, heatmap, lines, number
from mechrl.reporting.run import AuditFile, CircuitFile
from mechrl.reporting.terminal_circuits import NAMED, outcome


def found(file: CircuitFile) -> list[Block]:
    """The blocks of a circuit."""
    content, name = file.content, file.path.name
    title = f"{content.task}, {content.ablation} ablation: the circuit ({name})"
    notes = [f"{note[0].upper()}{note[1:]}." for note in content.notes]
    if content.judged is None:
        blocks = [Block(title, [f"No circuit: {content.refused}.", *notes])]
    else:
        blocks = [Block(title, [_claim(content, content.judged), *notes], figures=[_map(content, name)],
                        tables=[_numbers(content, content.judged), _heads(content)])]  # fmt: skip
    if content.stability is not None:
        blocks.append(_stability(content, content.stability, name))
    return blocks


def _claim(content: Circuit, judged: Judged) -> str:
    kept, n = judged.kept, content.n_layers * content.n_heads
    said = {
        "kept": f"With {len(content.heads)} of {n} heads the behaviour is kept",
        "undecided": f"Whether {len(content.heads)} of {n} heads keep the behaviour is undecided",
        "not kept": f"The best {len(content.heads)} of {n} heads that were found do not keep the behaviour",
    }[kept.verdict]
    return (
        f"{said} while all others are ablated: {', '.join(head.head for head in content.heads)}. Asked for is "
        f"{content.keep:.0%} by three numbers at once, on {content.prompts} prompts that the search did not see; "
        f"{NAMED[kept.binding]} has the least room."
    )


def _numbers(content: Circuit, judged: Judged) -> Table:
    rows = [
        [NAMED[name], estimate(getattr(judged.kept, name).value), number(getattr(judged.kept, name).empty),
         estimate(getattr(judged.ablated, name).value), number(getattr(judged.random, name))]
        for name in NUMBERS
    ]  # fmt: skip
    return Table(
        ["", "these heads kept", "no heads", "these heads ablated", f"{judged.random.sets} random sets"],
        rows,
        f"95 % intervals over {content.groups} groups of prompts. Random sets: as many heads in each layer, medians; "
        f"{judged.random.kept} keep the behaviour. The logit difference is a ratio to the intact model's.",
    )


def _heads(content: Circuit) -> Table:
    rows = [
        [head.head, number(head.damage), number(head.direct), number(head.without_ratio),
         number(head.without_agreement), number(head.without_kl_fidelity)]
        for head in content.heads
    ]  # fmt: skip
    return Table(
        ["head", "damage alone", "direct", *(f"{NAMED[name]} without" for name in NUMBERS)],
        rows,
        "Damage alone: what removing the head from the intact model costs, in nats. Direct: what it writes for the "
        "answers itself. Without: what the circuit keeps without it.",
    )


def _map(content: Circuit, file: str) -> Figure:
    values = np.zeros((content.n_layers, content.n_heads))
    hover = np.full(values.shape, "", object)
    for head in content.heads:
        at = tuple(map(int, head.head.split(".")))
        values[at] = head.damage
        hover[at] = f"<b>{head.head}</b>: alone {number(head.damage)} nats; without it {number(head.without_ratio)}"
    plot = heatmap(content, values.ravel(), hover.ravel().tolist(), marked={head.head: True for head in content.heads})
    return Figure(
        f"heads of the circuit of {content.task} ({file})",
        "Outlined: the heads of the circuit, coloured by what removing each alone costs. Other heads are left empty.",
        plot,
        Table(["head", "damage alone"], [[head.head, number(head.damage)] for head in content.heads]),
    )


def _stability(content: Circuit, of: Stability, file: str) -> Block:
    sizes = [size.size for size in of.sizes]
    curves = {NAMED[name]: (sizes, [getattr(size, name) for size in of.sizes]) for name in NUMBERS}
    rows = [[str(size.size), *(number(getattr(size, name)) for name in NUMBERS)] for size in of.sizes]
    halves = [
        [str(i), ", ".join(half.heads) or "none found", number(half.overlap),
         half.kept.verdict if half.kept else "–"]
        for i, half in enumerate(of.halves, 1)
    ]  # fmt: skip
    under = [
        [one.ablation, one.kept.verdict if one.kept else f"cannot be asked: {one.refused}",
         *(number(getattr(one.kept, name).value.mean) if one.kept else "–" for name in NUMBERS)]
        for one in of.ablations
    ]  # fmt: skip
    tables = [
        Table(["search", "heads", "overlap", "verdict"], halves, "Found on other halves of the prompts. Overlap "
              "with the circuit: heads in both ÷ heads in either."),
        Table(["ablation", "verdict", *NAMED.values()], under, "The same heads kept under other ablations."),
    ]  # fmt: skip
    return Block(
        f"{content.task}: other sizes, prompts and ablations ({file})",
        figures=[
            Figure(
                f"what the best set of each size keeps of {content.task} ({file})",
                "The best set that was tried of each size, on the unseen prompts.",
                lines(curves, "heads kept", "kept", log=True, levels={"asked for": content.keep}),
                Table(["heads", *NAMED.values()], rows),
            )
        ],
        tables=[table for table in tables if table.rows],
    )


def audited(file: AuditFile) -> list[Block]:
    """The block of a claim."""
    content = file.content
    n = len(content.analyses)
    said = (
        f"The claim that {', '.join(content.heads)} {'is' if len(content.heads) == 1 else 'are'} the circuit stands in "
        f"{len(content.stands_in)} of {n} analyses."
    )
    stood = sum(not analysis.test("all three").breaks for analysis in content.placebo)
    return [
        Block(
            f"{content.task}: a claim, audited ({file.path.name})",
            [
                said,
                "Analyses share prompts and a model, so how many a claim stands in describes it and is no probability.",
                f"Placebo: {', '.join(content.placebo_heads)}, as many random heads in the same layers, "
                f"{'stand' if len(content.placebo_heads) > 1 else 'stands'} in {stood} of {len(content.placebo)}.",
                *(f"{one.ablation} cannot be asked: {one.why}." for one in content.excluded),
            ],
            tables=[_analyses(content)],
        )
    ]


def _analyses(content: Audit) -> Table:
    rows = [
        [f"{a.ablation}, {a.part}", outcome(a, "all three"), *(estimate(getattr(a.kept, n).value) for n in NUMBERS),
         outcome(a, "ratio")]
        for a in content.analyses
    ]  # fmt: skip
    return Table(
        ["analysis", "by all three", *NAMED.values(), "by logit difference alone"],
        rows,
        f"What the heads keep alone, where {content.keep:.0%} is asked for, and which of four tests break the claim: "
        "sufficient, necessary, minimal, better than random sets with as many heads in each layer "
        f"({content.random_sets} of them, p < 0.05 after Holm's correction; arXiv 2410.13032).",
    )
