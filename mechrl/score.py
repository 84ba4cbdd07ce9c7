"""What a score is, which control batch goes with which task batch, and how heads are ranked.

Every part of mechrl that needs one of the three takes it from here. The numba kernel computes the same scores, one at a
time, and is tested against `score`.
"""

from typing import TypeVar

import numpy as np

Numbers = TypeVar("Numbers", float, np.ndarray)


def score(damage: Numbers, control_damage: Numbers, control_weight: float = 1.0) -> Numbers:
    """The contrastive reward of arXiv 2605.26343 in nats: damage − control weight × control damage.

    :param damage: in nats, a number or an array such as [row, site].
    :param control_damage: in nats per token, of the same shape, or of one that broadcasts to it.
    :returns: of the type and precision of the damage.
    """
    return damage - float(control_weight) * control_damage


def control_of_batch(n_batches: int, n_control: int) -> np.ndarray:
    """The control batch that goes with each task batch, int64 [batch]: the i-th with the i-th, modulo their number."""
    return np.arange(n_batches) % n_control


def best_first(values: np.ndarray) -> np.ndarray:
    """The places of the values along the last axis, the largest first; of equal ones the first, int64 like `values`."""
    return np.argsort(-values, axis=-1, kind="stable")


def rank(values: np.ndarray) -> np.ndarray:
    """The place of each head by value, int64 [site], 1 being the largest; of equal ones the first is before."""
    ranks = np.empty(len(values), int)
    ranks[best_first(values)] = np.arange(1, len(values) + 1)
    return ranks
