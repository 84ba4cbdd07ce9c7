"""Whether the agent wins: the comparator, the statistic, the test and the closing sentence of docs/protocol.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mechrl.intervals import Estimate
from mechrl.search.bench.result import Verdict
from mechrl.search.bench.statistics import family_means, hierarchical, holm, sign_flips
from mechrl.search.problem import ATTRIBUTION, SCORES

AGENTS = {SCORES: "agent", ATTRIBUTION: "agent with attribution"}  # whom the closing sentences are about
LEAST_FAMILIES = 5  # for a claim about transfer
LEVEL, MARGIN = 0.05, 0.1  # of the test; of "no difference"
WINS, NO_DIFFERENCE, UNDECIDED = "the agent wins", "no difference", "a baseline wins or undecided"


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


def verdicts(outcomes: Sequence[Outcome], selection: Sequence[tuple[str, str, Outcome]]) -> list[Verdict]:
    """The agent against the comparator, in each track that has both.

    :param selection: (track, held-out family, outcome of a candidate on another family).
    """
    searches: dict[tuple[str, str, str, str | None], list[Outcome]] = {}
    for o in outcomes:
        searches.setdefault((o.cache, o.family, o.task, o.method), []).append(o)
    measured = []
    for track, agent in AGENTS.items():
        comparators = choose_comparators([(target, o) for of_track, target, o in selection if of_track == track])
        cells: dict[str, dict[str, dict[str, list[tuple[int, np.ndarray]]]]] = {}
        censored = []
        for (cache, family, task, method), ours in searches.items():
            theirs = searches.get((cache, family, task, comparators.get(cache, {}).get(family)))
            if method == agent and theirs:
                pair = [(1, np.stack([o.log_cost for o in ours])), (-1, np.stack([o.log_cost for o in theirs]))]
                cells.setdefault(family, {}).setdefault(task, {})[cache] = pair
                censored.append(all(o.censored for o in ours + theirs))
        if cells:
            measured.append((track, agent, comparators, cells, float(np.mean(censored))))
    p_values = {track: sign_flips(list(family_means(cells).values())) for track, _, _, cells, _ in measured}
    adjusted = holm(p_values)
    return [
        make_verdict(
            track, agent, comparators, family_means(cells), Estimate(*map(float, hierarchical(cells))), censored,
            p_values[track], adjusted[track],
        )
        for track, agent, comparators, cells, censored in measured
    ]  # fmt: skip


def make_verdict(
    track: str,
    agent: str,
    comparators: dict[str, dict[str, str]],
    families: Mapping[str, float],
    difference: Estimate,
    censored: float,
    p: float,
    p_adjusted: float,
) -> Verdict:
    """The verdict of a track.

    :param comparators: by cache and held-out family.
    :param families: log cost of the agent minus the comparator's, mean of each family; below zero the agent is cheaper.
    :param difference: their mean.
    :param censored: share of tasks on which neither got to 90 % before the exhaustive sweep.
    """
    sentence = UNDECIDED
    if difference.high < 0 and p_adjusted <= LEVEL:
        sentence = WINS
    elif np.log(1 - MARGIN) <= difference.low and difference.high <= np.log(1 + MARGIN) and censored < 0.5:
        sentence = NO_DIFFERENCE
    ratio, low, high = np.exp(difference).tolist()
    return Verdict(
        track=track, agent=agent, sentence=sentence, too_few_families=len(families) < LEAST_FAMILIES,
        censored=censored, cost_ratio=ratio, low=low, high=high, p=p, p_adjusted=p_adjusted, comparators=comparators,
        family_cost_ratios={family: float(np.exp(value)) for family, value in families.items()},
    )  # fmt: skip


def choose_comparators(selection: Sequence[tuple[str, Outcome]]) -> dict[str, dict[str, str]]:
    """The method with the lowest mean log cost over the other families, by cache and held-out family."""
    costs: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for target, outcome in selection:
        by_method = costs.setdefault((outcome.cache, target), {})
        by_method.setdefault(outcome.method, {}).setdefault(outcome.family, []).append(float(outcome.log_cost[0]))
    chosen: dict[str, dict[str, str]] = {}
    for (cache, target), by_method in costs.items():
        means = {name: np.mean([np.mean(costs) for costs in of.values()]) for name, of in by_method.items()}
        chosen.setdefault(cache, {})[target] = min(means, key=lambda name: (means[name], name))
    return chosen
