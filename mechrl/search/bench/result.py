"""What a benchmark measured: costs in runs, means over families of means over tasks, caches and seeds."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from mechrl.display import html_table
from mechrl.results import NotNegative, Number, Positive, Result, ResultPart, Share, Text

BUDGETS = (2.0, 5.0, 10.0)  # runs at which coverage is told


class Fingerprints(ResultPart):
    """Of a cache and its model."""

    model: Text
    model_sha256: Text
    cache_sha256: Text


class MethodSummary(ResultPart):
    """A method on all tasks.

    :param cost: cost to 90 % coverage, a geometric mean, from `cost_low` to `cost_high` in 95 %; the exhaustive cost
        stands for more.
    :param censored: how often 90 % took as much as the exhaustive sweep, or was never reached.
    :param cost_with_control: the cost with control charged for every look.
    :param set_up_runs: what the other tasks' tables cost; `set_up_seconds` what preparing took, training included.
    :param coverage_at_2_runs: mean coverage at that cost; `ratio_at_1`: mean oracle ratio after so many picks, None
        where looks are no picks or no episode has so many.
    """

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("ratio_at_", "ratio@"), validate_by_name=True, serialize_by_alias=True
    )

    track: Text
    exploratory: bool
    cost: Positive
    cost_low: Positive
    cost_high: Positive
    cost_by_family: dict[Text, Positive]
    censored: Share
    cost_with_control: Positive
    set_up_runs: NotNegative
    set_up_seconds: NotNegative
    coverage_at_2_runs: Number
    coverage_at_5_runs: Number
    coverage_at_10_runs: Number
    ratio_at_1: Number | None
    ratio_at_3: Number | None
    ratio_at_5: Number | None
    ratio_at_10: Number | None
    ratio_at_25: Number | None
    ratio_at_50: Number | None


class SearchedTask(ResultPart):
    """A method on a held-out task of a cache, with one seed.

    :param cost: to 90 % coverage, in runs, and its 95 % interval; `censored`, where it is that of the exhaustive sweep.
    :param ratios: mean oracle ratio after so many picks, where every event was a pick.
    :param coverage: mean coverage at the costs of `cost_grid`.
    """

    cache: Text
    family: Text
    task: Text
    method: Text
    seed: int
    cost: Positive
    cost_interval: tuple[Positive, Positive]
    censored: bool
    ratios: dict[Text, Number]
    coverage: list[Number]


class OrderPair(ResultPart):
    """The order of one task on another: cost to 90 % in runs, and ratio after 3 picks, None where there is none."""

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("ratio_at_", "ratio@"), validate_by_name=True, serialize_by_alias=True
    )

    cost: Positive
    ratio_at_3: Number | None


class Verdict(ResultPart):
    """The agent against the comparator in one track.

    :param sentence: `the agent wins`, `no difference`, or `a baseline wins or undecided`.
    :param too_few_families: whether there are too few to claim transfer.
    :param censored: share of tasks on which neither got to 90 % before the exhaustive sweep, and so nothing differs.
    :param cost_ratio: cost of the agent ÷ that of the comparator, from `low` to `high` in 95 %; the same of each family
        in `family_cost_ratios`.
    :param p: one-sided; `p_adjusted` for the number of tracks.
    :param comparators: by cache and held-out family.
    """

    track: Text
    agent: Text
    sentence: Text
    too_few_families: bool
    censored: Share
    cost_ratio: Positive
    low: Positive
    high: Positive
    p: Share
    p_adjusted: Share
    comparators: dict[Text, dict[Text, Text]]
    family_cost_ratios: dict[Text, Positive]


class Benchmark(Result):
    """Everything that was measured.

    :param by_protocol: whether methods, seeds, tracks and control weight are docs/protocol.md's; else this is
        exploratory.
    :param caches: their fingerprints, by path; `families`: the tasks of each family, by cache.
    :param cost_grid: the costs of the curves, in runs.
    :param pairs: the static order of one task on another, by cache: `a on b`.
    """

    written_by: ClassVar[str] = "mechrl bench"
    older: ClassVar[str] = "verdicts"

    format: Literal["mechrl-benchmark"] = "mechrl-benchmark"
    format_version: Literal[1] = 1
    by_protocol: bool
    caches: Annotated[dict[Text, Fingerprints], Field(min_length=1)]
    families: dict[Text, dict[Text, list[Text]]]
    methods: dict[Text, MethodSummary]
    tasks: list[SearchedTask]
    cost_grid: list[Number]
    pairs: dict[Text, dict[Text, OrderPair]]
    verdicts: list[Verdict]

    @model_validator(mode="after")
    def _fit(self) -> "Benchmark":
        for row in self.tasks:
            if len(row.coverage) != len(self.cost_grid):
                raise ValueError(f"the curve of {row.method!r} does not have {len(self.cost_grid)} points")
            if row.method not in self.methods:
                raise ValueError(f"method {row.method!r} is not among the methods")
            if row.cache not in self.caches:
                raise ValueError(f"cache {row.cache!r} is not among the caches")
        return self

    def _repr_html_(self) -> str:
        rows = [
            [name, m.track, f"{m.cost:.2f} ({m.cost_low:.2f} to {m.cost_high:.2f})", f"{m.censored:.0%}"]
            for name, m in sorted(self.methods.items(), key=lambda item: (item[1].exploratory, item[1].cost))
        ]
        costs = html_table("cost to 90 % coverage, in runs", ["method", "track", "mean (95 %)", "never"], rows)
        if not self.verdicts:
            return costs
        said = [[v.track, v.sentence, v.cost_ratio, f"{v.p_adjusted:.3f}"] for v in self.verdicts]
        return costs + html_table("verdicts", ["track", "verdict", "cost ratio", "p (Holm)"], said)
