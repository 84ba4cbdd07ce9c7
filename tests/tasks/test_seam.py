"""What meets between a prompt and its answer: refused where nobody would write it, and the right spelling named."""

import json
import re

import numpy as np
import pytest

from mechrl.building.check import check_task, near_impossible
from mechrl.errors import UsageError
from mechrl.tasks import Vocabulary, read_task_file
from mechrl.tasks.fitting import check_file
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
        ("Bonjour\N{NO-BREAK SPACE}", "!", 'write "prompt": "Bonjour" and "\N{NO-BREAK SPACE}!"'),
        ("def f(x):\n    ", "return", r'"prompt": "def f\(x\):\\n   " and " return"'),
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
        ("def f(x):\n   ", " return"),  # indented, and a word with its space
        ("I \N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}", "you"),
        ("The verse ends \N{ARABIC END OF AYAH}", "."),
    ],
)
def test_a_seam_that_people_write_is_sound(prompt, word):
    assert seam_problem(prompt, word) is None


def test_a_twin_is_told_of_as_what_it_is():
    found = seam_problem(f"{TO} ", " Mary", "corrupted")
    assert found is not None
    assert found.startswith("the corrupted prompt ends in a space")
    assert '"corrupted": "John gave a drink to"' in found


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


def test_a_vocabulary_with_a_token_for_the_mistake_does_not_hide_it(tmp_path, gpt2_tokenizer):
    """GPT-2's has one for most names without their space, so that the tokens alone say nothing."""
    vocabulary = Vocabulary(gpt2_tokenizer)
    names = "Mary John Tom Kate Anna David Laura Charles Peter Susan James Robert Michael Paul Mark Lisa".split()
    records = [
        {"prompt": f"{name} met {other}. {other} gave a drink to", "answer": name, "wrong": other}
        for name, other in zip(names, names[1:] + names[:1], strict=True)
    ]
    hidden = [vocabulary.encode(r["prompt"] + r["answer"])[:-1] == vocabulary.encode(r["prompt"]) for r in records]
    assert sum(hidden) > len(names) / 2
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(UsageError, match=f"{len(names)} problems\n  line 1: there is no space"):
        check_file(read_task_file(path), vocabulary, 1024)
    spaced = [{**record, "answer": f" {record['answer']}", "wrong": f" {record['wrong']}"} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in spaced))
    assert len(check_file(read_task_file(path), vocabulary, 1024)) == len(names)


def test_the_model_says_when_it_expects_the_other_spelling(mini, tmp_path, monkeypatch):
    """The prompts are sound by their letters; the model, which is played here, expects a space."""
    path = tmp_path / "t.jsonl"
    lines = [{"prompt": f"Mary has {i} (", "answer": "a", "wrong": "b"} for i in range(16)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    space = mini.vocabulary.encode("Mary has 1 ( a")[-1]

    def measured(model, prompts):
        spaced = prompts.answers[:, 0] == space
        names = {"logit_diff": 5.0, "prob_diff": 0.0, "top1": 0.0}
        measures = {name: np.full(len(prompts), value, np.float32) for name, value in names.items()}
        return measures | {"logprob": np.where(spaced, -0.6, -9.9)}, np.zeros(len(prompts), int)

    monkeypatch.setattr("mechrl.building.check.clean_measures", measured)
    notes = check_task(mini, read_task_file(path)).notes
    assert any("expects neither (top-1 0.00" in note for note in notes)
    assert any("' a' and not 'a': mean log probability -0.6 against -9.9" in note for note in notes)


def test_a_check_says_what_prompts_invisibly_end_in_and_which_bos_they_get(mini, tmp_path):
    path = tmp_path / "t.jsonl"
    lines = [{"prompt": f"Mary has {i}\n", "answer": "a", "wrong": "b"} for i in range(16)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = check_task(mini, read_task_file(path))
    assert found.notes[0] == "16 of 16 prompts end in a newline, which nobody sees; is it meant?"
    assert found.bos == "BOS '<|endoftext|>' before every prompt"
