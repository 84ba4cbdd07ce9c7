"""What a method of search may know, and what it must look up and pay for."""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.errors import UsageError
from mechrl.score import control_of_batch, score
from mechrl.tasks import TASKS, TRAIN

SCORES, ATTRIBUTION, REFERENCE = "scores", "attribution", "reference"
TRACKS = (SCORES, ATTRIBUTION)  # references stand beside both
LEAST_ACCURACY = 0.9  # of a task that the model does, on training prompts
ONE_STEP_RUNS, INTEGRATED_RUNS = 2.0, 15.0  # a backward pass; five times forward and backward


@dataclass(frozen=True)
class Few:
    """A query of one head on the first `prompts` prompts of the episode's batch."""

    site: int
    prompts: int


Query = int | Sequence[int] | np.ndarray | Few
Search = Generator[Query, Any, None]
"""A search of one episode: queries, one after the other. A generator is sent the scores seen, float32; what needs none
of them may be any iterable of queries.

A site: that head is picked; its score is sent. Several sites: all are queried and paid for, the best is picked,
their scores are sent. `Few`: a head on some prompts only; asking again for more of them costs the difference. A search
may end early; it is stopped when the episode ends.
"""


@dataclass
class SearchEpisode:
    """One episode as a search sees it: not its scores, which it must ask for.

    :param n_sites: how many heads there are; `picks`: how many picks it may make.
    :param rng: where randomness comes from.
    """

    n_layers: int
    n_heads: int
    picks: int
    rng: np.random.Generator
    _attribution: Callable[[bool], np.ndarray] | None = None
    _features: Callable[[], dict[str, np.ndarray]] | None = None
    charged: dict[str, float] = field(default_factory=dict)

    @property
    def n_sites(self) -> int:
        return self.n_layers * self.n_heads

    @property
    def layers(self) -> np.ndarray:
        """The layer of each head, int [site]."""
        return np.arange(self.n_sites) // self.n_heads

    def attribution(self, integrated: bool = False) -> np.ndarray:
        """Estimated score of each head on this episode's prompts, float32 [site]; charged once, 2 or 15 runs.

        :raises UsageError: the method is in the track `scores`.
        """
        if self._attribution is None:
            raise UsageError(f"attribution belongs to the track {ATTRIBUTION!r}; this method says it is in another")
        self.charged["integrated" if integrated else "one-step"] = INTEGRATED_RUNS if integrated else ONE_STEP_RUNS
        return self._attribution(integrated)

    def features(self) -> dict[str, np.ndarray]:
        """What the clean run says of each head on this episode's prompts, float32 [site] each; free with that run.

        :raises UsageError: the method is in the track `scores`.
        """
        if self._features is None:
            raise UsageError(f"head features belong to the track {ATTRIBUTION!r}; this method says it is in another")
        self.charged.setdefault("features", 0.0)  # nothing beyond the clean run, which they need on all prompts
        return self._features()


Start = Callable[[SearchEpisode], Iterable[Query]]  # begins the search of an episode


