"""The search for the smallest set of heads that keeps a behaviour, in few runs.

Heads are ranked by integrated gradients over their mask, from all ablated to all kept. Beginnings of that order are
tried, from one head to all of them. Then smaller sets than the first that keeps the behaviour are tried, by bisection,
each improved by swaps: one gradient at the set says which kept heads give least and which dropped ones would give most,
and their pairs are tried until one is better. Nothing here knows a model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

KEPT = ("logit_diff", "kl", "top1_agreement")  # what is measured of a set
STEPS = 5  # of the integrated gradients
GRADIENT_RUNS = 3  # forward, and backward counted as two
CANDIDATES = 6  # kept heads, and dropped ones, that are tried against one another
AT_ONCE = 4  # pairs
LADDER = 12  # sizes, from one head to all, at which beginnings of the first order are tried
# Of what is left above the share to be kept, what the search asks for in addition, 0.85 for 0.8: in the end a whole
# interval has to pass.
MARGIN = 0.25
NEARLY_ALL = 0.9  # of the heads


class Numbers(NamedTuple):
    """What the intact model and the one with every head ablated do: mean logit differences and KL, in nats."""

    full: float
    empty: float
    empty_kl: float


class Subject(Protocol):
    """What is searched: something that measures sets and has gradients; see `circuits.behaviour.Behaviour`."""

    n_sites: int

    def measure(self, kept: np.ndarray) -> dict[str, np.ndarray]: ...

    def gradient(self, mask: np.ndarray, numbers: Numbers) -> np.ndarray: ...


def objective(logit_diff: Any, kl: Any, numbers: Numbers) -> Any:
    """What the search makes large: half the KL fidelity, and half the share of the logit difference.

    KL fidelity is 1 − KL(intact‖circuit) ÷ KL(intact‖empty); the share is (m − m(empty)) ÷ (m(full) − m(empty)). Above
    1 it counts as m(full) ÷ m: leaving out what works against the answer is no gain.

    :param logit_diff: mean over prompts, in nats, a number or a tensor; `kl` likewise.
    """
    share = (logit_diff - numbers.empty) / (numbers.full - numbers.empty)
    return 0.5 * (1 - kl / numbers.empty_kl) + 0.5 * (share if share < 1 else numbers.full / logit_diff)


@dataclass(frozen=True)
class Point:
    """A set of heads, and what it keeps on the prompts that are searched on.

    :param kept: bool [site].
    :param ratio: its mean logit difference, divided by the intact model's.
    :param agreement: share of prompts with the intact model's most probable token.
    """

    kept: np.ndarray
    ratio: float
    agreement: float
    kl_fidelity: float
    objective: float

    @property
    def size(self) -> int:
        return int(self.kept.sum())


@dataclass
class Search:
    """One search, and the runs that it has used: a set measured is one, a gradient three.

    :param check: the same behaviour on other prompts. A set that passes is tried there, too, and has to pass: a search
        finds sets that happen to do well on its few prompts.
    :param check_runs: what that costs.
    :param keep: the share of the behaviour to be kept, in (0, 1).
    :param numbers: of the subject, and of the check.
    :param agreement_counts: whether agreement is asked for; not where the empty set has enough of it.
    """

    subject: Subject
    check: Subject
    check_runs: int
    keep: float
    most_runs: int
    numbers: tuple[Numbers, Numbers]
    agreement_counts: bool
    on_run: Callable[[int], None] = lambda runs: None
    runs: int = 0
    known: dict[bytes, Point] = field(default_factory=dict)
    checked: dict[bytes, bool] = field(default_factory=dict)

    @property
    def target(self) -> float:
        return self.keep + MARGIN * (1 - self.keep)

    def passes(self, point: Point) -> bool:
        """Whether a set keeps enough on the prompts that are searched on, a margin included, and on those to check."""
        if not self._enough(point, self.target):
            return False
        key = point.kept.tobytes()
        if key not in self.checked:
            (found,) = _points(self.check, self.numbers[1], point.kept[None])
            self.checked[key] = self._enough(found, self.keep)
            self._spend(self.check_runs)
        return self.checked[key]

    def _enough(self, point: Point, least: float) -> bool:
        return (
            least <= point.ratio <= 1 / least
            and point.kl_fidelity >= least
            and (point.agreement >= least or not self.agreement_counts)
        )

    def points(self, sets: np.ndarray) -> list[Point]:
        """What sets keep, bool [set, site]; what is known is not measured again."""
        new = {row.tobytes(): row for row in sets if row.tobytes() not in self.known}
        if new:
            found = _points(self.subject, self.numbers[0], np.stack(list(new.values())))
            self.known |= dict(zip(new, found, strict=True))
            self._spend(len(new))
        return [self.known[row.tobytes()] for row in sets]

    def gradient(self, mask: np.ndarray) -> np.ndarray:
        """The gradient of the objective by the mask, [site]."""
        self._spend(GRADIENT_RUNS)
        return self.subject.gradient(mask.astype(float), self.numbers[0])

    def _spend(self, runs: int) -> None:
        self.runs += runs
        self.on_run(self.runs)

    def integrated(self) -> np.ndarray:
        """Integrated gradients of each head, [site]; at the intact model itself the gradient of KL is zero."""
        masks = [np.full(self.subject.n_sites, (step + 0.5) / STEPS) for step in range(STEPS)]
        return np.asarray(np.mean([self.gradient(mask) for mask in masks], axis=0))

    def smallest(self) -> Point | None:
        """The smallest set that was found to keep the behaviour; None where it takes nearly all heads."""
        order = np.argsort(-self.integrated(), kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        sizes = np.unique(np.geomspace(1, len(order), LADDER).round().astype(int))
        ladder = self.points(place < sizes[:, None])
        best = next(point for point in ladder if self.passes(point))  # all heads do
        fails = 0
        last = self.most_runs - AT_ONCE - self.check_runs  # when a batch of swaps begins, at the latest
        while best.size - fails > 1 and self.runs + 2 < last:
            size = (fails + best.size) // 2
            steps_left = max(1, int(np.ceil(np.log2(best.size - fails))))
            until = self.runs + (last - self.runs) // steps_left
            rank = np.where(best.kept, place, len(place) + place)
            starts = self.points(np.stack([place < size, np.argsort(np.argsort(rank)) < size]))
            found = self.swapped(max(starts, key=lambda point: point.objective), until)
            if self.passes(found):
                best = found
            else:
                fails = size
        return best if best.size <= NEARLY_ALL * len(order) and self.passes(best) else None

    def swapped(self, point: Point, until: int) -> Point:
        """The set, improved by swaps until it passes, no swap helps, or so many runs are used."""
        while not self.passes(point) and self.runs + GRADIENT_RUNS < until:
            gradient = self.gradient(point.kept)
            kept, dropped = np.flatnonzero(point.kept), np.flatnonzero(~point.kept)
            weak = kept[np.argsort(gradient[kept], kind="stable")[:CANDIDATES]]
            strong = dropped[np.argsort(-gradient[dropped], kind="stable")[:CANDIDATES]]
            pairs = sorted(
                ((a, b) for a in weak for b in strong), key=lambda pair: gradient[pair[0]] - gradient[pair[1]]
            )
            for some in (pairs[i : i + AT_ONCE] for i in range(0, len(pairs), AT_ONCE)):
                sets = np.repeat(point.kept[None], len(some), 0)
                for row, (out, into) in zip(sets, some, strict=True):
                    row[[out, into]] = False, True
                tried = max(self.points(sets), key=lambda p: p.objective)
                if tried.objective > point.objective or self.runs >= until:
                    break
            if tried.objective <= point.objective:
                break
            point = tried
        return point


def _points(subject: Subject, numbers: Numbers, sets: np.ndarray) -> list[Point]:
    """What sets keep of a subject's behaviour, bool [set, site]."""
    means = {name: values.mean(0).tolist() for name, values in subject.measure(sets).items()}
    return [
        Point(kept, m / numbers.full, agreement, 1 - kl / numbers.empty_kl, float(objective(m, kl, numbers)))
        for kept, m, agreement, kl in zip(sets, means["logit_diff"], means["top1_agreement"], means["kl"], strict=True)
    ]
