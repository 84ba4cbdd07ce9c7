"""Methods of search: each chooses the next head of every episode, from what the episodes show.

A method is called once per pick with the episodes in progress and returns candidates, int64 [episode, k], best guess
first. With k = 1 the candidate is the pick; with more, all are looked at, each look is charged, and the best is picked.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mechrl.cache.reader import Cache
from mechrl.envs.episodes import Episodes
from mechrl.tasks import TRAIN

if TYPE_CHECKING:
    from mechrl.agents.ppo import PlanningPolicy

Method = Callable[[Episodes], np.ndarray]


def random_order(seed: int) -> Method:
    """Every head that is left is equally likely."""
    rng = np.random.default_rng(seed)

    def choose(episodes: Episodes) -> np.ndarray:
        return np.where(episodes.untried, rng.random(episodes.untried.shape), -1.0).argmax(1)[:, None]

    return choose


def fixed_order(order: Sequence[int] | np.ndarray) -> Method:
    """The heads of a list, one after the other, whatever the scores say."""
    sites = np.asarray(order, np.int64)

    def choose(episodes: Episodes) -> np.ndarray:
        return sites[episodes.state.moves][:, None]

    return choose


def static_order(cache: Cache, tasks: Sequence[str], control_weight: float = 1.0) -> np.ndarray:
    """The heads sorted by mean score over the training episodes of some tasks, int64 [site]."""
    scores = [cache.scores(task, TRAIN, control_weight) for task in tasks]
    return np.argsort(-np.mean(scores, axis=0), kind="stable")


def policy_method(policy: "PlanningPolicy", k: int = 1) -> Method:
    """The `k` most probable heads of a policy that are left."""

    @torch.inference_mode()
    def choose(episodes: Episodes) -> np.ndarray:
        policy.set_training_mode(False)
        untried = torch.from_numpy(episodes.untried)
        log_probs, _ = policy.log_probs_and_values(torch.from_numpy(episodes.observation), untried)
        left = int(episodes.untried.sum(1).min())
        return log_probs.topk(min(k, left), dim=1).indices.numpy()

    return choose