@dataclass(frozen=True)
class Problem:
    """What is known before a held-out task is searched: other tasks' training episodes.

    :param cache: the cache.
    :param task: the held-out task.
    :param train: the training tasks.
    :param track: `scores`, or `attribution` where methods may use that too.
    :param control_weight: of the score.
    :param seed: of training and of whatever else is random.
    :param fitted: what `once` has made, and the seconds that it took; the tasks of one held-out family share it.
    :param seconds: what this problem has used of that, whoever made it.
    """

    cache: Cache
    task: str
    train: tuple[str, ...]
    track: str = SCORES
    control_weight: float = 1.0
    seed: int = 0
    fitted: dict[Any, tuple[Any, float]] = field(default_factory=dict, compare=False)
    seconds: list[float] = field(default_factory=list, compare=False)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for all tasks of the held-out family; it must not depend on the task."""
        if key not in self.fitted:
            start = time.perf_counter()
            self.fitted[key] = make(), time.perf_counter() - start
        made, seconds = self.fitted[key]
        self.seconds.append(seconds)
        return made

    def training_scores(self, task: str) -> np.ndarray:
        """Scores of a training task's training episodes, float32 [episode, site].

        :raises UsageError: it is not a training task.
        """
        if task not in self.train:
            raise UsageError(f"{task!r} is held out: a method must query its scores, it does not know them")
        return episode_scores(self.cache, task, TRAIN, self.control_weight)

    @cached_property
    def training_means(self) -> np.ndarray:
        """Mean training scores, float32 [training task, site]."""
        return np.stack([self.training_scores(task).mean(0) for task in self.train])

    @cached_property
    def static_mean(self) -> np.ndarray:
        """The mean over training tasks, float32 [site]: what the static order sorts by."""
        mean: np.ndarray = self.training_means.mean(0)
        return mean

    def training_attribution(self, task: str, integrated: bool = False) -> np.ndarray:
        """Attribution of a training task's training episodes, float32 [episode, site]: `SearchEpisode.attribution`."""
        if task not in self.train:
            raise UsageError(f"{task!r} is held out: a method asks its `SearchEpisode` for attribution there")
        return episode_attribution(self.cache, task, TRAIN, integrated, self.control_weight)

    def training_features(self, task: str) -> dict[str, np.ndarray]:
        """Head features of a training task's training episodes, float32 [episode, site] each."""
        if task not in self.train:
            raise UsageError(f"{task!r} is held out: a method asks its `SearchEpisode` for features there")
        return episode_features(self.cache, task, TRAIN)


def episode_scores(cache: Cache, task: str, split: int, control_weight: float = 1.0) -> np.ndarray:
    """Scores of all heads on the episodes of a split, float32 [episode, site]."""
    damage, control = cache.batch_damage(task, split), cache.batch_control(split)
    return score(damage, control[control_of_batch(len(damage), len(control))], control_weight)


def episode_attribution(
    cache: Cache, task: str, split: int, integrated: bool = False, control_weight: float = 1.0, prompts: int = 0
) -> np.ndarray:
    """Estimated scores on the episodes of a split, float32 [episode, site]: attribution, combined as the score is.

    The control part is the mean over the training spans: like control damage it is taken once per model.

    :param prompts: use only so many of each batch; 0 for all.
    :raises UsageError: the cache has no attribution.
    """
    task_rows, control_rows = cache.attribution(task, integrated), cache.control_attribution(integrated)
    if task_rows is None or control_rows is None:
        raise UsageError(f"{cache.path} holds no attribution: build it again, or keep to the track {SCORES!r}")
    batches = _by_batch(cache, task_rows[cache.in_split(task, split)])[:, : prompts or None]
    return score(batches.mean(1), control_rows[cache.in_split(None, TRAIN)].mean(0), control_weight)


def episode_features(cache: Cache, task: str, split: int, prompts: int = 0) -> dict[str, np.ndarray]:
    """Head features on the episodes of a split, float32 [episode, site] each."""
    rows = cache.in_split(task, split)
    return {
        name: _by_batch(cache, values[rows])[:, : prompts or None].mean(1)
        for name, values in cache.head_features(task).items()
    }


def _by_batch(cache: Cache, rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, cache.batch_size, cache.n_sites)


def z_scored(values: np.ndarray) -> np.ndarray:
    """Minus the mean, divided by the standard deviation, over heads."""
    scored: np.ndarray = (values - values.mean(-1, keepdims=True)) / np.maximum(values.std(-1, keepdims=True), 1e-12)
    return scored


def family_of(task: str) -> str:
    """The family of a built-in task; any other task is a family of its own."""
    return TASKS[task].family if task in TASKS else task


def families(cache: Cache) -> dict[str, list[str]]:
    """The tasks of a cache that its model does, by family: at least 90 % accuracy on the training prompts."""
    by_family: dict[str, list[str]] = {}
    for task in cache.tasks:
        if cache.imported or float((cache.clean(task)[cache.in_split(task, TRAIN)] > 0).mean()) >= LEAST_ACCURACY:
            by_family.setdefault(family_of(task), []).append(task)
    return by_family
