"""Fixed orders and their relatives: methods that rank all heads before they query one."""

from collections.abc import Callable

import numpy as np

from mechrl.score import best_first
from mechrl.search.problem import Problem, SearchEpisode, Start, episode_scores, z_scored
from mechrl.tasks import TRAIN


def in_order(order: np.ndarray) -> Start:
    """The search that goes through the sites of a list, whatever the scores say."""
    return lambda episode: order


def random_order(problem: Problem | None) -> Start:
    """Every head that is left is equally likely."""
    return lambda episode: episode.rng.permutation(episode.n_sites)


def exhaustive(problem: Problem) -> Start:
    """Every head, layer after layer."""
    return in_order(np.arange(problem.cache.n_sites))


def static_order(problem: Problem) -> Start:
    """Heads by mean score over the training tasks."""
    return in_order(best_first(problem.static_mean))


def task_order(problem: Problem) -> Start:
    """Heads by the held-out task's own training episodes, which no search can know: the most that a list can do."""
    return in_order(best_first(episode_scores(problem.cache, problem.task, TRAIN, problem.control_weight).mean(0)))


def portfolio(problem: Problem) -> Start:
    """A greedy cover: each head is the one that raises the best score found so far most, over all training tasks.

    Scores count as shares of the task's best. When no head raises anything any more, the heads that are left are
    covered anew.
    """
    share = problem.training_means / np.maximum(problem.training_means.max(1, keepdims=True), 1e-6)
    order: list[int] = []
    best = np.zeros(len(share))  # share of each task's best score that is reached so far
    while len(order) < share.shape[1]:
        gain = np.maximum(share - best[:, None], 0).sum(0)
        gain[order] = -np.inf
        if gain.max() <= 0:
            if not best.any():
                order += [site for site in best_first(problem.static_mean).tolist() if site not in order]
                break
            best[:] = 0
            continue
        order.append(int(gain.argmax()))
        best = np.maximum(best, share[:, order[-1]])
    return in_order(np.array(order))


def by_attribution(integrated: bool) -> Callable[[Problem], Start]:
    """Heads by attribution on the episode's own prompts."""
    return lambda problem: lambda episode: best_first(episode.attribution(integrated))


def attribution_and_static(problem: Problem) -> Start:
    """Heads by the sum of z-scored attribution and z-scored mean over the training tasks."""
    return lambda episode: best_first(z_scored(episode.attribution()) + z_scored(problem.static_mean))


def alternating(problem: Problem) -> Start:
    """In turn the next head by attribution and the next by the static order, without repeats."""

    def search(episode: SearchEpisode) -> list[int]:
        pairs = np.stack([best_first(episode.attribution()), best_first(problem.static_mean)], 1)
        return list(dict.fromkeys(pairs.ravel().tolist()))

    return search
