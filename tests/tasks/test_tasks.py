"""Prompts: as intended, single-token slots, seeded, and no slot filler on both sides of the split."""

import hashlib

import numpy as np
import pytest
from transformers import AutoTokenizer

from mechrl.errors import UsageError
from mechrl.models import MINI
from mechrl.tasks import EVALUATION, TASKS, TRAIN, Task, Vocabulary, as_text, generate, get_task, join, usable_pools
from mechrl.tasks.base import Example, Pool, split_pools
from mechrl.tasks.control import SPAN, prose_spans, read_control, text_spans
from mechrl.tasks.country_capital import CAPITALS
from mechrl.tasks.gendered_pronoun import MEN, WOMEN
from mechrl.tasks.prose import prose
from mechrl.tasks.successor import DAYS, MONTHS, NUMBERS

FEW_ANSWERS = ("gendered_pronoun", "greater_than", "subject_verb_agreement", "bracket_closing")  # the same in both


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
    for answers, wrongs in zip(prompts.answers.tolist(), prompts.wrongs.tolist(), strict=True):
        assert not (set(answers) & set(wrongs)) - {-1}
    assert prompts.tokens[:, 0].tolist() == [vocabulary.bos] * 200


def test_slot_fillers_do_not_cross_the_split(task, vocabulary):
    pools = usable_pools(task, vocabulary).pools
    train, evaluation = split_pools(task, pools, TRAIN), split_pools(task, pools, EVALUATION)
    halved = [slot for slot in pools if not task.pools[slot].shared]
    assert halved
    for slot in halved:
        assert not set(train[slot]) & set(evaluation[slot])
        assert len(train[slot]) + len(evaluation[slot]) == len(pools[slot])
    for slot in set(pools) - set(halved):
        assert train[slot] == evaluation[slot] == pools[slot]
    if task.name not in FEW_ANSWERS:
        answers = [set(generate(task, vocabulary, 100, split).answers.ravel()) for split in (TRAIN, EVALUATION)]
        assert not answers[0] & answers[1]


def test_a_twin_is_as_long_as_its_prompt_and_another(task, vocabulary):
    prompts = generate(task, vocabulary, 100, TRAIN)
    twins = [tuple(row[:n]) for row, n in zip(prompts.corrupted.tolist(), prompts.length, strict=True)]
    assert all(twin != row and 0 not in twin[1:] for twin, row in zip(twins, rows(prompts), strict=True))


def test_where_the_twin_has_the_wrong_as_its_answer_it_is_the_generators_own(vocabulary):
    """A twin is a prompt that the generator could have drawn: with answers and wrongs exchanged it is in the rest."""
    for name in ("induction_matched", "ioi", "gendered_pronoun", "subject_verb_agreement", "bracket_closing"):
        prompts = generate(TASKS[name], vocabulary, 100, TRAIN)
        again = prompts.corrupted[:, -1] if name == "induction_matched" else None
        for i in range(100):
            row, twin = prompts.tokens[i], prompts.corrupted[i]
            changed = np.flatnonzero(row != twin)
            assert len(changed) == 1, f"{name}: one slot differs"
            if again is not None:
                assert prompts.wrongs[i, 0] == row[row.tolist().index(again[i]) + 1]
    prompts = generate(TASKS["ioi"], vocabulary, 100, TRAIN)
    for row, twin, answer, wrong in zip(prompts.tokens, prompts.corrupted, *answers_and_wrongs(prompts), strict=True):
        at = np.flatnonzero(row != twin)[0]
        assert (row[at], twin[at]) == (wrong, answer)


def answers_and_wrongs(prompts):
    return prompts.answers[:, 0], prompts.wrongs[:, 0]


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


def test_years_that_come_later_are_right(vocabulary):
    prompts = generate(TASKS["greater_than"], vocabulary, 50, TRAIN)
    year = {token: int(vocabulary.tokenizer.decode([token])) for token in set(prompts.answers.ravel()) - {-1}}
    year |= {token: int(vocabulary.tokenizer.decode([token])) for token in set(prompts.wrongs.ravel()) - {-1}}
    for row, answers, wrongs in zip(rows(prompts), prompts.answers.tolist(), prompts.wrongs.tolist(), strict=True):
        text = vocabulary.tokenizer.decode(row[1:])
        start = int(text.split(" to the year")[0][-2:])
        assert text.endswith(f" to the year {text.split(' from the year ')[1][:2]}")
        assert {year[a] for a in answers if a >= 0} == set(range(start + 1, 100))
        assert {year[w] for w in wrongs if w >= 0} == set(range(1, start + 1))


