"""Heads ablated together: growing sets of picks, and the curves of necessity and sufficiency of a ranking."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mechrl.verification.replication import estimate
from mechrl.verification.result import Curves, Joint, Ranking

EVERY_COUNT = 64  # heads, up to which every k is measured
POINTS = 20  # else
LEAST_DIFFERENCE = 0.1  # of the full model's measure, between the full and the empty model

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
    """The numbers of heads that are measured: each up to 64 heads, else 20, evenly on a logarithmic scale, and 0."""
    if n_sites <= EVERY_COUNT:
        return list(range(n_sites + 1))
    for points in range(POINTS, n_sites):  # small ones fall together
        if len(found := {round(n_sites ** (i / (points - 1))) for i in range(points)}) >= POINTS:
            break
    return [0, *sorted(found)]


def faithfulness(measured: np.ndarray, full: float, empty: float) -> np.ndarray:
    """(m − m(empty)) ÷ (m(full) − m(empty)), of arXiv 2504.13151."""
    return (measured - empty) / (full - empty)


def areas(ks: Sequence[int], faithful: np.ndarray) -> tuple[float, float]:
    """CPR and CMD: the area under `faithful`, and that between it and 1, over the share of heads (trapezoids).

    :param ks: numbers of heads, 0 first and all of them last.
    :param faithful: faithfulness at each.
    """
    shares = np.asarray(ks) / ks[-1]
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
    measured = {}
    for (name, order), (kept, ablated) in zip(rankings.items(), means, strict=True):
        cpr, cmd = areas(ks, faithfulness(kept, full, empty))
        necessity, _ = areas(ks, faithfulness(ablated, full, empty))
        measured[name] = Ranking(
            kept=kept.tolist(), ablated=ablated.tolist(), cpr=cpr, cmd=cmd, necessity=necessity,
            heads=[heads[site] for site in order],
        )  # fmt: skip
    return Curves(counts=ks, full=full, empty=empty, refused=None, rankings=measured)
