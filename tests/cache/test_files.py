"""The cache file: written whole, read back the same, and refused when anything is wrong with it."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import table_cache

from mechrl.cache import storage
from mechrl.cache.format import Content, content_sha256
from mechrl.cache.reader import Cache
from mechrl.cache.storage import (
    check_manifest,
    check_writable,
    manifest_path,
    read_content,
    settle_manifest,
    write_content,
    write_whole,
)
from mechrl.errors import FileError, MachineError, UsageError


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    damage = {"a": rng.normal(size=(8, 6)).astype(np.float32)}
    return table_cache(tmp_path / "t.h5", damage, rng.normal(size=(8, 6)).astype(np.float32), 2, 3, batch_size=2).path


def test_a_cache_is_read_as_it_was_written(path):
    content = read_content(path)
    again = write_content(path.with_name("again.h5"), content)
    assert content_sha256(read_content(path.with_name("again.h5"))) == content_sha256(content)
    assert again.root["content_sha256"] == content.root["content_sha256"]
    with h5py.File(path) as file:
        file.visititems(lambda name, item: _is_protected(item))


def _is_protected(item):
    if isinstance(item, h5py.Dataset):
        assert item.fletcher32
        assert item.compression is None


def test_damage_and_scores_by_hand(tmp_path):
    damage = np.array([[1, 0], [3, 0], [5, 2], [7, 4], [9, 6], [11, 8]], np.float32)
    control = np.full((6, 2), 0.5, np.float32)
    cache = table_cache(tmp_path / "t.h5", {"a": damage}, control, 1, 2, batch_size=2)
    np.testing.assert_allclose(cache.damage("a"), damage)
    np.testing.assert_allclose(cache.control_damage, control)
    np.testing.assert_allclose(cache.batch_damage("a"), [[6, 3], [10, 7]])
    np.testing.assert_allclose(cache.scores("a"), [8 - 0.5, 5 - 0.5])
    np.testing.assert_allclose(cache.scores("a", control_weight=2), [8 - 1, 5 - 1])
    np.testing.assert_allclose(cache.scores("a", split=0), [2 - 0.5, 0 - 0.5])
    assert cache.head(1) == "0.1"
    assert cache.site("0.1") == 1
    for head in ("1.0", "0.2", "01", "x.y"):
        with pytest.raises(UsageError, match="no head"):
            cache.site(head)
    with pytest.raises(UsageError, match="unknown task"):
        cache.damage("b")


def test_every_changed_byte_is_refused(path):
    """With the manifest beside it; a sample of the bytes, spread over the whole file."""
    good = path.read_bytes()
    for position in np.linspace(0, len(good) - 1, 150).astype(int):
        changed = bytearray(good)
        changed[position] ^= 0x40
        path.write_bytes(changed)
        with pytest.raises(FileError, match="changed since it was written"):
            Cache.open(path)
    path.write_bytes(good)
    Cache.open(path)


def test_changed_numbers_are_refused_without_a_manifest(path):
    manifest_path(path).unlink()
    with h5py.File(path, "r+") as file:
        file["/tasks/a/ablated/logit_diff"][0, 0] += 1
    with pytest.raises(FileError, match="do not match the hash"):
        Cache.open(path)


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        Cache.open(tmp_path / "nothing.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(FileError, match="not a mechrl cache"):
        Cache.open(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(FileError, match="not a mechrl cache"):
        Cache.open(tmp_path / "other.h5")


def test_an_unknown_version_is_refused(path):
    manifest_path(path).unlink()
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(FileError, match="format version 99"):
        Cache.open(path)


def test_an_unfinished_cache_is_refused_with_the_remedy(path):
    content = read_content(path)
    attributes = {**content.attributes, "/": {**content.root, "complete": False}}
    write_content(path, Content(content.arrays, attributes))
    with pytest.raises(FileError, match="run its mechrl-cache build again"):
        Cache.open(path)


def make_external_link(file, other):
    del file["/tasks/a/group"]
    file["/tasks/a/group"] = h5py.ExternalLink(str(other), "/tasks/a/group")


def make_soft_link(file, other):
    del file["/tasks/a/group"]
    file["/tasks/a/group"] = h5py.SoftLink("/tasks/a/length")


def make_external_storage(file, other):
    del file["/control/clean"]
    file.create_dataset("/control/clean", (8,), "f4", external=[(str(other), 0, 32)])


def make_virtual(file, other):
    del file["/control/clean"]
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource(str(other), "/control/clean", shape=(8,))
    file.create_virtual_dataset("/control/clean", layout)


def make_compressed(file, other):
    del file["/control/clean"]
    file.create_dataset("/control/clean", data=np.zeros(8, "f4"), compression="gzip")


def make_huge(file, other):
    del file["/control/clean"]
    file.create_dataset("/control/clean", (2**28,), "f4", chunks=(2**20,), fletcher32=True)


def make_wrong_dtype(file, other):
    del file["/control/clean"]
    file["/control/clean"] = np.zeros(8, "f8")


def make_extra(file, other):
    file["/surprise"] = 1


def make_vector_attribute(file, other):
    file.attrs["model"] = [1, 2, 3]


HOSTILE = [value for name, value in globals().items() if name.startswith("make_")]


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_hostile_files_are_refused_before_they_are_read(path, change):
    other = path.with_name("other.h5")
    shutil.copy(path, other)
    manifest_path(path).unlink()
    with h5py.File(path, "r+") as file:
        change(file, other)
    with pytest.raises(FileError) as error:
        Cache.open(path)
    assert "do not match the hash" not in str(error.value), "refused by its structure, not by its hash"


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        ("/control/clean", lambda a: a * np.nan, "not finite"),
        ("/control/clean", lambda a: a[:4], "dimension 'span'"),
        ("/tasks/a/ablated/logit_diff", lambda a: a[:, :5], "dimension 'site'"),
        ("/tasks/a/length", lambda a: a + 100, "out of range"),
        ("/tasks/a/split", lambda a: 1 - a, "split"),
        ("/sites/layer", lambda a: a[::-1], "in order"),
        ("/control/split", lambda a: a * 0, "two evaluation batches"),
        ("/control/tokens", lambda a: a - 5, "out of range"),
        ("/control/tokens", lambda a: a[:, :1], "too short"),
        ("/control/clean", lambda a: a + 1e7, "beyond any measurement"),
        ("/tasks/a/answers", lambda a: a * 0 - 1, "a prompt has none"),
        ("/tasks/a/wrongs", lambda a: a - 9, "out of range"),
        ("/sites/kind", lambda a: a + 7, "in order"),
    ],
)
def test_senseless_numbers_are_refused_although_well_sealed(path, place, change, message):
    content = read_content(path)
    write_content(path, Content({**content.arrays, place: change(content.arrays[place])}, content.attributes))
    with pytest.raises(FileError, match=message):
        Cache.open(path)


def test_a_missing_dataset_is_refused(path):
    content = read_content(path)
    write_content(path, Content({k: v for k, v in content.arrays.items() if "answers" not in k}, content.attributes))
    with pytest.raises(FileError, match="answers is missing"):
        Cache.open(path)


def test_the_rename_of_a_manifest_is_finished_by_the_next_reader(path):
    manifest = manifest_path(path)
    new = path.with_name(path.name + ".json.new")
    manifest.rename(new)
    settle_manifest(path)
    assert json.loads(manifest.read_text())["sha256"]
    assert not new.exists()
    new.write_text(json.dumps({"sha256": "of something else"}))
    Cache.open(path)
    assert new.exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(MachineError, match="No space left"):
        write_whole(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"


def test_a_full_disk_is_a_message_and_the_old_cache_stays(path, monkeypatch):
    before = path.read_bytes()

    content = read_content(path)
    monkeypatch.setattr(storage._DiskFile, "error", OSError(28, "No space left on device"))
    with pytest.raises(MachineError, match=r"cannot write .*No space left"):
        write_content(path, content)
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["t.h5", "t.h5.json"]


def test_a_reader_may_finish_the_rename_while_the_writer_is_at_it(path, monkeypatch):
    content = read_content(path)
    replace = os.replace

    def replace_and_read(source, target):
        replace(source, target)
        if str(target) == str(path):
            settle_manifest(path)

    monkeypatch.setattr("os.replace", replace_and_read)
    write_content(path, content)
    Cache.open(path)
    assert manifest_path(path).is_file()


def test_hard_links_cannot_make_a_small_file_large(path):
    manifest_path(path).unlink()
    with h5py.File(path, "r+") as file:
        for i in range(5000):
            file[f"/tasks/t{i}"] = file["/tasks/a"]
    with pytest.raises(FileError, match="another name of something else"):
        Cache.open(path)


def test_a_manifest_that_says_other_things_is_refused(path):
    manifest = manifest_path(path)
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "n_heads": 999}))
    with pytest.raises(FileError, match="says other things"):
        check_manifest(path, read_content(path))


@pytest.mark.parametrize(
    ("group", "change", "message"),
    [
        ("/", {"batch_size": 0}, "must be positive"),
        ("/", {"batch_size": -1}, "must be positive"),
        ("/", {"task_order": "{"}, "task_order"),
        ("/", {"task_order": "5"}, "task_order"),
        ("/", {"task_order": '["a", 1]'}, "task_order"),
        ("/", {"task_order": "[" * 5000}, "task_order"),
        ("/", {"model": "\x1b[2Jx"}, "control characters"),
        ("/tasks/a", {"does_task": "yes"}, "does_task"),
        ("/tasks/a", {"generator_version": "1"}, "generator_version"),
    ],
)
def test_senseless_attributes_are_refused_although_well_sealed(path, group, change, message):
    content = read_content(path)
    attributes = {**content.attributes, group: {**content.attributes[group], **change}}
    write_content(path, Content(content.arrays, attributes))
    with pytest.raises(FileError, match=message):
        Cache.open(path)


def test_output_paths_are_tried_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        check_writable(tmp_path / "file" / "x.h5")
    with pytest.raises(MachineError, match="cannot write"):
        check_writable(tmp_path / ("x" * 300))
    for not_a_file in (tmp_path, Path("/dev/null")):
        with pytest.raises(UsageError, match="a folder or a device"):
            check_writable(not_a_file)
