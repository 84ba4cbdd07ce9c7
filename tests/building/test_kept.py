"""Control is swept once: it is kept, found again by what it depends on, and behaviours are added without it."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from mechrl.building import kept
from mechrl.building.add import add_tasks
from mechrl.building.build import build
from mechrl.building.settings import BuildSettings
from mechrl.building.workers.worker import Worker
from mechrl.cache.reader import Cache
from mechrl.cli.cache import cache as cache_command
from mechrl.errors import FileError, MachineError, UsageError
from mechrl.tasks import EVALUATION, TRAIN
from mechrl.tasks.control import read_control
from mechrl.tasks.sampled import sampled_spans
from mechrl.vocabulary import Vocabulary

ONE = BuildSettings(tasks=("ioi",), batches=3, batch_size=1, control_batches=3)


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which kind of batch was swept, as it is swept."""
    seen: list[str] = []
    for name in ("_task", "_control"):
        method = getattr(Worker, name)
        monkeypatch.setattr(
            Worker, name, lambda self, *a, name=name, method=method: seen.append(name) or method(self, *a)
        )
    return seen


def arrays(cache: Cache, place: str = "/") -> dict[str, np.ndarray]:
    return {path: np.asarray(a) for path, a in cache.content.arrays.items() if path.startswith(place)}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)


def test_a_second_build_takes_control_from_the_first(tiny, tmp_path, own_home, swept):
    first = Cache.open(build(tiny, ONE, tmp_path / "first.h5"))
    n = swept.count("_control")
    assert n == ONE.control_batches
    second = Cache.open(build(tiny, replace(ONE, tasks=("docstring",)), tmp_path / "second.h5"))
    assert swept.count("_control") == n, "control was not swept again"
    assert_same(arrays(first, "/control"), arrays(second, "/control"))
    assert_same(arrays(first, "/sites"), arrays(second, "/sites"))
    for name in ("device", "effective_batch", "self_check_error"):
        assert second.attributes[name] == pytest.approx(first.attributes[name], abs=1e-4)
    assert len(list((own_home / "control").iterdir())) == 1


def test_another_control_is_swept(tiny, tmp_path, swept):
    build(tiny, ONE, tmp_path / "first.h5")
    for change in ({"seed": 1}, {"ablation": "mean_control"}, {"control_batches": 4}):
        del swept[:]
        build(tiny, replace(ONE, **change), tmp_path / "second.h5")
        assert swept.count("_control") == change.get("control_batches", ONE.control_batches), change


def test_a_kept_file_that_is_not_sound_is_not_used(tiny, tmp_path, own_home, swept, capsys):
    whole = Cache.open(build(tiny, ONE, tmp_path / "first.h5"))
    (file,) = (own_home / "control").iterdir()

    def cut():
        file.write_bytes(file.read_bytes()[:-4000])

    def bit():
        with h5py.File(file, "r+") as opened:
            opened["/control/clean"][0] += 1

    def other_key():
        with h5py.File(file, "r+") as opened:
            opened.attrs["control_key"] = json.dumps({"spans": "others"})

    for harm in (cut, bit, other_key):
        harm()
        del swept[:]
        again = Cache.open(build(tiny, ONE, tmp_path / "second.h5"))  # which keeps a sound one
        assert swept.count("_control") == ONE.control_batches, harm
        assert f"the control sweep in {file} is not used" in capsys.readouterr().err, harm
        assert_same(arrays(whole), arrays(again))
    del swept[:]
    build(tiny, ONE, tmp_path / "third.h5")
    assert "_control" not in swept, "unharmed, it is used"


def test_who_cannot_write_there_builds_all_the_same(tiny, tmp_path, own_home, capsys):
    (own_home / "control").write_text("no folder")
    Cache.open(build(tiny, ONE, tmp_path / "first.h5"))
    assert "is not kept for the next build" in capsys.readouterr().err


