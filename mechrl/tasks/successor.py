"""Successor: the next day, month or number."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task
from mechrl.tasks.ioi import NAMES, PLACES

DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
MONTHS = tuple("January February March April May June July August September October November December".split())
NUMBERS = tuple("one two three four five six seven eight nine ten eleven twelve".split())
SPEAKING = ("said", "wrote", "read", "heard")


def runs(series: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every four members of a series in a row; after the last comes the first again."""
    return tuple(tuple(series[(i + k) % len(series)] for k in range(4)) for i in range(len(series)))


def draw_successor(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """What comes after three days, months or numbers in a row; the wrong is what comes after three others.

    In the twin those others are listed, so that the wrong is right. Pythia and larger models do it; GPT-2 small
    continues lists like these and hardly knows the successor of a single word.
    """
    series = ("day", "month", "number")[rng.randint(3)]
    name = pools["name"][rng.randint(len(pools["name"]))]
    place = pools["place"][rng.randint(len(pools["place"]))]
    run, other = (pools[series][i] for i in rng.permutation(len(pools[series]))[:2])
    spoke = SPEAKING[rng.randint(len(SPEAKING))]
    text, twin = (f"At the {place} {name} {spoke}: {', '.join(listed[:3])}," for listed in (run, other))
    return Example(text, [f" {run[3]}"], [f" {other[3]}"], run, twin)


successor = Task(
    "successor",
    "number and order",
    "Gould et al. 2023, arXiv 2312.09230",
    {
        "day": Pool(runs(DAYS), least=4),
        "month": Pool(runs(MONTHS), least=4),
        "number": Pool(runs(NUMBERS)[:9], least=4),
        "name": Pool(NAMES, least=4),
        "place": Pool(PLACES, least=4),
    },
    draw_successor,
)
