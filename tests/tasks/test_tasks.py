"""Prompts: as intended, single-token slots, seeded, and no slot filler on both sides of the split."""

import hashlib

import numpy as np
import pytest
from transformers import AutoTokenizer

from mechrl.errors import UsageError
from mechrl.models import MINI
from mechrl.tasks import EVALUATION, TASKS, TRAIN, Task, Vocabulary, generate, get_task, join, usable_pools
from mechrl.tasks.base import Example, Pool, split_pools
from mechrl.tasks.control import SPAN, prose_spans, read_control, text_spans
from mechrl.tasks.prose import prose


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(AutoTokenizer.from_pretrained(MINI))


@pytest.fixture(scope="module", params=TASKS)
def task(request):
    return TASKS[request.param]


def rows(prompts):
    return [tuple(row[:n]) for row, n in zip(prompts.tokens.tolist(), prompts.length, strict=True)]


def test_prompts_are_the_same_for_a_seed_and_different_for_another(task, vocabulary):
    first, again, other = (generate(task, vocabulary, 20, TRAIN, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert set(rows(first)) != set(rows(other))
    assert rows(generate(task, vocabulary, 30, TRAIN))[:20] == rows(first)


def test_prompts_of_a_seed_never_change(vocabulary):
    """Golden: raise a task's `version` and these digests together, or old caches and new prompts disagree."""
    digests = {
        name: hashlib.sha256(generate(task, vocabulary, 50, EVALUATION, 7).tokens.tobytes()).hexdigest()[:12]
        for name, task in TASKS.items()
    }
    assert digests == GOLDEN


def test_all_prompts_differ_and_have_answers_unlike_wrongs(task, vocabulary):
    prompts = generate(task, vocabulary, 200, EVALUATION)
    assert len(set(rows(prompts))) == 200
    assert not (prompts.answers == prompts.wrongs).any()
    assert prompts.tokens[:, 0].tolist() == [vocabulary.bos] * 200


def test_slot_fillers_do_not_cross_the_split(task, vocabulary):
    pools = usable_pools(task, vocabulary)[0]
    train, evaluation = split_pools(task, pools, TRAIN), split_pools(task, pools, EVALUATION)
    for slot in pools:
        assert not set(train[slot]) & set(evaluation[slot])
        assert len(train[slot]) + len(evaluation[slot]) == len(pools[slot])
    answers = [set(generate(task, vocabulary, 100, split).answers.ravel()) for split in (TRAIN, EVALUATION)]
    assert not answers[0] & answers[1]


def test_induction_shows_a_pair_and_asks_for_its_second_token(vocabulary):
    prompts = generate(TASKS["induction"], vocabulary, 50, TRAIN)
    assert (prompts.length == 61).all()
    assert (prompts.tokens[:, 1] == prompts.tokens[:, -1]).all()
    assert (prompts.tokens[:, 2] == prompts.answers[:, 0]).all()
    assert all(wrong not in row for row, wrong in zip(prompts.tokens, prompts.wrongs[:, 0], strict=True))


def test_matched_induction_cannot_be_solved_by_position_or_by_copying(vocabulary):
    prompts = generate(TASKS["induction_matched"], vocabulary, 100, TRAIN)
    places = []
    for row, answer, wrong in zip(prompts.tokens.tolist(), prompts.answers[:, 0], prompts.wrongs[:, 0], strict=True):
        at = row.index(row[-1])
        assert row[at + 1] == answer
        assert wrong in row
        places.append(at)
    assert len(set(places)) > 20


def test_ioi_asks_for_the_name_that_came_once(vocabulary):
    prompts = generate(TASKS["ioi"], vocabulary, 100, TRAIN)
    first_is_giver = 0
    for row, answer, wrong in zip(prompts.tokens.tolist(), prompts.answers[:, 0], prompts.wrongs[:, 0], strict=True):
        assert (row.count(answer), row.count(wrong)) == (1, 2)
        first_is_giver += row.index(wrong) < row.index(answer)
    assert 30 < first_is_giver < 70
    pairs = {frozenset((a, w)) for a, w in zip(prompts.answers[:, 0], prompts.wrongs[:, 0], strict=True)}
    assert len(pairs) == prompts.group.max() + 1


def test_docstring_asks_for_the_fifth_parameter(vocabulary):
    prompts = generate(TASKS["docstring"], vocabulary, 50, TRAIN)
    for row, answer, wrong in zip(rows(prompts), prompts.answers[:, 0], prompts.wrongs[:, 0], strict=True):
        text = vocabulary.tokenizer.decode(row[1:])
        parameters = text[text.index("(") + 1 : text.index(")")].split(", ")[1:]
        assert vocabulary.tokenizer.decode([answer]) == " " + parameters[4]
        assert vocabulary.tokenizer.decode([wrong]).strip() in parameters[:4]
        assert text.endswith(":param")


def test_gpt2_prompts_have_single_token_names_and_read_as_intended(gpt2_tokenizer):
    vocabulary = Vocabulary(gpt2_tokenizer)
    for name, task in TASKS.items():
        assert sum(usable_pools(task, vocabulary)[1].values()) == 0, f"{name} loses fillers"
        prompts = generate(task, vocabulary, 100, EVALUATION)
        for row in rows(prompts):
            text = gpt2_tokenizer.decode(row[1:])
            assert tuple(gpt2_tokenizer.encode(text)) == row[1:] or name.startswith("induction")
    prompts = generate(TASKS["ioi"], vocabulary, 100, TRAIN)
    for row, answer in zip(rows(prompts), prompts.answers[:, 0], strict=True):
        text, name = gpt2_tokenizer.decode(row[1:]), gpt2_tokenizer.decode([answer])
        assert text.endswith(" to")
        assert name[0] == " "
        assert f"{name} " in f" {text} " or f"{name}," in text


def test_fillers_of_several_tokens_are_dropped_with_a_count(vocabulary):
    task = Task("t", "", {"word": Pool(("dog", "cat", "xylophonist", "horse"), least=3)}, lambda rng, pools: None)
    usable, dropped = usable_pools(task, vocabulary)
    assert usable["word"] == ["dog", "cat", "horse"]
    assert dropped == {"word": 1}


def test_a_pool_too_small_is_an_error(vocabulary):
    task = Task("t", "", {"word": Pool(("dog", "xylophonist"), least=2)}, lambda rng, pools: None)
    with pytest.raises(UsageError, match="only 1 of its word fillers are single tokens"):
        usable_pools(task, vocabulary)


def test_more_prompts_than_there_are_is_an_error(vocabulary):
    def draw(rng, pools):
        word = pools["word"][rng.randint(len(pools["word"]))]
        return Example(f"The {word} and the", [word], ["table"], word)

    task = Task("t", "", {"word": Pool(("dog", "cat", "cow", "horse"), least=2)}, draw)
    assert len(generate(task, vocabulary, 2, TRAIN)) == 2
    with pytest.raises(UsageError, match="only 2 different prompts, not 3"):
        generate(task, vocabulary, 3, TRAIN)


def test_an_answer_of_several_tokens_is_an_error(vocabulary):
    task = Task("t", "", {}, lambda rng, pools: Example("The", ["xylophonist"], ["dog"], 0))
    with pytest.raises(UsageError, match="'xylophonist' is not a single token"):
        generate(task, vocabulary, 1, TRAIN)


def test_joined_prompts_keep_their_groups_apart_and_their_padding(vocabulary):
    parts = [generate(TASKS["ioi"], vocabulary, 20, split) for split in (TRAIN, EVALUATION)]
    both = join(parts)
    assert rows(both) == rows(parts[0]) + rows(parts[1])
    assert not set(both.group[:20]) & set(both.group[20:])


def test_an_unknown_task_gets_a_hint():
    with pytest.raises(UsageError, match="Did you mean 'docstring'"):
        get_task("docstrings")


def test_control_spans_have_one_length_and_no_overlap(vocabulary):
    spans = [prose_spans(vocabulary, 20, split) for split in (TRAIN, EVALUATION)]
    assert spans[0].shape == (20, SPAN + 1)
    assert not {tuple(r) for r in spans[0]} & {tuple(r) for r in spans[1]}
    text = prose(np.random.RandomState(0), 2000)
    cut = [text_spans(vocabulary, text, 10, split) for split in (TRAIN, EVALUATION)]
    assert cut[0].shape == (10, SPAN + 1)
    assert not {tuple(r) for r in cut[0]} & {tuple(r) for r in cut[1]}
    with pytest.raises(UsageError, match="give a longer text"):
        text_spans(vocabulary, text[:2000], 10, TRAIN)


def test_control_text_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for name, message in (("latin.txt", "not UTF-8"), ("missing.txt", "No such file")):
        with pytest.raises(UsageError, match=message):
            read_control(tmp_path / name, generated=True)


GOLDEN = {
    "induction": "226754b98231",
    "induction_matched": "b461c7c901d4",
    "ioi": "4f4844a8726f",
    "docstring": "f51538ce99c6",
}
