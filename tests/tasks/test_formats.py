"""Files that people have already: recognised, read as they are meant, and refused with one message where they are not.

The columns and shapes are those of the files of EAP-IG, AutoCircuit and MIB; the sentences are our own.
"""

import json

import pytest
from transformers import AutoTokenizer

import mechrl.tasks.task_file
from mechrl.building.material import prepare
from mechrl.building.settings import BuildSettings
from mechrl.cache.reader import Cache
from mechrl.cli.cache import cache as cache_command
from mechrl.cli.train import train as train_command
from mechrl.cli.verify import verify as verify_command
from mechrl.errors import UsageError
from mechrl.models import MINI
from mechrl.tasks import EVALUATION, TRAIN, Vocabulary, read_task_file
from mechrl.tasks.base import tokenize
from mechrl.tasks.fitting import check_file, ids_say
from mechrl.tasks.layout import read_cell

NAMES = ("Mary", "John", "Tom", "Kate", "Anna", "Paul", "Laura", "David")
PLACES = ("hill", "river", "barn", "camp")
THINGS = (("box", "lamp"), ("clock", "mirror"), ("key", "book"), ("ring", "ball"))


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary(AutoTokenizer.from_pretrained(MINI))


def lines(n: int = 32) -> list[dict]:
    """Prompts whose thing comes back, twins with the other thing."""
    found = []
    for i in range(n):
        name, place, pair = NAMES[i % 8], PLACES[i // 8 % 4], THINGS[i // 2 % 4]
        a, b = pair if i % 2 else pair[::-1]
        prompt = f"{name} found a small {{}} near the {place}. The"
        found.append({"prompt": prompt.format(a), "corrupted": prompt.format(b), "answer": f" {a}", "wrong": f" {b}"})
    return found


def eap_ig(path, vocabulary, records, **columns):
    """With pandas' index, and token ids."""
    header = ["", "clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx", *columns]
    rows = [
        [i, r["prompt"], r["corrupted"], "x", *(vocabulary.single(r[k]) for k in ("answer", "wrong"))]
        + [values[i] for values in columns.values()]
        for i, r in enumerate(records)
    ]
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in [header, *rows]))
    return path


def auto_circuit(path, records):
    prompts = [
        {"clean": r["prompt"], "corrupt": r["corrupted"], "answers": [r["answer"]], "wrong_answers": [r["wrong"]]}
        for r in records
    ]
    path.write_text(json.dumps({"seq_labels": ["a"], "word_idxs": {"end": 1}, "prompts": prompts}, indent=2))
    return path


def mib(path, records):
    """Choices without their space, the twin in a record of its own, all on one line."""

    def row(prompt, right, wrong):
        return {"prompt": prompt, "choices": [wrong.strip(), right.strip()], "answerKey": 1}

    rows = [
        {
            **row(r["prompt"], r["answer"], r["wrong"]),
            "template": "t",
            "metadata": {"object": "x"},
            "abc_counterfactual": row("another", "x", "y"),
            "s2_io_flip_counterfactual": row(r["corrupted"], r["wrong"], r["answer"]),
        }
        for r in records
    ]
    path.write_text(json.dumps(rows))
    return path


def read(path, text, vocabulary=None, **options):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    file = read_task_file(path, **options)
    return check_file(file, vocabulary, 64) if vocabulary else file


