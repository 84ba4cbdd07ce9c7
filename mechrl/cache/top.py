"""The heads that matter most on a task, with intervals."""

from dataclasses import dataclass

import numpy as np

from mechrl.cache.intervals import bootstrap_means, interval
from mechrl.cache.reader import Cache

Estimate = tuple[float, float, float]  # mean, and the lower and upper end of its 95 % interval


@dataclass(frozen=True)
class TopHead:
    """A head's damage, control damage and score over all prompts, each with its interval."""

    head: str
    damage: Estimate
    control: Estimate
    score: Estimate


def top_heads(cache: Cache, task: str, by: str = "score", n: int = 10, control_weight: float = 1.0) -> list[TopHead]:
    """The `n` heads with the largest score, damage, or absolute score (`by`: score, damage or abs).

    :raises UsageError: the cache has no such task.
    """
    damage, control = cache.damage(task), cache.control_damage
    draws = (
        bootstrap_means(damage, cache.prompts(task).group),
        bootstrap_means(control, np.arange(len(control)), seed=1),
    )
    means = damage.mean(0), control.mean(0)
    score = means[0] - control_weight * means[1]
    columns = [
        (mean, *interval(drawn))
        for mean, drawn in (
            (means[0], draws[0]),
            (means[1], draws[1]),
            (score, draws[0] - control_weight * draws[1]),
        )
    ]
    key = {"score": score, "damage": means[0], "abs": np.abs(score)}[by]

    def at(site: int) -> list[Estimate]:
        return [(float(mean[site]), float(low[site]), float(high[site])) for mean, low, high in columns]

    return [TopHead(cache.head(site), *at(site)) for site in np.argsort(-key, kind="stable")[:n].tolist()]
