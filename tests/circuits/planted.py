"""Circuits planted by hand: what a model says is a formula of which heads are kept, so the smallest set is known."""

from collections.abc import Callable

import numpy as np
import torch

from mechrl.circuits.search import Numbers, objective

ANSWER, WRONG, DISTRACTOR, VOCABULARY = 0, 1, 2, 8
FULL = 6.0  # nats, the logit of the answer when nothing is ablated

Gates = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From how much of each head is kept, [site]: the share of the answer's logit, and the logit of a token that is neither
answer nor wrong, but may be the most probable."""


class Planted:
    """Some prompts of a model that is a formula: a subject of search and of judgement.

    Every head also adds a little of its own to the answer, on each prompt another amount; the sum is small.
    """

    def __init__(self, gates: Gates, n_sites: int, n_prompts: int, seed: int):
        rng = np.random.default_rng(seed)
        self.n_sites, self.n_prompts = n_sites, n_prompts
        self.gates = gates
        small = 0.3 * rng.normal(size=n_sites) / n_sites**0.5
        self.own = torch.tensor(small + 0.1 * rng.normal(size=(n_prompts, n_sites)) / n_sites**0.5)
        self.strength = torch.tensor(FULL * (1 + 0.05 * rng.normal(size=n_prompts)))
        self.groups = np.arange(n_prompts)
        self.intact = self._logits(torch.ones(n_sites, dtype=torch.float64)).log_softmax(-1)

    def _logits(self, mask: torch.Tensor) -> torch.Tensor:
        """[prompt, token]"""
        share, distractor = self.gates(mask)
        logits = torch.zeros(self.n_prompts, VOCABULARY, dtype=torch.float64)
        logits[:, ANSWER] = self.strength * share + self.own @ mask
        logits[:, DISTRACTOR] = distractor
        return logits

    def _measure(self, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self._logits(mask)
        logprobs = logits.log_softmax(-1)
        return {
            "logit_diff": logits[:, ANSWER] - logits[:, WRONG],
            "kl": (self.intact.exp() * (self.intact - logprobs)).sum(-1),
            "top1_margin": top1_margin(logits, self.intact.argmax(-1)),
        }

    def measure(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        each = [self._measure(torch.tensor(row, dtype=torch.float64)) for row in kept]
        return {name: np.stack([of[name].numpy() for of in each], 1) for name in each[0]}

    def gradient(self, mask: np.ndarray, numbers: Numbers) -> np.ndarray:
        at = torch.tensor(mask, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(objective(self._measure(at), numbers, smooth=True), at)[0].numpy()


def top1_margin(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How far the logit of a token, [prompt], lies above the highest other one."""
    at = torch.nn.functional.one_hot(tokens, logits.shape[-1]).bool()
    return logits[at] - logits.masked_fill(at, -torch.inf).amax(-1)


def all_needed(circuit: np.ndarray) -> Gates:
    """Each head of the circuit that goes takes three fifths of the answer's logit with it."""
    return lambda mask: ((1 - 0.6 * (1 - mask[circuit])).prod(), torch.tensor(1.0))


def either_of_the_last_two(circuit: np.ndarray) -> Gates:
    """As `all_needed`, but the last two heads do the same: one of them is enough."""

    def gates(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = mask[circuit[-2:]]
        done = torch.cat([mask[circuit[:-2]], (1 - (1 - first) * (1 - second))[None]])
        return (1 - 0.6 * (1 - done)).prod(), torch.tensor(1.0)

    return gates


def behaviour_needs_all(circuit: np.ndarray) -> Gates:
    """The logit difference needs the circuit alone; but without a few of the others another token comes first."""

    def gates(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gone = (1 - mask).mean()
        return (1 - 0.6 * (1 - mask[circuit])).prod(), 10 * (1 - (-20 * gone).exp())

    return gates


def with_decoys(circuit: np.ndarray) -> Gates:
    """The first five are needed, the fifth for a quarter; the last three help a little while something is missing."""

    def gates(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        strong, weak, decoys = mask[circuit[:4]], mask[circuit[4]], mask[circuit[5:]]
        done = (1 - 0.6 * (1 - strong)).prod() * (1 - 0.25 * (1 - weak))
        return done + (1 - done) * 0.15 * decoys.sum(), torch.tensor(1.0)

    return gates


def with_an_opponent(circuit: np.ndarray) -> Gates:
    """The last head works against the answer: without it half as much again is said as by the intact model."""

    def gates(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1.5 * (1 - 0.6 * (1 - mask[circuit[:-1]])).prod() - 0.5 * mask[circuit[-1]], torch.tensor(1.0)

    return gates


def planted(
    kind: Callable[[np.ndarray], Gates], size: int, n_sites: int, seed: int
) -> tuple[list[Planted], np.ndarray]:
    """Three subjects of one planted circuit (to search on, to check on, to judge on), and the heads of the circuit."""
    circuit = np.random.default_rng(seed).choice(n_sites, size, replace=False)
    gates = kind(circuit)
    return [Planted(gates, n_sites, n, seed + 1000 * i) for i, n in enumerate((32, 32, 96))], circuit
