"""A Gaussian prior over the heads' scores, fitted on training tasks, and the rules that search with it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr
from sklearn.covariance import LedoitWolf

from mechrl.search.problem import Problem, Search, SearchEpisode, Start

JITTER = 1e-6  # nats², for numbers that are zero but for rounding


@dataclass(frozen=True)
class Gaussian:
    """Scores of all heads, jointly normal, in nats.

    :param mean: [site]; :param covariance: [site, site].
    :param prior: the mean, and a root of the covariance, before anything was seen; for `draw`.
    :param seen: (gain [site], site, score) of every score that was taken into account.
    """

    mean: np.ndarray
    covariance: np.ndarray
    prior: tuple[np.ndarray, np.ndarray]
    seen: tuple[tuple[np.ndarray, int, float], ...] = ()

    @classmethod
    def of(cls, mean: np.ndarray, covariance: np.ndarray) -> "Gaussian":
        """A prior of these moments."""
        root = np.linalg.cholesky(covariance + JITTER * np.eye(len(mean)))
        return cls(mean, covariance, (mean, root))

    @classmethod
    def fitted(cls, problem: Problem) -> "Gaussian":
        """Moments over the training tasks' training episodes, as many of each task; covariance shrunk.

        Ledoit and Wolf 2004, Journal of Multivariate Analysis 88.
        """
        scores = [problem.training_scores(task).astype(np.float64) for task in problem.train]
        n = min(map(len, scores))
        rows = np.concatenate([task_scores[:n] for task_scores in scores])
        return cls.of(rows.mean(0), LedoitWolf().fit(rows).covariance_)

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of each head, [site]."""
        return np.sqrt(np.maximum(np.diag(self.covariance), JITTER))

    def given(self, site: int, score: float) -> "Gaussian":
        """The distribution once the score of a head is known."""
        gain = self.covariance[:, site] / (self.covariance[site, site] + JITTER)
        return Gaussian(
            self.mean + gain * (score - self.mean[site]),
            self.covariance - np.outer(gain, self.covariance[site]),
            self.prior,
            (*self.seen, (gain, site, score)),
        )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """All scores drawn at once, [site]: a draw of the prior, corrected by what was seen (Matheron's rule)."""
        mean, root = self.prior
        drawn = mean + root @ rng.standard_normal(len(mean))
        for gain, site, score in self.seen:
            drawn = drawn + gain * (score - drawn[site])
        return drawn


Rule = Callable[[Gaussian, float, np.random.Generator], np.ndarray]  # of the best score so far; a value [site]


def upper_bound(now: Gaussian, best: float, rng: np.random.Generator) -> np.ndarray:
    """Mean plus one standard deviation."""
    bound: np.ndarray = now.mean + now.deviation
    return bound


def thompson(now: Gaussian, best: float, rng: np.random.Generator) -> np.ndarray:
    """A draw of all scores."""
    return now.draw(rng)


def expected_improvement(now: Gaussian, best: float, rng: np.random.Generator) -> np.ndarray:
    """How far a head is expected to surpass the best score seen (Jones et al. 1998, J. of Global Optimization 13)."""
    z = (now.mean - best) / now.deviation
    improvement: np.ndarray = now.deviation * (z * ndtr(z) + np.exp(-z * z / 2) / np.sqrt(2 * np.pi))
    return improvement


def with_prior(rule: Rule) -> Callable[[Problem], Start]:
    """Query the head for which a rule gives most, again and again."""

    def prepare(problem: Problem) -> Start:
        prior = problem.once("Gaussian", lambda: Gaussian.fitted(problem))

        def search(episode: SearchEpisode) -> Search:
            now, best = prior, 0.0
            untried = np.ones(episode.n_sites, bool)
            while untried.any():
                site = int(np.where(untried, rule(now, best, episode.rng), -np.inf).argmax())
                score = float((yield site))
                untried[site] = False
                now, best = now.given(site, score), max(best, score)

        return search

    return prepare
