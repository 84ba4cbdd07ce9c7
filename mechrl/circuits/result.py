"""A circuit: a set of heads, what it keeps, and what was done to find it."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mechrl.intervals import LEAST_GROUPS
from mechrl.results import Count, Estimate, Head, Number, Result, ResultPart, Share, Text

NUMBERS = ("ratio", "agreement", "kl_fidelity")
LEAST_PROMPTS = 64  # to judge on
Size = Annotated[int, Field(ge=1, le=512)]  # layers, or heads in one: more than any model has, and little to draw
Verdict = Literal["kept", "undecided", "not kept"]


def _check_heads(heads: Iterable[str], n_layers: int, n_heads: int) -> None:
    """:raises ValueError: the model has no such head."""
    for head in heads:
        layer, index = map(int, head.split("."))
        if layer >= n_layers or index >= n_heads:
            raise ValueError(f"there is no head {head} in a model of {n_layers} layers with {n_heads} heads each")


class Part(ResultPart):
    """One of the three numbers.

    :param value: with its 95 % interval over groups of prompts.
    :param empty: the same of the model with every head ablated.
    :param counts: whether it was asked for.
    :param verdict: on this number alone.
    """

    value: Estimate
    empty: Number
    counts: bool
    verdict: Verdict


class Kept(ResultPart):
    """What a set of heads keeps of a behaviour; see `circuits.kept.judge`.

    :param ratio: its mean logit difference ÷ the intact model's.
    :param agreement: share of prompts with the intact model's most probable token.
    :param kl_fidelity: 1 − KL(intact‖circuit) ÷ KL(intact‖empty); `kl` and `empty_kl`: the two in nats.
    :param binding: which of the three has the least room.
    :param full: the intact model's mean logit difference in nats.
    """

    verdict: Verdict
    binding: Literal["ratio", "agreement", "kl_fidelity"]
    ratio: Part
    agreement: Part
    kl_fidelity: Part
    kl: Estimate
    empty_kl: Number
    full: Number


class HeadSet(ResultPart):
    """Some heads, and what they keep."""

    heads: list[Head]
    kept: Kept


class CircuitHead(ResultPart):
    """A head of a circuit.

    :param damage: what removing this head alone from the intact model costs, in nats.
    :param without_ratio: the circuit's ratio without this head; the other two numbers likewise.
    :param direct: what it writes for the answers against the wrongs itself, in nats; None where that is not defined.
    :param roles: how much of each role it has, 0 to 1 (`ablation.intact.roles.measure_roles`).
    """

    head: Head
    damage: Number
    without_ratio: Number
    without_agreement: Number
    without_kl_fidelity: Number
    direct: Number | None
    roles: dict[Text, Number]


class RandomSets(ResultPart):
    """Random sets with as many heads in each layer: how many, how many are kept, and what they keep in the middle."""

    sets: Count
    kept: Count
    ratio: Number
    agreement: Number
    kl_fidelity: Number


class OfSize(ResultPart):
    """The best set that was tried of a size, on unseen prompts; means."""

    size: Count
    ratio: Number
    agreement: Number
    kl_fidelity: Number


class OfHalf(ResultPart):
    """What a shorter search finds on another half of the training prompts.

    :param overlap: heads in both circuits ÷ heads in either (Jaccard); None where it finds none.
    """

    heads: list[Head]
    overlap: Share | None
    kept: Kept | None


class UnderAblation(ResultPart):
    """The same heads kept, under another ablation of all others; `refused` says why that cannot be asked."""

    ablation: Text
    kept: Kept | None = None
    refused: Text | None = None


class Stability(ResultPart):
    """What changes with the size, with the prompts that were searched on, and with the ablation."""

    sizes: list[OfSize]
    halves: list[OfHalf]
    ablations: list[UnderAblation]


class Judged(ResultPart):
    """A circuit on prompts that the search did not see.

    :param ablated: the other way round: what is left where these heads alone are ablated.
    """

    kept: Kept
    ablated: Kept
    random: RandomSets


class Circuit(Result):
    """The smallest set of heads that was found to keep a behaviour while all others are ablated.

    :param keep: the share that was to be kept.
    :param heads: of the circuit, the first layer first; none where `refused` says why there is no such set.
    :param judged: on prompts that the search did not see, `prompts` of them in `groups`; None where it is refused.
    :param by_logit_diff: the smallest set of those that were tried whose logit difference alone is large enough, on
        these prompts: where it is not kept, the logit difference survived and the behaviour did not.
    :param runs: of the model on the prompts that were searched on, a gradient counted as three.
    :param searched: on how many prompts.
    """

    written_by: ClassVar[str] = "mechrl circuit"

    format: Literal["mechrl-circuit"] = "mechrl-circuit"
    format_version: Literal[1] = 1
    mechrl_version: Text
    model: Text
    model_sha256: Text
    task: Text
    ablation: Text
    keep: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    searched: Count
    runs: Count
    prompts: Count
    groups: Count
    n_layers: Size
    n_heads: Size
    refused: Text | None = None
    heads: list[CircuitHead] = Field(default_factory=list)
    judged: Judged | None = None
    by_logit_diff: HeadSet | None = None
    stability: Stability | None = None

    @model_validator(mode="after")
    def _of_one_model(self) -> "Circuit":
        _check_heads((head.head for head in self.heads), self.n_layers, self.n_heads)
        return self

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers must know, a sentence each."""
        found = []
        if self.judged is not None and self.groups < LEAST_GROUPS:
            found.append(f"{self.groups} groups of unseen prompts are too few to say that anything is kept")
        if self.judged is not None and self.prompts < LEAST_PROMPTS:
            found.append(f"{self.prompts} unseen prompts are few: {LEAST_PROMPTS} or more say it better")
        if self.judged is not None and (random := self.judged.random).kept:
            found.append(
                f"{random.kept} of {random.sets} random sets with as many heads in each layer are kept, too: "
                "so many heads keep the behaviour whichever they are"
            )
        survived = self.by_logit_diff
        if survived is not None and survived.kept.verdict != "kept":
            kept = survived.kept
            found.append(
                f"by the logit difference alone {len(survived.heads)} heads would do ({kept.ratio.value.mean:.2f} of "
                f"it): with them the model's own next token comes first on {kept.agreement.value.mean:.0%} of the "
                f"prompts, and KL fidelity is {kept.kl_fidelity.value.mean:.2f}"
            )
        return found


