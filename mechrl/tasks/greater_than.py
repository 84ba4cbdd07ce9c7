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
CENTURIES = ("12", "13", "14", "15", "16", "17")
YEARS = tuple((century, f"{year:02}") for century in CENTURIES for year in range(1, 100))
STARTS = tuple(year for year in YEARS if "05" <= year[1] <= "95")
DIGITS = "0123456789"
DECADES = tuple((century, decade) for century in CENTURIES for decade in DIGITS[1:-1])  # some are above, some below


def year_fits(vocabulary: Vocabulary, year: tuple[str, str]) -> bool:
    """Whether the tokenizer takes a year as its century and two digits, one token each."""
    century = vocabulary.encode(f"x {year[0]}")
    whole = vocabulary.encode(f"x {year[0]}{year[1]}")
    return len(whole) == len(vocabulary.encode("x")) + 2 and whole[:-1] == century


def decade_fits(vocabulary: Vocabulary, decade: tuple[str, str]) -> bool:
    """Whether the tokenizer writes the years of a century's decade, and whatever decade follows, digit by digit."""

    def digits_apart(text: str) -> bool:
        ids = vocabulary.encode(text)
        return all(vocabulary.encode(text + digit)[:-1] == ids for digit in DIGITS)

    return all(digits_apart(f"x {decade[0]}{tens}") for tens in ("", "0", decade[1]))


def draw_greater_than(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """The last two digits of a year that comes after another one; all that are not greater are wrong.

    In the twin the first year is the earliest of its century. GPT-2 small does it. This form is for a tokenizer that
    takes a year in two halves, as GPT-2's does.
    """
    event = pools["event"][rng.randint(len(pools["event"]))]
    century, start = pools["start"][rng.randint(len(pools["start"]))]
    years = [year for of, year in pools["year"] if of == century]
    text, twin = (
        f"The {event} lasted from the year {century}{year} to the year {century}" for year in (start, years[0])
    )
    later, not_later = ([year for year in years if (year > start) == right] for right in (True, False))
    return Example(text, later, not_later, (century, start), twin)


def draw_decade(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """The decade, one digit, of a year that comes after another one; the digits below the other's decade are wrong.

    That decade's own digit is neither. In the twin the first year is of the first decade of its century, so that the
    wrongs, but for 0, are right too. This form is for a tokenizer that takes numbers digit by digit, as those of Llama,
    Gemma and Mistral do.
    """
    event = pools["event"][rng.randint(len(pools["event"]))]
    century, decade = pools["decade"][rng.randint(len(pools["decade"]))]
    unit = DIGITS[rng.randint(len(DIGITS))]
    text, twin = (
        f"The {event} lasted from the year {century}{tens}{unit} to the year {century}" for tens in (decade, "0")
    )
    later, earlier = DIGITS[int(decade) + 1 :], DIGITS[: int(decade)]
    return Example(text, list(later), list(earlier), (century, decade), twin)


by_decade = Task(
    "greater_than",
    "number and order",
    "Hanna et al. 2023, arXiv 2305.00586; there the years are two tokens",
    {
        "event": Pool(EVENTS, least=4),
        "decade": Pool(DECADES, least=24, fits=decade_fits, must="written digit by digit"),
    },
    draw_decade,
    version=2,
)

greater_than = Task(
    "greater_than",
    "number and order",
    "Hanna et al. 2023, arXiv 2305.00586",
    {
        "event": Pool(EVENTS, least=4),
        "start": Pool(STARTS, least=100, fits=year_fits, must="a century and two digits, one token each,"),
        "year": Pool(YEARS, least=120, shared=True, fits=year_fits, must="a century and two digits, one token each,"),
    },
    draw_greater_than,
    other_form=by_decade,
)
