"""Heads ablated together: growing sets of picks, and the curves of necessity and sufficiency of a ranking."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mechrl.circuits.smallest import LEAST_DIFFERENCE
from mechrl.verification.replication import estimate
from mechrl.verification.result import Curves, Joint, Ranking

EVERY_COUNT = 64  # heads, up to which every k is measured
POINTS = 20  # else
MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares at which MIB evaluates a ranking, of its edges or, as here, of its scored nodes; 0 is not among them.

From `evaluate_area_under_curve` (MIB_circuit_track/evaluation.py in github.com/hannamw/MIB-circuit-track, the code of
arXiv 2504.13151). Its empty graph has no MLPs either."""

Measure = Callable[[np.ndarray], np.ndarray]
"""Gives the logit difference of each prompt with the heads of each set ablated, [prompt, set], of bool [set, site]."""


def joint_damage(measure: Measure, heads: Sequence[str], picks: Sequence[int], groups: np.ndarray) -> list[Joint]:
    """The first one, two, … picks ablated together.

    :param heads: the names of all sites.
    :param picks: sites.
    :param groups: int [prompt].
    """
    sets = np.zeros((1 + 2 * len(picks), len(heads)), bool)  # nothing, each alone, the first 1, 2, …
    for i, site in enumerate(picks):
        sets[1 + i, site] = True
        sets[1 + len(picks) + i, picks[: i + 1]] = True
    measured = measure(sets)
    damage = measured[:, :1] - measured[:, 1:]
    alone, together = damage[:, : len(picks)], damage[:, len(picks) :]
    summed = alone.cumsum(1)
    return [
        Joint(
            heads=[heads[site] for site in picks[: i + 1]],
            joint=estimate(together[:, i], groups),
            summed=estimate(summed[:, i], groups),
            interaction=estimate(together[:, i] - summed[:, i], groups),
        )
        for i in range(len(picks))
    ]


def counts(n_sites: int) -> list[int]:
    """The numbers of heads that are measured: each up to 64 heads, else 0, 20 evenly by logarithm, and those of MIB."""
    if n_sites <= EVERY_COUNT:
        return list(range(n_sites + 1))
    for points in range(POINTS, n_sites):  # small ones fall together
        if len(found := {round(n_sites ** (i / (points - 1))) for i in range(points)}) >= POINTS:
            break
    return sorted({0, *found, *mib_counts(n_sites)})


def mib_counts(n_sites: int) -> list[int]:
    """The numbers of heads at `MIB_SIZES`, rounded down as MIB does: several are 0 in a small model.

    Its areas go by the sizes themselves, not by the shares that are left after rounding.
    """
    return [int(size * n_sites) for size in MIB_SIZES]


def faithfulness(measured: np.ndarray, full: float, empty: float) -> np.ndarray:
    """(m − m(empty)) ÷ (m(full) − m(empty)), of arXiv 2504.13151."""
    return (measured - empty) / (full - empty)


def areas(shares: Sequence[float] | np.ndarray, faithful: np.ndarray) -> tuple[float, float]:
    """CPR and CMD: the area under `faithful`, and that between it and 1, over the share of heads (trapezoids).

    The rule is MIB's: the shares count as they are, not their logarithms, and `|1 − f|` is taken at the points alone.

    :param shares: of the heads, rising to 1.
    :param faithful: faithfulness at each.
    """
    return float(np.trapezoid(faithful, shares)), float(np.trapezoid(np.abs(1 - faithful), shares))


def measure_curves(measure: Measure, heads: Sequence[str], rankings: Mapping[str, Sequence[int]]) -> Curves:
    """Keep and ablate the first k heads of each ranking, for each k.

    Refused where the heads together make less than a tenth of the measure, or the model does not do the task.

    :param heads: the names of all sites.
    :param rankings: all sites, the most important first, by name.
    """
    n_sites = len(heads)
    ks = counts(n_sites)
    sets = [np.zeros(n_sites, bool), np.ones(n_sites, bool)]
    for order in rankings.values():
        place = np.empty(n_sites, int)
        place[list(order)] = np.arange(n_sites)
        sets += [place >= k for k in ks] + [place < k for k in ks]
    unique, index = np.unique(np.stack(sets), axis=0, return_inverse=True)
    full, empty = measure(np.stack(sets[:2])).mean(0).tolist()
    if not full > 0 or full - empty < LEAST_DIFFERENCE * full:
        why = f"without any head the logit difference is {empty:.2f}, with all {full:.2f}: nothing to divide"
        return Curves(counts=ks, full=full, empty=empty, refused=why, rankings={})
    means = measure(unique).mean(0)[index.ravel()][2:].reshape(len(rankings), 2, len(ks))
    measured, shares = {}, np.array(ks) / n_sites
    at_mib = np.searchsorted(ks, mib_counts(n_sites))
    for (name, order), (kept, ablated) in zip(rankings.items(), means, strict=True):
        faithful = faithfulness(kept, full, empty)
        cpr, cmd = areas(shares, faithful)
        mib_cpr, mib_cmd = areas(MIB_SIZES, faithful[at_mib])
        necessity, _ = areas(shares, faithfulness(ablated, full, empty))
        measured[name] = Ranking(
            kept=kept.tolist(), ablated=ablated.tolist(), cpr=cpr, cmd=cmd, mib_cpr=mib_cpr, mib_cmd=mib_cmd,
            necessity=necessity, heads=[heads[site] for site in order],
        )  # fmt: skip
    return Curves(counts=ks, full=full, empty=empty, refused=None, rankings=measured)
