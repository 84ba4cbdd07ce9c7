"""The smallest set of heads that keeps a behaviour, or why there is none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mechrl.circuits.search import MARGIN, NEARLY_ALL, Numbers, Point, Search, Subject, softened
from mechrl.errors import UsageError

MOST_RUNS = 150
LEAST_DIFFERENCE = 0.1  # of the intact model's logit difference, between it and the model without any head
LEAST_KL = 0.1  # nats, of the model without any head


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    :param kept: bool [site], the smallest set that was found; None where `refused` says why there is none.
    :param by_logit_diff: the smallest set that was tried whose logit difference alone is large enough; None where none
        was, or nothing was searched.
    :param of_size: the best set that was tried of each size, by that size.
    """

    kept: np.ndarray | None
    refused: str | None
    by_logit_diff: np.ndarray | None
    of_size: dict[int, np.ndarray]
    runs: int


def smallest_set(
    searched: Subject,
    checked: Subject,
    check_runs: int,
    keep: float,
    most_runs: int = MOST_RUNS,
    on_runs: Callable[[int], None] = lambda runs: None,
) -> Found:
    """Search for the smallest set that keeps a behaviour on the prompts of two subjects.

    :param searched: what the search runs on; `checked` has other prompts, on which what it finds is tried.
    :param check_runs: what one such trial costs.
    """
    numbers, empty_agreement = ends(searched)
    if refused := why_not(numbers):
        return Found(None, refused, None, {}, 2)
    numbers = numbers._replace(target=keep + MARGIN * (1 - keep))
    search = Search(
        searched, checked, check_runs, keep, most_runs, (numbers, ends(checked)[0]), empty_agreement < keep,
        lambda runs: on_runs(min(runs, most_runs)), runs=2 + 2 * check_runs,
    )  # fmt: skip
    point = search.smallest()
    refused = None
    if point is None:
        refused = (
            f"no set of fewer than {NEARLY_ALL:.0%} of the {searched.n_sites} heads was found that keeps {keep:.0%} "
            "of the behaviour"
        )
    tried = sorted(search.known.values(), key=lambda point: point.objective)  # the best of a size is the last
    return Found(
        None if point is None else point.kept, refused, _by_logit_diff(tried, keep),
        {point.size: point.kept for point in tried}, search.runs,
    )  # fmt: skip


def _by_logit_diff(points: Sequence[Point], keep: float) -> np.ndarray | None:
    """The smallest set of those that were tried whose logit difference is large enough; of two the closer to 1."""
    enough = [point for point in points if point.ratio >= keep and point.size]
    return min(enough, key=lambda point: (point.size, abs(point.ratio - 1))).kept if enough else None


def ends(subject: Subject) -> tuple[Numbers, float]:
    """What the intact and the empty model do, and how often the empty one says what the intact one says."""
    measured = subject.measure(np.stack([np.ones(subject.n_sites, bool), np.zeros(subject.n_sites, bool)]))
    (full, empty), (_, kl) = measured["logit_diff"].mean(0).tolist(), measured["kl"].mean(0).tolist()
    intact, ablated = measured["top1_margin"].T
    return Numbers(full, empty, kl, float(softened(torch.from_numpy(intact.copy())))), float((ablated >= 0).mean())


def why_not(numbers: Numbers) -> str | None:
    """Why there is nothing to search for; None where there is."""
    full, empty, kl = numbers.full, numbers.empty, numbers.empty_kl
    if not full > 0:
        return f"the model does not do the task: its logit difference is {full:.2f} nats, not above zero"
    if full - empty < LEAST_DIFFERENCE * full:
        return (
            f"heads make less than a tenth of the logit difference: {full:.2f} nats, and {empty:.2f} without any head"
        )
    if kl < LEAST_KL:
        return f"without any head the next token hardly changes: KL divergence {kl:.3f} nats, less than {LEAST_KL}"
    return None


def check_keep(keep: float) -> None:
    """:raises UsageError: the share is not one."""
    if not 0 < keep < 1:
        raise UsageError(f"the share to keep must lie above 0 and below 1, and is {keep:g}")
