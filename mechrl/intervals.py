"""95 % intervals by bootstrap over groups: prompts that share their slot fillers stay together."""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = (2.5, 97.5)
LEAST_GROUPS = 8  # with fewer, resampling groups says little, and with one nothing


class Estimate(NamedTuple):
    """A mean, and the lower and upper end of its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap_means(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of resampled groups, [resample, site].

    :param values: [row, site].
    :param groups: int [row]; rows of one group are drawn together.
    """
    _, group = np.unique(groups, return_inverse=True)
    n = int(group.max()) + 1
    sums = np.zeros((n, values.shape[1]))
    np.add.at(sums, group, values)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return (draws @ sums) / (draws @ np.bincount(group))[:, None]


def interval(resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the 95 % percentile interval of each site, from [resample, site]."""
    low, high = np.percentile(resampled, LEVEL, axis=0)
    return low, high
