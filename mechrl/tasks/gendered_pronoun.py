"""Gendered pronoun: he or she, by the name."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task
from mechrl.tasks.prose import COLLEAGUES, QUALITIES

WOMEN = (
    "Mary", "Sarah", "Laura", "Amy", "Rachel", "Susan", "Kate", "Alice", "Lisa", "Anna", "Emily", "Jane", "Jessica",
    "Elizabeth", "Jennifer", "Emma", "Karen", "Nancy", "Helen", "Julia",
)  # fmt: skip
MEN = (
    "John", "Tom", "James", "Michael", "Robert", "David", "Kevin", "Richard", "Simon", "Charles", "Daniel", "Mark",
    "Paul", "Andrew", "William", "Thomas", "George", "Peter", "Joseph", "Henry",
)  # fmt: skip
NEUTRAL = tuple(word for word in COLLEAGUES if word not in ("king", "queen", "prince", "miller"))


def draw_gendered_pronoun(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """The pronoun of a tag question about somebody with a woman's or a man's name; the wrong is the other pronoun.

    In the twin the name is of the other gender. GPT-2 small does it.
    """
    woman, man, quality, colleague = (
        pools[slot][rng.randint(len(pools[slot]))] for slot in ("woman", "man", "quality", "colleague")
    )
    sides = [(woman, " she"), (man, " he")]
    if rng.randint(2):
        sides.reverse()
    (name, answer), (other, wrong) = sides
    text, twin = (f"So {person} is such a {quality} {colleague}, isn't" for person in (name, other))
    return Example(text, [answer], [wrong], name, twin)


gendered_pronoun = Task(
    "gendered_pronoun",
    "names and pronouns",
    "Mathwin et al. 2023, Identifying a preliminary circuit for predicting gendered pronouns in GPT-2 small",
    {
        "woman": Pool(WOMEN, least=6),
        "man": Pool(MEN, least=6),
        "quality": Pool(QUALITIES, least=10),
        "colleague": Pool(NEUTRAL, least=10),
    },
    draw_gendered_pronoun,
)
