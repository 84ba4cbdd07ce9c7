"""All methods on all held-out families of some caches: docs/protocol.md, carried out."""

import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from mechrl.agents import methods as registry
from mechrl.agents.methods import Method
from mechrl.agents.problem import ATTRIBUTION, REFERENCE, SCORES, Problem, families, family_of
from mechrl.agents.protocol import (
    RATIO_PICKS,
    Evaluation,
    cost_to,
    coverages,
    evaluate,
    exhaustive_runs,
    mean_curve,
)  # fmt: skip
from mechrl.agents.statistics import RESAMPLES, Cells, family_means, hierarchical, holm, resampled_truth, sign_flips
from mechrl.agents.trained import from_checkpoint
from mechrl.cache.reader import Cache
from mechrl.errors import MechrlError, UsageError, unknown_name
from mechrl.tasks import EVALUATION, TRAIN

AGENTS = {SCORES: "agent", ATTRIBUTION: "agent with attribution"}  # whom the closing sentences are about
TRACKS = tuple(AGENTS)
SEEDS = 3
SELECTION_EPISODES = 4  # of each task, when a comparator is chosen
BUDGETS = (2.0, 5.0, 10.0)  # runs at which coverage is printed
LEAST_FAMILIES = 5  # for a claim about transfer
LEVEL, MARGIN = 0.05, 0.1  # of the test; of "no difference"
WINS, NO_DIFFERENCE, UNDECIDED = "the agent wins", "no difference", "a baseline wins or undecided"


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


@dataclass(frozen=True)
class Outcome:
    """A method on one held-out task. Resample 0 is what was measured, the rest are the bootstrap's.

    :param log_cost: log of the cost to 90 %, in runs, float64 [resample].
    :param log_control_cost: with control charged for every look, likewise.
    :param censored: whether 90 % took as much as the exhaustive sweep, or was never reached.
    :param curve: mean coverage at the costs of `cost_grid`, float64 [resample, cost].
    :param ratios: mean oracle ratio after so many picks, where every event was a pick.
    :param set_up_runs: what the other tasks' tables cost; `set_up_seconds` what preparing took, training included.
    """

    cache: str
    family: str
    task: str
    method: str
    seed: int
    log_cost: np.ndarray
    log_control_cost: np.ndarray
    censored: bool
    curve: np.ndarray
    ratios: dict[int, float]
    set_up_runs: float
    set_up_seconds: float


@dataclass(frozen=True)
class Verdict:
    """The agent against the comparator in one track.

    :param comparators: by cache and held-out family.
    :param families: log cost of the agent minus the comparator's, mean of each family; below zero the agent is cheaper.
    :param low: end of the 95 % interval of their `mean`, like `high`.
    :param censored: share of tasks on which neither got to 90 % before the exhaustive sweep, and so nothing differs.
    :param p: one-sided; `adjusted` for the number of tracks.
    """

    track: str
    agent: str
    comparators: dict[str, dict[str, str]]
    families: dict[str, float]
    mean: float
    low: float
    high: float
    censored: float
    p: float
    adjusted: float

    @property
    def sentence(self) -> str:
        if self.high < 0 and self.adjusted <= LEVEL:
            return WINS
        within = np.log(1 - MARGIN) <= self.low and self.high <= np.log(1 + MARGIN)
        return NO_DIFFERENCE if within and self.censored < 0.5 else UNDECIDED

    @property
    def too_few(self) -> bool:
        """Whether there are too few families to claim transfer."""
        return len(self.families) < LEAST_FAMILIES


