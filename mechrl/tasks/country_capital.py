"""Country–capital: a fact that the model must know."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task
from mechrl.tasks.ioi import NAMES, PLACES

CAPITALS = (
    ("France", "Paris"), ("Italy", "Rome"), ("Germany", "Berlin"), ("Spain", "Madrid"), ("Japan", "Tokyo"),
    ("China", "Beijing"), ("Russia", "Moscow"), ("England", "London"), ("Greece", "Athens"), ("Egypt", "Cairo"),
    ("Iran", "Tehran"), ("Iraq", "Baghdad"), ("Syria", "Damascus"), ("Turkey", "Ankara"), ("Ireland", "Dublin"),
    ("Austria", "Vienna"), ("Poland", "Warsaw"), ("Hungary", "Budapest"), ("Cuba", "Havana"), ("Sweden", "Stockholm"),
    ("Norway", "Oslo"), ("Canada", "Ottawa"), ("Portugal", "Lisbon"), ("Lebanon", "Beirut"), ("Thailand", "Bangkok"),
    ("Pakistan", "Islamabad"), ("Afghanistan", "Kabul"), ("Belgium", "Brussels"), ("Denmark", "Copenhagen"),
    ("Finland", "Helsinki"), ("Libya", "Tripoli"), ("Scotland", "Edinburgh"), ("Wales", "Cardiff"), ("Peru", "Lima"),
    ("Indonesia", "Jakarta"), ("Jamaica", "Kingston"),
)  # fmt: skip
SAID = ("said", "knew", "wrote", "heard")


def draw_country_capital(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """The capital of a country; the wrong is that of another.

    In the twin the other country is named, so that the wrong is right. GPT-2 small knows most of them, though London
    and Paris come to its mind for others too.
    """
    (country, capital), (other, wrong) = (pools["country"][i] for i in rng.permutation(len(pools["country"]))[:2])
    name = pools["name"][rng.randint(len(pools["name"]))]
    place = pools["place"][rng.randint(len(pools["place"]))]
    said = SAID[rng.randint(len(SAID))]
    text, twin = (f"{name} {said} at the {place} that the capital of {land} is" for land in (country, other))
    return Example(text, [f" {capital}"], [f" {wrong}"], country, twin)


country_capital = Task(
    "country_capital",
    "recall and code",
    "Todd et al. 2023, arXiv 2310.15213; Merullo et al. 2023, arXiv 2305.16130",
    {"country": Pool(CAPITALS, least=8), "name": Pool(NAMES, least=4), "place": Pool(PLACES, least=4)},
    draw_country_capital,
)
