"""Ablating heads: what replaces them, the fast sweep over all of them, and the slow reference."""

from mechrl.ablation.kinds import Ablation

MEASURES = ("logit_diff", "logprob", "kl", "top1", "prob_diff")  # each is defined in `ablation.measures.measure`

__all__ = ["MEASURES", "Ablation"]
