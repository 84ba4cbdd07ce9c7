"""Greater-than: what lasts ends after it began."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task
from mechrl.vocabulary import Vocabulary

EVENTS = (
    "war", "battle", "siege", "reign", "empire", "kingdom", "dynasty", "revolution", "rebellion", "voyage", "journey",
    "project", "friendship", "marriage", "conflict", "campaign", "struggle", "debate", "expansion", "exile",
)  # fmt: skip
YEARS = tuple((str(century), f"{year:02}") for century in range(12, 18) for year in range(1, 100))
STARTS = tuple(year for year in YEARS if "05" <= year[1] <= "95")


def year_fits(vocabulary: Vocabulary, year: tuple[str, str]) -> bool:
    """Whether the tokenizer takes a year as its century and two digits, one token each."""
    century = vocabulary.encode(f"x {year[0]}")
    whole = vocabulary.encode(f"x {year[0]}{year[1]}")
    return len(whole) == len(vocabulary.encode("x")) + 2 and whole[:-1] == century


def draw_greater_than(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """The last two digits of a year that comes after another one; all that are not greater are wrong.

    In the twin the first year is the earliest of its century. GPT-2 small does it. Needs a tokenizer that takes a year
    in two halves, as GPT-2's does and those that take digits one by one do not.
    """
    event = pools["event"][rng.randint(len(pools["event"]))]
    century, start = pools["start"][rng.randint(len(pools["start"]))]
    years = [year for of, year in pools["year"] if of == century]
    text, twin = (
        f"The {event} lasted from the year {century}{year} to the year {century}" for year in (start, years[0])
    )
    later, not_later = ([year for year in years if (year > start) == right] for right in (True, False))
    return Example(text, later, not_later, (century, start), twin)


greater_than = Task(
    "greater_than",
    "number and order",
    "Hanna et al. 2023, arXiv 2305.00586",
    {
        "event": Pool(EVENTS, least=4),
        "start": Pool(STARTS, least=100, fits=year_fits),
        "year": Pool(YEARS, least=120, shared=True, fits=year_fits),
    },
    draw_greater_than,
)
