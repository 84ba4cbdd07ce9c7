"""All methods on all held-out families of some caches: docs/protocol.md, carried out."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from mechrl.cache.reader import Cache
from mechrl.errors import FileError, MachineError, MechrlError, UsageError, check_range
from mechrl.progress import say
from mechrl.results import safe_text
from mechrl.search.bench.result import BUDGETS, Fingerprints
from mechrl.search.bench.statistics import RESAMPLES, resampled_truth
from mechrl.search.bench.summary import BenchmarkRun, order_pairs, summarize
from mechrl.search.bench.verdict import AGENTS, Outcome
from mechrl.search.methods.registry import Method, all_methods, select_methods
from mechrl.search.problem import ATTRIBUTION, REFERENCE, SCORES, TRACKS, Problem, families, family_of
from mechrl.search.protocol import RATIO_PICKS, Evaluation, cost_to, coverages, evaluate, exhaustive_runs, mean_curve
from mechrl.tasks import EVALUATION, TRAIN

SEEDS = 3
SELECTION_EPISODES = 4  # of each task, when a comparator is chosen


@dataclass(frozen=True)
class Job:
    """Some methods on the tasks of one family of one cache, held out, with one seed.

    :param train: the training tasks.
    :param split: whose episodes are searched.
    :param purpose: `evaluation`, or `selection` of a comparator for the family `target`.
    """

    path: Path
    family: str
    tasks: tuple[str, ...]
    train: tuple[str, ...]
    methods: tuple[str, ...]
    track: str
    seed: int
    split: int
    control_weight: float
    plugin: Path | None
    checkpoint: Path | None
    purpose: str = "evaluation"
    target: str = ""


def run_benchmark(
    paths: Sequence[Path],
    *,
    names: Sequence[str] | None = None,
    tracks: Sequence[str] = TRACKS,
    seeds: int = SEEDS,
    control_weight: float = 1.0,
    workers: int = 2,
    plugin: Path | None = None,
    checkpoint: Path | None = None,
    on_progress: Callable[[float, float], None] = lambda done, total: None,
) -> BenchmarkRun:
    """Run methods on every held-out family of every cache, and keep the resamples beside the result.

    :param names: of the methods; None for all of the tracks.
    :param seeds: how many, from 0 on, for methods that their seed changes.
    :param workers: processes.
    :param plugin: a Python file that defines a list `METHODS`; it is run here and in every process.
    :param checkpoint: an agent of `mechrl-train`, searched with on families that it was not trained on.
    :raises UsageError: no such method, fewer than two families, or a cache without attribution in that track.
    """
    check_range(seeds=(seeds, 1, 100), workers=(workers, 1, 256), control_weight=(control_weight, 0.0, 1e6))
    if not paths or (names is not None and not names):
        raise UsageError("name at least one cache, and at least one method or none at all")
    chosen = select_methods(names, tracks, plugin, checkpoint)
    caches = {safe_text(path): open_cache(path) for path in paths}
    if len({cache.sha256 for cache in caches.values()}) < len(paths):
        raise UsageError("the same cache is named twice")
    cache_families = {name: families(cache) for name, cache in caches.items()}
    for name, cache in caches.items():
        _check(name, cache, cache_families[name], chosen, checkpoint)
    jobs = [
        job
        for path in paths
        for job in _jobs(path, cache_families[safe_text(path)], chosen, seeds, control_weight, plugin, checkpoint)
    ]
    longest = max(exhaustive_runs(cache.n_layers, cache.n_heads) for cache in caches.values())
    grid = np.union1d(np.geomspace(0.1, 2 * longest, 80), BUDGETS)
    outcomes: list[Outcome] = []
    selection: list[tuple[str, str, Outcome]] = []
    on_progress(0, len(jobs))
    for done, (job, job_outcomes) in enumerate(_run(jobs, grid, workers), 1):
        on_progress(done, len(jobs))
        if job.purpose == "selection":
            selection += [(job.track, job.target, outcome) for outcome in job_outcomes]
        else:
            outcomes += job_outcomes
    outcomes.sort(key=lambda o: (o.cache, o.family, o.task, o.method, o.seed))
    result = summarize(
        chosen,
        outcomes,
        selection,
        grid,
        by_protocol=(names, tuple(tracks), seeds, control_weight) == (None, TRACKS, SEEDS, 1.0),
        families=cache_families,
        caches={name: _fingerprints(cache) for name, cache in caches.items()},
        pairs={name: order_pairs(cache, cache_families[name], control_weight) for name, cache in caches.items()},
    )
    return BenchmarkRun(result, chosen, outcomes)


def _fingerprints(cache: Cache) -> Fingerprints:
    model, model_sha256 = (safe_text(cache.attributes[key]) for key in ("model", "model_sha256"))
    return Fingerprints(model=model, model_sha256=model_sha256, cache_sha256=cache.sha256)


@lru_cache(maxsize=8)
def open_cache(path: Path) -> Cache:
    return Cache.open(path)


def _check(
    name: str, cache: Cache, by_family: Mapping[str, list[str]], methods: Sequence[Method], checkpoint: Path | None
) -> None:
    cache.check_replayable()  # an imported table has one task and no prompts
    if len(by_family) < 2:
        raise UsageError(
            f"{name}: tasks of {len(by_family)} famil{'y' if len(by_family) == 1 else 'ies'} that the model does "
            f"({', '.join(by_family) or 'none'}), and leaving one out needs two; a cache of all built-in tasks has five"
        )
    tasks = [task for names in by_family.values() for task in names]
    if any(m.track == ATTRIBUTION for m in methods) and any(cache.attribution(task) is None for task in tasks):
        raise UsageError(f"{name} holds no attribution: build it again with this mechrl, or leave out that track")
    if checkpoint is not None:
        from mechrl.search.ppo.checkpoint import Checkpoint, adapt_to_cache

        agent = Checkpoint.load(checkpoint)
        policy, note = agent.policy, agent.note
        held = [task for task in note.tasks if task in cache.tasks]
        if not held:
            raise FileError(f"{checkpoint} does not fit {name}, which holds none of its tasks: {', '.join(note.tasks)}")
        if len(held) < len(note.tasks):
            say(f"{checkpoint} knows of the heads of {name} what {', '.join(held)} say, tasks that both have")
        adapt_to_cache(policy, replace(note, tasks=held), cache)
        if set(by_family) <= {family_of(task) for task in note.tasks}:
            raise UsageError(f"{checkpoint} was trained on every family of {name}: there is none to hold out")


def _jobs(
    path: Path,
    by_family: Mapping[str, list[str]],
    methods: Sequence[Method],
    seeds: int,
    control_weight: float,
    plugin: Path | None,
    checkpoint: Path | None,
) -> Iterator[Job]:
    def train_without(*left_out: str) -> tuple[str, ...]:
        return tuple(task for family, tasks in by_family.items() if family not in left_out for task in tasks)

    def names(**wanted: Any) -> tuple[str, ...]:
        return tuple(m.name for m in methods if all(getattr(m, key) == value for key, value in wanted.items()))

    for family, tasks in by_family.items():
        fold = Job(
            family=family, tasks=tuple(tasks), train=train_without(family), methods=(), track=SCORES, seed=0,
            split=EVALUATION, path=path, control_weight=control_weight, plugin=plugin, checkpoint=checkpoint,
        )  # fmt: skip
        # The long ones first: what trains, one process each.
        for track in TRACKS:
            for seed in range(seeds):
                agents = names(track=track, agent=True, seeded=True)
                agents += names(track=track, agent=True, seeded=False) * (seed == 0)
                if agents:
                    yield replace(fold, methods=agents, track=track, seed=seed)
        for track in (REFERENCE, *TRACKS):
            if plain := names(track=track, agent=False, seeded=False):
                yield replace(fold, methods=plain, track=track)
            for seed in range(seeds):
                if seeded := names(track=track, agent=False, seeded=True):
                    yield replace(fold, methods=seeded, track=track, seed=seed)
        for other in by_family:
            if other != family:
                train = train_without(family, other)
                for track in [track for track, agent in AGENTS.items() if names(name=agent)]:
                    candidates = names(track=track, agent=False, exploratory=False)
                    if not train:
                        candidates = tuple(m.name for m in methods if m.name in candidates and not m.learns)
                    if candidates:
                        yield replace(
                            fold, family=other, tasks=tuple(by_family[other]), train=train, methods=candidates,
                            track=track, split=TRAIN, purpose="selection", target=family,
                        )  # fmt: skip


def _run(jobs: Sequence[Job], grid: np.ndarray, workers: int) -> Iterator[tuple[Job, list[Outcome]]]:
    if workers == 1:
        for job in jobs:
            yield job, run_job(job, grid)
        return
    others = set(active_children())
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        # What the processes inherit: the interrupt of a terminal reaches all of them, and this one ends the others.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = {pool.submit(run_job, job, grid): job for job in jobs}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise MachineError(
                f"one of the {workers} processes was ended from outside, as happens when memory runs out (fewer "
                "workers need less), or could not start, as in a script without `if __name__ == '__main__':`"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise


def run_job(job: Job, grid: np.ndarray) -> list[Outcome]:
    """The methods of a job on each of its tasks, on one thread: processes run side by side, sums keep their order."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            return _outcomes(job, grid)
    finally:
        torch.set_num_threads(threads)


