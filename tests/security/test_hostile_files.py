"""Each hostile file does harm to whoever reads it plainly, and none to whoever reads it with mechrl."""

import contextlib
import gc
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import h5py
import numpy as np
import pytest
import torch
from helpers import load_checkpoint
from hostile import (
    CACHES,
    IGNORED,
    MEMORY,
    ZIPS,
    Hostile,
    changed,
    directory_of_many_members,
    rezipped,
    saved,
    state_dict,
)

import mechrl.cli.cache
from mechrl.building.build import merge_files
from mechrl.cache.export import export
from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import read_content, write_content
from mechrl.cache.untrusted import check_texts
from mechrl.display import print_table
from mechrl.errors import FileError, UsageError
from mechrl.reporting.files import draw_heatmaps
from mechrl.search.ppo.checkpoint import adapt_to_cache
from mechrl.tasks import read_task_file

SECONDS = 10
HARMED = 77  # the exit code of a process that a file harmed


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    """A folder of its own with the honest files in it."""
    for name in ("good.h5", "good.zip", "heads.zip"):
        shutil.copy(honest / name, tmp_path)
    return tmp_path


class TooLong(BaseException):
    """No Exception, so that nobody takes it for a broken file."""


@contextlib.contextmanager
def little_memory(time: int = 60):
    """No more than MEMORY beyond what the process has, and no more than `time` seconds."""
    gc.collect()  # what earlier tests left behind would be collected meanwhile, and be memory to spare
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def too_long(*_):
        raise TooLong

    old = signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, before[1]))
    signal.alarm(time)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is a want of memory."""
    if error is None:
        return False
    said = str(error).lower()
    lacks = isinstance(error, MemoryError) or any(
        words in said for words in ("can't allocate", "allocation failed", "unable to allocate", "bad_alloc")
    )
    return lacks or ran_out_of_memory(error.__cause__ or error.__context__)


def does_harm(harm: Callable[[], object]) -> bool:
    with little_memory():
        try:
            result = harm()
        except (MemoryError, RuntimeError, OSError) as error:
            return ran_out_of_memory(error)
    return result is True


def check_harm(make: Hostile, folder: Path, harm: Callable[[], object]) -> None:
    """Whether a file harms who reads it plainly: here, or in a process of its own.

    What earlier tests freed stays with this process, and is memory to spare.
    """
    if not does_harm(harm):
        code = f"import pickle, test_hostile_files as tests; tests.exit_with_harm(pickle.loads({pickle.dumps(make)}))"
        paths = os.pathsep.join(filter(None, sys.path))
        child = subprocess.run(
            [sys.executable, "-c", code], check=False, cwd=folder, env={**os.environ, "PYTHONPATH": paths}
        )
        assert child.returncode == HARMED


def exit_with_harm(make: Hostile) -> NoReturn:
    """Makes a hostile file in the working directory, reads it plainly, and exits with HARMED if it did harm."""
    sys.exit(HARMED if does_harm(make(Path.cwd())[1]) else 0)


def test_memory_that_earlier_tests_freed_hides_no_harm(folder):
    check_harm(directory_of_many_members, folder, lambda: False)


def check_refused(open_file, path: Path) -> FileError:
    with little_memory(SECONDS), pytest.raises(FileError) as caught:
        open_file(path)
    assert caught.value.exit_code == 4
    assert not ran_out_of_memory(caught.value), "it was the memory that ended it, not a check"
    assert not (path.parent / "marker").exists()
    return caught.value


@pytest.mark.parametrize("make", ZIPS, ids=lambda make: make.__name__)
def test_a_hostile_checkpoint_harms_a_plain_reader_and_not_us(folder, make):
    path, harm = make(folder)
    assert path.stat().st_size < 32 * 2**20, "it is small, whatever it does"
    if ZIPS[make] is IGNORED:
        with little_memory(SECONDS):
            _, note = load_checkpoint(path)
        assert note == load_checkpoint(folder / "good.zip")[1]
        assert not (folder / "marker").exists()
    else:
        assert ZIPS[make] in str(check_refused(load_checkpoint, path))
    check_harm(make, folder, harm)


@pytest.mark.parametrize("make", CACHES, ids=lambda make: make.__name__)
def test_a_hostile_cache_harms_a_plain_reader_and_not_us(folder, make):
    if make.__name__ == "filter_that_loads_a_library" and sys.platform != "linux":
        pytest.skip("needs LD_DEBUG")
    path, harm = make(folder)
    assert path.stat().st_size < 32 * 2**20
    error = check_refused(Cache.open, path)
    assert CACHES[make] in str(error)
    assert "\x1b" not in str(error)
    check_harm(make, folder, harm)


def with_note(**change) -> dict:
    """mechrl.json with other fields."""
    return {"mechrl.json": lambda note: json.dumps({**json.loads(note), **change}).encode()}


def with_text(old: str, new: str) -> dict:
    """mechrl.json with another text."""
    return {"mechrl.json": lambda note: note.replace(old.encode(), new.encode())}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (with_text('"control_weight": 1.0', '"control_weight": 1e999'), "control_weight is inf"),
        (with_text('"control_weight": 1.0', '"control_weight": NaN'), "control_weight is nan"),
        (with_text('"seed": 0', '"seed": ' + "9" * 100_000), "damaged"),
        (with_text('"tasks": [', '"tasks": ' + "[" * 100_000), "damaged"),
        (with_note(seed=True), "'seed' is True"),
        (with_note(model="\x1b[2J"), "control characters"),
        (with_note(model="\ud800"), "control characters"),
        (with_note(tasks=["../../x", "b"]), "tasks are"),
        (with_note(tasks=["<script>", "b"]), "tasks are"),
        (with_note(layers=[512, 512, 512]), "more than policy.pth holds"),
        ({"policy.pth": lambda p: saved({**state_dict(p), "log": torch.zeros(1).to_sparse()})}, "no part of a state"),
        ({"policy.pth": lambda p: saved([*state_dict(p).values()])}, "damaged"),
        ({"policy.pth": lambda p: saved({n: t.double() for n, t in state_dict(p).items()})}, "no part of a state dict"),
        ({"policy.pth": lambda p: saved({n: t.to("meta") for n, t in state_dict(p).items()})}, "more than policy.pth"),
    ],
)  # fmt: skip
def test_a_checkpoint_with_a_wrong_member_is_refused(folder, members, message):
    error = check_refused(load_checkpoint, rezipped(folder, members))
    assert re.search(message, str(error)), error
    assert "\x1b" not in str(error)


def with_flag(data: bytearray) -> None:
    """The first member, said to be encrypted."""
    data[data.index(b"PK\1\2") + 8] |= 1


def with_another_member_twice(data: bytearray) -> None:
    """policy.pth has the name of mechrl.json in the directory."""
    directory = data.rindex(b"PK\1\2", 0, data.rindex(b"mechrl.json"))
    entry = bytes(data[directory : data.rindex(b"PK\5\6")])
    end = data.rindex(b"PK\5\6")
    size = int.from_bytes(data[end + 12 : end + 16], "little") + len(entry)
    data[end + 12 : end + 16] = size.to_bytes(4, "little")
    data[end:end] = entry


def with_a_wrong_sum(data: bytearray) -> None:
    """A weight is another one."""
    data[data.index(b"policy.pth") + 5000] ^= 1


def with_a_comment(data: bytearray) -> None:
    """What comes after the directory may hide another directory."""
    data[-2:] = b"\x16\0"
    data += data[-22:]


@pytest.mark.parametrize("change", [with_flag, with_another_member_twice, with_a_wrong_sum, with_a_comment])
def test_a_zip_that_does_not_agree_with_itself_is_refused(folder, change):
    data = bytearray((folder / "good.zip").read_bytes())
    change(data)
    (folder / "evil.zip").write_bytes(data)
    if change is with_flag:  # of `data`, which is never looked at: all members
        for at in [m.start() for m in re.finditer(b"PK\1\2", data)]:
            data[at + 8] |= 1
        (folder / "evil.zip").write_bytes(data)
    check_refused(load_checkpoint, folder / "evil.zip")


ARRAY = np.arange(8, dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.attrs.__setitem__("model", ["a", "b"]), "'model' is not a text"),
        (lambda f: f.attrs.__setitem__("model", f["control"].ref), "'model' is not a text"),
        (lambda f: f.attrs.__setitem__("model", f["control/clean"].regionref[:2]), "'model' is not a text"),
        (lambda f: f.attrs.__setitem__("model", np.zeros(8000)), "'model' is not a text"),
        (lambda f: f.attrs.__setitem__("model", h5py.Empty("f4")), "'model' is not a text"),
        (lambda f: f.attrs.__setitem__("model", np.void(b"x")), "'model' is not a text"),
        (lambda f: f.attrs.__setitem__("self_check_error", np.nan), "finite"),
        (lambda f: f.attrs.__setitem__("\x1b[2J", 1), "control characters"),
        (lambda f: f.__setitem__("type", np.dtype("f4")), "neither a group nor a dataset"),
        (lambda f: f.create_dataset("control/more", data=ARRAY), "has no dataset"),
        (lambda f: f.create_group("/tasks/a/b/c/d/e"), "too deep"),
        *(
            (lambda f, how=how: remade(f, **how), message)
            for how, message in (
                ({"data": ARRAY}, "in chunks with a checksum"),
                ({"data": ARRAY, "chunks": (8,)}, "in chunks with a checksum"),
                ({"data": ARRAY, "fletcher32": True, "shuffle": True}, "in chunks with a checksum"),
                ({"data": ARRAY, "compression": "lzf"}, "in chunks with a checksum"),
                ({"data": ARRAY, "scaleoffset": 3}, "in chunks with a checksum"),
                ({"shape": 8, "dtype": "f4", "fletcher32": True}, "has not its"),
                ({"data": ["x"] * 8, "dtype": h5py.string_dtype()}, "in chunks with a checksum"),
                ({"data": ARRAY.astype(">f4"), "fletcher32": True}, "is >f4"),
                ({"data": ARRAY.astype("c8"), "fletcher32": True}, "is complex64"),
            )
        ),
    ],
)
def test_a_cache_with_what_no_cache_has_is_refused(folder, change, message):
    error = check_refused(Cache.open, changed(folder, change))
    assert message in str(error), error
    assert "\x1b" not in str(error)


def remade(file: h5py.File, **how) -> None:
    """Makes /control/clean anew."""
    del file["/control/clean"]
    file.create_dataset("/control/clean", **how)


def longer_text(raw: bytearray) -> None:
    """A text is said to be 4 GiB long."""
    cell = raw.index(struct.pack("<I", len("by hand")) + struct.pack("<Q", raw.index(b"GCOL")))
    raw[cell : cell + 4] = b"\xff" * 4


def endless_heap(raw: bytearray) -> None:
    """The rest of a heap is said to be 0 bytes long: what looks for its end stays there forever."""
    heap = raw.index(b"GCOL")
    at = heap + 16
    while raw[at : at + 2] != b"\0\0":
        at += 16 + -(-int.from_bytes(raw[at + 8 : at + 16], "little") // 8) * 8
    raw[at + 8 : at + 16] = bytes(8)


def endless_header(raw: bytearray) -> None:
    """The header of the root group is said to go on where it began."""
    at = raw.index(b"\x10\0\x10\0")
    raw[at + 8 : at + 24] = struct.pack("<QQ", at, 24)


def no_heap(raw: bytearray) -> None:
    raw[raw.index(b"GCOL")] = 0


def other_superblock(raw: bytearray) -> None:
    """Addresses count from the user block of another file."""
    raw[24] = 1


@pytest.mark.parametrize("change", [longer_text, endless_heap, endless_header, no_heap, other_superblock])
def test_a_cache_whose_texts_are_not_where_it_says_is_refused(folder, change):
    raw = bytearray((folder / "good.h5").read_bytes())
    change(raw)
    (folder / "evil.h5").write_bytes(raw)
    check_refused(Cache.open, folder / "evil.h5")


def test_a_header_is_not_followed_round_and_round(folder):
    """HDF5 does not do so either, and so this is never reached through a file."""
    raw = bytearray((folder / "good.h5").read_bytes())
    root = int.from_bytes(raw[64:72], "little")
    check_texts(bytes(raw), root, {}, lambda n: None)
    endless_header(raw)
    with little_memory(SECONDS), pytest.raises(FileError, match="more attributes"):
        check_texts(bytes(raw), root, {}, lambda n: None)


@pytest.mark.parametrize(("change", "expected"), [(longer_text, "llocat"), (endless_heap, "never ends")])
def test_hdf5_believes_what_a_file_says_of_its_texts(folder, change, expected):
    """Which is why there is `mechrl.cache.untrusted`; when this fails, look whether it may go."""
    raw = bytearray((folder / "good.h5").read_bytes())
    change(raw)
    (folder / "evil.h5").write_bytes(raw)
    code = (
        f"import h5py, resource; f = h5py.File({str(folder / 'evil.h5')!r}); "
        f"resource.setrlimit(resource.RLIMIT_AS, ({2**31}, -1)); [f.attrs[name] for name in f.attrs]"
    )
    assert expected in said_at_the_end(code)


def said_at_the_end(code: str) -> str:
    try:
        return subprocess.run(
            [sys.executable, "-c", code], timeout=4, capture_output=True, text=True, check=False
        ).stderr
    except subprocess.TimeoutExpired:
        return "it never ends"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 10**9, "n_heads": 10**9}, "layers|dimension"),
        ({"batch_size": 2**62}, "split"),
        ({"n_layers": True}, "'n_layers' is missing or not int"),
        ({"task_order": '{"a": 1, "b": 2, "c": 3}'}, "task_order"),
        ({"task_order": "[" * 100_000}, "task_order"),
        ({"task_order": "9" * 100_000}, "task_order"),
    ],
)
def test_a_cache_that_is_well_sealed_and_makes_no_sense_is_refused(folder, change, message):
    content = read_content(folder / "good.h5")
    attributes = {**content.attributes, "/": {**content.root, **change}}
    write_content(folder / "evil.h5", Content(content.arrays, attributes), manifest=False)
    assert re.search(message, str(check_refused(Cache.open, folder / "evil.h5")))


@pytest.mark.parametrize(
    "shard",
    [
        "[" * 100_000,
        "5",
        '{"pieces": 5, "rows": {}}',
        '{"pieces": [["a", 0.0, 8.0]], "rows": {"a": 8}}',
        '{"pieces": [["a", 0, 10000000000000]], "rows": {"a": 10000000000000}}',
        '{"pieces": [["a", -8, 8]], "rows": {"a": 8}}',
        '{"pieces": [["a", 0, 8]], "rows": [8]}',
        '{"pieces": [["../a", 0, 8]], "rows": {"../a": 8}}',
        '{"pieces": [["a", 0, 8], ["b", 0, 8], ["c", 0, 8], ["control", 0, 8]], "rows": {"z": 0}, "more": 1}',
    ],
)
def test_a_part_of_a_build_that_lies_is_refused(folder, honest, shard):
    content = read_content(honest / "part.h5")
    if "more" in shard:  # all is well but for the tasks that the file is said to be of
        content = Content(content.arrays, {**content.attributes, "/": {**content.root, "task_order": '["z"]'}})
    attributes = {**content.attributes, "/": {**content.root, "shard": shard}}
    write_content(folder / "evil.h5", Content(content.arrays, attributes), manifest=False)
    check_refused(lambda path: merge_files(folder / "merged.h5", [path]), folder / "evil.h5")
    merge_files(folder / "merged.h5", [honest / "part.h5"])


def test_a_new_manifest_of_millions_of_lists_is_not_read(folder):
    (folder / "good.h5.json.new").write_bytes(b"[" + b"[]," * (2 * 10**6) + b"[]]")
    with little_memory(SECONDS):
        Cache.open(folder / "good.h5")


def test_names_in_a_file_are_never_opened(folder):
    """The model of a cache and of a checkpoint is a folder that is there; nobody looks into it."""
    bait = folder / "bait"
    bait.mkdir()
    (bait / "config.json").write_text("{}")
    content = read_content(folder / "good.h5")
    root = {**content.root, "model": str(bait), "model_revision": str(bait), "control_source": str(bait)}
    write_content(folder / "evil.h5", Content(content.arrays, {**content.attributes, "/": root}))
    path = rezipped(folder, with_note(model=str(bait)))
    opened, watched = [], True
    # A hook cannot be taken away again; it can look away.
    sys.addaudithook(
        lambda event, args: opened.append(str(args[0])) if watched and event in ("open", "os.listdir") else None
    )
    cache = Cache.open(folder / "evil.h5")
    for kind in ("csv", "heads-json", "transformer-lens"):
        export(cache, kind, ["a"])
    draw_heatmaps(cache, folder / "heads.png")
    policy, note = load_checkpoint(path)
    adapt_to_cache(policy, note, cache)
    watched = False
    assert (cache.attributes["model"], note.model) == (str(bait), str(bait))
    assert str(path) in opened, "the hook works"
    assert not [name for name in opened if name.startswith(str(bait))]


def test_a_model_whose_name_is_a_formula_is_drawn(folder):
    """matplotlib would parse what is between dollars."""
    content = read_content(folder / "good.h5")
    root = {**content.root, "model": r"$\frac{$ and [/red]"}
    write_content(folder / "evil.h5", Content(content.arrays, {**content.attributes, "/": root}))
    draw_heatmaps(Cache.open(folder / "evil.h5"), folder / "heads.png")


def test_tables_print_what_they_are_given(capsys):
    print_table("[/title]", ["prompt"], [["[/red] [link=x]here[/link] :smile:"]])
    assert "[/red] [link=x]here[/link] :smile:" in capsys.readouterr().out


def test_a_message_does_not_steer_the_terminal(folder, call):
    path = folder / "\x1b[2J.h5"
    path.write_text("no cache")
    code, out, err = call(mechrl.cli.cache.cache, "info", path)
    assert (code, out) == (4, "")
    assert "\x1b[2J" not in err
    assert "\\x1b[2J" in err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [  # repeated names and words were looked for with a time that goes with the square of their number
        ("t.jsonl", "{" + ",".join(f'"f{i}": 1' for i in range(50_000)) + ', "f0": 1}', "'f0' twice"),
        ("t.jsonl", json.dumps({"prompt": "p", "answer": [*map(str, range(50_000)), "0"], "wrong": "w"}), "twice"),
        ("t.csv", ",".join(f"c{i}" for i in range(50_000)) + ",c0\n", "'c0' twice"),
        *(("t.jsonl", '{"prompt": ' + "[" * n + "]" * n + "}", "line 1") for n in (*range(900, 1000, 5), 100_000)),
    ],
    ids=range(24),
)  # fmt: skip
def test_a_task_file_is_looked_through_once(folder, name, text, message):
    """And what is nested too deep for Python is a mistake like any other."""
    (folder / name).write_text(text)
    with little_memory(SECONDS), pytest.raises(UsageError, match=message):
        read_task_file(folder / name)