class Claim(Result):
    """Somebody's claim that some heads are the circuit of a behaviour; written by hand, in a JSON file.

    :param model: what it is a claim about, as the user calls it, `model_sha256` its fingerprint; "" where it does not
        say.
    :param ablation: which it is meant under; "" for no particular one.
    :param source: who claims it.
    """

    written_by: ClassVar[str] = "the author of a claim"

    format: Literal["mechrl-claim"] = "mechrl-claim"
    format_version: Literal[1] = 1
    task: Text
    heads: Annotated[list[Head], Field(min_length=1, max_length=4096)]
    model: Text = ""
    model_sha256: Text = ""
    ablation: Text = ""
    source: Text = ""


class FourTests(ResultPart):
    """The four tests by one of the numbers, or by all three together.

    :param sufficient: kept alone, the heads pass.
    :param necessary: ablated, they leave nothing that passes.
    :param superfluous: heads without which the others pass as well.
    :param p: of being no better than random sets with as many heads in each layer; None where it was not tried, because
        another test had failed. `p_holm`: corrected for the number of analyses (Holm 1979).
    :param breaks: which tests fail, none where the claim stands.
    """

    by: Literal["all three", "ratio", "agreement", "kl_fidelity"]
    sufficient: bool
    necessary: bool
    superfluous: list[Head]
    p: Share | None
    p_holm: Share | None
    breaks: list[Literal["sufficient", "necessary", "minimal", "better than random"]]


class Analysis(ResultPart):
    """One way to ask: an ablation and some of the unseen prompts.

    :param part: which of them.
    :param kept: what the heads keep alone; `ablated`: what is left without them.
    """

    ablation: Text
    part: Text
    prompts: Count
    groups: Count
    kept: Kept
    ablated: Kept
    tests: list[FourTests]

    @model_validator(mode="after")
    def _complete(self) -> "Analysis":
        if sorted(test.by for test in self.tests) != sorted(("all three", *NUMBERS)):
            raise ValueError("not one test by each number and one by all three")
        return self

    def test(self, by: str) -> FourTests:
        """By one of the numbers, or by `all three`."""
        return next(test for test in self.tests if test.by == by)


class Excluded(ResultPart):
    """An ablation under which nothing can be asked, and why."""

    ablation: Text
    why: Text


class Audit(Result):
    """A claim under every analysis at hand, and a placebo beside it.

    How many analyses it stands in describes it, and is no probability: they share prompts and a model.

    :param keep: the share that has to be kept.
    :param random_sets: so many were tried under an ablation.
    :param placebo: a random set with as many heads in each layer, put to the same tests.
    """

    written_by: ClassVar[str] = "mechrl audit"

    format: Literal["mechrl-audit"] = "mechrl-audit"
    format_version: Literal[1] = 1
    mechrl_version: Text
    model: Text
    model_sha256: Text
    task: Text
    heads: list[Head]
    claimed_under: Text
    source: Text
    keep: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    n_layers: Size
    n_heads: Size
    random_sets: Count
    analyses: Annotated[list[Analysis], Field(min_length=1)]
    excluded: list[Excluded]
    placebo_heads: list[Head]
    placebo: list[Analysis]

    @model_validator(mode="after")
    def _of_one_model(self) -> "Audit":
        _check_heads((*self.heads, *self.placebo_heads), self.n_layers, self.n_heads)
        return self

    @property
    def stands_in(self) -> list[Analysis]:
        """The analyses in which the claim stands by all three numbers."""
        return [analysis for analysis in self.analyses if not analysis.test("all three").breaks]

    @property
    def stands(self) -> bool:
        """Whether it stands in every analysis of the ablation that it is meant under; without one, in any analysis."""
        meant = [analysis for analysis in self.analyses if analysis.ablation == self.claimed_under]
        if self.claimed_under:
            return bool(meant) and all(analysis in self.stands_in for analysis in meant)
        return bool(self.stands_in)
