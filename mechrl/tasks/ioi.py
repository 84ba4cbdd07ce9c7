"""Indirect object identification: who was given something, when one of two people gave it."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task

NAMES = (
    "Mary", "John", "Tom", "James", "Sarah", "Michael", "Robert", "Laura", "David", "Amy", "Kevin", "Rachel", "Richard",
    "Susan", "Simon", "Kate", "Charles", "Alice", "Daniel", "Lisa", "Anna", "Mark", "Paul", "Emily", "Andrew", "Jane",
)  # fmt: skip
OBJECTS = (
    "ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack", "book", "letter", "ball", "guitar",
    "hat", "ticket", "flower",
)  # fmt: skip
PLACES = (
    "store", "garden", "restaurant", "school", "hospital", "office", "house", "station", "park", "market", "library",
    "beach",
)  # fmt: skip
TEMPLATES = (
    "When {first} and {second} went to the {place}, {subject} gave a {object} to",
    "Then, {first} and {second} met at the {place}, and {subject} handed the {object} to",
    "After {first} and {second} walked to the {place}, {subject} offered a {object} to",
    "While {first} and {second} were waiting in the {place}, {subject} passed the {object} to",
)


def draw_ioi(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """Two people, one of whom gives something: to whom? The wrong is the giver.

    In the twin the other one gives, so that the wrong is right. GPT-2 small does it.
    """
    first, second = (pools["name"][i] for i in rng.permutation(len(pools["name"]))[:2])
    subject, receiver = (first, second) if rng.randint(2) else (second, first)
    template = TEMPLATES[rng.randint(len(TEMPLATES))]
    fillers = {
        "first": first,
        "second": second,
        "place": pools["place"][rng.randint(len(pools["place"]))],
        "object": pools["object"][rng.randint(len(pools["object"]))],
    }
    text, twin = (template.format(subject=name, **fillers) for name in (subject, receiver))
    return Example(text, [f" {receiver}"], [f" {subject}"], frozenset((first, second)), twin)


ioi = Task(
    "ioi",
    "names and pronouns",
    "Wang et al. 2022, arXiv 2211.00593",
    {"name": Pool(NAMES, least=4), "object": Pool(OBJECTS, least=4), "place": Pool(PLACES, least=4)},
    draw_ioi,
)
