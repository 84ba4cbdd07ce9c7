"""Subject–verb agreement: the verb goes with its subject, whatever noun stands between."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task

NOUNS = tuple(
    (noun, f"{noun}s")
    for noun in (
        "key cabinet book table author doctor teacher senator lawyer farmer window picture building car house tree "
        "bird horse dog cat boy girl king ship letter door student worker friend chair bridge road flower soldier "
        "artist singer writer player driver officer"
    ).split()
)
BETWEEN = ("near", "behind", "beside", "with", "above", "under")
SINGULAR, PLURAL = (" is", " was", " has"), (" are", " were", " have")


def draw_subject_verb_agreement(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """The number of the verb, after a subject and another noun; wrong are the verbs of the other number.

    In the twin the subject has the other number. GPT-2 small does it.
    """
    subject, other = (pools["noun"][i] for i in rng.permutation(len(pools["noun"]))[:2])
    number, between = rng.randint(2), BETWEEN[rng.randint(len(BETWEEN))]
    attractor = other[rng.randint(2)]
    text, twin = (f"The {subject[n]} {between} the {attractor}" for n in (number, 1 - number))
    verbs = (SINGULAR, PLURAL)
    return Example(text, verbs[number], verbs[1 - number], subject, twin)


subject_verb_agreement = Task(
    "subject_verb_agreement",
    "agreement and syntax",
    "Linzen et al. 2016, arXiv 1611.01368; Finlayson et al. 2021, arXiv 2106.06087",
    {"noun": Pool(NOUNS, least=8)},
    draw_subject_verb_agreement,
)
