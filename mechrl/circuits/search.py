"""The search for the smallest set of heads that keeps a behaviour, in few runs.

Heads are ranked by integrated gradients over their mask, from all ablated to all kept: those that give most, and those
that change most, whether for the answer or against it. Beginnings of both orders are tried. From then on the best set
that was tried is improved, among those smaller than the smallest that keeps the behaviour: one gradient at it says
which heads to take in, to leave out and to swap. Whenever a set keeps the behaviour, the beginnings of its own order
are tried. A set is gone on from once, so the search backs out of dead ends. Nothing here knows a model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch

KEPT = ("logit_diff", "kl", "top1_margin")  # what is measured of a set
STEPS = 5  # of the integrated gradients
GRADIENT_RUNS = 3  # forward, and backward counted as two
LADDER = 9  # beginnings of each of the two orders, by size
TRIED = 8  # sets after a gradient
# Of what is left above the share to be kept, what the search asks for in addition, 0.85 for 0.8: in the end a whole
# interval has to pass.
MARGIN = 0.25
NEARLY_ALL = 0.9  # of the heads
BEYOND = 0.2  # what a number counts beyond its target, against 1.2 below it
SOFTNESS = 0.5  # nats: how far around zero a margin counts as half an agreement


class Numbers(NamedTuple):
    """What the intact model and the one with every head ablated do: mean logit differences and KL, in nats.

    :param agreement: of the intact model with itself, as `softened` says.
    :param target: what the search asks of each of the three numbers.
    """

    full: float
    empty: float
    empty_kl: float
    agreement: float
    target: float = 1


class Subject(Protocol):
    """What is searched: something that measures sets and has gradients; see `circuits.subjects.Behaviour`."""

    n_sites: int

    def measure(self, kept: np.ndarray) -> dict[str, np.ndarray]: ...

    def gradient(self, mask: np.ndarray, numbers: Numbers) -> np.ndarray: ...


def softened(margin: torch.Tensor) -> torch.Tensor:
    """Agreement with the intact model's most probable token, so that it has a gradient, from margins in nats."""
    return (margin / SOFTNESS).sigmoid().mean()


