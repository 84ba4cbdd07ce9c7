"""A policy that scores every head with the same weights, from what other tasks say of it and what the episode shows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution, make_masked_proba_distribution
from torch import nn

from mechrl.envs.kernel import SCORE_SCALE
from mechrl.search.ppo.training import PlanningPolicy
from mechrl.search.protocol import coverage_k
from mechrl.search.structure import HeadStructure

PER_HEAD, CONTEXT = 13, 5  # numbers that the network is given of a head, and of the episode
HEADS_AT_ONCE = 2**14  # of all rows; the numbers that a network of 32 has of so many fit a core's cache
NORMAL: Any = torch.distributions.Normal(0.0, 1.0)


class HeadsPolicy(PlanningPolicy):
    """One logit per head and one value, from weights that know neither how many heads nor how many tasks there are.

    A Gaussian over the heads' scores, with mean and covariance from other tasks, is conditioned on the scores seen; its
    expected improvement is the first guess of the logits. A network adds to it. It sees each head (layer, whether and
    with what score it was tried, hint, what other tasks say, what the Gaussian expects), and, pooled over all heads and
    over the tried ones, the episode. Permuting heads of a layer permutes the logits.

    :param structures: of the heads; see `use`.
    :param n_signals: length of the one-hot that the observation begins with.
    :param hints: whether the observation ends with hints.
    :param net_arch: one number, the width of the hidden layers.
    """

    scale: torch.Tensor  # float32 [structure]
    table: torch.Tensor  # float32 [structure, site, 4]: layer, mean, spread, best
    noise: torch.Tensor  # float32 [structure, site]
    loadings: torch.Tensor  # float32 [structure, task, site]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Any,
        *,
        structures: Sequence[HeadStructure],
        net_arch: Sequence[int],
        n_signals: int = 0,
        hints: bool = False,
        **others: Any,
    ):
        self.width, self.n_signals, self.hints = net_arch[0], n_signals, hints
        super().__init__(observation_space, action_space, lr_schedule, net_arch=list(net_arch), **others)
        self.use(structures)

    def use(self, structures: Sequence[HeadStructure]) -> None:
        """Search the heads of these structures, all of one model.

        The first one counts, unless the observation ends with the number of another, as in training.
        """
        most = max(len(s.loadings) for s in structures)

        def keep(name: str, rows: Sequence[Any]) -> None:
            self.register_buffer(name, torch.as_tensor(np.stack(rows), dtype=torch.float32))

        keep("scale", [s.scale for s in structures])
        keep("table", [np.stack([s.layer, s.mean, s.spread, s.best], 1) for s in structures])
        keep("noise", [s.noise for s in structures])
        keep("loadings", [np.pad(s.loadings, ((0, most - len(s.loadings)), (0, 0))) for s in structures])
        self.action_space = spaces.Discrete(self.noise.shape[1])
        self.action_dist = make_masked_proba_distribution(self.action_space)
        self.rows_at_once = max(1, HEADS_AT_ONCE // self.noise.shape[1])

    def _build(self, lr_schedule: Any) -> None:
        width, pooled = self.width, 3 * self.width + CONTEXT
        self.head, self.around_head = nn.Linear(PER_HEAD, width), nn.Linear(CONTEXT + self.n_signals, width)
        self.again, self.around_again = nn.Linear(width, width), nn.Linear(pooled, width)
        self.logit = nn.Linear(width, 1)
        self.value = nn.Sequential(nn.Linear(pooled, width), nn.Tanh(), nn.Linear(width, 1))
        self.trust = nn.Parameter(torch.tensor(2.0))  # in the expected improvement
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, 0.01 if layer is self.logit else 2**0.5)
                nn.init.zeros_(layer.bias)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def log_probs_and_values(self, obs: torch.Tensor, untried: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, values = self._logits_and_values(obs)
        return logits.masked_fill(~untried, -1e8).log_softmax(1), values

    def expect(
        self, tried: torch.Tensor, score: torch.Tensor, which: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of every head's squashed score given those of the tried heads, [episode, site].

        The conditional of a Gaussian (Rasmussen and Williams 2006, A.6), solved in the space of the training tasks,
        which is smaller than that of the heads.

        :param tried: float32 [episode, site], 1 or 0.
        :param score: float32 [episode, site], squashed, 0 where not tried.
        :param which: int64 [episode], the structure.
        """
        mean, noise, loadings = self.table[which, :, 1], self.noise[which], self.loadings[which]
        weighted = loadings * (tried / noise)[:, None]
        precision = torch.eye(loadings.shape[1]) + weighted @ loadings.mT
        seen = weighted @ ((score - mean) * tried)[:, :, None]
        solved = torch.linalg.solve(precision, torch.cat([seen, loadings], 2))
        expected = mean + (solved[:, :, :1] * loadings).sum(1)
        return expected, ((solved[:, :, 1:] * loadings).sum(1) + noise).sqrt()

    @torch.no_grad()
    def _features(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every head [episode, site, PER_HEAD], of the episode [episode, CONTEXT + signals]; improvements."""
        n = self.noise.shape[1]
        sizes = [self.n_signals, n, n, n if self.hints else 0]
        signals, tried, score, hint, rest = torch.split(obs, [*sizes, obs.shape[1] - sum(sizes)], 1)
        which = rest[:, 0].long() if rest.shape[1] else torch.zeros(len(obs), dtype=torch.int64)
        layer, mean, spread, best = self.table[which].unbind(2)
        score = torch.asinh(score * SCORE_SCALE / self.scale[which, None])
        expected, deviation = self.expect(tried, score, which)
        ranked = torch.where(tried > 0, score, 0).topk(coverage_k(n), 1).values.clamp(min=0)
        z = (expected - ranked[:, -1:]) / deviation
        # Expected improvement on the k-th best score so far (Jones, Schonlau and Welch 1998).
        improvement = deviation * (z * NORMAL.cdf(z) + NORMAL.log_prob(z).exp())
        surprise = (score - expected) / deviation * tried
        count = tried.sum(1, keepdim=True)
        heads = [
            layer, tried, score / 3, hint if self.hints else torch.zeros_like(layer), mean / 3, spread / 2, best / 3,
            expected / 3, deviation, improvement, z.clamp(-5, 5) / 2, expected - expected.amax(1, keepdim=True),
            surprise / 2,
        ]  # fmt: skip
        episode = [
            count / n, count.log1p() / 2, ranked[:, :1] / 3, ranked[:, -1:] / 3,
            surprise.abs().sum(1, keepdim=True) / (1 + count), signals,
        ]  # fmt: skip
        return torch.stack(heads, 2), torch.cat(episode, 1), improvement

    def _logits_and_values(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [episode, site] and [episode]."""
        heads, episode, improvement = self._features(obs)
        each = (self.head(heads) + self.around_head(episode)[:, None]).relu()
        tried = heads[:, :, 1:2]
        seen = each * tried
        pooled = [each.mean(1), seen.amax(1), seen.sum(1) / (1 + tried.sum(1)), episode[:, :CONTEXT]]
        state = torch.cat(pooled, 1)
        logits = self.logit((self.again(each) + self.around_again(state)[:, None]).relu())[:, :, 0]
        return logits + self.trust * (improvement + 0.01).log(), self.value(state)[:, 0]

    # What stable-baselines3 asks of a policy.

    def get_distribution(self, obs: Any, action_masks: Any = None) -> MaskableDistribution:
        distribution = self.action_dist.proba_distribution(action_logits=self._logits_and_values(obs)[0])
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def predict_values(self, obs: Any) -> torch.Tensor:
        return self._logits_and_values(obs)[1][:, None]

    def evaluate_actions(
        self, obs: torch.Tensor, actions: torch.Tensor, action_masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distribution = self.get_distribution(obs, action_masks)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()  # type: ignore[return-value]


def make_heads_policy(structure: HeadStructure, width: int, n_signals: int = 0, hints: bool = False) -> HeadsPolicy:
    """An untrained policy for the heads of this structure."""
    n_sites = len(structure.layer)
    return HeadsPolicy(
        spaces.Box(-np.inf, np.inf, (n_signals + (3 if hints else 2) * n_sites,), np.float32),
        spaces.Discrete(n_sites),
        lambda _: 0.0,
        structures=[structure],
        net_arch=[width],
        n_signals=n_signals,
        hints=hints,
    )
