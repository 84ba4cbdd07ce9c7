"""PPO with masked actions: the presets, and training on episodes looked up or live."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback

from mechrl.cache.reader import Cache
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.vec import HeadVecEnv
from mechrl.search.ppo.lean_ppo import LeanPPO, Tanh
from mechrl.search.ppo.policy_search import policy_search
from mechrl.search.protocol import evaluate


@dataclass(frozen=True)
class Preset:
    """Settings of PPO. A rollout is one episode in each environment."""

    n_envs: int
    steps: int  # picks in all
    learning_rate: float
    final_learning_rate: float  # reached linearly
    gamma: float
    gae_lambda: float
    minibatches: int
    epochs: int
    clip: float
    entropy: float
    value: float
    layers: tuple[int, ...]  # tanh, one network for the policy and one for the value
    drop_signal: float  # share of training episodes without the task signal


PRESETS = {
    "default": Preset(
        n_envs=64, steps=60_000, learning_rate=4e-3, final_learning_rate=8e-4, gamma=0.5, gae_lambda=0.9, minibatches=4,
        epochs=2, clip=0.2, entropy=0.02, value=0.5, layers=(64, 64), drop_signal=0.25,
    ),
    "heads": Preset(
        n_envs=64, steps=16_000, learning_rate=2e-3, final_learning_rate=4e-4, gamma=0.9, gae_lambda=0.9, minibatches=4,
        epochs=4, clip=0.2, entropy=0.01, value=0.5, layers=(32,), drop_signal=0.0,
    ),
    # arXiv 2605.26343 and its public code.
    "paper": Preset(
        n_envs=8, steps=200_000, learning_rate=2.5e-4, final_learning_rate=5e-5, gamma=0.99, gae_lambda=0.95,
        minibatches=8, epochs=4, clip=0.2, entropy=0.1, value=0.5, layers=(256, 256), drop_signal=0.0,
    ),
}  # fmt: skip


class PlanningPolicy(MaskableActorCriticPolicy):
    """A policy that samples `plan_k` heads, queries each, and picks the one with the best score.

    `query` is set by `train`: it takes candidate sites [k, environment] and returns their scores likewise.
    """

    plan_k = 1
    rows_at_once: int | None = None  # of a minibatch when it is trained; None: all
    query: Callable[[np.ndarray], np.ndarray]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **({"activation_fn": Tanh} | kwargs))

    def log_probs_and_values(self, obs: torch.Tensor, untried: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of all heads, [episode, site], about −1e8 for a tried one, and values, [episode].

        All that training and evaluation ask of a policy. `untried` is bool [episode, site].
        """
        actor, critic = self.mlp_extractor(obs)
        logits = self.action_net(actor).masked_fill(~untried, -1e8)  # as sb3-contrib does; -inf has no gradient
        return logits.log_softmax(1), self.value_net(critic)[:, 0]

    def sample(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Draws a head for each episode, int64 [episode]; with `plan_k` > 1 the best of so many draws."""
        # Inverse transform sampling: `multinomial` draws a number per head. Doubles, so that no draw is past the end.
        below = log_probs.double().exp_().cumsum(1)
        draws = torch.rand(len(below), self.plan_k, dtype=torch.float64) * below[:, -1:]
        candidates = torch.searchsorted(below, draws, right=True)
        if self.plan_k == 1:
            return candidates[:, 0]
        best = torch.as_tensor(self.query(candidates.T.numpy()).argmax(0))
        return candidates.gather(1, best[:, None])[:, 0]

    def forward(
        self, obs: torch.Tensor, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n_sites = int(cast(spaces.Discrete, self.action_space).n)
        masks = np.ones((len(obs), n_sites), np.bool_) if action_masks is None else action_masks
        log_probs, values = self.log_probs_and_values(obs, torch.as_tensor(masks, dtype=torch.bool))
        actions = log_probs.argmax(1) if deterministic else self.sample(log_probs)
        return actions, values[:, None], log_probs.gather(1, actions[:, None])[:, 0]


def make_policy(n_signals: int, n_sites: int, layers: Sequence[int]) -> PlanningPolicy:
    """An untrained policy for observations of this size, to load parameters into."""
    return PlanningPolicy(
        spaces.Box(-np.inf, np.inf, (n_signals + 2 * n_sites,), np.float32),
        spaces.Discrete(n_sites),
        lambda _: 0.0,
        net_arch=list(layers),
    )


def train(
    episodes: ParallelEpisodes,
    preset: Preset,
    *,
    steps: int,
    seed: int = 0,
    plan_k: int = 1,
    tensorboard: Path | None = None,
    on_rollout: Callable[[MaskablePPO], None] = lambda ppo: None,
    policy_class: type[PlanningPolicy] = PlanningPolicy,
    policy_kwargs: dict[str, Any] | None = None,
) -> MaskablePPO:
    """Train PPO for `steps` picks (rounded up to whole rollouts).

    :param episodes: the game, with `preset.n_envs` rows.
    :param plan_k: how many heads to query before each pick.
    :param tensorboard: a folder for TensorBoard logs.
    :param on_rollout: called after every rollout.
    :param policy_kwargs: further arguments of `policy_class`; `net_arch` overrides the preset's layers.
    """
    rollout = episodes.n * episodes.picks
    ppo = LeanPPO(
        policy_class,
        HeadVecEnv(episodes, seed),
        learning_rate=lambda left: (
            preset.final_learning_rate + (preset.learning_rate - preset.final_learning_rate) * left
        ),
        n_steps=episodes.picks,
        batch_size=max(2, rollout // preset.minibatches),
        n_epochs=preset.epochs,
        gamma=preset.gamma,
        gae_lambda=preset.gae_lambda,
        clip_range=preset.clip,
        ent_coef=preset.entropy,
        vf_coef=preset.value,
        policy_kwargs={"net_arch": list(preset.layers), **(policy_kwargs or {})},
        tensorboard_log=str(tensorboard) if tensorboard else None,
        seed=seed,
        device="cpu",
    )
    policy = cast(PlanningPolicy, ppo.policy)
    policy.plan_k = plan_k
    policy.query = lambda sites: np.stack([episodes.query(row) for row in sites])
    ppo.learn(steps, callback=_OnRollout(on_rollout))
    return ppo


class _OnRollout(BaseCallback):
    def __init__(self, call: Callable[[MaskablePPO], None]):
        super().__init__()
        self.call = call

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.call(cast(MaskablePPO, self.model))


def log_evaluation(
    ppo: MaskablePPO, cache: Cache, tasks: Sequence[str], picks: int, control_weight: float, task_signal: bool = True
) -> dict[str, float]:
    """The oracle ratio after 3 picks on each training task's evaluation episodes, also written to the logger.

    :param task_signal: whether the policy is given the one-hot of the tasks.
    """
    signals = tasks if task_signal else ()
    measured: dict[str, float] = {}
    for task in tasks:
        method = policy_search(ppo.policy, signals, task)
        evaluation = evaluate(cache, task, method, min(3, picks), control_weight=control_weight)
        if len(ratios := evaluation.ratios(3)):
            measured[task] = float(ratios.mean())
            ppo.logger.record(f"evaluation/ratio@3 {task}", measured[task])
    return measured