@dataclass(frozen=True)
class Benchmark:
    """Everything that was measured.

    :param families: the tasks of each family, by cache.
    :param cost_grid: of the curves, in runs, float64 [cost].
    :param pairs: the static order of one task on another, by cache: (order of, on) → cost to 90 %, ratio after 3 picks
        (None where no episode has one).
    :param by_protocol: whether methods, seeds, tracks and control weight are docs/protocol.md's; else this is
        exploratory.
    """

    families: dict[str, dict[str, list[str]]]
    methods: list[Method]
    outcomes: list[Outcome]
    cost_grid: np.ndarray
    verdicts: list[Verdict]
    pairs: dict[str, dict[tuple[str, str], tuple[float, float | None]]]
    by_protocol: bool

    def cells(self, method: str, what: str = "log_cost") -> Cells:
        """family → task → cache → the values of one method."""
        return _cells([o for o in self.outcomes if o.method == method], what)


def bench(
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
) -> Benchmark:
    """Run methods on every held-out family of every cache.

    :param names: of the methods; None for all of the tracks.
    :param seeds: how many, from 0 on, for methods that their seed changes.
    :param workers: processes.
    :param plugin: a Python file that adds to `METHODS`; it is run here and in every process.
    :param checkpoint: an agent of `mechrl-train`, searched with on families that it was not trained on.
    :raises UsageError: no such method, fewer than two families, or a cache without attribution in that track.
    """
    chosen = select_methods(names, tracks, plugin, checkpoint)
    caches = {str(path): open_cache(path) for path in paths}
    if len({cache.sha256 for cache in caches.values()}) < len(paths):
        raise UsageError("the same cache is named twice")
    found = {name: families(cache) for name, cache in caches.items()}
    for name, cache in caches.items():
        _check(name, cache, found[name], chosen, checkpoint)
    jobs = [
        job
        for path in paths
        for job in _jobs(path, found[str(path)], chosen, seeds, control_weight, plugin, checkpoint)
    ]
    longest = max(exhaustive_runs(cache.n_layers, cache.n_heads) for cache in caches.values())
    grid = np.union1d(np.geomspace(0.1, 2 * longest, 80), BUDGETS)
    outcomes: list[Outcome] = []
    selection: list[tuple[Job, Outcome]] = []
    on_progress(0, len(jobs))
    for done, (job, of_job) in enumerate(_run(jobs, grid, workers), 1):
        on_progress(done, len(jobs))
        if job.purpose == "selection":
            selection += [(job, outcome) for outcome in of_job]
        else:
            outcomes += of_job
    outcomes.sort(key=lambda o: (o.cache, o.family, o.task, o.method, o.seed))
    verdicts = _verdicts(outcomes, selection)
    pairs = {name: order_pairs(cache, found[name], control_weight) for name, cache in caches.items()}
    by_protocol = (names, tuple(tracks), seeds, control_weight) == (None, TRACKS, SEEDS, 1.0)
    return Benchmark(found, chosen, outcomes, grid, verdicts, pairs, by_protocol)


def select_methods(
    names: Sequence[str] | None, tracks: Sequence[str], plugin: Path | None, checkpoint: Path | None
) -> list[Method]:
    """The records of the methods to run.

    :raises UsageError: no such method, or a name that stands for two.
    """
    known = all_methods(plugin, checkpoint)
    if names is None:
        return [m for m in known.values() if m.track in (REFERENCE, *tracks)]
    for name in names:
        if name not in known:
            raise unknown_name("method", name, list(known))
        if known[name].track not in (REFERENCE, *tracks):
            raise UsageError(f"method {name!r} is of the track {known[name].track}, not of {', '.join(tracks)}")
    return [m for m in known.values() if m.name in names]


def all_methods(plugin: Path | None = None, checkpoint: Path | None = None) -> dict[str, Method]:
    """The registered methods by name, those of a plugin and of a checkpoint included; a plugin's are exploratory.

    :raises UsageError: the plugin cannot be run, or a record of it is no method, or a name stands for two.
    """
    own = len(registry.METHODS) if plugin is None else _load_plugin(plugin)
    methods = list(registry.METHODS)
    for i, method in enumerate(methods):
        if not isinstance(method, Method) or method.track not in (REFERENCE, *TRACKS):
            raise UsageError(f"{method!r:.200} is no Method of one of the tracks {', '.join((REFERENCE, *TRACKS))}")
        if i >= own:
            methods[i] = replace(method, exploratory=True)
    if checkpoint is not None:
        methods.append(_checkpoint_method(checkpoint))
    found = {method.name: method for method in methods}
    if len(found) < len(methods):
        doubled = sorted({m.name for m in methods if sum(m.name == other.name for other in methods) > 1})
        raise UsageError(f"two methods are called {', '.join(map(repr, doubled))}")
    return found


