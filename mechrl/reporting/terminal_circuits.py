"""What the terminal shows of circuits and of claims about them."""

from typing import Any

from mechrl.circuits.result import NUMBERS, Analysis, Audit, Circuit, CircuitHead, Judged, Kept, Stability
from mechrl.display import print_table, shown
from mechrl.progress import say, warn

NAMED = {"ratio": "logit difference", "agreement": "top-1 agreement", "kl_fidelity": "KL fidelity"}
SHOWN_ROLES = 2  # of a head
LEAST_ROLE = 0.3


def print_circuit(result: Circuit) -> None:
    """The heads, what they keep, and what was tried beside them; what a reader must know goes to stderr."""
    where = f"{result.task} in {result.model}, {result.ablation} ablation"
    if result.judged is None:
        print(f"{where}: no circuit. {result.refused}")
    else:
        _print_judged(result, result.judged, where)
    if result.stability is not None:
        _print_stability(result.stability)
    for note in result.notes:
        warn(note)


def _print_judged(result: Circuit, of: Judged, where: str) -> None:
    random, n = of.random, result.n_layers * result.n_heads
    print(f"{where}: {len(result.heads)} of {n} heads, {of.kept.verdict.upper()}")
    print(", ".join(head.head for head in result.heads))
    print_table(
        "what they keep while all other heads are ablated",
        ["", "these heads", "asked for", "no heads", "without these", f"{random.sets} random sets", ""],
        [_number_row(of, name, result.keep) for name in NUMBERS],
        f"on {result.prompts} prompts in {result.groups} groups that the search did not see, 95 % intervals; random: "
        f"as many heads in each layer, medians, {random.kept} of {random.sets} kept. KL from the intact model: "
        f"{shown(of.kept.kl)} nats, without any head {of.kept.empty_kl:.2f}. {result.runs} runs on {result.searched} "
        "prompts to find them",
        secondary=["asked for"],
    )
    print_table(
        "the heads",
        ["head", "damage alone", "direct", "ratio without", "top-1 without", "KL fidelity without", "looks like"],
        [_head_row(head) for head in result.heads],
        "damage alone: what removing it from the intact model costs, in nats; direct: what it writes for the answers; "
        "without: what the circuit keeps without it",
        secondary=["top-1 without", "direct"],
    )


def _number_row(of: Judged, name: str, keep: float) -> list[str]:
    part = getattr(of.kept, name)
    asked = f"{keep:g} to {1 / keep:.2f}" if name == "ratio" else f"{keep:g}" if part.counts else "no heads have it"
    return [
        NAMED[name], str(shown(part.value)), asked, f"{part.empty:.2f}", str(shown(getattr(of.ablated, name).value)),
        f"{getattr(of.random, name):.2f}", "binds" if of.kept.binding == name else "",
    ]  # fmt: skip


def _head_row(head: CircuitHead) -> list[Any]:
    roles = sorted(head.roles.items(), key=lambda item: -item[1])
    named = [f"{role.replace('_', ' ')} {of:.2f}" for role, of in roles[:SHOWN_ROLES] if of >= LEAST_ROLE]
    direct = None if head.direct is None else f"{head.direct:.2f}"
    without = (head.without_ratio, head.without_agreement, head.without_kl_fidelity)
    return [head.head, f"{head.damage:.2f}", direct, *(f"{of:.2f}" for of in without), ", ".join(named)]


def _print_stability(of: Stability) -> None:
    print_table(
        "the best set that was tried of each size",
        ["heads", *NAMED.values()],
        [[size.size, *(f"{getattr(size, name):.2f}" for name in NUMBERS)] for size in of.sizes],
        "on the same unseen prompts; means",
    )
    if of.halves:
        rows = [
            [i, len(half.heads), "–" if half.overlap is None else f"{half.overlap:.2f}", *_short(half.kept)]
            for i, half in enumerate(of.halves, 1)
        ]
        columns = ["search", "heads", "overlap", "verdict", *NAMED.values()]
        print_table(
            "found on other halves of the training prompts", columns, rows, "overlap: Jaccard, with the circuit"
        )
    if of.ablations:
        print_table(
            "the same heads kept under other ablations",
            ["ablation", "verdict", *NAMED.values()],
            [
                [one.ablation, *(_short(one.kept) if one.kept else ["cannot be asked", *3 * ["–"]])]
                for one in of.ablations
            ],
        )


def _short(kept: Kept | None, otherwise: str = "none found") -> list[str]:
    if kept is None:
        return [otherwise, *3 * ["–"]]
    return [kept.verdict, *(f"{getattr(kept, name).value.mean:.2f}" for name in NUMBERS)]


def print_audit(result: Audit) -> None:
    """In which analyses a claim stands, what breaks it in the others, and the placebo."""
    n = len(result.analyses)
    print(
        f"{result.task} in {result.model}: {', '.join(result.heads)}\n"
        f"The claim stands in {len(result.stands_in)} of {n} analyses"
        + (f"; it is meant under {result.claimed_under} ablation" if result.claimed_under else "")
        + ("" if result.stands else ". It FALLS")
    )
    print_table(
        "the claim",
        ["ablation", "prompts", "verdict", *NAMED.values(), "by logit difference alone"],
        [_analysis_row(analysis) for analysis in result.analyses],
        f"what the heads keep alone ({result.keep:g} is asked for) on halves of {result.analyses[0].prompts} unseen "
        f"prompts and what breaks the claim; random: {result.random_sets} sets with as many heads in each layer, "
        "p < 0.05 after Holm. Analyses share prompts and a model: how many a claim stands in describes it, and is no "
        "probability",
    )
    stood = sum(not analysis.test("all three").breaks for analysis in result.placebo)
    print(f"placebo, random heads ({', '.join(result.placebo_heads)}): stands in {stood} of {len(result.placebo)}")
    for one in result.excluded:
        say(f"{one.ablation}: cannot be asked ({one.why})")


def _analysis_row(analysis: Analysis) -> list[str]:
    values = [f"{getattr(analysis.kept, name).value.mean:.2f}" for name in NUMBERS]
    return [
        analysis.ablation, f"{analysis.part} ({analysis.prompts})", outcome(analysis, "all three"), *values,
        outcome(analysis, "ratio"),
    ]  # fmt: skip


def outcome(analysis: Analysis, by: str) -> str:
    """Whether a claim stands by a number, or what breaks it."""
    test = analysis.test(by)
    if not test.breaks:
        return "stands"
    words = {"minimal": f"minimal (can go: {', '.join(test.superfluous)})"}
    return "not " + ", not ".join(words.get(name, name) for name in test.breaks)
