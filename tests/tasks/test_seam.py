"""What meets between a prompt and its answer: refused where nobody would write it, and the right spelling named."""

import re

import numpy as np
import pytest

from mechrl.cache.check import near_impossible
from mechrl.tasks.seam import line_end, other_spelling, seam_problem

TO = "John gave a drink to"


@pytest.mark.parametrize(
    ("prompt", "word", "message"),
    [
        (TO, "Mary", "no space between the prompt's last letter 'o' and 'Mary': write \" Mary\""),
        (TO, "mary", 'write " mary"'),
        ("Он дал", "ей", 'write " ей"'),
        ("उसने", "दिया", 'write " दिया"'),  # ends in a mark, not a letter
        ("그는", "말했다", 'write " 말했다"'),
        (f"{TO} ", " Mary", 'the prompt ends in a space; the space belongs to the answer: write "prompt": "John'),
        (f"{TO} ", "Mary", 'and " Mary"'),
        (f"{TO}\N{NO-BREAK SPACE}", "Mary", r"a no-break space \(U\+00A0\)"),
        (f"{TO}\N{IDEOGRAPHIC SPACE}", "Mary", r"an? ideographic space \(U\+3000\)"),
        (f"{TO}\n", " Mary", "ends in a newline and ' Mary' begins with a space: write \"Mary\""),
        (f"{TO}\t", " Mary", "ends in a tab"),
        (f"{TO}\N{ZERO WIDTH SPACE}", "Mary", r"a zero width space \(U\+200B\), which nobody sees"),
        (f"{TO}\N{SOFT HYPHEN}", "Mary", r"soft hyphen \(U\+00AD\)"),
        (TO, "\N{ZERO WIDTH NO-BREAK SPACE}Mary", r"begins with a zero width no-break space \(U\+FEFF\)"),
        (f"{TO}\0", "Mary", r"control character \(U\+0000\)"),
    ],
)
def test_a_seam_that_nobody_would_write_is_refused_with_what_to_write(prompt, word, message):
    found = seam_problem(prompt, word)
    assert found is not None
    assert re.search(message, found), found


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        (TO, " Mary"),
        ("The war lasted from the year 1713 to the year 17", "52"),
        ("我叫", "明"),
        ("我的名字是", "Mary"),
        ("私は", "学生"),
        ("ฉันชื่อ", "นิด"),
        ("def f(", "x"),
        ("I don", "'t"),
        ("The answer:\n", "Mary"),
        ("France\tParis\nSpain\t", "Madrid"),
        ("the end", "."),
        ("the end.", "\n"),
        ("name=", "Mary"),
    ],
)
def test_a_seam_that_people_write_is_sound(prompt, word):
    assert seam_problem(prompt, word) is None


def test_the_other_spelling_has_the_space_that_this_one_lacks():
    assert (other_spelling("Mary"), other_spelling(" Mary")) == (" Mary", "Mary")


def test_a_line_end_is_named_and_no_problem():
    assert [line_end(prompt) for prompt in ("a\n", "a\t", "a", "a ")] == ["a newline", "a tab", None, None]


def test_answers_and_wrongs_that_are_both_next_to_impossible_are_said():
    """Log probability −9.9 of the answer, five nats less of the wrong one, and something else on top."""
    measures = {
        "logprob": np.full(8, -9.9, np.float32), "logit_diff": np.full(8, 5, np.float32),
        "top1": np.zeros(8, np.float32),
    }  # fmt: skip
    assert "expects neither (top-1 0.00, mean log probability of both together -9.9)" in near_impossible(measures)
    for name, usual in (("logprob", -0.6), ("logit_diff", -5), ("top1", 1)):
        assert near_impossible({**measures, name: np.full(8, usual, np.float32)}) is None
