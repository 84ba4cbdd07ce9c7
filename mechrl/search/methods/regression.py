"""Regression of scores on head features, fitted on training tasks."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mechrl.score import best_first
from mechrl.search.problem import Problem, SearchEpisode, Start
from mechrl.search.structure import family_folds


def ridge(seed: int) -> Any:
    """Ridge regression on standardized features, its penalty by leave-one-out."""
    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 4, 13)))


def boosted(seed: int) -> Any:
    """Boosted trees, few and shallow."""
    return HistGradientBoostingRegressor(max_iter=100, max_depth=3, learning_rate=0.1, random_state=seed)


def by_regression(make: Callable[[int], Any]) -> Callable[[Problem], Start]:
    """Heads by predicted score, from attribution, the clean run, layer, and the mean over tasks of other families.

    Scores and attributions are divided by the largest attribution of the episode, so that tasks with large damages
    do not decide alone.
    """

    def prepare(problem: Problem) -> Start:
        layers = np.arange(problem.cache.n_sites) // problem.cache.n_heads
        model = problem.once(make, lambda: _fitted(problem, make(problem.seed), layers))

        def search(episode: SearchEpisode) -> np.ndarray:
            features = _features(episode.attribution(), episode.features(), layers, problem.static_mean)
            return best_first(model.predict(features))

        return search

    return prepare


def _fitted(problem: Problem, model: Any, layers: np.ndarray) -> Any:
    rows, targets = [], []
    others_of = family_folds(problem.train)
    for task in problem.train:
        others = problem.training_means[[problem.train.index(other) for other in others_of[task]]]
        attribution, features = problem.training_attribution(task), problem.training_features(task)
        for episode, scores in enumerate(problem.training_scores(task)):
            episode_features = {name: values[episode] for name, values in features.items()}
            rows.append(_features(attribution[episode], episode_features, layers, others.mean(0)))
            targets.append(scores / _scale(attribution[episode]))
    return model.fit(np.concatenate(rows), np.concatenate(targets))


def _scale(attribution: np.ndarray) -> float:
    return max(float(np.abs(attribution).max()), 1e-6)


def _features(
    attribution: np.ndarray, head_features: Mapping[str, np.ndarray], layers: np.ndarray, static_mean: np.ndarray
) -> np.ndarray:
    """float64 [site, feature]."""
    columns = [
        attribution / _scale(attribution),
        layers,
        static_mean,
        *(head_features[name] for name in sorted(head_features)),
    ]
    return np.stack(columns, 1).astype(np.float64)