def _checkpoint_method(path: Path) -> Method:
    from mechrl.agents.checkpoint import load_checkpoint

    policy, note = load_checkpoint(path)
    return Method(
        f"checkpoint {path.name}", ATTRIBUTION if note.hints else SCORES, from_checkpoint(policy, note), agent=True,
        exploratory=True,
    )  # fmt: skip


@lru_cache(maxsize=64)
def _load_plugin(plugin: Path) -> int:
    """Runs a plugin once; how many methods there were before."""
    before = len(registry.METHODS)
    try:
        runpy.run_path(str(plugin))
    except (Exception, SystemExit) as error:
        raise UsageError(f"{plugin} cannot be run: {type(error).__name__}: {error}") from error
    return before


@lru_cache(maxsize=8)
def open_cache(path: Path) -> Cache:
    return Cache.open(path)


def _check(name: str, cache: Cache, found: Mapping, methods: Sequence[Method], checkpoint: Path | None) -> None:
    cache.check_replayable()  # an imported table has one task and no prompts
    if len(found) < 2:
        raise UsageError(
            f"{name}: tasks of {len(found)} famil{'y' if len(found) == 1 else 'ies'} that the model does "
            f"({', '.join(found) or 'none'}), and leaving one out needs two; mechrl-cache build --tasks all has five"
        )
    tasks = [task for of_family in found.values() for task in of_family]
    if any(m.track == ATTRIBUTION for m in methods) and any(cache.attribution(task) is None for task in tasks):
        raise UsageError(f"{name} holds no attribution: build it again with this mechrl, or use --track scores")
    if checkpoint is not None:
        from mechrl.agents.checkpoint import load_checkpoint, move

        policy, note = load_checkpoint(checkpoint)
        move(policy, note, cache)
        if set(found) <= {family_of(task) for task in note.tasks}:
            raise UsageError(f"{checkpoint} was trained on every family of {name}: there is none to hold out")


def _jobs(
    path: Path,
    found: Mapping[str, list[str]],
    methods: Sequence[Method],
    seeds: int,
    control_weight: float,
    plugin: Path | None,
    checkpoint: Path | None,
) -> Iterator[Job]:
    def train_without(*left_out: str) -> tuple[str, ...]:
        return tuple(task for family, tasks in found.items() if family not in left_out for task in tasks)

    def names(**wanted: Any) -> tuple[str, ...]:
        return tuple(m.name for m in methods if all(getattr(m, key) == value for key, value in wanted.items()))

    for family, tasks in found.items():
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
        for other in found:
            if other != family:
                train = train_without(family, other)
                for track in [track for track, agent in AGENTS.items() if names(name=agent)]:
                    candidates = names(track=track, agent=False, exploratory=False)
                    if not train:
                        candidates = tuple(m.name for m in methods if m.name in candidates and not m.learns)
                    if candidates:
                        yield replace(
                            fold, family=other, tasks=tuple(found[other]), train=train, methods=candidates,
                            track=track, split=TRAIN, purpose="selection", target=family,
                        )  # fmt: skip


def _run(jobs: Sequence[Job], grid: np.ndarray, workers: int) -> Iterator[tuple[Job, list[Outcome]]]:
    if workers == 1:
        for job in jobs:
            yield job, run_job(job, grid)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_job, job, grid): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
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
        str(job.path), job.family, evaluation.task, method.name, job.seed, np.log(cost), np.log(control_cost),
        bool(cost[0] >= most), mean_curve(reached, evaluation.runs, weights, grid),
        {p: float(r.mean()) for p, r in ratios.items() if len(r)}, tables if method.learns else 0.0, seconds,
    )  # fmt: skip


