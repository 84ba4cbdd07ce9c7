"""The methods of search, as records in one list; docs/protocol.md says how they are compared.

A method is prepared once for a held-out family, from what a `Problem` may tell it, and then searches episode after
episode. To add one, write a record into `METHODS` here, or give `mechrl bench` a plugin: a Python file that defines a
list `METHODS` of its own.
"""

import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mechrl.errors import UsageError, unknown_name
from mechrl.search.methods import few_prompts, orders, prior, regression, trained
from mechrl.search.problem import ATTRIBUTION, REFERENCE, SCORES, TRACKS, Problem, Start

Prepare = Callable[[Problem], Start | None]  # None: not for this problem


@dataclass(frozen=True)
class Method:
    """A way to search.

    :param name: what it is called in tables.
    :param track: `scores`, `attribution` or `reference`.
    :param prepare: gets a `Problem`, returns a function that starts the search of a `SearchEpisode`.
    :param seeded: whether its seed changes anything; such a method is run with every seed.
    :param learns: whether it needs the other tasks' tables.
    :param prompts: it queries heads on so many prompts of a batch; 0 for all.
    :param shuffled: it is told the scores of other heads, to see what it does with them.
    :param agent: whether it trains PPO; such methods are no candidates for the comparator.
    :param exploratory: whether docs/protocol.md counts it as exploratory.
    """

    name: str
    track: str
    prepare: Prepare
    seeded: bool = False
    learns: bool = False
    prompts: int = 0
    shuffled: bool = False
    agent: bool = False
    exploratory: bool = False


AGENT: dict[str, Any] = {"seeded": True, "learns": True, "agent": True}
TAKEN_AWAY: dict[str, Any] = {**AGENT, "exploratory": True}

METHODS: tuple[Method, ...] = (
    Method("random", REFERENCE, orders.random_order, seeded=True),
    Method("exhaustive", REFERENCE, orders.exhaustive),
    Method("own order (cheats)", REFERENCE, orders.task_order),
    Method("static order", SCORES, orders.static_order, learns=True),
    Method("portfolio", SCORES, orders.portfolio, learns=True),
    Method("Gaussian, UCB", SCORES, prior.with_prior(prior.upper_bound), learns=True),
    Method("Gaussian, Thompson", SCORES, prior.with_prior(prior.thompson), learns=True, seeded=True),
    Method("Gaussian, expected improvement", SCORES, prior.with_prior(prior.expected_improvement), learns=True),
    *(Method(f"sweep on {n} prompt{'s' * (n > 1)}", SCORES, few_prompts.sweep_few(n)) for n in (1, 2, 4, 8)),
    Method("sequential halving", SCORES, few_prompts.halving),
    Method("attribution", ATTRIBUTION, orders.by_attribution(False)),
    Method("integrated attribution", ATTRIBUTION, orders.by_attribution(True)),
    Method("attribution + static", ATTRIBUTION, orders.attribution_and_static, learns=True),
    Method("alternating", ATTRIBUTION, orders.alternating, learns=True),
    Method("ridge regression", ATTRIBUTION, regression.by_regression(regression.ridge), learns=True),
    Method("boosted regression", ATTRIBUTION, regression.by_regression(regression.boosted), learns=True),
    Method("agent", SCORES, trained.heads(), **AGENT),
    Method("agent, best of 3", SCORES, trained.heads(k=3), **AGENT),
    Method("paper's network", SCORES, trained.paper(), **AGENT),
    Method("paper's network, best of 3", SCORES, trained.paper(k=3), **AGENT),
    Method("agent with attribution", ATTRIBUTION, trained.heads(hints=True), **AGENT),
    Method("agent, told other heads' scores", SCORES, trained.heads(), shuffled=True, **TAKEN_AWAY),
    Method("agent before its training", SCORES, trained.untrained, **TAKEN_AWAY),
    Method("agent, no structure", SCORES, trained.heads(structure=False), **TAKEN_AWAY),
    Method("agent on 4 prompts", SCORES, trained.heads(), prompts=4, **TAKEN_AWAY),
    Method("agent with attribution on 4 prompts", ATTRIBUTION, trained.heads(hints=True), prompts=4, **TAKEN_AWAY),
    Method(
        "Gaussian, expected improvement, on 4 prompts", SCORES, prior.with_prior(prior.expected_improvement),
        learns=True, prompts=4, exploratory=True,
    ),
    Method(
        "integrated attribution on 4 prompts", ATTRIBUTION, orders.by_attribution(True), prompts=4, exploratory=True
    ),
    Method("static order on 4 prompts", SCORES, orders.static_order, learns=True, prompts=4, exploratory=True),
)  # fmt: skip


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

    :raises UsageError: the plugin cannot be run or defines no list of methods, or a name stands for two.
    """
    methods = [*METHODS, *(_of_plugin(plugin) if plugin else ())]
    if checkpoint is not None:
        methods.append(_checkpoint_method(checkpoint))
    by_name = {method.name: method for method in methods}
    if len(by_name) < len(methods):
        doubled = sorted({m.name for m in methods if sum(m.name == other.name for other in methods) > 1})
        raise UsageError(f"two methods are called {', '.join(map(repr, doubled))}")
    return by_name


def _checkpoint_method(path: Path) -> Method:
    from mechrl.search.ppo.checkpoint import Checkpoint

    agent = Checkpoint.load(path)
    track, prepare = ATTRIBUTION if agent.note.hints else SCORES, trained.from_checkpoint(agent.policy, agent.note)
    return Method(f"checkpoint {path.name}", track, prepare, agent=True, exploratory=True)


@lru_cache(maxsize=64)
def _of_plugin(plugin: Path) -> tuple[Method, ...]:
    """The methods of a plugin, which is run once."""
    try:
        methods = runpy.run_path(str(plugin)).get("METHODS")
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"{plugin} cannot be run: {type(error).__name__}: {error}. It should define a list METHODS of its own"
        ) from error
    if not isinstance(methods, list | tuple) or methods is METHODS:
        raise UsageError(f"{plugin} defines no list METHODS = [Method(...), ...]")
    for method in methods:
        if not isinstance(method, Method) or method.track not in (REFERENCE, *TRACKS):
            raise UsageError(f"{method!r:.200} is no Method of one of the tracks {', '.join((REFERENCE, *TRACKS))}")
        if not isinstance(method.name, str) or not method.name.isprintable():
            raise UsageError(f"{plugin}: a method is called {method.name!r:.80}, which is no printable text")
    return tuple(replace(method, exploratory=True) for method in methods)
