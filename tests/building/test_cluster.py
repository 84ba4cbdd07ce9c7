"""Builds on several workers: processes of this machine, and a real Dask cluster one of whose workers is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from mechrl.ablation.replacement import NOTHING
from mechrl.building import build as build_module
from mechrl.building.build import build
from mechrl.building.merge import Piece
from mechrl.building.settings import BuildSettings
from mechrl.building.workers import cluster
from mechrl.building.workers.cluster import connect, sweep_shard
from mechrl.building.workers.worker import Recipe, Shard
from mechrl.cache.reader import Cache
from mechrl.cli.cache import cache as command
from mechrl.errors import FileError, MachineError, UsageError
from mechrl.tasks import TASKS, TRAIN, generate

pytest.importorskip("distributed")
SETTINGS = BuildSettings(tasks=("induction", "ioi"), batches=3, batch_size=4, control_batches=3)


@pytest.fixture
def a_shard_for_each_batch(monkeypatch):
    """A small build has many shards, as a large one has: nine of them are to be given to workers."""
    monkeypatch.setattr(build_module, "SHARD_BATCHES", 1)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    return Cache.open(build(tiny, SETTINGS, tmp_path_factory.mktemp("whole") / "whole.h5"))


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory):
    """The address of a scheduler and its two workers, each a process of its own, started as a user would."""
    folder = tmp_path_factory.mktemp("dask")
    note = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    log = open(folder / "log", "w")  # noqa: SIM115  (closed below)
    started = [
        subprocess.Popen(
            [*dask, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(note)], stdout=log, stderr=log
        )
    ]
    try:
        while not note.exists():
            time.sleep(0.1)
            assert started[0].poll() is None
        address = json.loads(note.read_text())["address"]
        worker = [*dask, "worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        started += [subprocess.Popen(worker, cwd=folder, stdout=log, stderr=log) for _ in range(2)]
        yield address, started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()
        log.close()


@pytest.fixture
def recipe(mini):
    check = generate(TASKS["ioi"], mini.vocabulary, 4, TRAIN)
    return Recipe("0.1.0", "mini", "", mini.sha256, "float32", False, (check, NOTHING))


@pytest.fixture
def shard(mini):
    return Shard(Piece("ioi", 0, 4), 4, NOTHING, prompts=generate(TASKS["ioi"], mini.vocabulary, 4, TRAIN))


@pytest.fixture
def in_this_process(mini, monkeypatch):
    """A worker that has its model already."""
    monkeypatch.setattr(cluster, "_worker", None)
    monkeypatch.setattr("mechrl.models.load_model", lambda name, device, revision: mini)


def test_a_build_goes_on_when_a_worker_is_killed(tiny, whole, dask_cluster, tmp_path, a_shard_for_each_batch):
    address, workers = dask_cluster
    progress = []

    def kill_one(done, total):
        progress.append(done / total)
        if len(progress) == 3:
            os.kill(workers[0].pid, signal.SIGKILL)

    with connect(None, address) as client:
        assert len(client.scheduler_info()["workers"]) == 2 or client.wait_for_workers(2, timeout=60) is None
        out = build(tiny, SETTINGS, tmp_path / "out.h5", on_progress=kill_one, cluster=client, device="cpu")
        assert len(client.scheduler_info()["workers"]) == 1
    workers[0].wait()
    assert progress[-1] == 1
    assert Cache.open(out).attributes["device"] == "cpu"
    assert_same(Cache.open(out), whole)


@pytest.mark.slow
def test_two_local_workers_build_the_same_cache(tiny, whole, tmp_path, call):
    out = tmp_path / "out.h5"
    sizes = "--tasks induction,ioi --batches 3 --batch-size 4 --control-batches 3 --control-text prose"
    arguments = f"--model {tiny.name} {sizes} --workers 2 --device cpu"
    code, _, stderr = call(command, "build", *arguments.split(), "--out", out)
    assert code == 0, stderr
    assert "2 workers" in stderr
    assert_same(Cache.open(out), whole)


def assert_same(one, other):
    """Every array within 1e-5 (bit for bit where the workers have as many threads), and every attribute."""
    import numpy as np

    assert one.attributes.keys() == other.attributes.keys()
    for key, value in one.attributes.items():
        if key not in ("content_sha256", "self_check_error"):
            assert value == other.attributes[key], key
    for name, array in other.content.arrays.items():
        largest = max(1, np.abs(array).max()) if array.dtype.kind == "f" else 0
        np.testing.assert_allclose(one.content.arrays[name], array, atol=1e-5 * largest, rtol=0)


def test_a_scheduler_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with (
        pytest.raises(MachineError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 within 1 s"),
        connect(None, "tcp://127.0.0.1:1"),
    ):
        pass
    with pytest.raises(UsageError, match="'nonsense://x' is not an address"), connect(None, "nonsense://x"):
        pass


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--workers 2 --scheduler tcp://127.0.0.1:1", 2, "give one of them"),
        ("--scheduler tcp://127.0.0.1:1", 1, "no Dask scheduler answers at tcp://127.0.0.1:1"),
        ("--tf32 --device cpu", 2, "tf32 is for CUDA devices, and the model is on cpu"),
        ("--tf32 --dtype float16", 2, "tf32 goes with float32"),
    ],
)
def test_wrong_flags(tmp_path, call, monkeypatch, arguments, code, message):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    ended, _, stderr = call(command, "build", *arguments.split(), "--out", tmp_path / "out.h5")
    assert (ended, message in stderr) == (code, True), stderr
    assert not list(tmp_path.iterdir())


def test_without_dask_the_message_says_how_to_get_it(tmp_path, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, _, stderr = call(command, "build", "--workers", 2, "--out", tmp_path / "out.h5")
    assert (code, "pip install 'mechrl[cluster]'" in stderr) == (2, True), stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mechrl_version": "9.9"}, "mechrl is 0.1.0 here and 9.9 where the build started"),
        ({"model_sha256": "f" * 64}, r"'mini' has fingerprint \w+ here and ffffffffffff where the build started"),
        ({"tf32": True}, "tf32 is for CUDA devices, and the model is on cpu"),
    ],
)
def test_a_worker_of_another_kind_refuses(in_this_process, recipe, shard, change, message):
    refusal = sweep_shard(replace(recipe, **change), "cpu", shard)
    assert isinstance(refusal, FileError | UsageError)
    with pytest.raises(type(refusal), match=rf"the worker on .*process {os.getpid()}.*{message}"):
        raise refusal


def test_a_folder_that_a_worker_does_not_have(recipe, shard, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "_worker", None)
    refusal = sweep_shard(replace(recipe, model=str(tmp_path / "gone")), "cpu", shard)
    with pytest.raises(UsageError, match=rf"the worker on .*{tmp_path}/gone: no such folder"):
        raise refusal


def test_a_shard_that_fails_three_times_stops_the_build_and_the_rest_is_kept(tiny, tmp_path, a_shard_for_each_batch):
    """With the real scheduler: one shard's prompts hold a token that the model does not have."""
    out = tmp_path / "out.h5"
    honest = build_module.prepare

    def spoilt(*args):
        material = honest(*args)
        material.prompts["ioi"].tokens[-1, 0] = 100_000
        return material

    with pytest.MonkeyPatch.context() as patch, connect(1, None) as client:
        patch.setattr(build_module, "prepare", spoilt)
        with pytest.raises(MachineError, match="ioi, rows from 8 on, failed 3 times: IndexError"):
            build(tiny, SETTINGS, out, cluster=client, device="cpu")
        kept = sorted(p.name for p in (tmp_path / "out.h5.build").glob("*.h5"))
    assert not out.exists()
    assert "ioi-0000008.h5" not in kept
    assert kept


def test_a_worker_takes_the_first_gpu_that_no_other_has(monkeypatch, tmp_path):
    import torch
    from filelock import FileLock

    class Properties:
        def __init__(self, index):
            self.uuid = f"gpu-{index}"

    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", Properties)
    monkeypatch.setattr(cluster, "_gpu_lock", None)
    others = [FileLock(tmp_path / f"mechrl-{os.getuid()}-gpu-{i}.lock") for i in range(2)]
    with others[0]:
        assert cluster._own_gpu() == 1
        with pytest.raises(UsageError, match="there are 2 GPUs and each has a worker already"):
            cluster._own_gpu()
    cluster._gpu_lock.release()
    assert cluster._own_gpu() == 0
    cluster._gpu_lock.release()
