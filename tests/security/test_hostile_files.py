"""Each hostile file does harm to whoever reads it plainly, and none to whoever reads it with mechrl."""

import contextlib
import json
import resource
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hostile import CACHES, IGNORED, MEMORY, ZIPS, changed, rezipped

from mechrl.agents.checkpoint import load_checkpoint
from mechrl.cache.export import export
from mechrl.cache.files import read_content, write_content
from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.errors import FileError
from mechrl.report.heatmap import draw_heatmaps

SECONDS = 10


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    """A folder of its own with the honest files in it."""
    torch.set_num_threads(1)
    for name in ("good.h5", "good.zip", "heads.zip"):
        shutil.copy(honest / name, tmp_path)
    return tmp_path


@contextlib.contextmanager
def little_memory(time: int = 60):
    """No more than MEMORY beyond what the process has, and no more than `time` seconds."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def too_long(*_):
        raise TimeoutError(f"took more than {time} s")

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


def does_harm(harm) -> bool:
    with little_memory():
        try:
            result = harm()
        except (MemoryError, RuntimeError, OSError) as error:
            return ran_out_of_memory(error)
    return result is True


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
    if make in IGNORED:
        with little_memory(SECONDS):
            _, note = load_checkpoint(path)
        assert note == load_checkpoint(folder / "good.zip")[1]
        assert not (folder / "marker").exists()
    else:
        check_refused(load_checkpoint, path)
    assert does_harm(harm)


@pytest.mark.parametrize("make", CACHES, ids=lambda make: make.__name__)
def test_a_hostile_cache_harms_a_plain_reader_and_not_us(folder, make):
    if make.__name__ == "filter_that_loads_a_library" and sys.platform != "linux":
        pytest.skip("needs LD_DEBUG")
    path, harm = make(folder)
    assert path.stat().st_size < 32 * 2**20
    error = check_refused(Cache.open, path)
    assert "do not match the hash" not in str(error), "refused by its structure, not by its hash"
    assert "\x1b" not in str(error)
    assert does_harm(harm)
