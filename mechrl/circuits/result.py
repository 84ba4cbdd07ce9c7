"""A circuit: a set of heads, what it keeps, and what was done to find it."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mechrl.results import Count, Estimate, Head, Number, Result, ResultPart, Text

Verdict = Literal["kept", "undecided", "not kept"]


class Part(ResultPart):
    """One of the three numbers.

    :param value: with its 95 % interval over groups of prompts.
    :param empty: the same of the model with every head ablated.
    :param counts: whether it was asked for.
    """

    value: Estimate
    empty: Number
    counts: bool


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


class Circuit(Result):
    """The smallest set of heads that was found to keep a behaviour while all others are ablated.

    :param keep: the share that was to be kept.
    :param heads: of the circuit, the first layer first; none where `refused` says why there is no such set.
    :param kept: on prompts that the search did not see, `prompts` of them in `groups`.
    :param ablated: the other way round: what is left where these heads alone are ablated.
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
    n_layers: Count
    n_heads: Count
    refused: Text | None = None
    heads: list[CircuitHead] = Field(default_factory=list)
    kept: Kept | None = None
    ablated: Kept | None = None
    random: RandomSets | None = None
    by_logit_diff: HeadSet | None = None