def test_what_is_kept_is_bounded(tiny, tmp_path, own_home, monkeypatch):
    build(tiny, ONE, tmp_path / "first.h5")
    (first,) = (own_home / "control").iterdir()
    monkeypatch.setattr(kept, "MOST_BYTES", first.stat().st_size + 100)
    build(tiny, replace(ONE, seed=1), tmp_path / "second.h5")
    (second,) = (own_home / "control").iterdir()
    assert second != first, "the older one went"


def test_added_tasks_are_those_of_one_build(tiny, tmp_path, swept, call):
    whole = Cache.open(build(tiny, replace(ONE, tasks=("ioi", "docstring")), tmp_path / "whole.h5"))
    path = build(tiny, ONE, tmp_path / "grown.h5")
    del swept[:]
    code, out, _ = call(cache_command, "add", path, "--tasks", "docstring", "--model", tiny.name, "--device", "cpu")
    assert code == 0
    assert "docstring" in out
    assert set(swept) == {"_task"}
    grown = Cache.open(path)
    assert grown.tasks == whole.tasks
    assert_same(arrays(whole), arrays(grown))
    assert grown.task_attributes("docstring") == whole.task_attributes("docstring")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "grown.h5", "grown.h5.json", "whole.h5", "whole.h5.json",
    ]  # fmt: skip


def test_what_cannot_be_added_leaves_the_cache_as_it_was(tiny, tmp_path, call, monkeypatch):
    path = build(tiny, ONE, tmp_path / "mini.h5")
    before = path.read_bytes()
    cache = Cache.open(path)
    with pytest.raises(UsageError, match="has ioi already"):
        add_tasks(cache, tiny.name, ["ioi"])
    with pytest.raises(UsageError, match="mini is a table that comes with mechrl and does not change"):
        add_tasks(Cache.load("mini"), "mini", ["copy_suppression"])
    other = replace(tiny, sha256="0" * 64)
    monkeypatch.setattr("mechrl.building.add.load_model", lambda *_, **__: other)
    with pytest.raises(FileError, match=rf"'{tiny.name}' is not that model: model_sha256"):
        add_tasks(cache, tiny.name, ["docstring"])
    assert call(cache_command, "add", path)[0] == 2
    assert path.read_bytes() == before


