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
from mechrl.envs.kernel import SCORE_SCALE
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


def policy_method(
    policy: "PlanningPolicy", k: int = 1, observe: Callable[[Episodes], np.ndarray] | None = None
) -> Method:
    """The `k` most probable heads of a policy that are left.

    :param observe: what the policy sees instead of the observation, float32 of the same shape.
    """

    @torch.inference_mode()
    def choose(episodes: Episodes) -> np.ndarray:
        policy.set_training_mode(False)
        seen = torch.from_numpy(observe(episodes) if observe else episodes.observation)
        log_probs, _ = policy.log_probs_and_values(seen, torch.from_numpy(episodes.untried))
        left = int(episodes.untried.sum(1).min())
        return log_probs.topk(min(k, left), dim=1).indices.numpy()

    return choose


def shuffled_scores(seed: int) -> Callable[[Episodes], np.ndarray]:
    """For `policy_method`: an episode's scores shuffled over all heads; a tried head shows the score of another."""
    rng = np.random.default_rng(seed)
    order = np.zeros((0, 0), np.int64)

    def observe(episodes: Episodes) -> np.ndarray:
        nonlocal order
        n, table, state = episodes.table.n_sites, episodes.table, episodes.state
        if not state.moves.any():
            order = rng.permuted(np.tile(np.arange(n), (episodes.n, 1)), axis=1)
        seen = episodes.observation.copy()
        first = len(episodes.signals) + n
        scores = np.take_along_axis(table.scores(state.row, state.control), order, 1)
        seen[:, first : first + n] = np.where(episodes.untried, 0, scores / np.float32(SCORE_SCALE))
        return seen

    return observe


def hidden_hints(episodes: Episodes) -> np.ndarray:
    """For `policy_method`: the observation with every hint at its mean, which is 0."""
    seen = episodes.observation.copy()
    seen[:, len(episodes.signals) + 2 * episodes.table.n_sites :] = 0
    return seen