def test_files_of_other_tools_go_from_check_to_a_verified_cache(call, tmp_path, monkeypatch, vocabulary):
    monkeypatch.chdir(tmp_path)
    records = lines(16)
    eap_ig(tmp_path / "things.csv", vocabulary, records)
    auto_circuit(tmp_path / "AUTO.JSON", records)
    mib(tmp_path / "my rows.json", records)
    said = {
        "things.csv": "clean → prompt, corrupted → corrupted, correct_idx → answer, incorrect_idx → wrong (token ids)",
        "AUTO.JSON": "clean → prompt, corrupt → corrupted, answers → answer, wrong_answers → wrong",
        "my rows.json": "prompt → prompt, s2_io_flip_counterfactual → corrupted, that of choices which answerKey names",
    }
    names = ("eap", "auto", "mib")
    for (file, expected), name in zip(said.items(), names, strict=True):
        code, out, err = call(cache_command, "check", file, "--name", name)
        assert code == 0, err
        assert expected in err
        assert "sound; 16 prompts" in out
        assert "with counterfactual twins" in out
    flags = [flag for file, name in zip(said, names, strict=True) for flag in ("--task", file, "--name", name)]
    code, _, err = call(
        cache_command, "build", *flags, "--batch-size", "5", "--control-batches", "3", "--ablation", "counterfactual",
        "--out", "c.h5",
    )  # fmt: skip
    assert code == 0, err
    lamp, box = map(vocabulary.single, (" lamp", " box"))
    assert f"correct_idx {lamp} is ' lamp', incorrect_idx {box} is ' box'" in err
    cache = Cache.open(tmp_path / "c.h5")
    assert cache.tasks == list(names)
    for name in names[1:]:  # three forms, one task
        assert (cache.damage(name) == cache.damage("eap")).all()
    code, _, err = call(
        train_command, "--from-cache", "c.h5", "--tasks", ",".join(names), "--hold-out", "", "--steps", "512",
        "--out", "c.zip",
    )  # fmt: skip
    assert code == 0, err
    fresh = tmp_path / "fresh.json"
    mib(fresh, [{k: v.replace("small", "large") for k, v in r.items()} for r in records])
    code, out, err = call(
        verify_command,
        "c.zip",
        "--cache",
        "c.h5",
        "--fresh",
        fresh,
        "--name",
        "mib",
        "--no-sweep",
        "--top",
        "1",
        "--json",
    )
    assert code in (0, 3), err
    found = json.loads(out)
    assert [task["faithful"]["answer"] for task in found["tasks"].values()] == [True] * 3


def test_all_forms_are_the_same_examples(tmp_path, vocabulary):
    records = lines(8)
    expected = [(r["prompt"], r["corrupted"], [r["answer"]], [r["wrong"]]) for r in records]
    forms = [
        auto_circuit(tmp_path / "auto.json", records),
        mib(tmp_path / "mib.json", records),
    ]
    for path in forms:
        file = check_file(read_task_file(path), vocabulary, 64)
        assert [(e.context, e.corrupted, e.answers, e.wrongs) for e in file.examples] == expected
    ids = check_file(read_task_file(eap_ig(tmp_path / "ids.csv", vocabulary, records)), vocabulary, 64)
    texts = check_file(read_task_file(forms[0]), vocabulary, 64)
    for a, b in zip(*(vars(tokenize("t", f.examples, vocabulary, 0)).values() for f in (ids, texts)), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"Prompt": "Tom saw the", "answer": " box", "wrong": [" key", " hat"]}]),
        json.dumps({" prompt ": "Tom saw the", "ANSWER": " box", "wrong": [" key", " hat"]}, indent=2),
        'prompt;answer;wrong\nTom saw the; box;"["" key"", "" hat""]"\n',
        " Prompt ,Answer,WRONG\n\"Tom saw the\", box,\"[' key', ' hat']\"\n,,\n\n",
        'prompt\tanswer\twrong\nTom saw the\t box\t[" key", " hat"]\n',
        'Unnamed: 0,prompt,answer,wrong\r0,Tom saw the, box,"["" key"", "" hat""]"\r',
        '\ufeff,prompt,answer,wrong\r\n0,Tom saw the, box,"["" key"", "" hat""]"\r\n',
        "clean,label,corrupted_label\nTom saw the,box,\"['key', 'hat']\"\n",
        json.dumps({"prompts": [{"clean": "Tom saw the", "answers": [" box"], "wrong_answers": [" key", " hat"]}]}),
        "prompt,choices,answerKey\nTom saw the,\"['key', 'box', 'hat']\",1\n",
        "prompt,choices,answerKey\nTom saw the,\"['key', 'box', 'hat']\",B\n",
        json.dumps({"prompt": "Tom saw the", "choices": {"label": ["key", "hat", "box"], "text": [1, 2, 3]},
                    "answerKey": "box"}),
    ],
    ids=[
        "a list", "pretty-printed", "semicolons", "a Python list in a cell", "tabs", "pandas, old Mac",
        "pandas, Windows", "words", "AutoCircuit", "an index", "a letter", "labels",
    ],
)  # fmt: skip
def test_one_task_in_many_shapes(tmp_path, vocabulary, text):
    ending = "JSON" if text[0] in "[{" else "CSV"
    file = read(tmp_path / f"TASK.{ending}", text, vocabulary)
    assert file.ignored == ()
    (example,) = file.examples
    assert (example.context, example.answers, example.wrongs) == ("Tom saw the", [" box"], [" key", " hat"])