def test_the_other_tasks_ask_what_they_say(vocabulary):
    def texts(name):
        return as_text(generate(TASKS[name], vocabulary, 60, TRAIN), vocabulary)

    for t in texts("copy_suppression"):
        assert all(word + "," in t["prompt"] or f"{word} and" in t["prompt"] for word in t["wrong"])
        assert not any(f"{word}," in t["prompt"] for word in t["answer"])
        assert len(t["answer"]) == len(t["wrong"]) == 5
    for t in texts("gendered_pronoun"):
        name = t["prompt"].split()[1]
        assert t["answer"] == ([" she"] if name in WOMEN else [" he"])
        assert (name in WOMEN) != (name in MEN)
    for t in texts("successor"):
        run = [word.strip() for word in t["prompt"].split(":")[1].strip(" ,").split(",")]
        series = next(s for s in (DAYS, MONTHS, NUMBERS) if run[0] in s)
        place = series.index(run[0])
        assert [series[(place + i) % len(series)] for i in range(4)] == [*run, t["answer"][0].strip()]
        assert t["wrong"][0].strip() in series
    for t in texts("subject_verb_agreement"):
        plural = t["prompt"].split()[1].endswith("s")
        assert t["answer"] == ([" are", " were", " have"] if plural else [" is", " was", " has"])
    for t in texts("bracket_closing"):
        assert (t["prompt"].split()[2], t["answer"][0]) in {("(", " )"), ("[", " ]"), ("{", " }")}
    for t in texts("country_capital"):
        assert (t["prompt"].split()[-2], t["answer"][0].strip()) in CAPITALS


def test_ten_tasks_in_five_families_say_what_they_are():
    assert len(TASKS) >= 10
    assert len({task.family for task in TASKS.values()}) >= 5
    for task in TASKS.values():
        assert "twin" in task.about
        assert "GPT-2 small" in task.about
        assert task.source


def test_gpt2_prompts_have_single_token_names_and_read_as_intended(gpt2_tokenizer):
    vocabulary = Vocabulary(gpt2_tokenizer)
    for name, task in TASKS.items():
        dropped = sum(usable_pools(task, vocabulary).dropped.values())
        assert dropped == 0 or name == "greater_than", f"{name} loses fillers"  # " 1700" and its like are one token
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
    task = Task("t", "", "", {"word": Pool(("dog", "cat", "xylophonist", "horse"), least=3)}, lambda rng, pools: None)
    usable = usable_pools(task, vocabulary)
    assert usable.pools["word"] == ["dog", "cat", "horse"]
    assert usable.dropped == {"word": 1}


def test_a_pool_too_small_is_an_error(vocabulary):
    task = Task("t", "", "", {"word": Pool(("dog", "xylophonist"), least=2)}, lambda rng, pools: None)
    with pytest.raises(UsageError, match="only 1 of its word fillers are single tokens"):
        usable_pools(task, vocabulary)


def test_more_prompts_than_there_are_is_an_error(vocabulary):
    def draw(rng, pools):
        word = pools["word"][rng.randint(len(pools["word"]))]
        return Example(f"The {word} and the", [f" {word}"], [" table"], word)

    task = Task("t", "", "", {"word": Pool(("dog", "cat", "cow", "horse"), least=2)}, draw)
    assert len(generate(task, vocabulary, 2, TRAIN)) == 2
    with pytest.raises(UsageError, match="only 2 different prompts, not 3"):
        generate(task, vocabulary, 3, TRAIN)


def test_an_answer_of_several_tokens_is_an_error(vocabulary):
    task = Task("t", "", "", {}, lambda rng, pools: Example("The", [" xylophonist"], [" dog"], 0))
    with pytest.raises(UsageError, match="' xylophonist' is not a single token"):
        generate(task, vocabulary, 1, TRAIN)


def test_a_twin_of_another_length_is_an_error(vocabulary):
    task = Task("t", "", "", {}, lambda rng, pools: Example("The dog", [" was"], [" were"], 0, "The"))
    with pytest.raises(UsageError, match="'The' has 2 tokens and 'The dog' has 3"):
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
            read_control(tmp_path / name, "mini")


GOLDEN = {
    "induction": "3762ba256395",
    "induction_matched": "27a8ccec6fff",
    "copy_suppression": "d84d4aa829bb",
    "ioi": "c71094b5b883",
    "gendered_pronoun": "791932852c3b",
    "greater_than": "4f4c6da832e4",
    "successor": "7756825d72ee",
    "subject_verb_agreement": "69328ae8f9d8",
    "bracket_closing": "8e870d753a47",
    "docstring": "18358c776376",
    "country_capital": "aee1a4ce2d83",
}
