"""What the page says of a verification: the answer in a sentence, the heads in numbers, heads together."""

from collections.abc import Sequence

from mechrl.reporting.blocks import Block, Figure, Table, estimate, joint_bars, lines, number
from mechrl.reporting.run import VerificationFile
from mechrl.verification.result import (
    EVALUATION_PROMPTS,
    Curves,
    Faithful,
    Joint,
    Verification,
    VerifiedHead,
    VerifiedTask,
    measured_heads,
    random_heads,
)


def verification_claim(task: VerifiedTask, ablation: str) -> str:
    """The answer for a task on the live model: the first head that replicates, or else the first one."""
    replicated = [head for head in task.heads if head.answer]
    head = (replicated or task.heads)[0]
    fresh = task.replicates.fresh_from
    prompts = fresh if fresh == EVALUATION_PROMPTS else "fresh prompts"
    mean, low, high = map(number, head.damage)
    said = (
        f"Removing {head.head} (total effect, {ablation} ablation, {task.replicates.prompts} {prompts}) costs {mean} "
        f"nats of {number(task.replicates.clean)} ({low} to {high})"
    )
    if head.direct is not None:
        said += f"; its direct effect is {number(head.direct.mean)}"
    if head.elsewhere is not None:
        said += f"; on other tasks it costs {number(head.elsewhere.mean)}"
    said += "."
    if not head.answer:
        said += f" This does not replicate: {head.why}."
    if others := [other.head for other in replicated if other is not head]:
        said += f" Also replicated: {', '.join(others)}."
    if failed := [_failed(other) for other in task.heads if not other.answer and other is not head]:
        said += f" Not replicated: {', '.join(failed)}."
    return said


def _failed(head: VerifiedHead) -> str:
    return f"{head.head} ({head.why})"


def verdict_claim(verification: Verification) -> str:
    """What a verification says as a whole, which is more than that its heads replicate."""
    return f" The verification as a whole: {'confirmed' if verification.confirmed else 'NOT confirmed'}."


def joint_claim(joint: Joint) -> str:
    """Whether heads stand in for one another, from the damage of all together and one by one."""
    together, summed = joint.joint.mean, joint.summed.mean
    said = f"{', '.join(joint.heads)}: together {number(together)} nats, one by one {number(summed)} in sum"
    if joint.interaction.low <= 0 <= joint.interaction.high:
        return said + ": within the interval their damages add up."
    if together < summed:
        return said + ": less than their damages add up to."
    if summed < together / 2:
        return said + ": these heads stand in for one another, and single damages hide it."
    return said + ": more than their damages add up to, as heads that stand in for one another do."


def curve_claims(curves: Curves) -> list[str]:
    """For each ranking, how many heads alone keep half of the behaviour, and without how many half of it is lost."""
    half, said = (curves.full + curves.empty) / 2, []
    for name, ranking in curves.rankings.items():
        kept = [k for k, v in zip(curves.counts, ranking.kept, strict=True) if v >= half]
        lost = [k for k, v in zip(curves.counts, ranking.ablated, strict=True) if v <= half]
        parts = [f"the best {kept[0]} alone keep half of the behaviour"] if kept else []
        parts += [f"without the best {lost[0]} half of it is lost"] if lost else []
        if parts:
            said.append(f"{name}: {'; '.join(parts)}.")
    return said


def verified(file: VerificationFile, name: str) -> list[Block]:
    """The blocks of a task."""
    task = file.content.tasks[name]
    role = "trained on" if task.trained else "held out: does not decide"
    title = f"On the live model ({file.path.name}, {role})"
    blocks = [Block(title, answers=_answers(file.content.faithful, task), tables=_head_tables(task))]
    if task.joint:
        blocks.append(_joint(name, task.joint))
    if task.curves:
        blocks.append(_curves(name, task.curves))
    return blocks


def _answers(overall: Faithful, task: VerifiedTask) -> list[tuple[str, bool | None]]:
    """The questions with their answers; None is for what was not asked."""
    f, r, s, c = task.faithful, task.replicates, task.specific, task.complete
    known, of = r.known_answers
    answers: list[tuple[str, bool | None]] = [
        (
            f"faithful: cache and live model differ by {f.difference:.1e} nats at most, by "
            f"{overall.control_difference:.1e} on control text, tolerance {overall.tolerance:g}",
            f.answer and overall.answer,
        ),
        (
            f"replicates: on {r.prompts} prompts in {r.groups} groups, from {r.fresh_from}; {known} of {of} answers "
            f"occur in training, {r.searched_answers} where the agent searched; the top is {r.rank_limit} of "
            f"{measured_heads(r)}",
            r.answer,
        ),
    ]
    if s.answer is not None:
        passed = f"with the answers permuted {', '.join(s.passed) or 'no pick'} passes the test" if s.permuted else ""
        said = "; ".join(filter(None, [passed, random_heads(s)]))
        answers.append((f"specific: {said}", s.answer))
    if c is not None:
        best = f"; best heads there are: {', '.join(c.best)}"
        answers.append((f"complete: coverage {estimate(c.coverage)}, ratio {estimate(c.ratio)}{best}", c.answer))
    asked = {"specific": s.answer, "complete": c, "joint damage": task.joint, "necessity and sufficiency": task.curves}
    return answers + [(f"{what}: not asked", None) for what, found in asked.items() if found is None]


