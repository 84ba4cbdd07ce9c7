"""What changes in a circuit with its size, with the prompts that were searched on, and with the ablation."""

from collections.abc import Callable

import numpy as np

from mechrl.ablation import Ablation
from mechrl.circuits.kept import Judge, names
from mechrl.circuits.result import OfHalf, OfSize, Stability, UnderAblation
from mechrl.circuits.search import Subject
from mechrl.circuits.smallest import Found, smallest_set
from mechrl.circuits.subjects import Subjects
from mechrl.results import safe_text

HALVES, RUNS_OF_HALF = 5, 60
SIZES = 12


def measure_stability(
    subjects: Subjects,
    ablation: Ablation,
    found: Found,
    unseen: Subject,
    keep: float,
    on_step: Callable[[float, str], None] = lambda share, doing: None,
) -> Stability:
    """Three questions to a circuit; without one, only how much sets of each size keep.

    :param found: what the search ended with.
    :param unseen: the prompts to judge on.
    """
    groups, n_layers = subjects.prompts.group[subjects.judged], subjects.model.n_layers
    verdict = Judge(unseen, groups, keep)
    on_step(0, "measuring sets of other sizes")
    sizes = _spread(sorted(found.of_size))
    of_size = verdict(np.stack([found.of_size[size] for size in sizes])) if sizes else []
    halves, ablations = [], []
    if found.kept is not None:
        journal = subjects.journal(ablation)
        for i in range(1, HALVES + 1):
            on_step(0.1 + 0.14 * (i - 1), "searching on other prompts")
            one, other = (subjects.recorded(rows, ablation, journal) for rows in subjects.halves(of=i))
            again = smallest_set(one, other, 1, keep, RUNS_OF_HALF)
            halves.append(_of_half(again.kept, found.kept, verdict, n_layers))
        for kind, refused in subjects.usual.items():
            if kind is not ablation:
                on_step(0.85, f"keeping the same heads under {kind.value} ablation")
                ablations.append(_under(subjects, kind, refused, found.kept, groups, keep))
    return Stability(
        sizes=[
            OfSize(
                size=size, ratio=of.ratio.value.mean, agreement=of.agreement.value.mean,
                kl_fidelity=of.kl_fidelity.value.mean,
            )
            for size, of in zip(sizes, of_size, strict=True)
        ],
        halves=halves,
        ablations=ablations,
    )  # fmt: skip


def _spread(sizes: list[int]) -> list[int]:
    """At most twelve of some sizes, evenly by logarithm."""
    if len(sizes) <= SIZES:
        return sizes
    at = np.geomspace(max(1, sizes[0]), sizes[-1], SIZES)
    return sorted({min(sizes, key=lambda size: abs(np.log(max(size, 0.5) / x))) for x in at})


def _of_half(kept: np.ndarray | None, circuit: np.ndarray, verdict: Judge, n_layers: int) -> OfHalf:
    if kept is None:
        return OfHalf(heads=[], overlap=None, kept=None)
    overlap = float((kept & circuit).sum() / (kept | circuit).sum())
    return OfHalf(heads=names(kept, n_layers), overlap=overlap, kept=verdict(kept[None])[0])


def _under(
    subjects: Subjects, kind: Ablation, refused: str, circuit: np.ndarray, groups: np.ndarray, keep: float
) -> UnderAblation:
    if refused:
        return UnderAblation(ablation=kind.value, refused=safe_text(refused))
    (kept,) = Judge(subjects.on(subjects.judged, kind), groups, keep)(circuit[None])
    return UnderAblation(ablation=kind.value, kept=kept)
