"""How well attribution, which is cheap, orders the heads as their measured damage does."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from mechrl.cache.reader import Cache
from mechrl.errors import UsageError


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of the heads' mean attribution with their mean damage.

    None where there is none to be had: a layer of one head, or one whose heads are all alike.

    :param heads: over all heads.
    :param layers: over the heads of each layer.
    """

    heads: float | None
    layers: list[float | None]


def agreement(cache: Cache, task: str | None) -> dict[str, Agreement]:
    """The agreement of the `one-step` and of the `integrated` attribution with damage, over all prompts of a task.

    :param task: None for control damage on the control spans.
    :raises UsageError: the cache has no such task, or holds no attribution.
    """
    damage = cache.control_damage if task is None else cache.damage(task)
    found = {}
    for name, integrated in (("one-step", False), ("integrated", True)):
        estimated = cache.control_attribution(integrated) if task is None else cache.attribution(task, integrated)
        if estimated is None:
            raise UsageError(f"{cache.path} holds no attribution: it was built before there was any; build it again")
        means = estimated.mean(0), damage.mean(0)
        by_layer = zip(*(mean.reshape(cache.n_layers, cache.n_heads) for mean in means), strict=True)
        found[name] = Agreement(_correlation(*means), [_correlation(*pair) for pair in by_layer])
    return found


def _correlation(estimated: np.ndarray, damage: np.ndarray) -> float | None:
    if np.ptp(estimated) == 0 or np.ptp(damage) == 0:
        return None
    return float(spearmanr(estimated, damage).statistic)
