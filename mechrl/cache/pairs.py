"""All pairs of heads, ablated together: damage that single heads hide, because one stands in for the other."""

from dataclasses import dataclass

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.errors import UsageError
from mechrl.intervals import Estimate, bootstrap_means, interval
from mechrl.score import best_first
from mechrl.tasks import TRAIN


@dataclass(frozen=True)
class Pair:
    """Two heads on a task: means over the evaluation prompts in nats, each with its 95 % interval.

    :param joint: damage of both ablated together; `summed`: what each costs alone, added.
    :param interaction: `joint` − `summed`; above zero they cost more together, as heads that stand in for another do.
    """

    heads: list[str]
    joint: Estimate
    summed: Estimate
    interaction: Estimate


def top_pairs(cache: Cache, task: str, n: int = 10) -> list[Pair]:
    """The `n` pairs whose joint damage is furthest from the sum on the training prompts; shown is the evaluation.

    :raises UsageError: the cache has no such task, or no pairs.
    """
    found = cache.pairs(task)
    if found is None:
        raise UsageError(f"{cache.path} holds no pairs; build a cache with sets of pairs")
    sites, joint = found
    damage, group, train = cache.damage(task), cache.prompts(task).group, cache.in_split(task, TRAIN)
    interaction = joint[train].mean(0) - damage[train].mean(0)[sites].sum(1)
    joint, damage, group = joint[~train], damage[~train], group[~train]
    order = best_first(np.abs(interaction))[:n]
    columns = {"joint": joint[:, order], "summed": damage[:, sites[order]].sum(2)}
    columns["interaction"] = columns["joint"] - columns["summed"]
    ends = {
        name: np.stack([values.mean(0), *interval(bootstrap_means(values, group))], axis=1).tolist()
        for name, values in columns.items()
    }
    return [
        Pair([cache.head(int(site)) for site in sites[which]], **{name: Estimate(*of[i]) for name, of in ends.items()})
        for i, which in enumerate(order)
    ]
