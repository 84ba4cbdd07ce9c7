"""Bracket closing: each bracket is closed by its own kind."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task
from mechrl.tasks.docstring import PARAMETERS

BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))


def draw_bracket_closing(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """The bracket that closes a list of three names in code; the wrong is one of another kind.

    In the twin the list was opened by that other kind. GPT-2 small does it.
    """
    target, *listed = (pools["name"][i] for i in rng.permutation(len(pools["name"]))[:4])
    right, other = (pools["bracket"][i] for i in rng.permutation(len(pools["bracket"]))[:2])
    text, twin = (f"{target} = {opening} {', '.join(listed)}" for opening, _ in (right, other))
    return Example(text, [f" {right[1]}"], [f" {other[1]}"], (right, *listed), twin)


bracket_closing = Task(
    "bracket_closing",
    "agreement and syntax",
    "Karpathy et al. 2015, arXiv 1506.02078, which found such cells in recurrent networks",
    {"name": Pool(PARAMETERS, least=12), "bracket": Pool(BRACKETS, least=2, shared=True)},
    draw_bracket_closing,
)
