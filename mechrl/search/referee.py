"""The referee of one searched episode: answers its queries and keeps the account of what they cost."""

from collections.abc import Generator
from typing import NamedTuple

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.errors import UsageError
from mechrl.score import control_of_batch, score
from mechrl.search.problem import Few, Search, SearchEpisode, Start

MOST_EVENTS = 64  # queries of few prompts, times the number of heads; what goes on longer is stopped


class Event(NamedTuple):
    """A pick, or a query on a few prompts.

    :param picked: the site; of several that were asked for, the best.
    :param seen: its score, or an estimate of it from a few prompts.
    :param runs: cost up to and with this event; `control_runs` with control charged for every query.
    :param queried: int [query], all sites that were asked for.
    :param answers: float32 [query], what was seen of them.
    """

    picked: int
    seen: float
    runs: float
    control_runs: float
    queried: np.ndarray
    answers: np.ndarray


class Referee:
    """Plays one episode of the `i`-th batch of a task's split; docs/protocol.md says what a query costs.

    :param scores: float32 [site], of all heads on that batch.
    :param prompts: how many prompts of the batch a query asks for; 0 for all.
    """

    def __init__(
        self, cache: Cache, task: str, split: int, i: int, scores: np.ndarray, control_weight: float, prompts: int
    ):
        self.cache, self.scores, self.prompts = cache, scores, prompts
        self.layer_cost = 1 - np.arange(cache.n_sites) // cache.n_heads / cache.n_layers
        self.prompts_of = np.zeros(cache.n_sites, np.int64)  # prompts that each head was queried on
        self._where = task, split, i, control_weight
        self._rows: np.ndarray | None = None

    def play(self, method: Start, episode: SearchEpisode, shuffled: bool) -> tuple[list[Event], bool]:
        """The events, and whether all of them were picks, seen on the whole batch.

        :param shuffled: tell the search the score of another head, by one permutation of the heads.
        :raises UsageError: a query of what is no head or of more prompts than there are, or no query at all.
        """
        permutation = episode.rng.permutation(len(self.scores)) if shuffled else None
        events: list[Event] = []
        whole, answer = True, None
        queries = method(episode)
        search: Search = queries if isinstance(queries, Generator) else (query for query in queries)
        while len(events) < (episode.picks if whole else MOST_EVENTS * len(self.scores)):
            try:
                query = search.send(answer)
            except StopIteration:
                break
            sites = np.atleast_1d(np.asarray(query.site if isinstance(query, Few) else query))
            few = query.prompts if isinstance(query, Few) else self.prompts
            if sites.dtype.kind not in "iu" or sites.ndim > 1 or not len(sites):
                raise UsageError(f"a method asks for {query!r:.80}: a query is a site, a list of sites, or a Few")
            if sites.min() < 0 or sites.max() >= len(self.scores):
                raise UsageError(f"a method asks for {query!r:.80}: heads are 0 to {len(self.scores) - 1}")
            whole = whole and not few
            seen = self._seen(sites, few)
            sent = seen if permutation is None else self.scores[permutation[sites]]
            answer = sent if not isinstance(query, Few) and np.ndim(query) else sent[0]
            best = int(seen.argmax())
            events.append(Event(sites[best], seen[best], *self._cost(episode), sites, seen))
        if not events:
            raise UsageError("a method asked for no head at all")
        return events, whole

    def _seen(self, sites: np.ndarray, few: int) -> np.ndarray:
        size = self.cache.batch_size
        if not 0 <= few <= size:
            raise UsageError(f"a query is on 1 to {size} prompts, the batch size, not {few}")
        self.prompts_of[sites] = np.maximum(self.prompts_of[sites], few or size)
        if not few or few == size:
            return np.take(self.scores, sites)
        task, split, i, weight = self._where
        if self._rows is None:
            rows = np.flatnonzero(self.cache.in_split(task, split))[i * size : (i + 1) * size]
            control = self.cache.batch_control(split)
            paired = control[control_of_batch(i + 1, len(control))[i]]
            self._rows = score(self.cache.damage(task)[rows], paired, weight)
        seen: np.ndarray = self._rows[:few, sites].mean(0)
        return seen

    def _cost(self, episode: SearchEpisode) -> tuple[float, float]:
        """Runs so far, without and with control charged for every query."""
        size = self.cache.batch_size
        known = sum(episode.charged.values())
        queries = (self.prompts_of / size * self.layer_cost).sum()
        clean = max(self.prompts_of.max(), (self.prompts or size) if episode.charged else 0)
        runs = float(clean / size + queries + known * (self.prompts or size) / size)
        return runs, runs + 1 + float(self.layer_cost[self.prompts_of > 0].sum()) + known
