"""Induction: a pair of random tokens seen once, then its first token again."""

from collections.abc import Mapping, Sequence

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task

FILLERS = 57


def draw_induction(rng: RandomState, pools: Mapping[str, Sequence]) -> Example:
    """BOS A B, 57 random fillers, A → B; the wrong is a random token that is not in the prompt."""
    a, b, wrong, *fillers = (pools["token"][i] for i in rng.permutation(len(pools["token"]))[: FILLERS + 3])
    return Example([a, b, *fillers, a], [b], [wrong], (a, b))


def draw_induction_matched(rng: RandomState, pools: Mapping[str, Sequence]) -> Example:
    """A B anywhere before the end, then A → B; the wrong is the successor of another token of the prompt.

    The plain task can be solved by position (B is always the second token) and by copying anything at all (the wrong
    never occurs). Here both shortcuts are worth nothing.
    """
    tokens = [pools["token"][i] for i in rng.permutation(len(pools["token"]))[: FILLERS + 2]]
    at, other = rng.permutation(len(tokens) - 1)[:2]
    return Example([*tokens, tokens[at]], [tokens[at + 1]], [tokens[other + 1]], (tokens[at], tokens[at + 1]))


POOLS = {"token": Pool(None, least=2 * (FILLERS + 3))}

induction = Task(
    "induction", "Olsson et al. 2022, arXiv 2209.11895; the form of arXiv 2605.26343", POOLS, draw_induction
)
induction_matched = Task("induction_matched", "Olsson et al. 2022, arXiv 2209.11895", POOLS, draw_induction_matched)
