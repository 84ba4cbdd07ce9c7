"""Tasks from files: read as written, and every mistake named with its line before a model is run."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mechrl.errors import UsageError
from mechrl.models import MINI
from mechrl.tasks import EVALUATION, TASKS, TRAIN, Vocabulary, generate, read_task_file
from mechrl.tasks.batches import arrange, fitting_batch_size
from mechrl.tasks.fitting import check_file
from mechrl.tasks.task_file import SHOWN


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(AutoTokenizer.from_pretrained(MINI))


def record(i: int = 0, **changes) -> dict:
    name = ("Mary", "John", "Tom", "Kate")[i % 4]
    place = ("store", "garden", "school", "park", "beach", "house", "office", "market")[i // 4 % 8]
    thing = ("ring", "book", "ball", "hat")[i // 32 % 4]
    prompt = f"Laura met {name} at the {place} and gave the {thing} to"
    return {"prompt": prompt, "answer": f" {name}", "wrong": [" Laura"], **changes}


def write(path, records) -> object:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_jsonl_and_csv_are_the_same_task(tmp_path, vocabulary):
    given = [
        record(0, corrupted=record(1)["prompt"], group="a", split="train"),
        record(1, answer=[" John", " Tom"], corrupted=record(0)["prompt"], group="a", split="evaluation"),
    ]
    jsonl = read_task_file(write(tmp_path / "one.jsonl", given))
    (tmp_path / "two.csv").write_text(
        "prompt,answer,wrong,corrupted,group,split\n"
        f'{given[0]["prompt"]}, Mary,"["" Laura""]",{given[0]["corrupted"]},a,train\n'
        f'{given[1]["prompt"]},"["" John"", "" Tom""]", Laura,{given[1]["corrupted"]},a,evaluation\n'
    )
    csv = read_task_file(tmp_path / "two.csv")
    assert jsonl.examples == csv.examples
    assert jsonl.split.tolist() == csv.split.tolist() == [TRAIN, EVALUATION]
    assert jsonl.examples[1].answers == [" John", " Tom"]
    assert jsonl.name == "one"
    check_file(jsonl, vocabulary, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "'prompt' is not a text"),
        ({"answer": 3}, "'answer' is neither a text nor a list of texts"),
        ({"wrong": []}, "'wrong' is neither a text nor a list of texts"),
        ({"wrong": " Mary"}, "' Mary' is an answer and a wrong one"),
        ({"splitt": "train"}, "unknown field 'splitt'; did you mean 'split'"),
        ({"split": "test"}, "'split' is 'test', neither train nor evaluation"),
        ({"group": [1]}, "'group' is neither a text nor a whole number"),
        ({"answer": [" Mary", " Mary"]}, "' Mary' is in 'answer' twice"),
        ({"prompt": "\ud800 Mary"}, "not Unicode text: half of a surrogate pair"),
        ({"corrupted": record(0)["prompt"]}, "the corrupted prompt is the prompt itself"),
        ({"prompt": record(4)["prompt"]}, "the prompt of line 5 again|line 5: the prompt of line 1 again"),
    ],
)
def test_a_line_of_the_wrong_form_is_named(tmp_path, change, message):
    records = [record(i) for i in range(8)]
    records[0] |= change
    with pytest.raises(UsageError, match=message) as error:
        read_task_file(write(tmp_path / "t.jsonl", records))
    assert "line 1: " in str(error.value) or "line 5: " in str(error.value)


def test_what_only_some_lines_have_is_missed_in_the_others(tmp_path):
    records = [record(0), record(1, corrupted=record(0)["prompt"]), record(2)]
    with pytest.raises(UsageError, match=r"2 problems\n  line 1: no corrupted prompt.*\n  line 3: no corrupted prompt"):
        read_task_file(write(tmp_path / "t.jsonl", records))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "Mary"}, "no space between the prompt's last letter 'o' and 'Mary': write \" Mary\""),
        ({"answer": "Mary", "join": True}, "With a space before it, ' Mary', it is"),
        ({"prompt": "<|endoftext|>" + record(0)["prompt"]}, "the prompt of line 1 again, token for token"),
        (
            {"corrupted": "<|endoftext|>" + record(2)["prompt"]},
            "the corrupted prompt is the prompt itself, token for token",
        ),
        ({"wrong": " Zanzibar"}, r"the wrong ' Zanzibar' is not a single token after the prompt: .*'Z' 'a' 'n'"),
        ({"corrupted": "Laura met"}, "the corrupted prompt has 3 tokens and the prompt 12"),
        ({"prompt": "the " * 80 + "to"}, "the prompt has 8. tokens and the model takes 64"),
    ],
)
def test_what_the_tokenizer_takes_otherwise_is_named(tmp_path, vocabulary, change, message):
    twin = {"corrupted": record(6)["prompt"]} if "corrupted" in change else {}
    records = [record(i, **twin) for i in range(4)]
    records[2] |= change
    with pytest.raises(UsageError, match=message) as error:
        check_file(read_task_file(write(tmp_path / "t.jsonl", records)), vocabulary, 64)
    assert "one problem\n  line 3: " in str(error.value) or "2 problems\n  line 3: " in str(error.value)


def test_two_texts_of_one_token_are_named(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    file = read_task_file(write(tmp_path / "t.jsonl", [{"prompt": "the", "answer": " dog", "wrong": [" cat", " DOG"]}]))
    with pytest.raises(UsageError, match="line 1: ' dog' and ' DOG' are the same token"):
        check_file(file, Vocabulary(tokenizer), 64)


def test_a_broken_line_among_ten_thousand_is_found(tmp_path):
    lines = [json.dumps({"prompt": f"number {i} is", "answer": " a", "wrong": " b"}) for i in range(10_000)]
    lines[5000] = '{"prompt": "number'
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="one problem\n  line 5001: not JSON"):
        read_task_file(tmp_path / "t.jsonl")


def test_mixed_encodings_are_named_by_line_and_byte(tmp_path):
    good = json.dumps(record(0), ensure_ascii=False).encode()
    for name in ("t.jsonl", "t.csv"):
        (tmp_path / name).write_bytes(good + b"\n" + b'{"prompt": "caf\xe9"}\n')
        with pytest.raises(UsageError, match="line 2: not UTF-8 text: byte 0xe9 at 16"):
            read_task_file(tmp_path / name)
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + good)
    assert len(read_task_file(tmp_path / "bom.jsonl")) == 1


def test_a_field_twice_and_utf_16_are_named(tmp_path):
    text = json.dumps(record(0))
    (tmp_path / "t.jsonl").write_text(text[:-1] + ', "answer": " John"}')
    with pytest.raises(UsageError, match=r"line 1: not JSON .the field 'answer' twice"):
        read_task_file(tmp_path / "t.jsonl")
    (tmp_path / "t.csv").write_text("prompt,answer,answer,wrong\na, b, c, d\n")
    with pytest.raises(UsageError, match="line 1: the column 'answer' twice"):
        read_task_file(tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_bytes(text.encode("utf-16"))
    with pytest.raises(UsageError, match="one problem\n  line 1: UTF-16 text; save the file as UTF-8"):
        read_task_file(tmp_path / "t.jsonl")


def test_null_is_as_good_as_absent(tmp_path):
    file = read_task_file(write(tmp_path / "t.jsonl", [record(0, corrupted=None, group=None, split=None)]))
    assert file.examples[0].corrupted is None
    assert file.split.tolist() == [-1]


def test_csv_lines_are_those_where_a_row_begins(tmp_path):
    (tmp_path / "t.csv").write_text('\nprompt,answer,wrong\n"two\nlines", was, were\n"x\ny", was\n[1], was, were\n')
    with pytest.raises(UsageError, match="one problem\n  line 5: not as many cells"):
        read_task_file(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text('\nprompt,answer,wrong\n"two\nlines",[1], were\n"x\ny", was, were\n')
    file = read_task_file(tmp_path / "t.csv")
    assert file.lines == [3, 5]
    assert file.examples[0].answers == ["[1]"]
    (tmp_path / "t.csv").write_text("prompt,answer,wrong\nx," + "[" * 100_000 + ", were\n")
    assert len(read_task_file(tmp_path / "t.csv").examples[0].answers[0]) == 100_000


def test_of_many_problems_the_first_are_listed(tmp_path):
    (tmp_path / "t.jsonl").write_text("{\n" * 50)
    with pytest.raises(UsageError, match="50 problems") as error:
        read_task_file(tmp_path / "t.jsonl")
    assert str(error.value).count("line ") == SHOWN + SHOWN  # json's own message names a line, too
    assert str(error.value).endswith("… and 30 more")


def test_a_csv_row_of_another_width_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,answer,wrong\nThe dog, was, were\nThe cat, was\n")
    with pytest.raises(UsageError, match="line 3: not as many cells as the header, which has 3"):
        read_task_file(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ioi.jsonl", "there is a task 'ioi' already; rename the file"),
        ("control.jsonl", "rename the file, or give its task another name"),
        ("my task.jsonl", "rename the file, or give its task another name"),
        ("task.xlsx", "ends in .jsonl, .json, .csv, .tsv or .txt"),
        ("missing.jsonl", "No such file"),
        ("empty.jsonl", "the file is empty"),
    ],
)
def test_a_file_that_cannot_be_a_task_is_refused(tmp_path, name, message):
    if not name.startswith("missing"):
        (tmp_path / name).write_text("" if name.startswith("empty") else json.dumps(record()))
    with pytest.raises(UsageError, match=message):
        read_task_file(tmp_path / name, taken=sorted(TASKS))


def test_groups_do_not_cross_the_split_and_batches_are_whole(tmp_path, vocabulary):
    file = read_task_file(write(tmp_path / "t.jsonl", [record(i, group=i // 5) for i in range(70)]))
    assert fitting_batch_size([file]) == 16
    prompts = arrange(file, vocabulary, 8)
    train, evaluation = (set(prompts.group[prompts.split == split]) for split in (TRAIN, EVALUATION))
    assert not train & evaluation
    assert [(prompts.split == split).sum() for split in (TRAIN, EVALUATION)] == [48, 16]
    assert np.all(np.diff(prompts.split.astype(int)) >= 0)


def test_one_large_group_is_cut_rather_than_refused(tmp_path, vocabulary):
    file = read_task_file(write(tmp_path / "t.jsonl", [record(i, group="all") for i in range(64)]))
    prompts = arrange(file, vocabulary, 16)
    assert [(prompts.split == split).sum() for split in (TRAIN, EVALUATION)] == [32, 32]


def test_the_files_own_split_is_kept(tmp_path, vocabulary):
    records = [record(i, split="evaluation" if i % 2 else "train") for i in range(64)]
    file = read_task_file(write(tmp_path / "t.jsonl", records))
    assert fitting_batch_size([file]) == 16
    prompts = arrange(file, vocabulary, 16)
    odd = {file.examples[i].context for i in range(1, 64, 2)}
    decode = vocabulary.tokenizer.decode
    shown = [decode(row[1:n]) for row, n in zip(prompts.tokens, prompts.length, strict=True)]
    assert [(text in odd) for text in shown] == (prompts.split == EVALUATION).tolist()


def test_too_few_prompts_name_a_batch_size_that_fits(tmp_path, vocabulary):
    file = read_task_file(write(tmp_path / "t.jsonl", [record(i) for i in range(20)]))
    with pytest.raises(UsageError, match="make batches of 4"):
        arrange(file, vocabulary, 32)
    assert len(arrange(file, vocabulary, 4)) == 20


def word_level(words: list[str], unknown: bool = True) -> Vocabulary:
    """A tokenizer of whole words, with gaps between its ids."""
    ids = {word: 5 * i for i, word in enumerate((["[UNK]"] if unknown else []) + words)}
    backend = Tokenizer(WordLevel(ids, unk_token="[UNK]" if unknown else None))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_what_a_tokenizer_does_not_know_is_no_answer_and_no_filler(tmp_path):
    vocabulary = word_level(["the", "cat", "dog", "saw"])
    assert vocabulary.size == vocabulary.rows == 21
    assert vocabulary.single(" Zanzibar") is None
    given = [
        {"prompt": f"the {a} saw the", "answer": f" {b}", "wrong": " saw"} for a, b in (("cat", "dog"), ("dog", "cat"))
    ]
    assert len(check_file(read_task_file(write(tmp_path / "t.jsonl", given)), vocabulary, 64)) == 2
    for change, message in (
        ({"answer": " Zanzibar"}, "the tokenizer does not know the answer ' Zanzibar'"),
        ({"prompt": "Laura saw the"}, "the tokenizer does not know a part of the prompt"),
        ({"prompt": " "}, "the prompt has no tokens"),
    ):
        with pytest.raises(UsageError, match=message):
            check_file(read_task_file(write(tmp_path / "t.jsonl", [given[0], {**given[1], **change}])), vocabulary, 64)
    with pytest.raises(UsageError, match="only 0 of its"):
        generate(TASKS["ioi"], vocabulary, 4, TRAIN)


def test_a_token_that_the_model_has_no_row_for_is_named_with_its_line(tmp_path, vocabulary):
    """As after a token was added to the tokenizer and not to the model."""
    lines = [record(i) for i in range(4)]
    ids = {name: vocabulary.encode(f"to {name}")[-1] for name in ("Mary", "John", "Tom", "Kate")}
    fewer = Vocabulary(vocabulary.tokenizer, rows=max(ids.values()))
    missing = max(ids, key=ids.__getitem__)
    place = 1 + [line["answer"] for line in lines].index(f" {missing}")
    with pytest.raises(
        UsageError, match=rf"line {place}: .*the token ' {missing}' has id {ids[missing]}, and the model's"
    ):
        check_file(read_task_file(write(tmp_path / "t.jsonl", lines)), fewer, 64)
    only_answer = [{"prompt": "Laura gave the ring to", "answer": f" {missing}", "wrong": " the"}]
    with pytest.raises(UsageError, match=rf"line 1: the answer: the token ' {missing}' has id"):
        check_file(read_task_file(write(tmp_path / "t.jsonl", only_answer)), fewer, 64)
