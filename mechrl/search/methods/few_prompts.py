"""Methods that do not spend a whole batch on every head."""

from collections.abc import Callable

import numpy as np

from mechrl.score import best_first
from mechrl.search.problem import Few, Problem, Search, SearchEpisode, Start


def sweep_few(prompts: int) -> Callable[[Problem], Start]:
    """Every head on a few prompts, layer after layer; then the whole batch, the most promising head first."""

    def prepare(problem: Problem) -> Start:
        few = min(prompts, problem.cache.batch_size)

        def search(episode: SearchEpisode) -> Search:
            estimates = np.zeros(episode.n_sites, np.float32)
            for site in range(episode.n_sites):
                estimates[site] = yield Few(site, few)
            for site in best_first(estimates).tolist():
                yield Few(site, problem.cache.batch_size)

        return search

    return prepare


def halving(problem: Problem) -> Start:
    """Sequential halving over (head, prompts): all heads on one prompt, the better half on two, and so on.

    Karnin, Koren and Somekh 2013, with the prompts of a head growing instead of drawn anew.
    """

    def search(episode: SearchEpisode) -> Search:
        left, prompts = np.arange(episode.n_sites), 1
        while True:
            few = min(prompts, problem.cache.batch_size)
            estimates = np.zeros(len(left), np.float32)
            for i, site in enumerate(left.tolist()):
                estimates[i] = yield Few(site, few)
            if few == problem.cache.batch_size:
                return
            left, prompts = left[best_first(estimates)][: max(1, (len(left) + 1) // 2)], 2 * prompts

    return search
