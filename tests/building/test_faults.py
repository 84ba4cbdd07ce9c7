"""Builds that are killed, meet a full disk, or run out of memory: nothing is lost, and the cache is the same."""

import multiprocessing
import os
import random
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import table_cache

from mechrl.ablation.forward import Forward
from mechrl.ablation.sweep import sweep_task
from mechrl.building import build as build_module
from mechrl.building.build import build
from mechrl.building.settings import BuildSettings
from mechrl.building.workers.worker import Worker
from mechrl.cache.reader import Cache
from mechrl.cache.storage import manifest_path, read_content
from mechrl.errors import FileError, MachineError
from mechrl.tasks import TASKS, TRAIN, generate

SETTINGS = BuildSettings(tasks=("induction", "ioi"), batches=3, batch_size=2, control_batches=3)


@pytest.fixture(autouse=True)
def a_shard_for_each_batch(monkeypatch):
    """A small build has many shards, as a large one has: three of each task, and of control."""
    monkeypatch.setattr(build_module, "SHARD_BATCHES", 1)


def in_a_process(model, out):
    """A process that builds, forked from this one so that it need not load the model."""
    process = multiprocessing.get_context("fork").Process(target=build, args=(model, SETTINGS, out))
    process.start()
    return process


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_builds_go_on_and_end_in_the_same_cache(tiny, tmp_path, kills):
    """At random moments of a build's life: of the forward, the writing of shards, the merge, the manifest."""
    start = time.monotonic()
    process = in_a_process(tiny, tmp_path / "whole.h5")
    process.join()
    duration = time.monotonic() - start
    whole = Cache.open(tmp_path / "whole.h5").sha256
    rng = random.Random(kills)
    killed, found, had_parts = 0, set(), 0
    while killed < kills:
        out = tmp_path / f"{killed}.h5"
        process = in_a_process(tiny, out)
        start = time.monotonic()
        # A third of the kills fall into the last tenth, where files are merged and put in place.
        process.join(duration * (rng.uniform(0.9, 1) if killed % 3 == 0 else rng.uniform(0.02, 1)))
        if not process.is_alive():  # it was faster than the one before
            assert process.exitcode == 0
            duration = time.monotonic() - start
            out.unlink()
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += 1
        had_parts += any((tmp_path / f"{out.name}.build").glob("*.h5"))
        process = in_a_process(tiny, out)
        process.join()
        assert process.exitcode == 0
        found.add(Cache.open(out).sha256)
        assert sorted(p.name for p in tmp_path.glob(f"*{out.name}*")) == [out.name, out.name + ".json"]
    assert found == {whole}
    assert had_parts > kills / 4, "hardly a kill fell into the middle of a build"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_build_on_a_full_disk_keeps_the_earlier_cache_and_goes_on(tiny, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        out = small / "out.h5"
        build(tiny, replace(SETTINGS, tasks=("ioi",)), out)
        before = out.read_bytes()
        with pytest.raises(MachineError, match=r"the disk has 0\.\d MB free"):
            build(tiny, SETTINGS, out)
        monkeypatch.setattr(build_module, "check_space", lambda folder, need: None)  # others fill it meanwhile
        with pytest.raises(MachineError, match=r"cannot write .*No space left on device"):
            build(tiny, SETTINGS, out)
        assert out.read_bytes() == before
        Cache.open(out)
        kept = list((small / "out.h5.build").glob("*.h5"))
        assert kept
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        changed = []
        build(tiny, SETTINGS, out, on_progress=lambda done, total: changed.append(done / total))
        assert changed[0] > 0, "the finished shards were swept again"
        build(tiny, SETTINGS, tmp_path / "elsewhere.h5")
        assert Cache.open(out).sha256 == Cache.open(tmp_path / "elsewhere.h5").sha256
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_300_changed_bytes_are_refused_or_change_nothing(tmp_path):
    """Without the manifest, so that the file has to speak for itself; with it, whatever is changed is refused."""
    rng = np.random.default_rng(0)
    damage, control = rng.normal(size=(2, 256, 48))
    honest = table_cache(tmp_path / "honest.h5", {"a": damage}, control, 6, 8)
    good = honest.path.read_bytes()
    path = tmp_path / "changed.h5"
    refused = 0
    for position in rng.integers(0, len(good), 300):
        changed = bytearray(good)
        changed[position] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        manifest_path(path).write_bytes(manifest_path(honest.path).read_bytes())
        with pytest.raises(FileError, match="was changed since it was written"):
            read_content(path)
        manifest_path(path).unlink()
        try:
            content = read_content(path)
        except FileError:
            refused += 1
            continue
        assert content.attributes == honest.content.attributes
        assert content.arrays.keys() == honest.content.arrays.keys()
        for name, array in content.arrays.items():
            np.testing.assert_array_equal(array, honest.content.arrays[name], strict=True)
    assert refused > 100, "most of a file is numbers"


def test_passes_are_halved_until_they_fit(mini, monkeypatch):
    """The allocation fails above a size, as it would on a small device."""
    prompts = generate(TASKS["ioi"], mini.vocabulary, 8, TRAIN)
    expected = sweep_task(Forward(mini), prompts)[1]["logit_diff"]
    positions = int(prompts.length.max())
    run = Forward.run

    def limited(self, hooks, last, rows, **kwargs):
        if rows.shape[0] * rows.shape[1] > limit:
            raise torch.OutOfMemoryError("no memory left")
        return run(self, hooks, last, rows, **kwargs)

    monkeypatch.setattr(Forward, "run", limited)
    forward = Forward(mini)
    limit = 3 * positions
    before = forward.pass_tokens
    np.testing.assert_allclose(sweep_task(forward, prompts)[1]["logit_diff"], expected, atol=1e-4)
    assert forward.pass_tokens // positions <= 3
    assert before > 8 * forward.pass_tokens
    limit = positions - 1
    with pytest.raises(MachineError, match="out of memory on cpu with a single prompt of"):
        sweep_task(forward, prompts)


def test_memory_that_ran_out_is_told_from_other_errors(mini, monkeypatch):
    def broken(self, *args, **kwargs):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Forward, "run", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        sweep_task(Forward(mini), generate(TASKS["ioi"], mini.vocabulary, 2, TRAIN))


def test_a_resumed_build_takes_the_pass_size_that_was_found(tiny, tmp_path, monkeypatch):
    out = tmp_path / "out.h5"
    task = Worker._task

    ran = []

    def runs_out_once(self, prompts, replacement):
        if len(ran) == 2:  # shards that are finished
            raise KeyboardInterrupt
        self.forward.pass_tokens = min(self.forward.pass_tokens, 1000)
        ran.append(task(self, prompts, replacement))
        return ran[-1]

    monkeypatch.setattr(Worker, "_task", runs_out_once)
    with pytest.raises(KeyboardInterrupt):
        build(tiny, SETTINGS, out)
    used = []
    monkeypatch.setattr(
        Worker,
        "_task",
        lambda self, prompts, replacement: used.append(self.forward.pass_tokens) or task(self, prompts, replacement),
    )
    assert Cache.open(build(tiny, SETTINGS, out)).attributes["effective_batch"] == 1000
    assert set(used) == {1000}, "the resumed shards were swept in passes of another size"
    assert Cache.open(build(tiny, SETTINGS, tmp_path / "new.h5")).attributes["effective_batch"] > 1000
