"""The built-in tasks with real tokenizers, and their forms for tokenizers that the usual one does not fit.

`MECHRL_TOKENIZERS` names folders of further tokenizers, separated as in `PATH`.
"""

import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mechrl.building.build import build
from mechrl.building.material import make_prompts
from mechrl.building.settings import BuildSettings
from mechrl.cache.reader import Cache
from mechrl.cli.cache.tasks import tasks as tasks_command
from mechrl.errors import FileError, UsageError
from mechrl.models import MINI
from mechrl.models.tokenizer import load_tokenizer
from mechrl.tasks import EVALUATION, TASKS, TRAIN, Vocabulary, as_text, generate, read_task_file, usable_pools
from mechrl.tasks.fitting import check_file
from mechrl.verification.fresh import fresh_prompts

GPT2 = Path(__file__).parents[3] / "shared" / "gpt2-tokenizer"
FURTHER = [Path(folder) for folder in os.environ.get("MECHRL_TOKENIZERS", "").split(os.pathsep) if folder]
DIGITS = {"type": "Digits", "individual_digits": True}
ANIMALS = tuple("dog cat horse bird fox bear wolf rabbit goat sheep cow duck mouse snake".split())
THREES = {"type": "Split", "pattern": {"Regex": r"\d{1,3}"}, "behavior": "Isolated", "invert": False}