def test_pretty_printed_objects_keep_the_lines_on_which_they_begin(tmp_path):
    given = [{"prompt": f"number {i} is", "answer": " a", "wrong": " b"} for i in range(3)]
    file = read(tmp_path / "t.jsonl", "\n".join(json.dumps(r, indent=1) for r in given))
    assert file.lines == [1, 6, 11]
    assert read(tmp_path / "t.json", json.dumps(given, indent=1)).lines == [2, 7, 12]
    assert read(tmp_path / "t.jsonl", "\r".join(map(json.dumps, given))).lines == [1, 2, 3]  # of an old Mac
    file = read(tmp_path / "t.json", json.dumps(given))
    assert (file.unit, file.lines) == ("record", [1, 2, 3])
    given[2]["answer"] = 3
    with pytest.raises(UsageError, match="one problem\n  record 3: 'answer' is neither"):
        read(tmp_path / "t.json", json.dumps(given))
    with pytest.raises(UsageError, match="one problem\n  line 12: 'answer' is neither"):
        read(tmp_path / "t.json", json.dumps(given, indent=1))


def test_rows_after_blank_lines_and_cells_of_several_lines_keep_their_lines(tmp_path):
    rows = 'prompt,answer,wrong\n\n"two\r\nlines", a, b\n\n,,\nthree, a, a\n'
    with pytest.raises(UsageError, match="one problem\n  line 7: ' a' is an answer and a wrong one"):
        read(tmp_path / "t.csv", rows)


def test_years_go_on_with_the_digits_above_and_below(tmp_path, vocabulary):
    """EAP-IG's greater-than; a `label` below 10 has lost its zero."""
    rows = "The plan went from the year 1752 to the year 17,The plan went from the year 1701 to the year 17,52\n"
    rows += "The plan went from the year 1604 to the year 16,The plan went from the year 1601 to the year 16,4\n"
    for column in ("label", "correct_idx"):
        file = read(tmp_path / "t.csv", f"clean,corrupted,{column}\n{rows}", vocabulary)
        first, second = file.examples
        assert (first.answers[0], first.answers[-1], first.wrongs[0], first.wrongs[-1]) == ("53", "99", "00", "52")
        assert (second.answers[0], second.wrongs[-1]) == ("05", "04")
        assert first.join
    for label, message in (("99", "no two digits are above it"), ("4.5", "not the last two digits of a year")):
        with pytest.raises(UsageError, match=f"one problem\n  line 4: 'label' is .*{message}"):
            read(tmp_path / "t.csv", f"clean,corrupted,label\n{rows}The year 16,The year 15,{label}\n")
    with pytest.raises(UsageError, match="line 4: the prompt does not end in the first two digits of a year"):
        read(tmp_path / "t.csv", f"clean,corrupted,label\n{rows}The year,The day,4\n")


