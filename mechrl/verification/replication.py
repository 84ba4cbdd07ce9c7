"""Whether what a head does is there again on fresh prompts, and how much of the best that there is was found.

Everything here works on numbers that were measured elsewhere; nothing runs a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechrl.intervals import LEAST_GROUPS, Estimate, bootstrap_means, interval
from mechrl.score import best_first, score
from mechrl.search.bench.statistics import holm

ALPHA = 0.05
LEAST_SHARE = 0.05  # of the clean measure
MOST_RANK, MOST_SHARE = 10, 0.3  # the top: ten heads, or 30 % of them if that is less
STANDS = 0.95  # of the resamples
RANDOM_HEADS = 20
PLACEBO_CLEAN = 0.2  # of the clean measure: a placebo on which the model does more is none
COMPLETE = 0.9  # coverage, as in docs/protocol.md


@dataclass(frozen=True)
class Measured:
    """Damage of some heads on the same fresh prompts, and their control damage.

    :param sites: int [column].
    :param damage: clean minus ablated logit difference in nats, [prompt, column].
    :param groups: int [prompt].
    :param control: control damage in nats, [span, column]; of the cache's evaluation spans, for there are no others.
    :param clean: the mean logit difference of the intact model on the prompts, as they are meant, in nats.
    """

    sites: np.ndarray
    damage: np.ndarray
    groups: np.ndarray
    control: np.ndarray
    clean: float
    control_weight: float = 1.0

    @property
    def scores(self) -> np.ndarray:
        """Mean score of each head in nats, [column]."""
        return score(self.damage.mean(0), self.control.mean(0), self.control_weight)

    def resampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean damage and mean score in resamples of groups and of spans, [resample, column] each."""
        damage = bootstrap_means(self.damage, self.groups)
        control = bootstrap_means(self.control, np.arange(len(self.control)), seed=1)
        return damage, score(damage, control, self.control_weight)

    def columns(self, sites: Sequence[int]) -> list[int]:
        """The columns of some sites."""
        where = {int(site): column for column, site in enumerate(self.sites)}
        return [where[int(site)] for site in sites]


@dataclass(frozen=True)
class HeadTest:
    """One head's test on fresh prompts. Estimates are (mean, lower, upper end of the 95 % interval), in nats.

    :param share: mean damage ÷ the clean measure.
    :param p: of a score of zero or less (one-sided, by bootstrap); `p_adjusted` after Holm over the heads tested.
    :param stands: the share of resamples in which it is among the top heads, or above all random heads.
    :param rank: by fresh score, 1 being the best; None where not all heads were measured.
    :param why: what it failed, "" if nothing.
    """

    damage: Estimate
    share: float
    score: Estimate
    p: float
    p_adjusted: float
    stands: float
    rank: Estimate | None
    why: str


def rank_limit(n_sites: int, tested: int = 1) -> int:
    """How many heads are the top: ten, or 30 % of all if that is less; as many as are tested, if that is more."""
    return max(tested, min(MOST_RANK, int(MOST_SHARE * n_sites)))


def judge(measured: Measured, tested: Sequence[int], swept: bool) -> list[HeadTest]:
    """The test of each tested site.

    It passes if its mean damage is 5 % of the clean measure or more, its score is above zero (Holm-corrected over the
    tested sites, at 5 %), and in 95 % of the resamples it stands among the top heads (`rank_limit`) if all heads were
    measured (`swept`), else above all the other heads that were. Fewer than 8 groups pass nothing.
    """
    columns = measured.columns(tested)
    damage, scores = measured.resampled()
    p_values = {
        str(site): (1 + int((scores[:, column] <= 0).sum())) / (1 + len(scores))
        for site, column in zip(tested, columns, strict=True)
    }
    adjusted = holm(p_values)
    others = [i for i in range(len(measured.sites)) if swept or i not in columns]
    limit = rank_limit(len(measured.sites), len(tested)) if swept else 1
    found = []
    for site, column in zip(tested, columns, strict=True):
        above = lambda of, column=column: (of[..., others] > of[..., [column]]).sum(-1) + 1  # noqa: E731
        ranks = above(scores)
        share = float(measured.damage[:, column].mean()) / measured.clean if measured.clean > 0 else 0.0
        stands = float((ranks <= limit).mean())
        failed = [
            f"fewer than {LEAST_GROUPS} groups" * (len(np.unique(measured.groups)) < LEAST_GROUPS),
            "the model does not do the task" * (measured.clean <= 0),
            f"damage below {LEAST_SHARE:.0%} of the clean measure" * (measured.clean > 0 and share < LEAST_SHARE),
            "score not above zero" * (adjusted[str(site)] > ALPHA),
            (f"not in the top {limit}" if swept else f"not above {len(others)} random heads") * (stands < STANDS),
        ]
        found.append(
            HeadTest(
                damage=_estimate(measured.damage[:, column].mean(), damage[:, column]),
                share=share,
                score=_estimate(measured.scores[column], scores[:, column]),
                p=p_values[str(site)],
                p_adjusted=adjusted[str(site)],
                stands=stands,
                rank=_estimate(above(measured.scores), ranks) if swept else None,
                why="; ".join(filter(None, failed)),
            )
        )
    return found


@dataclass(frozen=True)
class Completeness:
    """How much of the best was found, on fresh prompts. In each resample the best are those of that resample.

    :param coverage: the scores of the tested heads together ÷ those of as many best heads, negatives as 0.
    :param ratio: the best score among the tested heads ÷ the best of all.
    :param best: as many best sites.
    """

    coverage: Estimate
    ratio: Estimate
    best: list[int]

    @property
    def answer(self) -> bool:
        """Whether the coverage, as measured, is 90 % or more."""
        return self.coverage[0] >= COMPLETE


def completeness(measured: Measured, tested: Sequence[int]) -> Completeness:
    """What the tested sites reach of all, given that all heads were measured."""
    columns, n = measured.columns(tested), len(tested)
    scores = np.maximum(np.vstack([measured.scores, measured.resampled()[1]]), 0)
    best = np.sort(scores, axis=1)[:, ::-1][:, :n]
    coverage = scores[:, columns].sum(1) / np.maximum(best.sum(1), 1e-9)
    ratio = scores[:, columns].max(1) / np.maximum(best[:, 0], 1e-9)
    order = best_first(measured.scores)[:n]
    return Completeness(
        _estimate(coverage[0], coverage[1:]), _estimate(ratio[0], ratio[1:]), measured.sites[order].tolist()
    )


def _estimate(mean: float, resampled: np.ndarray) -> Estimate:
    low, high = interval(resampled)
    return Estimate(float(mean), float(low), float(high))


def estimate(values: np.ndarray, groups: np.ndarray) -> Estimate:
    """A mean over prompts with its interval over groups, of values [prompt]."""
    return _estimate(values.mean(), bootstrap_means(values[:, None], groups)[:, 0])
