"""Methods that train PPO on the training tasks first; what is trained is kept for all tasks of a held-out family."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mechrl.search.problem import Problem, Start, z_scored


def heads(k: int = 1, structure: bool = True, hints: bool = False) -> Callable[[Problem], Start]:
    """PPO with the policy `heads`, without a task signal.

    :param k: how many heads it queries before a pick, when it searches.
    :param structure: whether it knows the training tasks' scores of each head.
    :param hints: whether it is shown attribution.
    """

    def prepare(problem: Problem) -> Start:
        from mechrl.search.ppo.heads_training import train_heads
        from mechrl.search.ppo.policy_search import policy_search

        def train() -> Any:
            shown = None
            if hints:
                shown = np.concatenate([z_scored(problem.training_attribution(task)) for task in problem.train])
            return train_heads(
                problem.cache, problem.train, seed=problem.seed, control_weight=problem.control_weight,
                structure=structure, hints=shown,
            ).policy  # fmt: skip

        return policy_search(problem.once(("heads", structure, hints), train), k=k, hints=hints)

    return prepare


def untrained(problem: Problem) -> Start:
    """The policy `heads` before its training: the Gaussian that its logits begin with."""
    from mechrl.search.ppo.heads_policy import make_heads_policy
    from mechrl.search.ppo.policy_search import policy_search
    from mechrl.search.ppo.training import PRESETS
    from mechrl.search.structure import head_structure

    def make() -> Any:
        import torch

        torch.manual_seed(problem.seed)
        structure = head_structure(problem.cache, problem.train, problem.control_weight)
        return make_heads_policy(structure, PRESETS["heads"].layers[0])

    return policy_search(problem.once("untrained", make))


def paper(k: int = 1) -> Callable[[Problem], Start]:
    """PPO with the paper's network, one output per head, trained with the default preset and without a task signal."""

    def prepare(problem: Problem) -> Start:
        from mechrl.envs.episodes import ParallelEpisodes
        from mechrl.envs.table import ScoreTable, default_picks
        from mechrl.search.ppo.policy_search import policy_search
        from mechrl.search.ppo.training import PRESETS, train

        def train_it() -> Any:
            preset = PRESETS["default"]
            table = ScoreTable.from_cache(problem.cache, problem.train, control_weight=problem.control_weight)
            episodes = ParallelEpisodes(table, preset.n_envs, default_picks(table.n_sites), signals=())
            return train(episodes, preset, steps=preset.steps, seed=problem.seed).policy

        return policy_search(problem.once("paper", train_it), k=k)

    return prepare


def from_checkpoint(policy: Any, note: Any) -> Callable[[Problem], Start | None]:
    """A checkpoint of `mechrl-train`, on families that it was not trained on; elsewhere None.

    On another model's cache the policy `heads` knows of its heads what those training tasks say that the cache holds.
    """

    def prepare(problem: Problem) -> Start | None:
        from mechrl.search.ppo.checkpoint import adapt_to_cache
        from mechrl.search.ppo.policy_search import policy_search
        from mechrl.search.problem import family_of

        if family_of(problem.task) in {family_of(task) for task in note.tasks}:
            return None
        held = [task for task in note.tasks if task in problem.cache.tasks]
        adapt_to_cache(policy, replace(note, tasks=held), problem.cache)
        return policy_search(policy, note.signals, None, note.plan_k, note.hints)

    return prepare
