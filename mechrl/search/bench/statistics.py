"""Error bars and the test of docs/protocol.md: bootstrap over groups, hierarchical bootstrap, sign flips, Holm."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from mechrl.cache.reader import Cache
from mechrl.intervals import LEVEL
from mechrl.score import control_of_batch, score

RESAMPLES = 1000
Cells = Mapping[str, Mapping[str, Mapping[str, Sequence[tuple[int, np.ndarray]]]]]
"""family → task → cache → (sign, values float [seed, resample, …]) of the methods whose logs are added up."""


def resampled_truth(
    cache: Cache, task: str, split: int, control_weight: float = 1.0, n: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """True scores float32 [1 + n, episode, site] and weights of the episodes [1 + n, episode]; row 0 as they are.

    A resample draws prompt groups and control spans with replacement, the same in every row for all methods, and
    episodes. The true scores of an episode are means over the prompts and spans of the split that it did not use.
    """
    rng = np.random.default_rng(seed)
    damage = cache.damage(task)[cache.in_split(task, split)]
    groups = cache.prompts(task).group[cache.in_split(task, split)]
    spans = cache.control_damage[cache.in_split(None, split)]
    size = cache.batch_size
    task_means = _means_of_others(damage, _weights(rng, groups, n), size)
    control_means = _means_of_others(spans, _weights(rng, np.arange(len(spans)), n), size)
    episodes = len(damage) // size
    paired = control_of_batch(episodes, len(spans) // size)
    weights = np.vstack([np.ones(episodes), rng.multinomial(episodes, np.full(episodes, 1 / episodes), n)])
    return score(task_means, control_means[:, paired], control_weight), weights


def _weights(rng: np.random.Generator, groups: np.ndarray, n: int) -> np.ndarray:
    """How often each row is drawn when groups are, float32 [1 + n, row]; row 0 once each."""
    names, group = np.unique(groups, return_inverse=True)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), n)
    return np.asarray(np.vstack([np.ones(len(group)), draws[:, group]]), np.float32)


def _means_of_others(rows: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """Weighted means over the rows outside each batch, float32 [resample, batch, site]."""
    batched = weights.reshape(len(weights), -1, size)
    sums = np.einsum("rbp,bps->rbs", batched, rows.reshape(-1, size, rows.shape[1]), optimize=True)
    counts = batched.sum(2)[:, :, None]
    return np.asarray((sums.sum(1, keepdims=True) - sums) / np.maximum(counts.sum(1, keepdims=True) - counts, 1))


def family_means(cells: Cells) -> dict[str, Any]:
    """Mean over the tasks of each family of the mean over caches, of values as they are (resample 0)."""

    def mean(values: list[Any]) -> Any:
        return np.mean(values, axis=0)

    return {
        family: mean([mean([_total(of_cache)[0] for of_cache in of_task.values()]) for of_task in tasks.values()])
        for family, tasks in cells.items()
    }


def _total(parts: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    return np.asarray(np.sum([sign * values.mean(0) for sign, values in parts], axis=0))


def hierarchical(cells: Cells, seed: int = 0) -> tuple[Any, Any, Any]:
    """The mean over families and the ends of its 95 % interval: families, tasks, caches, seeds and groups resampled.

    :returns: numbers, or arrays where the values have further dimensions.
    """
    rng = np.random.default_rng(seed)

    def drawn(of: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
        items = list(of.values()) if isinstance(of, Mapping) else list(of)
        return [items[i] for i in rng.integers(len(items), size=len(items))]

    def cell(parts: Sequence[tuple[int, np.ndarray]], r: int) -> Any:
        return sum(sign * values[rng.integers(len(values), size=len(values)), r].mean(0) for sign, values in parts)

    def mean(values: list[Any]) -> Any:
        return sum(values) / len(values)

    n = min(v.shape[1] for tasks in cells.values() for c in tasks.values() for parts in c.values() for _, v in parts)
    means = [
        mean([mean([mean([cell(c, r) for c in drawn(task)]) for task in drawn(f)]) for f in drawn(cells)])
        for r in range(1, n)
    ]
    low, high = np.percentile(means, LEVEL, axis=0)
    return mean(list(family_means(cells).values())), low, high


def sign_flips(family_means: Sequence[float]) -> float:
    """One-sided p that a mean is below zero, exact: over all 2^n choices of signs."""
    if len(family_means) < 2:
        return 1.0
    test = stats.permutation_test(
        (np.asarray(family_means),), np.mean, permutation_type="samples", alternative="less", n_resamples=np.inf
    )
    return float(test.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for being several (Holm 1979, Scandinavian Journal of Statistics 6)."""
    adjusted, largest = {}, 0.0
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - i) * p))
        adjusted[name] = largest
    return adjusted
