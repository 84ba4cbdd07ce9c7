"""What the terminal shows: tables of searches, of a verification and of a benchmark, with their sentences."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mechrl.display import print_table, shown
from mechrl.search.bench.result import BUDGETS, Benchmark, Verdict
from mechrl.search.problem import REFERENCE, TRACKS
from mechrl.verification.result import (
    EVALUATION_PROMPTS,
    Curves,
    Joint,
    Verification,
    VerifiedTask,
    head_rows,
    measured_heads,
    random_heads,
    yes_or_no,
)

if TYPE_CHECKING:
    from mechrl.search.protocol import Evaluation

NOT = {
    "faithful": "not faithful", "replicates": "not replicated", "specific": "not specific", "complete": "not complete"
}  # fmt: skip
SHOWN_PICKS = (1, 3, 5, 10, 25)


def search_rows(evaluations: "Sequence[tuple[str, Evaluation]]") -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table of methods, from (method, evaluation) pairs of one task."""
    summaries = [(name, evaluation.summary()) for name, evaluation in evaluations]
    columns = list(summaries[0][1])
    headers = [column.replace("ratio@", "ratio\nafter ").replace(" after ", "\nafter ") for column in columns]
    return ["method", *headers], [[name, *(s[c] for c in columns)] for name, s in summaries]


def print_verification(result: Verification) -> None:
    """Every task with its table and its four answers; the verdict last."""
    for name, task in result.tasks.items():
        columns, rows = head_rows(task)
        print_table(
            f"{name} ({'trained' if task.trained else 'held out, no task signal: does not decide'})",
            columns,
            rows,
            secondary=[
                "direct", "damage on other tasks", "cached score", "live score", "fresh damage", "difference",
                "rank", "of the clean", "p (Holm)",
            ],
            text="replicates",
        )  # fmt: skip
        for question, said in _answers(task).items():
            answer = yes_or_no(task.answers[question]) or "not asked"
            print(f"  {question:<11} {answer}: {said}")
        if task.joint:
            _print_joint(task, task.joint)
        if task.curves:
            _print_curves(task, task.curves)
    faithful = result.faithful
    print(
        f"cache and model {'agree' if faithful.answer else 'DISAGREE'} within {faithful.tolerance:g} nats "
        f"(control: {faithful.control_difference:.1e})"
    )
    if result.confirmed:
        print("CONFIRMED: every head tested on a trained task passed on the live model")
    else:
        failed = [
            f"{name}: {', '.join(NOT[question] for question, answer in task.answers.items() if answer is False)}"
            for name, task in result.tasks.items()
            if task.trained and not task.confirmed
        ]
        print("NOT CONFIRMED: " + "; ".join(failed or ["the numbers of the cache are not those of the model"]))


def _answers(task: VerifiedTask) -> dict[str, str]:
    """The numbers behind each answer, or why it was not asked."""
    f, r, s, c = task.faithful, task.replicates, task.specific, task.complete
    n = len(task.heads)
    if s.permuted:
        passed = f"{', '.join(s.passed)} pass" if s.passed else "no pick passes"
        specific = f"with answers permuted, logit difference {s.clean:.2f}, {passed} the same test"
    else:
        still = "nothing changes" if s.clean is None else f"the logit difference is still {s.clean:.2f}"
        specific = f"with the answers permuted among the prompts {still}"
    specific += f"; {random_heads(s)}"
    complete = "--sweep measures every head"
    if c is not None:
        complete = (
            f"{n} pick{'s' * (n > 1)} reach {shown(c.coverage)} of the best {n} ({', '.join(c.best)}), the best of "
            f"them {shown(c.ratio)} of the best"
        )
    known, answers = r.known_answers
    top = f"the top is {r.rank_limit} of {measured_heads(r)}"
    return {
        "faithful": f"cache and model differ by {f.difference:.1e} nats at most",
        "replicates": f"{r.prompts} {_prompts(task)}, clean logit difference {r.clean:.2f}; of their {answers} answers "
        f"{known} occur in training and {r.searched_answers} where the agent searched; {top}",
        "specific": specific,
        "complete": complete,
    }


def fresh_notes(result: Verification) -> list[str]:
    """Where the fresh prompts of a task are not the generator's, a sentence."""
    notes = []
    for name, task in result.tasks.items():
        if task.replicates.fresh_from == EVALUATION_PROMPTS:
            notes.append(
                f"{name} was built from a file and has no fresh prompts: its evaluation prompts, on which the heads "
                "were picked, stand in for them; --fresh FILE gives others"
            )
        elif task.replicates.fresh_from != "generator":
            notes.append(f"{name}: the fresh prompts are those of {task.replicates.fresh_from}")
    return notes


def _prompts(task: VerifiedTask) -> str:
    """What the prompts are called."""
    fresh = task.replicates.fresh_from != EVALUATION_PROMPTS
    return "fresh prompts" if fresh else "prompts on which the heads were picked"


def _print_joint(task: VerifiedTask, joint: Sequence[Joint]) -> None:
    print_table(
        f"\nablated together, {_prompts(task)}",
        ["heads", "joint damage", "summed", "interaction"],
        [[" ".join(j.heads), *map(shown, (j.joint, j.summed, j.interaction))] for j in joint],
        "above zero: together they cost more than one by one, as heads that stand in for one another do",
        secondary=["summed", "joint damage"],
    )