def test_digits_that_the_tokenizer_joins_with_the_century_are_left_out(tmp_path, gpt2_tokenizer):
    vocabulary = Vocabulary(gpt2_tokenizer)
    context = "The plan went from the year 1752 to the year 17"
    file = read(tmp_path / "t.csv", f"clean,corrupted,label\n{context},{context.replace('52', '01')},52\n", vocabulary)
    (example,) = file.examples
    digits = [f"{i:02}" for i in range(100) if len(gpt2_tokenizer.encode(f" 17{i:02}")) == 2]
    assert [*example.wrongs, *example.answers] == digits
    assert 0 < file.dropped == 100 - len(digits) < 50
    assert check_file(file, vocabulary, 64).dropped == file.dropped
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": context, "answer": ["53"], "wrong": ["00"], "join": True}))
    with pytest.raises(UsageError, match="the wrong '00' is not a single token after the prompt: ' 1700'"):
        check_file(read_task_file(tmp_path / "t.jsonl"), vocabulary, 64)


def test_sums_take_the_wrong_answer_from_their_twin(tmp_path):
    """MIB's arithmetic."""
    row = {"prompt": "12 and 34 is", "label": "46", "operator": "+"}
    twin = {"random_counterfactual": {"prompt": "15 and 34 is", "label": 49}}
    (example,) = read(tmp_path / "t.json", json.dumps([{**row, **twin}])).examples
    assert (example.answers, example.wrongs, example.corrupted) == ([" 46"], [" 49"], "15 and 34 is")
    bare = {**row, "prompt": "a", "random_counterfactual": {"prompt": "b"}}
    with pytest.raises(UsageError, match="record 2: no 'label' in 'random_counterfactual'"):
        read(tmp_path / "t.json", json.dumps([{**row, **twin}, bare]))


def test_a_line_says_whether_its_answer_goes_on_inside_a_word(tmp_path):
    lines = [
        {"prompt": f"{i} un", "answer": "do", "wrong": "tie", **join} for i, join in enumerate([{"join": True}, {}])
    ]
    assert [e.join for e in read(tmp_path / "t.jsonl", "\n".join(map(json.dumps, lines))).examples] == [True, False]
    cells = "prompt,answer,wrong,join\na un,do,tie,TRUE\nb un,do,tie,\nc un,do,tie,false\n"
    assert [e.join for e in read(tmp_path / "t.csv", cells).examples] == [True, False, False]
    with pytest.raises(UsageError, match="line 2: 'join' is 'perhaps', neither true nor false"):
        read(tmp_path / "t.csv", "prompt,answer,wrong,join\na un,do,tie,perhaps\n")


def test_brackets_in_json_are_text(tmp_path):
    (example,) = read(tmp_path / "t.jsonl", json.dumps({"prompt": "a =", "answer": '["x"]', "wrong": "[]"})).examples
    assert (example.answers, example.wrongs) == (['["x"]'], ["[]"])
    (example,) = read(tmp_path / "t.csv", "prompt,answer,wrong\na =,[x],[]\n").examples
    assert (example.answers, example.wrongs) == (["[x]"], ["[]"])


def test_token_ids_of_another_tokenizer_are_refused(tmp_path, vocabulary):
    row = "clean,corrupted,correct_idx,incorrect_idx\nTom saw a box. The,Tom saw a key. The,{},{}\n"
    box, key = vocabulary.single(" box"), vocabulary.single(" key")
    file = read(tmp_path / "t.csv", row.format(f"{box}.0", f"[{key}]"), vocabulary)
    assert (file.examples[0].answers, file.examples[0].wrongs) == ([box], [key])
    part = next(i for i in range(len(vocabulary.tokenizer)) if "\ufffd" in vocabulary.tokenizer.decode([i]))
    inside = vocabulary.tokenizer.encode("s", add_special_tokens=False)[0]
    for token, message in (
        (47764, "the wrong token 47764 is none of this model's: its tokenizer has 1106 tokens and its embedding 1106 "),
        (0, "the wrong token 0 is '<|endoftext|>', which is no text"),
        (part, f"the wrong token {part} is a part of a letter"),
        (inside, f"the wrong token {inside} is 's', and the tokenizer writes that in other tokens here"),
        ("Mary", "'incorrect_idx' is 'Mary', not a token id"),
        (box, f"{box} is an answer and a wrong one"),
    ):
        with pytest.raises(UsageError, match=f"one problem\n  line 2: {message.replace('|', '[|]')}"):
            read(tmp_path / "t.csv", row.format(box, token), vocabulary)
    with pytest.raises(UsageError, match="its tokenizer has 1106 tokens and its embedding 766 rows"):
        read(tmp_path / "t.csv", row.format(key, box), Vocabulary(vocabulary.tokenizer, rows=766))
    (tmp_path / "t.csv").write_text(row.format(box, 47764))
    file = read_task_file(tmp_path / "t.csv")
    assert (
        ids_say(file, vocabulary)
        == f"correct_idx {box} is ' box', incorrect_idx 47764 is none of this tokenizer's 1106"
    )