def test_a_build_like_a_table_takes_its_control(mini, tmp_path, swept, capsys):
    table = Cache.load("mini")
    sizes = {name: len(table.content.arrays[f"{name}/split"]) // 16 for name in ("/control", "/tasks/ioi")}
    settings = BuildSettings(("ioi",), sizes["/tasks/ioi"], 16, sizes["/control"])
    path = build(mini, settings, tmp_path / "mini.h5")
    assert set(swept) == {"_task"}
    assert "control, text and sweep, is that of the table mini" in capsys.readouterr().err
    assert_same(arrays(table, "/control"), arrays(Cache.open(path), "/control"))
    for name, array in arrays(table, "/tasks/ioi").items():
        np.testing.assert_allclose(arrays(Cache.open(path))[name], array, atol=1e-4, err_msg=name)


def test_an_imported_cache_takes_no_tasks(tmp_path):
    from mechrl.cache.imported import import_table

    table = tmp_path / "table.csv"
    np.savetxt(table, np.random.RandomState(0).rand(4, 6), delimiter=",", header="0.0,0.1,0.2,1.0,1.1,1.2", comments="")
    with pytest.raises(MachineError):
        add_tasks(Cache.open(import_table(table, "ioi", 2, 3, tmp_path / "x.h5", "m")), "mini", ["docstring"])


def test_kept_lists_and_clears(tiny, tmp_path, own_home, call):
    build(tiny, ONE, tmp_path / "mini.h5")
    (own_home / "models" / "some").mkdir(parents=True)
    (own_home / "models" / "some" / "config.json").write_text("{}")
    (own_home / "models" / "fetched.gguf").write_text("weights")
    listed = json.loads(call(cache_command, "kept", "--json")[1])
    assert listed["home"] == str(own_home)
    assert [file["bytes"] for file in listed["files"]][1:] == [len("weights"), 2]
    code, out, _ = call(cache_command, "kept", "--clear")
    assert code == 0
    assert "removed" in out
    assert [path.name for path in own_home.rglob("*") if path.is_file()] == ["fetched.gguf"]


def test_the_model_writes_its_own_control_text(tiny):
    spans = sampled_spans(tiny, 5, TRAIN)
    assert spans.shape == (5, 61)
    assert (spans[:, 0] == tiny.vocabulary.bos).all()
    special = set(tiny.vocabulary.tokenizer.all_special_ids)
    assert not special & set(spans[:, 1:].ravel().tolist())
    np.testing.assert_array_equal(spans, sampled_spans(tiny, 5, TRAIN))
    assert (spans != sampled_spans(tiny, 5, EVALUATION)).any(1).all()
    assert (spans != sampled_spans(tiny, 5, TRAIN, seed=1)).any(1).all()
    assert len({tuple(span) for span in spans.tolist()}) == 5
    without = replace(tiny, vocabulary=Vocabulary(tiny.vocabulary.tokenizer, tiny.vocabulary.rows, bos=False))
    words = sampled_spans(without, 4, TRAIN, span=10)
    assert words.shape == (4, 10)
    assert set(words[:, 0].tolist()) <= set(tiny.vocabulary.word_ids)


def test_spans_are_sampled_at_temperature_one(mini):
    """The mean loss of what the model writes is its mean entropy there."""
    import torch

    spans = torch.from_numpy(sampled_spans(mini, 64, TRAIN, span=12)).long()
    with torch.inference_mode():
        logprobs = mini.bridge(spans, return_type="logits")[:, :-1].log_softmax(-1)
    said = [token for token in range(mini.vocabulary.rows) if token not in mini.vocabulary.tokenizer.all_special_ids]
    logprobs = logprobs[..., said].log_softmax(-1)
    index = torch.full((mini.vocabulary.rows,), -1)
    index[said] = torch.arange(len(said))
    loss = -logprobs.gather(-1, index[spans[:, 1:, None]])[..., 0]
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    difference = (loss - entropy).mean(1)
    assert abs(difference.mean()) < 4 * difference.std() / len(difference) ** 0.5
    assert entropy.mean() > 0.2


def test_control_text_is_chosen_by_model_and_by_name(tmp_path):
    assert read_control(None, "mini") == ("prose", None)
    assert read_control(None, "smollm2-135m") == ("model", None)
    assert read_control("model", "mini") == ("model", None)
    (tmp_path / "text.txt").write_text("Some text.")
    assert read_control(tmp_path / "text.txt", "mini")[1] == "Some text."


def test_without_bos_the_cache_says_so_and_the_model_is_read_so(tmp_path, tiny, call):
    path = tmp_path / "tiny.h5"
    arguments = (
        "--model",
        tiny.name,
        "--tasks",
        "ioi",
        "--batches",
        3,
        "--batch-size",
        4,
        "--control-batches",
        3,
        "--out",
        path,
    )
    code, out, err = call(cache_command, "build", "--no-bos", "--control-text", "model", *arguments, "--device", "cpu")
    assert code == 0
    assert "no BOS before a prompt: '<|endoftext|>' is left out" in err
    assert "no BOS before a prompt" in out
    cache = Cache.open(path)
    assert cache.attributes["prepend_bos"] is False
    assert cache.attributes["control_source"] == "model"
    bos = tiny.vocabulary.bos
    assert bos is not None
    assert not (cache.prompts("ioi").tokens[:, 0] == bos).any()
    assert not (cache.content.arrays["/control/tokens"] == bos).any()
    add_tasks(cache, tiny.name, ["docstring"], batches=3)
    assert Cache.open(path).tasks == ["ioi", "docstring"]