def minis(before: dict | None = None, more: tuple[str, ...] = (), less: tuple[str, ...] = ()) -> Vocabulary:
    """The tokenizer of `mini` with another rule before its own, with more tokens, and without some."""
    settings = json.loads((MINI / "tokenizer.json").read_text())
    if before:
        settings["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [before, settings["pre_tokenizer"]]}
    words = settings["model"]["vocab"]
    for word in less:
        words[f"<{word}>"] = words.pop(f"Ġ{word}")
    for word in more:
        words.setdefault(word, len(words))
    backend = Tokenizer.from_str(json.dumps(settings))
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>"))


@pytest.fixture(scope="module")
def by_digits() -> Vocabulary:
    """A tokenizer that writes numbers digit by digit."""
    return minis(DIGITS)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(MINI, id="mini"),
        pytest.param(GPT2, id="gpt2", marks=pytest.mark.skipif(not GPT2.is_dir(), reason=f"{GPT2} is not here")),
        *(pytest.param(folder, id=folder.name) for folder in FURTHER),
        *([] if FURTHER else [pytest.param(None, id="further", marks=pytest.mark.skip("MECHRL_TOKENIZERS is empty"))]),
    ],
)
def folder(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def vocabulary(folder) -> Vocabulary:
    return Vocabulary(load_tokenizer(str(folder), folder))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_works_or_says_why_not(task, folder, vocabulary):
    try:
        parts = [generate(task, vocabulary, 96, split) for split in (TRAIN, EVALUATION)]
    except UsageError as error:
        why = r": only \d+ of its \w+ fillers are .+ in this tokenizer, and it needs \d+"
        if folder in (MINI, GPT2) or not re.search(why, str(error)):
            raise
        pytest.skip(str(error))
    without = Vocabulary(vocabulary.tokenizer)
    without.bos = None
    n_bos = int(vocabulary.bos is not None)
    seen = set()
    for split, prompts in zip((TRAIN, EVALUATION), parts, strict=True):
        for i, n in enumerate(prompts.length.tolist()):
            row, twin = prompts.tokens[i, :n].tolist(), prompts.corrupted[i, :n].tolist()
            answers, wrongs = ({t for t in of[i].tolist() if t >= 0} for of in (prompts.answers, prompts.wrongs))
            assert answers
            assert wrongs
            assert not answers & wrongs
            assert twin != row
            assert tuple(row) not in seen
            seen.add(tuple(row))
            if not task.name.startswith("induction"):  # random tokens are no text
                for ids in (twin, [*row, min(answers)], [*row, min(wrongs)]):
                    assert vocabulary.encode(vocabulary.tokenizer.decode(ids[n_bos:])) == ids
        bare = generate(task, without, 96, split)
        np.testing.assert_array_equal(bare.tokens, prompts.tokens[:, n_bos:])
        np.testing.assert_array_equal(bare.corrupted, prompts.corrupted[:, n_bos:])
        np.testing.assert_array_equal(bare.length, prompts.length - n_bos)
        for name in ("answers", "wrongs", "group"):
            np.testing.assert_array_equal(getattr(bare, name), getattr(prompts, name))


def test_the_digits_above_a_decade_are_right_and_those_below_wrong(by_digits):
    groups = []
    for split in (TRAIN, EVALUATION):
        prompts = generate(TASKS["greater_than"], by_digits, 200, split)
        decades = []
        for text in as_text(prompts, by_digits):
            of = re.fullmatch(r"The \w+ lasted from the year (\d\d)(\d)(\d) to the year (\d\d)", text["prompt"])
            century, decade, unit, again = of.groups()
            assert again == century
            assert text["answer"] == [str(digit) for digit in range(10) if digit > int(decade)]
            assert text["wrong"] == [str(digit) for digit in range(10) if digit < int(decade)]
            assert text["answer"]
            assert text["wrong"]
            changed = text["prompt"].replace(f"year {century}{decade}{unit}", f"year {century}0{unit}")
            assert text["corrupted"] == changed
            decades.append((century, decade))
        assert ((prompts.tokens != prompts.corrupted).sum(1) == 1).all()
        assert len(set(decades)) == prompts.group.max() + 1 == 24
        assert len({d for _, d in decades}) == 8
        groups.append(set(decades))
    assert not groups[0] & groups[1]


def test_other_forms_ask_by_a_tokenizer_and_never_change(by_digits):
    """Golden, as the digests of the usual forms are."""
    few = minis(less=ANIMALS)
    found = {}
    for name, vocabulary in (("greater_than", by_digits), ("copy_suppression", few)):
        form = usable_pools(TASKS[name], vocabulary).form
        prompts = generate(TASKS[name], vocabulary, 50, EVALUATION, 7)
        texts = json.dumps(as_text(prompts, vocabulary))
        found[name] = form.version, hashlib.sha256(texts.encode()).hexdigest()[:12]
        assert form.about in TASKS[name].about
        assert form.name == name
    assert found == {"greater_than": (2, "819919ac8448"), "copy_suppression": (2, "e98a73a0ee12")}


def test_four_animals_where_five_are_too_many():
    vocabulary = minis(less=ANIMALS)
    assert usable_pools(TASKS["copy_suppression"], vocabulary).dropped["animal"] == 14
    for split in (TRAIN, EVALUATION):
        for text in as_text(generate(TASKS["copy_suppression"], vocabulary, 60, split), vocabulary):
            assert len(text["answer"]) == len(text["wrong"]) == 4
            assert all(f"the{animal}" in text["prompt"] for animal in text["wrong"])
            assert not any(f"the{animal}," in text["prompt"] for animal in text["answer"])
            assert not set(ANIMALS) & {animal.strip() for animal in (*text["answer"], *text["wrong"])}
    with pytest.raises(UsageError, match=r"only 15 .* needs 20; in its other form only 15 of its animal .* needs 16"):
        generate(TASKS["copy_suppression"], minis(less=(*ANIMALS, "lion")), 1, TRAIN)


def test_no_two_forms_of_a_task_have_one_version():
    for task in TASKS.values():
        assert len({form.version for form in task.forms}) == len(task.forms)
        assert {(form.name, form.family) for form in task.forms} == {(task.name, task.family)}
        for form in task.forms:
            assert "\n" not in form.about.splitlines()[0]


def test_years_in_threes_fit_no_form():
    """As Llama 3 and GPT-4 write them: 1742 is 174 and 2."""
    vocabulary = minis(THREES, tuple(str(number) for number in range(100, 1000)))
    assert vocabulary.tokenizer.tokenize(" 1742") == ["Ġ", "174", "2"]
    message = (
        "task 'greater_than': only 0 of its start fillers are a century and two digits, one token each, in this "
        "tokenizer, and it needs 100; in its other form only 0 of its decade fillers are written digit by digit in "
        "this tokenizer, and it needs 24. Leave the task out."
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        generate(TASKS["greater_than"], vocabulary, 1, TRAIN)


def test_a_cache_says_which_form_its_prompts_have(tiny, by_digits, tmp_path, capsys):
    model = replace(tiny, vocabulary=by_digits)
    settings = BuildSettings(tasks=("greater_than", "ioi"), batches=3, batch_size=8, control_batches=3)
    cache = Cache.open(build(model, settings, tmp_path / "digits.h5"))
    assert "greater_than, in its form for this tokenizer: The decade, one digit, of a year" in capsys.readouterr().err
    assert cache.task_attributes("greater_than")["generator_version"] == 2
    assert cache.task_attributes("ioi")["generator_version"] == 1
    fresh = fresh_prompts(model, cache, "greater_than", 20)
    known = {tuple(row) for row in cache.prompts("greater_than").tokens.tolist()}
    assert len({tuple(row) for row in fresh.tokens.tolist()} - known) == 20
    assert fresh.length.tolist() == [18] * 20
    with pytest.raises(
        FileError, match=r"of version 2 of their generator, and for this model's tokenizer .* version 1"
    ):
        fresh_prompts(tiny, cache, "greater_than", 20)
    prompts, attributes = make_prompts(tiny, "greater_than", settings)
    assert attributes["generator_version"] == 1
    assert "in its form" not in capsys.readouterr().err
    assert set(prompts.length) == {13}


def test_the_command_tells_of_both_forms(call):
    code, out, _ = call(tasks_command, "greater_than", "--show", 1)
    assert code == 0
    assert "The last two digits of a year that comes after another one" in out
    assert "The decade, one digit, of a year that comes after another one" in out


@pytest.mark.parametrize(
    ("prompt", "answer", "wrong", "pieces"),
    [
        ("12 plus 30 is", " 42", " 43", "' ' '4' '2'"),
        ("1 plus 3 is", " 4", " 5", "' ' '4'"),
        ("From the year 1741 to the year 17", "44", "37", "'4' '4'"),
    ],
)
def test_a_number_as_an_answer_that_is_written_in_digits(prompt, answer, wrong, pieces, by_digits, tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": prompt, "answer": answer, "wrong": wrong}))
    file = read_task_file(tmp_path / "t.jsonl")
    with pytest.raises(UsageError) as refused:
        check_file(file, by_digits, 64)
    assert (
        f"line 1: the answer {answer!r} is not a single token after the prompt: {pieces}. The tokenizer writes numbers "
        "digit by digit: ask for one digit, after a prompt that goes right up to it, space included"
    ) in str(refused.value)
    advised = {"prompt": prompt + answer[:-1], "answer": answer[-1], "wrong": "9"}
    (tmp_path / "t.jsonl").write_text(json.dumps(advised))
    assert len(check_file(read_task_file(tmp_path / "t.jsonl"), by_digits, 64)) == 1
