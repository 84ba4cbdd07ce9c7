"""Whether what a head does is there again on fresh prompts, and how much of the best that there is was found.

Everything here works on numbers that were measured elsewhere; nothing runs a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mechrl.intervals import LEAST_GROUPS, Estimate, bootstrap_means, interval
from mechrl.score import best_first, score
from mechrl.search.bench.statistics import holm
from mechrl.verification.result import Complete, HeadTest

ALPHA = 0.05
LEAST_SHARE = 0.05  # of the clean measure
MOST_RANK, LEAST_RANK = 10, 3  # see `rank_limit`
TOP_SHARE = 0.95  # of the resamples
BEST = 3  # times as many of the cache's best heads as the top holds are measured beside the tested ones
RANDOM_HEADS = 20  # the negative control
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
        scores: np.ndarray = score(self.damage.mean(0), self.control.mean(0), self.control_weight)
        return scores

    @cached_property
    def resampled(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean damage and mean score in resamples of groups and of spans, [resample, column] each."""
        damage = bootstrap_means(self.damage, self.groups)
        control = bootstrap_means(self.control, np.arange(len(self.control)), seed=1)
        return damage, score(damage, control, self.control_weight)

    def columns(self, sites: Sequence[int]) -> list[int]:
        """The columns of some sites."""
        where = {int(site): column for column, site in enumerate(self.sites)}
        return [where[int(site)] for site in sites]


def rank_limit(n_sites: int, tested: int = 1) -> int:
    """How many heads are the top of a model: ten, in a small one an eighth of its heads.

    At least three, but no more than a third, so that the top of 24 heads are 3, of 48 6, and of 80 or more 10. That is
    more than the k of coverage@k (`search.protocol`: 3 of 48), because what a head must be here is one that stands out,
    not one of the very best: a behaviour needs as many heads in a small model as in a large one, and the fourth head of
    `mini` on IOI still costs a quarter of the clean measure. As many as are tested, if that is more: whoever tests five
    heads asks whether they are the best five.
    """
    return max(tested, min(MOST_RANK, max(LEAST_RANK, n_sites // 8), max(1, n_sites // 3)))


def head_tests(measured: Measured, tested: Sequence[int], limit: int) -> list[HeadTest]:
    """The test of each tested site.

    It passes if its mean damage is 5 % of the clean measure or more, its score is above zero (Holm-corrected over the
    tested sites, at 5 %), and in 95 % of the resamples, in which all heads are resampled together, it is among the top
    of all heads that were measured. Of equal scores none is before the other. Fewer than 8 groups pass nothing.

    :param limit: how many heads are the top, see `rank_limit`. Where not all heads were measured, the cache's best
        ones must be among those that were.
    """
    columns = measured.columns(tested)
    damage, scores = measured.resampled
    p_values = {
        str(site): (1 + int((scores[:, column] <= 0).sum())) / (1 + len(scores))
        for site, column in zip(tested, columns, strict=True)
    }
    adjusted = holm(p_values)
    tests = []
    for site, column in zip(tested, columns, strict=True):
        ranks = _ranks(scores, column)
        share = float(measured.damage[:, column].mean()) / measured.clean if measured.clean > 0 else 0.0
        top_share = float((ranks <= limit).mean())
        failed = [
            f"fewer than {LEAST_GROUPS} groups" * (len(np.unique(measured.groups)) < LEAST_GROUPS),
            "the model does not do the task" * (measured.clean <= 0),
            f"damage below {LEAST_SHARE:.0%} of the clean measure" * (measured.clean > 0 and share < LEAST_SHARE),
            "score not above zero" * (adjusted[str(site)] > ALPHA),
            f"not in the top {limit}" * (top_share < TOP_SHARE),
        ]
        tests.append(
            HeadTest(
                damage=_estimate(measured.damage[:, column].mean(), damage[:, column]),
                share=share,
                score=_estimate(measured.scores[column], scores[:, column]),
                p=p_values[str(site)],
                p_adjusted=adjusted[str(site)],
                top_share=top_share,
                rank=_estimate(float(_ranks(measured.scores, column)), ranks),
                why="; ".join(filter(None, failed)),
            )
        )
    return tests


def random_tests(measured: Measured, others: Sequence[int], limit: int) -> list[HeadTest]:
    """The negative control: the same test of heads that it should not pass.

    Each is tested as if it were the only one. So its p is not corrected, and it passes more easily than a tested head.
    """
    return [head_tests(measured, [site], limit)[0] for site in others]


def _ranks(scores: np.ndarray, column: int) -> np.ndarray:
    """The place of a column by score, 1 being the best, of equal ones the last, int [...], of [..., column]."""
    return np.asarray((scores >= scores[..., [column]]).sum(-1))


def completeness(measured: Measured, tested: Sequence[int], heads: Sequence[str]) -> Complete:
    """What the tested sites reach of all, given that all heads were measured.

    :param heads: the names of all sites.
    """
    columns, n = measured.columns(tested), len(tested)
    scores = np.maximum(np.vstack([measured.scores, measured.resampled[1]]), 0)
    best = np.sort(scores, axis=1)[:, ::-1][:, :n]
    coverage = scores[:, columns].sum(1) / np.maximum(best.sum(1), 1e-9)
    ratio = scores[:, columns].max(1) / np.maximum(best[:, 0], 1e-9)
    order = best_first(measured.scores)[:n]
    return Complete(
        answer=bool(coverage[0] >= COMPLETE),
        coverage=_estimate(coverage[0], coverage[1:]),
        ratio=_estimate(ratio[0], ratio[1:]),
        best=[heads[site] for site in measured.sites[order]],
    )


def _estimate(mean: float, resampled: np.ndarray) -> Estimate:
    low, high = interval(resampled)
    return Estimate(float(mean), float(low), float(high))


def estimate(values: np.ndarray, groups: np.ndarray) -> Estimate:
    """A mean over prompts with its interval over groups, of values [prompt]."""
    return _estimate(values.mean(), bootstrap_means(values[:, None], groups)[:, 0])