def _print_curves(task: VerifiedTask, curves: Curves) -> None:
    if curves.refused:
        print(f"  no curves: {curves.refused}")
        return
    print_table(
        f"\nnecessity and sufficiency of rankings, {_prompts(task)}",
        ["ranking", "head-CPR", "head-CMD", "CPR at\nMIB's sizes", "CMD at\nMIB's sizes", "necessity"],
        [[name, c.cpr, c.cmd, c.mib_cpr, c.mib_cmd, c.necessity] for name, c in curves.rankings.items()],
        f"areas over the share of heads, MLPs kept; logit difference {curves.full:.2f} with all heads, "
        f"{curves.empty:.2f} without any; sufficiency: CPR high, CMD low; necessity: low",
        secondary=["CMD at\nMIB's sizes", "CPR at\nMIB's sizes", "head-CMD", "necessity"],
    )


def print_benchmark(result: Benchmark) -> None:
    """All tables on stdout, a closing sentence for each track last."""
    for name, families in result.families.items():
        said = "; ".join(f"{family}: {', '.join(tasks)}" for family, tasks in families.items())
        print(textwrap.fill(f"{name}: {said}", 160, subsequent_indent="  "))
    print()
    for track in shown_tracks(result):
        _print_track(result, track)
    _print_pairs(result)
    for verdict in result.verdicts:
        label = "" if result.by_protocol else "exploratory, for this is not the run that docs/protocol.md describes: "
        print(textwrap.fill(label + sentence(verdict), 160, subsequent_indent="  "))


def shown_tracks(result: Benchmark) -> list[str]:
    """The tracks that have methods of their own; the first where there are references alone."""
    own = {method.track for method in result.methods.values()}
    return [track for track in TRACKS if track in own] or [TRACKS[0]]


def methods_of_track(result: Benchmark, track: str) -> list[str]:
    """The methods of a track and the references, cheapest first, exploratory ones last."""
    methods = {name: m for name, m in result.methods.items() if m.track in (track, REFERENCE)}
    return sorted(methods, key=lambda name: (methods[name].exploratory, methods[name].cost))


def _print_track(result: Benchmark, track: str) -> None:
    families = sorted({family for of_cache in result.families.values() for family in of_cache})
    methods = {name: result.methods[name] for name in methods_of_track(result, track)}
    labels = {name: name + " (R)" * (m.track == REFERENCE) + " (E)" * m.exploratory for name, m in methods.items()}
    rows: list[list[Any]] = []
    for name, m in methods.items():
        costs = [f"{m.cost_by_family[f]:.2f}" if f in m.cost_by_family else None for f in families]
        rows.append([labels[name], f"{m.cost:.2f} ({m.cost_low:.2f} to {m.cost_high:.2f})", *costs])
    print_table(
        f"track {track}: cost to 90 % coverage, in runs",
        ["method", "mean (95 % interval)", *families],
        rows,
        "geometric means over held-out tasks; (R) reference, (E) exploratory; the exhaustive cost stands for more",
        secondary=families[::-1],
    )
    columns = ["method", "with control\nper look", "never\n90 %", "set-up\nruns", "set-up\nseconds"]
    columns += [f"coverage\nat {b:g} runs" for b in BUDGETS] + [f"ratio\nafter {p}" for p in SHOWN_PICKS]
    rows = [
        [
            *(labels[name], m.cost_with_control, f"{m.censored:.0%}", round(m.set_up_runs), f"{m.set_up_seconds:.1f}"),
            *(getattr(m, f"coverage_at_{b:g}_runs") for b in BUDGETS),
            *(getattr(m, f"ratio_at_{p}") for p in SHOWN_PICKS),
        ]
        for name, m in methods.items()
    ]
    print_table(
        "",
        columns,
        rows,
        "means over families of means over tasks; – where looks are no picks; never: no cheaper than the sweep",
        secondary=columns[:2:-1],
    )


def _print_pairs(result: Benchmark) -> None:
    for name, pairs in result.pairs.items():
        tasks = [task for of_family in result.families[name].values() for task in of_family]
        rows = [[of, *(f"{pairs[f'{of} on {on}'].cost:.1f}" if of != on else None for on in tasks)] for of in tasks]
        print_table(
            f"exploratory: {name}, the static order of one task (row) on another (column), cost to 90 % in runs",
            ["order of", *(task.replace("_", "\n") for task in tasks)],
            rows,
        )


def sentence(verdict: Verdict) -> str:
    """The closing sentence of a track, with its numbers."""
    names = sorted({name for of_cache in verdict.comparators.values() for name in of_cache.values()})
    return (
        f"{verdict.track}: {verdict.sentence}. {verdict.agent} costs {verdict.cost_ratio:.2f} times "
        f"({verdict.low:.2f} to {verdict.high:.2f}) what the baseline chosen on the other families costs "
        f"({', '.join(names)}); p = {verdict.p:.3f}, {verdict.p_adjusted:.3f} after Holm"
        + f"; on {verdict.censored:.0%} of the tasks neither gets there before the exhaustive sweep"
        * bool(verdict.censored)
        + "; too few families to claim transfer" * verdict.too_few_families
    )
