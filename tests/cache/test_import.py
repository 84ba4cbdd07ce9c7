"""Scores that others measured, as a cache: what works on them, what is refused, and what the published ones give."""

import csv
import hashlib
import io
import json
from math import comb

import h5py
import numpy as np
import pytest
from helpers import table_cache
from published_scores import HEADS, PUBLISHED, SCORES

from mechrl.cache.export import export
from mechrl.cache.format import Content
from mechrl.cache.imported import import_table
from mechrl.cache.reader import Cache
from mechrl.cache.storage import manifest_path, read_content, write_content
from mechrl.cache.top import top_heads
from mechrl.cli.cache import cache as cache_command
from mechrl.cli.report import report as report_command
from mechrl.cli.train import train as train_command
from mechrl.cli.verify import verify as verify_command
from mechrl.envs.single import HeadDiscoveryEnv
from mechrl.envs.table import ScoreTable
from mechrl.errors import FileError, MachineError, UsageError
from mechrl.search.methods.orders import random_order
from mechrl.search.protocol import evaluate
from mechrl.tasks import EVALUATION, TRAIN

# Two layers of two heads, five episodes.
SMALL = [
    ["seed", "0.0", "0.1", "1.0", "1.1"],
    ["7", "0.5", "1", "-1", "2"],
    ["8", "0.25", "2", "-1", "2.5"],
    ["9", "0.5", "3", "-1", "-2"],
    ["10", "0.75", "4", "-1", "2"],
    ["11", "0.5", "5", "-1", "2"],
]


