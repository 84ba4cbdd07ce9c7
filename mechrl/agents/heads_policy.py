"""A policy that scores every head with the same weights, from what other tasks say of it and what this episode shows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution, make_masked_proba_distribution
from torch import nn

from mechrl.agents.ppo import PlanningPolicy
from mechrl.agents.protocol import coverage_k
from mechrl.agents.structure import HeadStructure
from mechrl.envs.kernel import SCORE_SCALE

PER_HEAD, CONTEXT = 13, 5  # features of a head, and of the episode


class HeadsPolicy(PlanningPolicy):
    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Any,
        *,
        structures: Sequence[HeadStructure],
        n_signals: int = 0,
        hints: bool = False,
        net_arch: Sequence[int] = (32,),
        knobs: dict | None = None,
        **kwargs: Any,
    ):
        self.n_sites, self.n_signals, self.hints = int(action_space.n), n_signals, hints
        self.knobs = dict(prior=1.0, kappa=0.5, useless=()) | (knobs or {})
        super().__init__(observation_space, action_space, lr_schedule, net_arch=list(net_arch), **kwargs)
        self.use(structures)

    def use(self, structures: Sequence[HeadStructure]) -> None:
        """Search the heads of these structures: the first where nothing is said, else the one that is named by the
        last number of the observation."""
        most = max(len(s.loadings) for s in structures)

        def stacked(rows) -> torch.Tensor:
            return torch.as_tensor(np.stack(list(rows)), dtype=torch.float32)

        self.register_buffer("scale", stacked(np.array(s.scale) for s in structures))
        self.register_buffer("table", stacked(np.stack([s.layer, s.mean, s.spread, s.best], 1) for s in structures))
        self.register_buffer("noise", stacked(s.noise for s in structures))
        loadings = [np.pad(s.loadings, ((0, most - len(s.loadings)), (0, 0))) for s in structures]
        self.register_buffer("loadings", stacked(loadings))
        self.n_sites = self.noise.shape[1]
        self.action_space = spaces.Discrete(self.n_sites)
        self.action_dist = make_masked_proba_distribution(self.action_space)

    def _build(self, lr_schedule: Any) -> None:
        width = self.net_arch[0]
        self.head, self.around_head = nn.Linear(PER_HEAD, width), nn.Linear(CONTEXT + self.n_signals, width)
        self.again, self.around_again = nn.Linear(width, width), nn.Linear(3 * width + CONTEXT, width)
        self.logit = nn.Linear(width, 1)
        self.value = nn.Sequential(nn.Linear(3 * width + CONTEXT, width), nn.Tanh(), nn.Linear(width, 1))
        self.trust = nn.Parameter(torch.tensor([float(self.knobs["prior"]), float(self.knobs["kappa"])]))
        small = {self.logit: 0.01, self.value[2]: 1.0}
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, small.get(layer, 2**0.5))
                nn.init.zeros_(layer.bias)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def expect(
        self, tried: torch.Tensor, score: torch.Tensor, which: torch.Tensor | int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of every head's squashed score given those of the tried heads, [episode, site].

        The conditional of a Gaussian (Rasmussen and Williams 2006, A.6), solved in the space of the training tasks,
        which is smaller than that of the heads.
        """
        mean, noise, loadings = self.table[which, :, 1], self.noise[which], self.loadings[which]
        weighted = loadings * (tried / noise)[:, None]
        precision = torch.eye(loadings.shape[-2]) + weighted @ loadings.mT
        seen = weighted @ ((score - mean) * tried)[:, :, None]
        solved = torch.linalg.solve(precision, torch.cat([seen, loadings.expand(len(seen), -1, -1)], 2))
        expected = mean + (solved[:, :, :1] * loadings).sum(1)
        return expected, ((solved[:, :, 1:] * loadings).sum(1) + noise).sqrt()

    @torch.no_grad()
    def _look(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of every head, [episode, site, PER_HEAD], and of the episode, [episode, CONTEXT + signals]."""
        n = self.n_sites
        sizes = [self.n_signals, n, n, n if self.hints else 0]
        signals, tried, score, hint, fold = obs.split([*sizes, obs.shape[1] - sum(sizes)], 1)
        which = fold[:, 0].long() if fold.shape[1] else torch.zeros(len(obs), dtype=torch.long)
        score = torch.asinh(score * SCORE_SCALE / self.scale[which, None])
        layer, mean, spread, best = self.table[which].unbind(2)
        expected, deviation = self.expect(tried, score, which)
        k = coverage_k(n)
        ranked = torch.where(tried > 0, score, -5.0).topk(k, 1).values
        goal = ranked[:, -1:].clamp(min=0)
        z = (expected - goal) / deviation
        normal = torch.distributions.Normal(0.0, 1.0)
        gain = deviation * (z * normal.cdf(z) + normal.log_prob(z).exp())
        surprise = ((score - expected) / deviation * tried)
        count = tried.sum(1, keepdim=True)
        context = torch.cat([
            count / n, torch.log1p(count) / 2, ranked[:, :1].clamp(min=0) / 3, goal / 3,
            surprise.abs().sum(1, keepdim=True) / (1 + count),
        ], 1)  # fmt: skip
        heads = torch.stack([
            layer, tried, score * tried / 3, hint if self.hints else torch.zeros_like(layer), mean / 3, spread / 2,
            best / 3, expected / 3, deviation, gain, z.clamp(-5, 5) / 2, expected - expected.amax(1, keepdim=True), surprise / 2,
        ], 2)  # fmt: skip
        for i in self.knobs["useless"]:
            heads[:, :, i] = 0
        return heads, torch.cat([context, signals], 1)

    def _score(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [episode, site] and values [episode]."""
        heads, context = self._look(obs)
        one = torch.relu(self.head(heads) + self.around_head(context)[:, None])
        tried = heads[:, :, 1:2]
        seen = one * tried
        state = torch.cat([one.mean(1), seen.amax(1), seen.sum(1) / (1 + tried.sum(1)), context[:, :CONTEXT]], 1)
        two = torch.relu(self.again(one) + self.around_again(state)[:, None])
        if self.knobs.get("acq") == "ei":
            prior = 2 * self.trust[0] * torch.log(heads[:, :, 9] + 0.01)
        else:
            prior = self.trust[0] * (3 * heads[:, :, 7] + self.trust[1] * heads[:, :, 8])
        return self.logit(two)[:, :, 0] + prior, self.value(state)[:, 0]

    def log_probs_and_values(self, obs: torch.Tensor, untried: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, values = self._score(obs)
        return logits.masked_fill(~untried, -1e8).log_softmax(1), values

    def get_distribution(self, obs: Any, action_masks: Any = None) -> MaskableDistribution:
        distribution = self.action_dist.proba_distribution(action_logits=self._score(obs)[0])
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def predict_values(self, obs: Any) -> torch.Tensor:
        return self._score(obs)[1][:, None]

    def evaluate_actions(self, obs: torch.Tensor, actions: torch.Tensor, action_masks: Any = None) -> Any:
        logits, values = self._score(obs)
        distribution = self.action_dist.proba_distribution(action_logits=logits)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return values[:, None], distribution.log_prob(actions), distribution.entropy()


def make_heads_policy(structure: HeadStructure, width: int, n_signals: int = 0, hints: bool = False) -> HeadsPolicy:
    """An untrained policy for the heads of this structure."""
    n_sites = len(structure.layer)
    return HeadsPolicy(
        spaces.Box(-np.inf, np.inf, (n_signals + (3 if hints else 2) * n_sites,), np.float32),
        spaces.Discrete(n_sites),
        lambda _: 0.0,
        structures=[structure],
        n_signals=n_signals,
        hints=hints,
        net_arch=[width],
    )