def test_token_ids_must_be_what_the_file_calls_them(tmp_path, vocabulary):
    records = lines(4)
    words = {"label": [r["answer"] for r in records], "corrupted_label": [r["wrong"].strip() for r in records]}
    check_file(read_task_file(eap_ig(tmp_path / "t.csv", vocabulary, records, **words)), vocabulary, 64)
    words["label"][1] = "hat"
    path = eap_ig(tmp_path / "t.csv", vocabulary, records, **words)
    with pytest.raises(UsageError, match="one problem\n  line 3: the token 812 is ' box', and the file calls it 'hat'"):
        check_file(read_task_file(path), vocabulary, 64)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("promt,answer,wrong", "no 'prompt', but 'promt'; did you mean 'prompt'?"),
        ("prompt,anwser,wrong", "no 'answer', but 'anwser'; did you mean 'answer'?"),
        ("prompt,answer", "no 'wrong'"),
        ("clean,corrupted,correct_idx", "no 'incorrect_idx'"),
        ("clean,corrupted,plural", "no 'wrong'; the file has 'clean', 'corrupted', 'plural'"),
        ("prompt,answer,wrong,corupted", "unknown field 'corupted'; did you mean 'corrupted'?"),
        ("prompt,answer,wrong,gruop", "unknown field 'gruop'; did you mean 'group'?"),
        ("prompt,answer,wrong,Answer", "the column 'answer' twice"),
        ("a,b", "no 'prompt'"),
    ],
)  # fmt: skip
def test_a_fault_of_the_header_is_reported_once(tmp_path, header, message):
    cells = [f"x{{i}},{', '.join('abcd')}".split(",")[: header.count(",") + 1]] * 50
    text = "\n".join([header, *(",".join(row).format(i=i) for i, row in enumerate(cells))])
    with pytest.raises(UsageError) as error:
        read(tmp_path / "t.csv", text)
    assert str(error.value).count(message) == 1
    assert "line 2" not in str(error.value)
    names = header.split(",")
    if len({name.lower() for name in names}) < len(names):
        return
    rows = [
        json.dumps(dict(zip(names, (cell.format(i=i) for cell in row), strict=True))) for i, row in enumerate(cells)
    ]
    with pytest.raises(UsageError) as error:
        read(tmp_path / "t.jsonl", "\n".join(rows))
    assert str(error.value).count(message) == 1
    assert "line 2" not in str(error.value)


def test_a_file_of_no_known_form_is_told_what_it_has(tmp_path):
    with pytest.raises(UsageError, match="no 'wrong'; the file has 'text', 'gold', 'foil'"):
        read(tmp_path / "t.csv", "text;gold;foil\nx;a;b\n")


