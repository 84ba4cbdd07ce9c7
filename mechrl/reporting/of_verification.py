"""What the page says of a verification: the answers, the heads in numbers, heads together."""

from collections.abc import Sequence

from mechrl.reporting import claims
from mechrl.reporting.blocks import Block, Figure, Table
from mechrl.reporting.claims import estimate, number
from mechrl.reporting.documents import Curves, Joint, VerifiedTask
from mechrl.reporting.figures import joint_bars, lines
from mechrl.reporting.run import VerificationFile


def verified(file: VerificationFile, name: str) -> list[Block]:
    task = file.content.tasks[name]
    role = {True: "trained on", False: "held out: does not decide", None: ""}[task.trained]
    title = f"On the live model ({file.path.name}{', ' * bool(role)}{role})"
    blocks = [Block(title, answers=_answers(file, task), tables=_head_tables(task))]
    if task.joint:
        blocks.append(_joint(name, task.joint))
    if task.curves:
        blocks.append(_curves(name, task.curves))
    return blocks


def _answers(file: VerificationFile, task: VerifiedTask) -> list[tuple[str, bool | None]]:
    """The questions with their answers; None is for what was not asked."""
    overall = file.content.faithful
    answers: list[tuple[str, bool | None]] = []
    if (f := task.faithful) is not None:
        tolerance = f", tolerance {overall.tolerance:g}" if overall and overall.tolerance is not None else ""
        difference = f"{f.difference:.1e}" if f.difference is not None else "–"
        control = overall.control_difference if overall else None
        on_text = f", by {control:.1e} on control text" if control is not None else ""
        said = f"faithful: cache and live model differ by {difference} nats at most{on_text}{tolerance}"
        answers.append((said, f.answer and (overall is None or overall.answer)))
    if (r := task.replicates) is not None:
        said = f"replicates: on {r.prompts or '?'} prompts in {r.groups or '?'} groups, from {r.fresh_from or '?'}"
        if r.known_answers is not None:
            said += f"; {r.known_answers[0]} of {r.known_answers[1]} answers occur in training"
            if r.searched_answers is not None:
                said += f", {r.searched_answers} where the agent searched"
        answers.append((said, r.answer))
    if (p := task.placebo) is not None:
        passed = ", ".join(p.passed) or "no head"
        answers.append((f"placebo: where there is nothing to find, {passed} passes", p.answer))
    if (c := task.complete) is not None:
        said = f"complete: coverage {estimate(c.coverage)}, ratio {estimate(c.ratio)}"
        if c.best:
            said += f"; best heads there are: {', '.join(c.best)}"
        answers.append((said, c.answer))
    for what, asked in (("placebo", task.placebo), ("complete", task.complete), ("joint damage", task.joint),
                        ("necessity and sufficiency", task.curves)):  # fmt: skip
        if asked is None:
            answers.append((f"{what}: not asked", None))
    return answers


def _head_tables(task: VerifiedTask) -> list[Table]:
    if not task.heads:
        return []
    first = [
        [h.head, {True: "yes", False: "NO", None: "–"}[h.answer], estimate(h.damage), _percent(h.share),
         estimate(h.score), number(h.p_adjusted, 3), estimate(h.direct), estimate(h.elsewhere), h.why or ""]
        for h in task.heads
    ]  # fmt: skip
    columns = ["head", "holds", "damage", "of clean", "score", "p, adjusted", "direct effect", "on other tasks", "why"]
    second = [
        [h.head, number(h.cached, 3), number(h.live, 3), "–" if h.difference is None else f"{h.difference:.1e}",
         estimate(h.rank, 0), _percent(h.stands)]
        for h in task.heads
    ]  # fmt: skip
    more = ["head", "score, cached", "score, live", "largest difference", "rank", "resamples it stands in"]
    return [
        Table(columns, first, "Nats, with 95 % intervals, on the prompts named above."),
        Table(
            more,
            second,
            "Scores on the cached prompts, and their difference on any one; the rank on the prompts named above.",
        ),
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _joint(name: str, joint: Sequence[Joint]) -> Block:
    counts = [len(j.heads) for j in joint]
    series = {"together": [j.joint for j in joint], "one by one, in sum": [j.summed for j in joint]}
    rows = [[", ".join(j.heads), estimate(j.joint), estimate(j.summed), estimate(j.interaction)] for j in joint]
    table = Table(["heads", "together", "one by one, in sum", "interaction"], rows, "Damage in nats, 95 % intervals.")
    caption = "Damage of growing sets of heads, removed together, and the sum of their damages one by one."
    plot = joint_bars(counts, series, [", ".join(j.heads) for j in joint])
    sentences = [claims.of_joint(max(joint, key=lambda j: len(j.heads)))]
    return Block(
        "Together and one by one", sentences, figures=[Figure(f"Joint damage on {name}", caption, plot, table)]
    )


def _curves(name: str, curves: Curves) -> Block:
    title = "Necessity and sufficiency"
    if curves.refused:
        return Block(title, [f"Not measured: {curves.refused}"])
    levels = {"all heads": curves.full, "no heads": curves.empty}
    shown = {name: level for name, level in levels.items() if level is not None}
    figures = []
    for what, attribute, caption in (
        ("only the top heads left", "kept", "Sufficiency: the logit difference with only the best k heads left."),
        ("the top heads removed", "ablated", "Necessity: the logit difference without the best k heads."),
    ):
        drawn = {ranking: (curves.counts, v) for ranking, r in curves.rankings.items() if (v := getattr(r, attribute))}
        if drawn:
            rows = [[ranking, *(number(v) for v in values)] for ranking, (_, values) in drawn.items()]
            table = Table(["ranking", *(f"k = {k}" for k in curves.counts)], rows, "Logit difference in nats.")
            plot = lines(drawn, "heads, k", "logit difference, nats", levels=shown)
            figures.append(Figure(f"Logit difference with {what}, {name}", caption, plot, table))
    rows = [
        [ranking, number(r.cpr, 3), number(r.cmd, 3), number(r.necessity, 3), ", ".join(r.heads[:10])]
        for ranking, r in curves.rankings.items()
    ]
    columns = ["ranking", "head-CPR", "head-CMD", "necessity", "heads, the first first"]
    caption = (
        "With f(k) = (m(k) − m(empty)) ÷ (m(full) − m(empty)): CPR = ∫ f, CMD = ∫ |1 − f| over the share of heads "
        "kept, after the definitions of MIB (arXiv 2504.13151). MLPs are kept, and heads are removed whole, by the "
        "cache's ablation: these are not MIB's edge-level numbers. The agent's ranking ends with heads it never looked "
        "at, in the model's order."
    )
    return Block(title, claims.of_curves(curves), figures=figures, tables=[Table(columns, rows, caption)])
