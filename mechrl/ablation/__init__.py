"""Ablating heads: what replaces them, the fast sweep, the slow reference, an estimate by gradients."""

from mechrl.ablation.replacement import Ablation

MEASURES = ("logit_diff", "logprob", "kl", "top1", "prob_diff")  # each is defined in `ablation.measures.measure`
# What an intact head looks like on a prompt; each is defined in `ablation.attribution.head_features`.
FEATURES = ("attention_entropy", "previous_token", "bos_attention", "output_norm")
# What interpreters look for first in a head; each is defined in `ablation.roles.measure_roles`.
ROLES = ("previous_token", "duplicate_token", "induction", "bos_attention", "copying")

__all__ = ["FEATURES", "MEASURES", "ROLES", "Ablation"]