def test_unknown_columns_are_named_in_one_warning(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extra = {f"note {i}": i for i in range(7)} | {"\x1b[2J": 1}
    records = [{"\x1b[2J": 1, **{k: r[k] for k in ("prompt", "answer", "wrong")}, **extra} for r in lines(8)]
    (tmp_path / "t.json").write_text(json.dumps(records))
    code, _, err = call(cache_command, "check", "t.json")
    assert code == 0
    assert err.count("not read") == 1
    assert "columns that are not read: \\x1b[2J, note 0, note 1, note 2, note 3 and 3 more" in err


@pytest.mark.parametrize(
    ("name", "data", "line", "message"),
    [
        ("t.csv", b"", 1, "the file is empty"),
        ("t.jsonl", b" \n\n", 1, "the file is empty"),
        ("t.json", b"[]", 1, "there are no prompts"),
        ("t.json", b"[\n", 1, "the list does not end"),
        ("t.csv", b"\nprompt,answer,wrong\n", 2, "a header and no rows"),
        ("t.csv", b"prompt,answer,wrong\nx, a, b\ny\0, a, b\n", 3, "a null byte"),
        ("t.csv", b"prompt,answer,wrong\r\nx, a, b\r\ny\xe9, a, b\r\n", 3, "not UTF-8 text: byte 0xe9 at 2"),
        ("t.csv", b"prompt,answer,wrong\rx, a, b\r\"y, a, b\rz, a, b\r", 3, "a quote that is opened in this row"),
        ("t.csv", b'prompt,answer,wrong\nx, a, b\n"y"z, a, b\n', 3, "not CSV"),
        ("t.csv", b"prompt,answer,wrong\nx, a, b\ny; a; b\n", 3, "separated by semicolons and the header by commas"),
        ("t.csv", b"prompt,answer,wrong\nx, a, b\ny, a, b, c\n", 3, "the header, which has 3, but 4"),
        ("t.csv", b"prompt,answer,wrong\nx, a, b\n" + b"y" * 200_000, 3, "a cell of more than 131072 letters"),
        ("t.jsonl", b'{"prompt": "x", "answer": NaN, "wrong": " b"}', 1, "NaN is not a number"),
        ("t.json", b'[\n{"prompt": "x"},\n{"prompt": }\n]', 3, "not JSON"),
        ("t.json", b'[{"prompt": "x", "answer": " a", "wrong": " b"}\n', 1, "the list does not end"),
        ("t.json", b'[{"prompt": "x", "answer": " a", "wrong": " b"}\n{', 2, "neither a comma nor the end of the list"),
        ("t.json", b'[{"prompt": "x", "answer": " a", "wrong": " b"},\n', 1, "the list does not end"),
        ("t.json", b'[{"prompt": "x", "answer": " a", "wrong": " b"}]\n!', 2, "more after the end of the list"),
        ("t.json", b'{"prompts": [{"clean": "x", "answers": "a",\n"wrong_answers": "b"}, 3]}', 2, "not an object"),
        ("t.json", b'\n{"a":' + b"[" * 100_000, 2, "nested too deep"),
        ("t.json", b'{"prompt": "' + b"x" * 1_000_001 + b'", "answer": " a", "wrong": " b"}', 1, "1000001 letters"),
        ("t.json", b'{"prompt": "x", "choices": ["a"], "answerKey": 0}', 1, "'choices' is no list of two or more"),
        ("t.json", b'{"prompt": "x", "choices": ["a", "b"], "answerKey": 2}', 1, "'answerkey' is 2, none of the"),
        ("t.json", b'{"prompt": "x", "choices": [[[1]], "b"], "answerKey": -1}', 1, "'answerkey' is -1, none"),
        ("t.csv", b'prompt,choices,answerKey\nx,"[\'a\' \'b\']",0\n', 2, "'choices' is no list of two or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_gets_one_message_with_its_line(call, tmp_path, name, data, line, message):
    (tmp_path / name).write_bytes(data)
    code, out, err = call(cache_command, "check", tmp_path / name)
    assert (code, out) == (2, "")
    assert f"one problem\n  line {line}: " in err
    assert message in err
    assert "Traceback" not in err


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_bytes(b"x" * 2**21)
    monkeypatch.setattr(mechrl.tasks.task_file, "LARGEST", 2**20)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail("it was read"))
    with pytest.raises(UsageError, match="has 2 MiB, and a task file at most 1"):
        read_task_file(tmp_path / "t.csv")


def bad(records: list[dict]) -> list[str]:
    """Lines of which seven of 32 do not fit."""
    records[3] = {**records[3], "answer": " Zanzibar"}  # several tokens
    records[9] = records[8]  # again
    records[12] = {**records[12], "corrupted": "Tom"}  # of another length
    records[15] = {**records[15], "answer": 3}
    records[18] = {k: v for k, v in records[18].items() if k != "corrupted"}
    texts = [json.dumps(record) for record in records]
    texts[20], texts[31] = '{"prompt": ', "[]"
    return texts


def test_bad_lines_are_left_out_counted_and_recorded(call, tmp_path, monkeypatch, mini):
    monkeypatch.chdir(tmp_path)
    texts = bad(lines())
    (tmp_path / "own.jsonl").write_text("\n".join(texts))
    code, _, err = call(cache_command, "check", "own.jsonl")
    assert code == 2
    assert "5 problems" in err  # of form; the tokens are looked at when these are mended
    assert "Skipping bad lines would leave out what does not fit" in err
    code, out, err = call(cache_command, "check", "own.jsonl", "--skip-bad-lines")
    assert code == 0, err
    assert "7 of 32 lines do not fit and are left out" in err
    assert "sound without the 7 lines that do not fit; 25 prompts" in out
    code, out, _ = call(cache_command, "check", "own.jsonl", "--skip-bad-lines", "--json")
    assert (json.loads(out)["skipped"], json.loads(out)["prompts"]) == (7, 25)
    file = read_task_file(tmp_path / "own.jsonl", skip_bad_lines=True)
    material = prepare(mini, BuildSettings(tasks=(), files=(file,), batch_size=4, control_batches=3))
    assert json.loads(material.attributes["/tasks/own"]["generator_params"])["skipped"] == 7
    assert len(material.prompts["own"]) == 24
    texts[0], texts[1] = "{}", "{}"
    (tmp_path / "own.jsonl").write_text("\n".join(texts))
    code, _, err = call(cache_command, "check", "own.jsonl", "--skip-bad-lines")
    assert code == 2
    assert "9 of 32 lines do not fit, and a quarter may; 2 problems" in err


def test_an_unfinished_build_goes_on_only_with_the_same_name_and_lines(tmp_path):
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines())))
    options: tuple[dict, ...] = ({}, {"name": "other"}, {"skip_bad_lines": True})
    files = [read_task_file(tmp_path / "own.jsonl", **of_file) for of_file in options]
    assert len({json.dumps(BuildSettings(tasks=(), files=(file,)).identity()) for file in files}) == 3


def test_names_are_given_for_all_files_or_none(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ioi", "two words"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines())))
    flags = ("--task", "ioi.jsonl", "--task", "two words.jsonl")
    for names, message in (
        (["a"], "1 × --name and 2 × --task: name each file, in their order"),
        (["a", "ioi"], "there is a task 'ioi' already; give another name"),
        (["a", "b c"], "give another name"),
        (["a", "a"], "each once"),
        ([], "there is a task 'ioi' already; rename the file, or give its task another name"),
    ):
        code, _, err = call(cache_command, "build", *flags, *(f for name in names for f in ("--name", name)))
        assert code == 2
        assert message in err


def test_the_files_own_split_is_read_in_any_form(tmp_path):
    rows = "clean,corrupted,label,corrupted_label,split\na,b,c,d,train\ne,f,g,h,evaluation\n"
    assert read(tmp_path / "t.csv", rows).split.tolist() == [TRAIN, EVALUATION]


def test_a_list_as_numpy_prints_it_is_not_glued_together():
    """Python reads two texts with nothing but a space between them as one."""
    assert read_cell("['5' '6']", list) == "['5' '6']"
    assert read_cell("[' ', 'a']", list) == [" ", "a"]