def written(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The published table, its columns shuffled, imported and read back."""
    folder = tmp_path_factory.mktemp("published")
    order = np.random.default_rng(0).permutation(144)
    rows = [[seed, *SCORES[i, order].tolist()] for i, seed in enumerate(PUBLISHED)]
    table = written(folder / "table.csv", [["episode_seed", *(HEADS[i] for i in order)], *rows])
    return Cache.open(import_table(table, "docstring", 12, 12, folder / "docstring.h5", "gpt2"))


@pytest.fixture
def small(tmp_path):
    return Cache.open(import_table(written(tmp_path / "t.csv", SMALL), "mine", 2, 2, tmp_path / "small.h5"))


def test_the_published_table_has_its_oracle_and_its_best_head(published):
    scores = published.episode_scores("docstring")
    assert scores.shape == (15, 144)
    np.testing.assert_array_equal(scores, SCORES.astype(np.float32))
    assert abs(scores.max(1).mean() - 2.1745) < 2e-4
    assert [published.head(site) for site in scores.argmax(1)] == ["0.10"] * 15


def test_random_search_on_the_published_table_finds_the_published_share_of_the_oracle(published):
    """The expected best of k heads drawn without replacement, exactly: the i-th best is it in C(n − i, k − 1) draws."""
    ordered = -np.sort(-published.episode_scores("docstring").astype(float), axis=1)
    for picks, share in ((10, 0.29), (25, 0.45), (50, 0.61)):
        chance = np.array([comb(144 - i, picks - 1) / comb(144, picks) for i in range(1, 145)])
        assert abs(chance.sum() - 1) < 1e-12
        ratios = ordered @ chance / ordered[:, 0]
        assert abs(ratios.mean() - share) < 0.005


def test_evaluation_plays_the_last_quarter_of_the_published_episodes(published):
    evaluation = evaluate(published, "docstring", random_order(None), 144)
    np.testing.assert_array_equal(evaluation.scores, SCORES[-3:].astype(np.float32))
    assert evaluation.summary()["coverage after 50"] < 1
    assert (evaluation.ratios(144) == 1).all()
    assert len(published.batch_damage("docstring", TRAIN)) == 12


@pytest.mark.parametrize(("episodes", "train"), [(3, 1), (5, 3), (11, 9), (12, 9), (16, 12)])
def test_the_last_quarter_and_at_least_two_episodes_are_for_evaluation(tmp_path, episodes, train):
    rows = [["0.0", "0.1"], *([str(i), "0"] for i in range(episodes))]
    cache = Cache.open(import_table(written(tmp_path / "t.csv", rows), "a", 1, 2, tmp_path / "c.h5"))
    assert cache.batch_damage("a", TRAIN)[:, 0].tolist() == list(range(train))
    assert cache.batch_damage("a", EVALUATION)[:, 0].tolist() == list(range(train, episodes))


def test_an_imported_cache_says_where_it_is_from_and_nothing_it_cannot_know(small, tmp_path):
    a = dict(small.attributes)
    assert a["imported"] == "t.csv"
    assert a["imported_sha256"] == hashlib.sha256((tmp_path / "t.csv").read_bytes()).hexdigest()
    assert [a[key] for key in ("model", "model_sha256", "ablation", "weight_processing")] == ["unknown"] * 4
    assert not {"seed", "dtype", "tokenizer_sha256", "prepend_bos", "control_source", "self_check_error"} & set(a)
    assert set(small.content.arrays) == {
        "/sites/kind", "/sites/layer", "/sites/index", "/tasks/mine/scores", "/tasks/mine/split",
    }  # fmt: skip
    assert small.task_attributes("mine") == {}


def test_the_scores_are_the_damage_and_the_control_damage_is_zero(small):
    np.testing.assert_array_equal(small.batch_damage("mine"), [[0.75, 4, -1, 2], [0.5, 5, -1, 2]])
    np.testing.assert_array_equal(small.batch_control(), np.zeros((2, 4), np.float32))
    assert small.batch_control(TRAIN).shape == (3, 4)
    np.testing.assert_array_equal(small.scores("mine"), [0.625, 4.5, -1, 2])
    env = HeadDiscoveryEnv(small, split="evaluation")
    env.reset(options={"batch": 1, "control": 0})
    assert env.step(1)[1] == 5.0


def test_the_control_weight_of_imported_scores_cannot_be_changed(call, small, tmp_path):
    for ask in (
        lambda: small.scores("mine", control_weight=0.5),
        lambda: top_heads(small, "mine", control_weight=0),
        lambda: ScoreTable.from_cache(small, ["mine"], control_weight=2),
        lambda: HeadDiscoveryEnv(small, control_weight=2),
    ):
        with pytest.raises(UsageError, match=r"imported from 't\.csv': its scores contain the control term"):
            ask()
    code, _, err = call(train_command, "--from-cache", small.path, "--control-weight", 0.5, "--out", tmp_path / "c.zip")
    assert code == 2
    assert "cannot be changed to 0.5" in err


def test_what_needs_prompts_says_that_there_are_none(small):
    for ask in (
        lambda: small.prompts("mine"),
        lambda: small.damage("mine"),
        lambda: small.clean("mine"),
        lambda: small.accuracy("mine"),
        lambda: small.control_damage,
        lambda: small.answer_overlap("mine"),
        lambda: small.ablation,
    ):
        with pytest.raises(MachineError, match="it holds scores and no prompts, it cannot be replayed"):
            ask()


def test_a_cache_from_prompts_has_no_episode_scores(small_cache):
    with pytest.raises(UsageError, match="is not imported"):
        small_cache.episode_scores("ioi")


def test_top_has_scores_and_ranks_alone(call, small):
    found = top_heads(small, "mine", n=2)
    assert [(head.head, head.score[0], head.ranks) for head in found] == [
        ("0.1", 3.0, [1]),
        ("1.1", pytest.approx(1.3), [2]),
    ]
    assert found[0].score[1] < 3 < found[0].score[2]
    assert (found[0].damage, found[0].control, found[0].direct, found[0].specificity) == (None,) * 4
    assert [head.head for head in top_heads(small, "mine", by="abs")] == ["0.1", "1.1", "1.0", "0.0"]
    code, out, _ = call(cache_command, "top", small.path)
    assert code == 0
    assert "scores imported from t.csv" in out
    assert json.loads(call(cache_command, "top", small.path, "--json")[1])["mine"][0]["head"] == "0.1"
    code, _, err = call(cache_command, "top", small.path, "--by", "damage")
    assert code == 2
    assert "order them by score or abs" in err


def test_export_leaves_the_columns_empty_that_nobody_measured(call, small):
    rows = list(csv.DictReader(io.StringIO(export(small, "csv").decode())))
    assert [(row["layer"], row["head"], row["score"], row["damage"], row["control_damage"]) for row in rows] == [
        ("0", "1", "3.0", "", ""), ("1", "1", rows[1]["score"], "", ""), ("0", "0", "0.5", "", ""),
        ("1", "0", "-1.0", "", ""),
    ]  # fmt: skip
    assert export(small, "parquet")[:4] == b"PAR1"
    assert json.loads(export(small, "heads-json", ["mine"]))["heads"][0]["damage"] is None
    for kind, message in (
        ("eap-ig", "a table that was imported has no such format"),
        ("auto-circuit", "a table that was imported has no such format"),
        ("transformer-lens", "is of 'unknown' ablation"),
    ):
        with pytest.raises(UsageError, match=message):
            export(small, kind, ["mine"])


def test_the_commands_that_look_into_a_cache_work_on_an_imported_one(call, published, tmp_path):
    code, out, _ = call(cache_command, "info", published.path)
    assert code == 0
    assert "no prompts, it cannot be replayed" in out
    info = json.loads(call(cache_command, "info", published.path, "--json")[1])
    assert info["tasks"]["docstring"]["episodes"] == 15
    assert abs(info["tasks"]["docstring"]["mean_best_score"] - 2.1745) < 2e-4
    assert (info["model"], info["imported"]) == ("gpt2", "table.csv")
    assert call(cache_command, "validate", published.path)[0] == 0
    assert call(report_command, published.path, "-o", tmp_path / "map.png")[0] == 0


def test_training_runs_from_a_table_to_a_checkpoint_which_verify_refuses(call, published, tmp_path):
    checkpoint = tmp_path / "c.zip"
    code, out, err = call(train_command, "--from-cache", published.path, "--steps", 3200, "--out", checkpoint, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found) == ["docstring"]
    assert set(found["docstring"]) == {"agent", "agent, no task signal", "random"}
    for replay in (
        (verify_command, checkpoint, "--cache", published.path),
        (train_command, "--from-cache", published.path, "--live", "--steps", 10, "--out", tmp_path / "d.zip"),
    ):
        code, out, err = call(*replay)
        assert (code, out) == (1, "")
        assert "is imported from 'table.csv': it holds scores and no prompts, it cannot be replayed" in err


def changed(row, column, value):
    rows = [list(r) for r in SMALL]
    rows[row][column] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(2, 3, "nan"), "line 3 (episode '8'), head 1.0: 'nan' is not finite"),
        (changed(2, 3, "-inf"), "line 3 (episode '8'), head 1.0: '-inf' is not finite"),
        (changed(5, 1, "1e6"), "line 6 (episode '11'), head 0.0: '1e6' is not finite, or beyond any measurement"),
        (changed(1, 4, "high"), "line 2 (episode '7'), head 1.1: 'high' is not a number"),
        (changed(1, 4, ""), "line 2 (episode '7'), head 1.1: '' is not a number"),
        (changed(1, 4, "1_5"), "line 2 (episode '7'), head 1.1: '1_5' is not a number"),
        ([*SMALL[:3], SMALL[3][:-1], *SMALL[4:]], "line 4 (episode '9'): 4 cells, the header has 5"),
        ([*SMALL[:3], [*SMALL[3], "0"]], "line 4 (episode '9'): 6 cells, the header has 5"),
        (SMALL[:3], "has 2 episodes; 3 are the least"),
        (SMALL[:1], "has 0 episodes"),
        ([], "is empty; it needs a header"),
    ],
)
def test_a_damaged_table_is_refused_with_its_line(call, tmp_path, rows, message):
    refused(call, tmp_path, written(tmp_path / "t.csv", rows), 4, message)


@pytest.mark.parametrize("data", [b"\xff\xfe0\x00.\x000", b"0.0,0.1\n\x80,1\n", b"PK\x03\x04\x9c"])
def test_what_is_no_text_is_refused(call, tmp_path, data):
    (tmp_path / "t.csv").write_bytes(data)
    refused(call, tmp_path, tmp_path / "t.csv", 4, "not a .csv file in UTF-8")


@pytest.mark.parametrize(
    ("header", "arguments", "message"),
    [
        ("seed,0.0,0.1,1.0,1.1", ["--n-layers", 3],
         "head 2.0 is missing, and 1 more. The table has 2 × 2 heads: did you mean 2 layers of 2 heads?"),
        ("seed,0.0,0.1,1.0,1.1", ["--n-heads", 1],
         "the model has no head 0.1 (column 3). The table has 2 × 2 heads: did you"),
        ("seed,0.0,0.1,1.0,1.2", [],
         "the model has no head 1.2 (column 5). A model of 2 × 2 has heads 0.0 to 1.1, each"),
        ("seed,0.0,0.1,1.1", [], "head 1.0 is missing. A model of 2 × 2 has"),
        ("seed,0.0,0.1,1.0,0.1", [], "head 0.1 is there twice, in columns 3 and 5"),
        ("0.0,0.1,1.1,1.0,1.1", [], "head 1.1 is there twice, in columns 3 and 5"),
        ("seed,0.0,0.1,0.1,1.0", ["--n-heads", 12],
         "head 0.1 is there twice, in columns 3 and 4. Did a spreadsheet make 0.1 of 0.10?"),
        ("seed,0.0,0.1,1.0,1.01", [], "column 5 is called '1.01', not layer.head, such as 9.6"),
        ("seed,0.0,0.1,score,1.0,1.1", [], "column 4 is called 'score', not layer.head"),
        ("seed;0.0;0.1;1.0;1.1", [], "its header names no head; heads are written layer.head and separated by commas"),
    ],
)  # fmt: skip
def test_heads_that_are_not_the_models_are_named(call, tmp_path, header, arguments, message):
    n = header.count(",")
    (tmp_path / "t.csv").write_text("\n".join([header, *["1" + ",1" * n] * 3]))
    refused(call, tmp_path, tmp_path / "t.csv", 2, message, *arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--task", "a/b"], 2, "a task is called in letters, digits, _ and -, not 'a/b'"),
        (["--model", "gpt\n2"], 2, "a model cannot be called"),
        (["--n-layers", 0], 2, "n-layers"),
        (["--out", "t.csv"], 2, "would overwrite the table"),
        (["--out", "t.csv/x.h5"], 1, "cannot write"),
        (["--out", "."], 2, "name a file"),
    ],
)
def test_what_was_typed_wrong_is_named(call, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    refused(call, tmp_path, written(tmp_path / "t.csv", SMALL), code, message, *arguments)


def test_a_table_that_is_not_there_is_refused(call, tmp_path):
    refused(call, tmp_path, tmp_path / "nothing.csv", 2, "nothing.csv: No such file")
    refused(call, tmp_path, tmp_path, 2, "Is a directory")


def refused(call, tmp_path, table, code, message, *arguments):
    """Nothing is written, and one message says why."""
    before = sorted(tmp_path.iterdir())
    usual = ("--task", "mine", "--n-layers", 2, "--n-heads", 2, "--out", tmp_path / "new.h5")
    ended, out, err = call(cache_command, "import", table, *usual, *arguments)
    assert (ended, out) == (code, ""), err
    assert message in err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_a_table_from_a_spreadsheet_and_one_without_names_give_the_same_scores(tmp_path, small):
    text = "\ufeff" + "\r\n".join(", ".join(row) for row in SMALL) + "\r\n\r\n"
    (tmp_path / "excel.csv").write_bytes(text.encode())
    bare = written(tmp_path / "bare.csv", [row[1:] for row in SMALL])
    (tmp_path / "both.csv").write_bytes(b"\xef\xbb\xbf" + bare.read_bytes())
    for table in (tmp_path / "excel.csv", bare, tmp_path / "both.csv"):
        cache = Cache.open(import_table(table, "mine", 2, 2, tmp_path / "again.h5"))
        np.testing.assert_array_equal(cache.episode_scores("mine"), small.episode_scores("mine"))


def rewritten(cache, arrays=None, attributes=None, without=()):
    """The file of a cache, with other contents and a fitting hash."""
    content = read_content(cache.path)
    kept = {path: array for path, array in {**content.arrays, **(arrays or {})}.items() if path not in without}
    root = {key: value for key, value in {**content.root, **(attributes or {})}.items() if key not in without}
    write_content(cache.path, Content(kept, {**content.attributes, "/": root}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrays": {"/tasks/mine/group": np.zeros(5, np.int32)}}, "of one task, in batches of 1, no more"),
        ({"arrays": {"/tasks/b/scores": np.zeros((5, 4), np.float32)}}, "task_order"),
        ({"arrays": {"/control/split": np.zeros(5, np.uint8)}}, "of one task, in batches of 1, no more"),
        ({"attributes": {"batch_size": 5}}, "of one task, in batches of 1, no more"),
        ({"without": ["/tasks/mine/split"]}, "of one task, in batches of 1, no more"),
        ({"arrays": {"/tasks/mine/split": np.array([0, 0, 1, 1], np.uint8)}}, "5 episodes of scores, and a split of 4"),
        ({"arrays": {"/tasks/mine/split": np.array([0, 1, 0, 1, 1], np.uint8)}}, "training first"),
        ({"arrays": {"/tasks/mine/split": np.array([0, 0, 0, 0, 1], np.uint8)}}, "two evaluation batches at least"),
        ({"arrays": {"/tasks/mine/scores": np.full((5, 4), np.nan, np.float32)}}, "not finite"),
        ({"arrays": {"/tasks/mine/scores": np.zeros((5, 3), np.float32)}}, "has 3 in dimension 'site', not 4"),
        ({"without": ["imported_sha256"]}, "'imported_sha256' is missing"),
        ({"without": ["imported"]}, "'tokenizer_sha256' is missing"),
        ({"attributes": {"imported": 1}}, "'imported' is missing or not str"),
    ],
)
def test_a_file_that_is_half_imported_is_refused(small, change, message):
    rewritten(small, **change)
    with pytest.raises(FileError, match=message):
        Cache.open(small.path)


def test_a_cache_from_prompts_that_calls_itself_imported_is_refused(tmp_path):
    cache = table_cache(tmp_path / "t.h5", {"a": np.zeros((4, 2), np.float32)}, np.zeros((4, 2), np.float32), 1, 2)
    rewritten(cache, attributes={"imported": "x.csv", "imported_sha256": "0"})
    with pytest.raises(FileError, match="of one task, in batches of 1, no more"):
        Cache.open(cache.path)


def test_changed_scores_are_refused_without_a_manifest(small):
    manifest_path(small.path).unlink()
    with h5py.File(small.path, "r+") as file:
        file["/tasks/mine/scores"][0, 0] += 1
    with pytest.raises(FileError, match="do not match the hash"):
        Cache.open(small.path)
