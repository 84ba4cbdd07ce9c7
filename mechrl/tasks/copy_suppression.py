"""Copy suppression: what was named already is not named again."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task
from mechrl.tasks.ioi import NAMES
from mechrl.tasks.prose import ANIMALS

NAMED, FEW = 5, 4  # animals


def draw_copy_suppression(rng: RandomState, pools: Mapping[str, Sequence[Any]], n: int = NAMED) -> Example:
    """A list of five animals goes on: five that are not in it are right, and those in it are wrong.

    In the twin it is the other way round. Known of GPT-2 small, whose head 10.7 lowers the logits of what attention
    finds earlier in the text.
    """
    animals = [pools["animal"][i] for i in rng.permutation(len(pools["animal"]))[: 2 * n]]
    named, others = animals[:n], animals[n:]
    name = pools["name"][rng.randint(len(pools["name"]))]
    text, twin = (f"{name} saw {', '.join(f'the {a}' for a in listed)} and the" for listed in (named, others))
    answers, wrongs = ([f" {animal}" for animal in listed] for listed in (others, named))
    return Example(text, answers, wrongs, frozenset(named), twin)


def draw_few(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """The same with four animals. This form is for a tokenizer that splits half of the animals into several tokens."""
    return draw_copy_suppression(rng, pools, FEW)


SOURCE = "McDougall et al. 2023, arXiv 2310.04625"
of_few = Task(
    "copy_suppression",
    "copying",
    SOURCE,
    {
        "name": Pool(NAMES, least=4),
        "animal": Pool(ANIMALS, least=4 * FEW),
    },
    draw_few,
    version=2,
)

copy_suppression = Task(
    "copy_suppression",
    "copying",
    SOURCE,
    {
        "name": Pool(NAMES, least=4),
        "animal": Pool(ANIMALS, least=4 * NAMED),
    },
    draw_copy_suppression,
    other_form=of_few,
)