def _cells(outcomes: Sequence[Outcome], what: str = "log_cost", sign: int = 1) -> dict:
    cells: dict[str, dict[str, dict[str, list]]] = {}
    for o in outcomes:
        cells.setdefault(o.family, {}).setdefault(o.task, {}).setdefault(o.cache, []).append(getattr(o, what))
    return {
        family: {task: {cache: [(sign, np.stack(rows))] for cache, rows in c.items()} for task, c in tasks.items()}
        for family, tasks in cells.items()
    }


def _verdicts(outcomes: Sequence[Outcome], selection: Sequence[tuple[Job, Outcome]]) -> list[Verdict]:
    """The agent against the comparator, in each track that has both."""
    searches: dict[tuple[str, str, str, str | None], list[Outcome]] = {}
    for o in outcomes:
        searches.setdefault((o.cache, o.family, o.task, o.method), []).append(o)
    found = []
    for track, agent in AGENTS.items():
        comparators = choose_comparators([(job, outcome) for job, outcome in selection if job.track == track])
        cells: dict[str, dict[str, dict[str, list]]] = {}
        censored = []
        for (cache, family, task, method), ours in searches.items():
            theirs = searches.get((cache, family, task, comparators.get(cache, {}).get(family)))
            if method == agent and theirs:
                pair = [(1, np.stack([o.log_cost for o in ours])), (-1, np.stack([o.log_cost for o in theirs]))]
                cells.setdefault(family, {}).setdefault(task, {})[cache] = pair
                censored.append(all(o.censored for o in ours + theirs))
        if not cells:
            continue
        of_family = family_means(cells)
        found.append(
            Verdict(
                track, agent, comparators, of_family, *hierarchical(cells), float(np.mean(censored)),
                sign_flips(list(of_family.values())), 1.0,
            )
        )  # fmt: skip
    adjusted = holm({verdict.track: verdict.p for verdict in found})
    return [replace(verdict, adjusted=adjusted[verdict.track]) for verdict in found]


def choose_comparators(selection: Sequence[tuple[Job, Outcome]]) -> dict[str, dict[str, str]]:
    """The method with the lowest mean log cost over the other families, by cache and held-out family."""
    costs: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for job, outcome in selection:
        by_method = costs.setdefault((str(job.path), job.target), {})
        by_method.setdefault(outcome.method, {}).setdefault(outcome.family, []).append(float(outcome.log_cost[0]))
    chosen: dict[str, dict[str, str]] = {}
    for (path, target), by_method in costs.items():
        means = {name: np.mean([np.mean(costs) for costs in of.values()]) for name, of in by_method.items()}
        chosen.setdefault(path, {})[target] = min(means, key=lambda name: (means[name], name))
    return chosen


def order_pairs(
    cache: Cache, found: Mapping[str, list[str]], control_weight: float
) -> dict[tuple[str, str], tuple[float, float | None]]:
    """The order of each task's training episodes, on the evaluation episodes of every other: cost to 90 %, ratio@3."""
    from mechrl.agents.orders import own_order

    tasks = [task for of_family in found.values() for task in of_family]
    most = exhaustive_runs(cache.n_layers, cache.n_heads)
    pairs: dict[tuple[str, str], tuple[float, float | None]] = {}
    for of in tasks:
        search = own_order(Problem(cache, of, (), REFERENCE, control_weight))
        for on in tasks:
            if on != of:
                evaluation = evaluate(cache, on, search, cache.n_sites, control_weight=control_weight)
                ones = np.ones((1, len(evaluation.picked)))
                cost = float(cost_to(evaluation.coverages()[None], evaluation.runs, ones, most)[0])
                ratios = evaluation.ratios(3)
                pairs[of, on] = (cost, float(ratios.mean()) if len(ratios) else None)
    return pairs