def _outcomes(job: Job, grid: np.ndarray) -> list[Outcome]:
    cache = open_cache(job.path)
    known = all_methods(job.plugin, job.checkpoint)
    fitted: dict[Any, Any] = {}
    outcomes = []
    selecting = job.purpose == "selection"
    for task in job.tasks:
        truth, weights = resampled_truth(cache, task, job.split, job.control_weight, n=0 if selecting else RESAMPLES)
        for name in job.methods:
            method = known[name]
            problem = Problem(cache, task, job.train, method.track, job.control_weight, job.seed, fitted)
            try:
                search = method.prepare(problem)
                if search is None:  # a checkpoint that was trained on this family
                    continue
                evaluation = evaluate(
                    cache, task, search, cache.n_sites, split=job.split, control_weight=job.control_weight,
                    track=method.track, prompts=method.prompts, seed=job.seed, shuffled=method.shuffled,
                    episodes=SELECTION_EPISODES if selecting else None,
                )  # fmt: skip
            except MechrlError as error:
                raise type(error)(f"method {name!r}: {error}") from error
            except Exception as error:
                raise UsageError(f"method {name!r} fails on {task}: {type(error).__name__}: {error}") from error
            n, seconds = len(evaluation.picked), sum(problem.seconds)
            outcomes.append(_outcome(cache, job, method, evaluation, truth[:, :n], weights[:, :n], grid, seconds))
    return outcomes


def _outcome(
    cache: Cache, job: Job, method: Method, evaluation: Evaluation, truth: np.ndarray, weights: np.ndarray,
    grid: np.ndarray, seconds: float,
) -> Outcome:  # fmt: skip
    most = exhaustive_runs(cache.n_layers, cache.n_heads)
    reached = coverages(evaluation.best_heads, truth)
    cost = cost_to(reached, evaluation.runs, weights, most)
    control_cost = cost_to(reached, evaluation.control_runs, weights, 2 * most)  # twice: with control for every head
    tables = sum(int(cache.in_split(task, TRAIN).sum()) // cache.batch_size for task in job.train) * most
    ratios = {p: evaluation.ratios(p) for p in RATIO_PICKS if p <= cache.n_sites} if evaluation.whole else {}
    return Outcome(
        safe_text(job.path), job.family, evaluation.task, method.name, job.seed, np.log(cost), np.log(control_cost),
        bool(cost[0] >= most), mean_curve(reached, evaluation.runs, weights, grid),
        {p: float(r.mean()) for p, r in ratios.items() if len(r)}, tables if method.learns else 0.0, seconds,
    )  # fmt: skip