def objective(measures: Mapping[str, torch.Tensor], numbers: Numbers, smooth: bool = False) -> torch.Tensor:
    """What the search makes large: the sum of three numbers, each 1 for the intact model.

    They are those that have to be kept: the ratio of logit differences, m ÷ m(full), or m(full) ÷ m where that is less;
    KL fidelity, 1 − KL(intact‖circuit) ÷ KL(intact‖empty); and agreement with the intact model's most probable token.
    Above the target each counts little: what is asked for is enough of all three, and not much of one.

    :param measures: those of `KEPT`, [prompt].
    :param smooth: agreement as `softened`, relative to the intact model's, so that it has a gradient; not limited.
    """
    ratio = measures["logit_diff"].mean() / numbers.full
    soft = softened(measures["top1_margin"]) / numbers.agreement
    hard = (measures["top1_margin"] >= 0).double().mean()
    fidelity = 1 - measures["kl"].mean() / numbers.empty_kl
    closeness = ratio if ratio < 1 else 1 / ratio
    agreement = soft if smooth else hard.clamp(max=numbers.target)
    enough = closeness.clamp(max=numbers.target) + fidelity.clamp(max=numbers.target) + agreement
    return enough + BEYOND * (closeness + fidelity + soft)


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

    def passes(self, point: Point) -> bool:
        """Whether a set keeps enough on the prompts that are searched on, a margin included, and on those to check.

        One that there are no runs left to check does not pass.
        """
        if not self._enough(point, self.numbers[0].target):
            return False
        key = point.kept.tobytes()
        if key not in self.checked:
            if self.runs + self.check_runs > self.most_runs:
                return False
            (found,) = _points(self.check, self.numbers[1], point.kept[None])
            self.checked[key] = self._enough(found, self.keep)
            self.known[key] = replace(point, objective=min(point.objective, found.objective))
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
        n = self.subject.n_sites
        scores = self.integrated()
        giving, changing = beginnings(scores, _sizes(n // 4, LADDER)), beginnings(abs(scores), _sizes(n, LADDER))
        tried = self.points(np.concatenate([giving, changing]))
        best = self._smaller(tried[-1], tried)  # the last has all heads
        ordered: set[bytes] = set()
        gone_on: set[bytes] = set()
        while self.runs + GRADIENT_RUNS + TRIED <= self.most_runs:
            key = best.kept.tobytes()
            if key not in ordered:
                ordered.add(key)
                new = self._beginnings_of(best)
            else:
                # What is small already is improved itself, and so is what is most of the heads.
                most = best.size if best.size <= TRIED or best.size > n / 2 else best.size - 1
                left = [p for key, p in self.known.items() if key not in gone_on and 0 < p.size <= most]
                if not left:
                    break
                point = max(left, key=lambda p: p.objective)
                gone_on.add(point.kept.tobytes())
                new = self._neighbours(point, best.size - 1)
            best = self._smaller(best, self.points(new))
        return best if best.size <= NEARLY_ALL * n else None

    def _smaller(self, best: Point, tried: Sequence[Point]) -> Point:
        """The smallest set that passes, or the best so far."""
        smaller = sorted((p for p in tried if p.size < best.size), key=lambda p: (p.size, -p.objective))
        return next(filter(self.passes, smaller), best)

    def _beginnings_of(self, point: Point) -> np.ndarray:
        """Smaller sets: those heads of a set that change most, halfway between all of them and none."""
        scores = abs(self.gradient(0.5 * point.kept))
        return beginnings(np.where(point.kept, scores, -1), _sizes(point.size, TRIED + 1)[:-1])

    def _neighbours(self, point: Point, most: int) -> np.ndarray:
        """Sets of at most so many heads that are not known yet, from what the gradient at a set promises.

        Out go heads that work against the objective, or those that hardly matter; in come those that promise most.
        """
        gradient = self.gradient(point.kept)
        kept, dropped = np.flatnonzero(point.kept), np.flatnonzero(~point.kept)
        harmful = kept[np.argsort(gradient[kept], kind="stable")]
        idle = kept[np.argsort(abs(gradient[kept]), kind="stable")]
        best = dropped[np.argsort(-gradient[dropped], kind="stable")]
        none = kept[:0]
        changes = [
            (none, best[:1]), (none, best[1:2]), (idle[:1], none), (harmful[:1], none), (harmful[:1], best[:1]),
            (none, best[:2]), (idle[:1], best[:1]), (none, best[2:3]), (none, best[:4]), (idle[:2], none),
            (idle[:2], best[:1]), (harmful[:2], best[:1]), (idle[1:2], none), (harmful[:1], best[1:2]),
            (harmful[1:2], best[:1]), (idle[:1], best[1:2]), (harmful[:2], best[:2]), (idle[:2], best[:2]),
        ]  # fmt: skip
        new = {}
        for out, into in changes:
            changed = point.kept.copy()
            changed[out], changed[into] = False, True
            if 0 < changed.sum() <= most and changed.tobytes() not in self.known:
                new[changed.tobytes()] = changed
        return np.array(list(new.values())[:TRIED], bool).reshape(-1, len(point.kept))


def beginnings(scores: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The sites of the highest scores, as many as each size says, bool [size, site]."""
    place = np.argsort(np.argsort(-scores, kind="stable"))
    return np.asarray(place < np.array(sizes, int)[:, None])


def _sizes(most: int, n: int) -> list[int]:
    """At most n sizes from one to the most, evenly by logarithm."""
    return sorted(set(np.geomspace(1, max(1, most), n).round().astype(int).tolist()))


def _points(subject: Subject, numbers: Numbers, sets: np.ndarray) -> list[Point]:
    """What sets keep of a subject's behaviour, bool [set, site]."""
    measured = {name: torch.from_numpy(values.T.copy()) for name, values in subject.measure(sets).items()}
    found = []
    for i, kept in enumerate(sets):
        of = {name: values[i] for name, values in measured.items()}
        ratio, fidelity = of["logit_diff"].mean() / numbers.full, 1 - of["kl"].mean() / numbers.empty_kl
        agreement = (of["top1_margin"] >= 0).double().mean()
        found.append(Point(kept, *map(float, (ratio, agreement, fidelity, objective(of, numbers)))))
    return found
