"""What other tasks say about the heads of a model, before a task is searched and while its scores come in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.score import score
from mechrl.search.problem import family_of
from mechrl.tasks import TRAIN

LEAST_NOISE = 0.1  # standard deviation on the squashed scale that no head of an unseen task is known better than


@dataclass(frozen=True)
class HeadStructure:
    """Each head's scores on the training tasks, squashed: asinh(score / scale), so that no task and no head dominates.

    :param scale: in nats; the median over the tasks of their best mean score, divided by 3.
    :param layer: float32 [site], 0 for the first layer, 1 for the last.
    :param mean: float32 [site], over the tasks.
    :param spread: float32 [site], standard deviation over the tasks.
    :param best: float32 [site], the largest over the tasks.
    :param loadings: float32 [task, site], deviations from the mean ÷ √tasks: loadingsᵀ · loadings is the covariance of
        the heads over the tasks.
    :param noise: float32 [site], the variance that this covariance leaves out: over the batches of a task, half the
        variance over the tasks again, since an unseen task is no mixture of the known ones, and a floor.
    """

    scale: float
    layer: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    best: np.ndarray
    loadings: np.ndarray
    noise: np.ndarray


def head_structure(cache: Cache, tasks: Sequence[str], control_weight: float = 1.0) -> HeadStructure:
    """The structure of a cache's heads, from the training batches of some of its tasks.

    :raises UsageError: the cache has no such task.
    """
    control = cache.batch_control(TRAIN).mean(0)
    batches = [score(cache.batch_damage(task, TRAIN), control, control_weight) for task in tasks]
    scale = max(float(np.median([rows.mean(0).max() for rows in batches])) / 3, 1e-3)
    squashed = [np.arcsinh(rows / scale) for rows in batches]
    means = np.stack([rows.mean(0) for rows in squashed])
    mean = means.mean(0)
    noise = np.mean([rows.var(0) for rows in squashed], axis=0) + means.var(0) / 2 + LEAST_NOISE**2
    layer = np.repeat(np.linspace(0, 1, cache.n_layers), cache.n_heads)
    return HeadStructure(
        scale,
        *(x.astype(np.float32) for x in (layer, mean, means.std(0), means.max(0))),
        *(x.astype(np.float32) for x in ((means - mean) / np.sqrt(len(means)), noise)),
    )


def family_folds(tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """For each task the tasks of other families; all tasks where there are none. A task of a file is its own family."""
    family = {task: family_of(task) for task in tasks}
    return {task: tuple(t for t in tasks if family[t] != family[task]) or tuple(tasks) for task in tasks}


def blank_structure(n_sites: int, n_tasks: int) -> HeadStructure:
    """A structure that says nothing, to load another into, or to see what the structure is worth."""
    zeros, ones = np.zeros(n_sites, np.float32), np.ones(n_sites, np.float32)
    return HeadStructure(1.0, zeros, zeros, zeros, zeros, np.zeros((n_tasks, n_sites), np.float32), ones)