def _head_tables(task: VerifiedTask) -> list[Table]:
    first = [
        [h.head, "yes" if h.answer else "NO", estimate(h.damage), f"{h.share:.0%}", estimate(h.score),
         number(h.p_adjusted, 3), estimate(h.direct), estimate(h.elsewhere), h.why]
        for h in task.heads
    ]  # fmt: skip
    columns = ["head", "holds", "damage", "of clean", "score", "p, adjusted", "direct effect", "on other tasks", "why"]
    second = [
        [h.head, number(h.cached, 3), number(h.live, 3), f"{h.difference:.1e}", estimate(h.rank, 0),
         f"{h.top_share:.0%}"]
        for h in task.heads
    ]  # fmt: skip
    more = ["head", "score, cached", "score, live", "largest difference", "rank", "resamples in the top"]
    return [
        Table(columns, first, "Nats, with 95 % intervals, on the prompts named above."),
        Table(
            more,
            second,
            "Scores on the cached prompts, and their difference on any one; the rank on the prompts named above.",
        ),
    ]


def _joint(name: str, joint: Sequence[Joint]) -> Block:
    counts = [len(j.heads) for j in joint]
    series = {"together": [j.joint for j in joint], "one by one, in sum": [j.summed for j in joint]}
    rows = [[", ".join(j.heads), estimate(j.joint), estimate(j.summed), estimate(j.interaction)] for j in joint]
    table = Table(["heads", "together", "one by one, in sum", "interaction"], rows, "Damage in nats, 95 % intervals.")
    caption = "Damage of growing sets of heads, removed together, and the sum of their damages one by one."
    plot = joint_bars(counts, series, [", ".join(j.heads) for j in joint])
    sentences = [joint_claim(max(joint, key=lambda j: len(j.heads)))]
    return Block(
        "Together and one by one", sentences, figures=[Figure(f"Joint damage on {name}", caption, plot, table)]
    )


def _curves(task: str, curves: Curves) -> Block:
    title = "Necessity and sufficiency"
    if curves.refused:
        return Block(title, [f"Not measured: {curves.refused}"])
    levels = {"all heads": curves.full, "no heads": curves.empty}
    figures = []
    for what, drawn, caption in (
        (
            "only the top heads left",
            {name: ranking.kept for name, ranking in curves.rankings.items()},
            "Sufficiency: the logit difference with only the best k heads left.",
        ),
        (
            "the top heads removed",
            {name: ranking.ablated for name, ranking in curves.rankings.items()},
            "Necessity: the logit difference without the best k heads.",
        ),
    ):
        rows = [[ranking, *map(number, values)] for ranking, values in drawn.items()]
        table = Table(["ranking", *(f"k = {k}" for k in curves.counts)], rows, "Logit difference in nats.")
        plot = lines(
            {ranking: (curves.counts, values) for ranking, values in drawn.items()},
            "heads, k", "logit difference, nats", levels=levels,
        )  # fmt: skip
        figures.append(Figure(f"Logit difference with {what}, {task}", caption, plot, table))
    rows = [
        [ranking, *(number(v, 3) for v in (r.cpr, r.cmd, r.mib_cpr, r.mib_cmd, r.necessity)), ", ".join(r.heads[:10])]
        for ranking, r in curves.rankings.items()
    ]
    columns = [
        "ranking", "head-CPR", "head-CMD", "CPR at MIB's sizes", "CMD at MIB's sizes", "necessity",
        "heads, the first first",
    ]  # fmt: skip
    caption = (
        "With f(k) = (m(k) − m(empty)) ÷ (m(full) − m(empty)): CPR = ∫ f, CMD = ∫ |1 − f| over the share of heads "
        "kept, after the definitions of MIB (arXiv 2504.13151). At MIB's sizes, they are taken from ten points alone: "
        "0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50 and 100 % of the heads, rounded down. MLPs are kept, and heads are removed "
        "whole, by the cache's ablation: these are not MIB's edge-level numbers. The agent's ranking ends with heads "
        "it never looked at, in the model's order."
    )
    return Block(title, curve_claims(curves), figures=figures, tables=[Table(columns, rows, caption)])
