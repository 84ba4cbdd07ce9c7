"""Induction: a pair of random tokens seen once, then its first token again."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task

FILLERS = 57


def draw_induction(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """A pair of random tokens, 57 others, its first token again; the wrong is a random token that is not there.

    In the twin the pair has another first token, so that nothing was seen to follow the last one. Every model with
    induction heads does it; GPT-2 small does.
    """
    a, b, wrong, *fillers, other = (pools["token"][i] for i in rng.permutation(len(pools["token"]))[: FILLERS + 4])
    return Example([a, b, *fillers, a], [b], [wrong], (a, b), [other, b, *fillers, a])


def draw_induction_matched(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """A pair anywhere before the end, its first token again; the wrong is what follows another token of the prompt.

    The plain task can be solved by position (B is always the second token) and by copying anything at all (the wrong
    never occurs). Here both shortcuts are worth nothing. The twin ends in that other token, so that the wrong is
    right. Every model with induction heads does it; GPT-2 small does.
    """
    tokens = [pools["token"][i] for i in rng.permutation(len(pools["token"]))[: FILLERS + 2]]
    at, other = rng.permutation(len(tokens) - 1)[:2]
    pair = tokens[at], tokens[at + 1]
    return Example([*tokens, tokens[at]], [pair[1]], [tokens[other + 1]], pair, [*tokens, tokens[other]])


POOLS = {"token": Pool(None, least=2 * (FILLERS + 4))}

induction = Task(
    "induction", "copying", "Olsson et al. 2022, arXiv 2209.11895; the form of arXiv 2605.26343", POOLS, draw_induction
)
induction_matched = Task(
    "induction_matched", "copying", "Olsson et al. 2022, arXiv 2209.11895", POOLS, draw_induction_matched
)
