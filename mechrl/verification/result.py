"""A verification: every answer with its numbers. All means are in nats; *yes* is good throughout."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mechrl.display import html_table, shown
from mechrl.results import Count, Estimate, Head, Number, Result, ResultPart, Share, Text

EVALUATION_PROMPTS = "evaluation prompts"  # stand in for fresh ones
RANDOM_PASS = 20  # of so many random heads one may pass the test


class HeadTest(ResultPart):
    """One head's test on fresh prompts.

    :param damage: mean damage; `share` the same ÷ the clean logit difference.
    :param p: of a score of zero or less (one-sided, by bootstrap); `p_adjusted` after Holm over the heads tested.
    :param top_share: the share of resamples in which it is among the top heads.
    :param rank: by fresh score, 1 being the best, among the heads that were measured.
    :param why: what it failed, "" if nothing.
    """

    damage: Estimate
    share: Number
    score: Estimate
    p: Share
    p_adjusted: Share
    top_share: Share
    rank: Estimate
    why: Text


class VerifiedHead(HeadTest):
    """One picked head, with its test on fresh prompts.

    :param cached: its score on the evaluation prompts, in the cache; `live`: the same, measured again.
    :param difference: the largest one between a live and a cached number, over prompts and control spans.
    :param direct: its direct effect on the fresh prompts, see `ablation.intact.direct`; None where there is none.
    :param elsewhere: its mean damage on the cache's other tasks; None where there are none.
    :param answer: whether it passes the test.
    :param placebo: the same test with the answers permuted among the prompts; None where that was not asked.
    """

    head: Head
    cached: Number
    live: Number
    difference: Number
    direct: Estimate | None
    elsewhere: Estimate | None
    answer: bool
    placebo: HeadTest | None

    @model_validator(mode="after")
    def _agree(self) -> "VerifiedHead":
        if self.answer == bool(self.why):
            raise ValueError("the answer is yes where, and only where, no reason is given")
        return self


class FaithfulTask(ResultPart):
    """Does the cache equal the model on the task? `difference`: the largest one between two numbers."""

    answer: bool
    difference: Number


class Faithful(ResultPart):
    """Does the cache equal the model, on control text and on every task?

    :param tolerance: the largest difference that passes.
    :param control_difference: the largest one on control text.
    """

    answer: bool
    tolerance: Number
    control_difference: Number


class Replicates(ResultPart):
    """Does every picked head pass its test on fresh prompts?

    :param fresh_from: where they come from, see `fresh.unseen_prompts`; `prompts` and `groups`: how many.
    :param known_answers: how many of their answers are answers of training prompts too, and of how many.
    :param searched_answers: how many are answers of the evaluation prompts, on which the agent searched.
    :param clean: mean logit difference of the intact model on them.
    :param swept: whether all heads were measured on them.
    :param measured: how many heads were measured: all, or the tested ones, the cache's `best` ones, and random others.
    :param best: how many of the cache's best heads, by score on all of its prompts, are among them in any case.
    :param rank_limit: how many heads are the top.
    """

    answer: bool
    fresh_from: Text
    prompts: Count
    groups: Count
    known_answers: tuple[Count, Count]
    clean: Number
    swept: bool
    searched_answers: Count
    measured: Count
    best: Count
    rank_limit: Count


class Specific(ResultPart):
    """Does the test find nothing where there is nothing to find: with the answers permuted, and in random other heads?

    The other heads are drawn from those that are neither tested nor among the cache's best, and put to the same test.
    It tells heads apart if at least 19 of 20 fail, all of them where there are fewer than 20.

    :param answer: whether no picked head passes with the answers permuted, and the test tells heads apart. What was not
        asked does not count; None where neither was.
    :param permuted: whether the test was repeated with the answers permuted among the prompts. It is not where nothing
        changes, or the model still does a fifth of the task.
    :param passed: the picked heads that pass it all the same.
    :param clean: mean logit difference with the answers permuted; None where nothing changes.
    :param random_failed: how many of the random other heads fail the test, and of how many.
    :param random_passed: those that pass it.
    """

    answer: bool | None
    permuted: bool
    passed: list[Head]
    clean: Number | None
    random_failed: tuple[Count, Count]
    random_passed: list[Head]

    @model_validator(mode="after")
    def _agree(self) -> "Specific":
        failed, of = self.random_failed
        if failed + len(self.random_passed) != of:
            raise ValueError("the random heads that fail and those that pass are not all of them")
        if self.permuted and self.clean is None:
            raise ValueError("the answers were permuted, and no logit difference is given")
        return self


def tells_apart(failed: int, of: int) -> bool | None:
    """Whether the test tells heads apart, given how many random heads fail it, and of how many; None of none."""
    return of - failed <= of // RANDOM_PASS if of else None


class Complete(ResultPart):
    """Do the picked heads reach 90 % of the best? In each resample the best are those of that resample.

    :param coverage: the scores of the tested heads together ÷ those of as many best heads, negatives as 0.
    :param ratio: the best score among the tested heads ÷ the best of all.
    :param best: as many best heads.
    """

    answer: bool
    coverage: Estimate
    ratio: Estimate
    best: list[Head]


class Joint(ResultPart):
    """Some heads ablated together: their damage, the sum of what each costs alone, and the difference."""

    heads: list[Head]
    joint: Estimate
    summed: Estimate
    interaction: Estimate


class Ranking(ResultPart):
    """The curves of one ranking: mean logit difference at each count k, and the areas under faithfulness.

    :param heads: the most important first.
    :param kept: with only the first k heads left; `ablated`: with the first k ablated.
    :param cpr: head-CPR, the area under the faithfulness of what is kept, over the share of heads; `cmd`: head-CMD,
        the area between it and 1. After MIB (Mueller et al. 2025, arXiv 2504.13151), with heads for edges.
    :param mib_cpr: head-CPR from MIB's ten sizes alone, as its evaluator takes it, see `sets.MIB_SIZES`; `mib_cmd`:
        head-CMD likewise. Few points in place of many: neither is nearer to the area than `cpr` and `cmd`.
    :param necessity: the area under the faithfulness of what is left when the first k are ablated; small is good.
    """

    kept: list[Number]
    ablated: list[Number]
    cpr: Number
    cmd: Number
    mib_cpr: Number
    mib_cmd: Number
    necessity: Number
    heads: list[Head]


class Curves(ResultPart):
    """Necessity and sufficiency of rankings of heads. MLPs are always kept.

    :param counts: the numbers of heads, k.
    :param full: mean logit difference of the intact model; `empty`: with every head ablated, as the cache's ablation
        has it.
    :param refused: why there are no rankings; None if there are.
    """

    counts: list[Count]
    full: Number
    empty: Number
    refused: Text | None
    rankings: dict[Text, Ranking]

    @model_validator(mode="after")
    def _lengths(self) -> "Curves":
        for name, ranking in self.rankings.items():
            if not len(ranking.kept) == len(ranking.ablated) == len(self.counts):
                raise ValueError(f"the curves of {name!r} do not have {len(self.counts)} points")
        return self


class VerifiedTask(ResultPart):
    """The picked heads of one task, and the four answers.

    :param trained: whether the agent was trained on the task; only then its answers decide the verdict.
    :param confirmed: whether every answer that was asked for is yes.
    :param runs: mean cost of the search of an evaluation episode, in runs; `search`: see `Evaluation.summary`.
    :param complete: None unless all heads were measured; `joint` and `curves` None where they were not asked for.
    """

    trained: bool
    confirmed: bool
    runs: Number
    search: dict[Text, Number | None]
    faithful: FaithfulTask
    replicates: Replicates
    specific: Specific
    complete: Complete | None
    heads: Annotated[list[VerifiedHead], Field(min_length=1)]
    joint: list[Joint] | None
    curves: Curves | None

    @property
    def answers(self) -> dict[str, bool | None]:
        """The four answers by name; None is for what was not asked."""
        return {
            "faithful": self.faithful.answer,
            "replicates": self.replicates.answer,
            "specific": self.specific.answer,
            "complete": None if self.complete is None else self.complete.answer,
        }


class Verification(Result):
    """Everything that a verification found.

    :param command: what was called in a shell; None where Python called it.
    :param checkpoint_sha256: of the file; None where the agent was given without one.
    :param confirmed: the verdict: the cache equals the model, and every trained task is confirmed.
    """

    written_by: ClassVar[str] = "mechrl-verify"

    format: Literal["mechrl-verification"] = "mechrl-verification"
    format_version: Literal[4] = 4
    command: Text | None
    mechrl_version: Text
    library_versions: dict[Text, Text]
    model: Text
    model_sha256: Text
    cache_sha256: Text
    checkpoint_sha256: Text | None
    ablation: Text
    control_weight: Number
    seed: int
    confirmed: bool
    faithful: Faithful
    tasks: dict[Text, VerifiedTask]

    def _repr_html_(self) -> str:
        verdict = "confirmed" if self.confirmed else "not confirmed"
        rows = [[name, *map(yes_or_no, task.answers.values())] for name, task in self.tasks.items()]
        columns = ["task", "faithful", "replicates", "specific", "complete"]
        answers = html_table(f"{self.model}: {verdict}", columns, rows, "–: not asked")
        return answers + "".join(
            html_table(name, *head_rows(task), "nats, with 95 % intervals") for name, task in self.tasks.items()
        )


def yes_or_no(answer: bool | None) -> str | None:
    """An answer in a word; None for what was not asked."""
    return None if answer is None else "yes" if answer else "no"


def measured_heads(replicates: Replicates) -> str:
    """Which heads were measured on the fresh prompts, in words."""
    if replicates.swept:
        return f"all {replicates.measured} heads"
    return f"{replicates.measured} heads (those tested, the cache's {replicates.best} best, others at random)"


def random_heads(specific: Specific) -> str:
    """What the negative control says."""
    failed, of = specific.random_failed
    if not of:
        return "there are no other heads to draw at random"
    if not specific.random_passed:
        return f"all of {of} random other heads fail it"
    passed = f"{of - failed} of {of} random other heads pass it ({', '.join(specific.random_passed)})"
    return passed if tells_apart(failed, of) else f"{passed}: it does not tell heads apart"


def head_rows(task: VerifiedTask) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a task's table of tested heads."""
    columns: dict[str, Callable[[VerifiedHead], Any]] = {
        "head": lambda h: h.head,
        "cached\nscore": lambda h: h.cached,
        "live\nscore": lambda h: h.live,
        "difference": lambda h: f"{h.difference:.1e}",
        "fresh score": lambda h: shown(h.score),
        "fresh damage": lambda h: shown(h.damage),
        "of the\nclean": lambda h: f"{h.share:.0%}",
        "p (Holm)": lambda h: f"{h.p_adjusted:.4f}",
        "rank": lambda h: "{:.0f} ({:.0f} to {:.0f})".format(*h.rank),
        "direct": lambda h: shown(h.direct),
        "damage\non other tasks": lambda h: shown(h.elsewhere),
        "replicates": lambda h: h.why or "yes",
    }
    return list(columns), [[cell(head) for cell in columns.values()] for head in task.heads]
