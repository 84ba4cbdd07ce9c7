"""Honest files, changed at random, open or are refused with our own error: no other, no crash, no hang, no bloat."""

import ctypes
import faulthandler
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import load_checkpoint
from mutations import MUTATED

from mechrl.building.build import merge_files
from mechrl.cache.export import export
from mechrl.cache.reader import Cache
from mechrl.errors import MechrlError

SECONDS, MEMORY = 10, 2**30  # that a file may take


def use(path: Path) -> str:
    """Opens a file and does with it what one does with such files; says how that ended."""
    try:
        if path.suffix == ".zip":
            policy, note = load_checkpoint(path)
            n = note.n_layers * note.n_heads
            obs = torch.zeros(1, *policy.observation_space.shape)
            policy.log_probs_and_values(obs, torch.ones(1, n, dtype=torch.bool))
            return "opened"
        try:
            cache = Cache.open(path)
        except MechrlError:
            merge_files(path.with_name("merged.h5"), [path])
            return "merged"
        for task in cache.tasks:
            cache.scores(task)
            export(cache, "csv", [task])
        return "opened"
    except MechrlError:
        return "refused"


def give_back() -> None:
    """Gives the system what earlier tests freed, which would else be used again without being counted."""
    ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """The most memory that this process ever had, since that was forgotten last; forgets it."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def fuzz(seeds: range, honest: Path, folder: Path, results) -> None:
    """In a process of its own: makes and uses one file for each seed, and sends (seed, outcome, seconds, bytes)."""
    faulthandler.disable()  # who died is told by `run`
    give_back()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it is in
    for seed in seeds:
        name, mutate = MUTATED[seed % len(MUTATED)]
        path = folder / name
        try:
            mutate(honest, path, random.Random(seed))
        except Exception as error:  # h5py and torch do not write everything
            results.send((seed, f"not made: {error!r:.300}", 0, 0))
            continue
        results.send((seed, "died", 0, 0))
        resident()
        before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        start = time.monotonic()
        signal.alarm(SECONDS)
        try:
            outcome = use(path)
        except BaseException as error:
            outcome = f"raised {error!r:.300}"
        signal.alarm(0)
        results.send((seed, outcome, time.monotonic() - start, resident() - before))


def run(seeds: range, honest: Path, folder: Path) -> dict[int, tuple[str, float, int]]:
    """What became of each seed; a process that dies is followed by another, which goes on with the next seed."""
    found: dict[int, tuple[str, float, int]] = {}
    context = multiprocessing.get_context("fork")
    while len(found) < len(seeds):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=fuzz, args=(seeds[len(found) :], honest, folder, sender))
        process.start()
        sender.close()
        try:
            while True:
                seed, *rest = receiver.recv()
                found[seed] = tuple(rest)
        except EOFError:
            process.join()
        last = max(found, default=None)
        assert last is not None, "the process did not begin"
        if found[last][0] == "died":
            found[last] = (f"died, exit code {process.exitcode}", 0, 0)
        elif process.exitcode:
            raise AssertionError(f"the making of the file after seed {last} failed")
    return found


@pytest.mark.parametrize("n", [200, pytest.param(2060, marks=pytest.mark.slow)])
def test_changed_files_open_or_are_refused_and_do_nothing_else(honest, tmp_path, n):
    for file in ("good.zip", "heads.zip", "good.h5", "imported.h5", "part.h5"):
        assert use(Path(shutil.copy(honest / file, tmp_path))) in (
            "opened",
            "merged",
        )  # and what is loaded late is there
    found = run(range(n), honest, tmp_path)
    made = {seed: outcome for seed, (outcome, *_) in found.items() if not outcome.startswith("not made")}
    outcomes = Counter(made.values())
    slowest = max(found, key=lambda seed: found[seed][1])
    largest = max(found, key=lambda seed: found[seed][2])
    print(
        f"{len(made)} files: {dict(outcomes.most_common(5))}; slowest {found[slowest][1]:.2f} s (seed {slowest}), "
        f"most memory {found[largest][2] / 2**20:.0f} MiB (seed {largest})"
    )
    assert not {seed: outcome for seed, outcome in made.items() if outcome not in ("opened", "merged", "refused")}
    assert len(made) > 0.95 * n
    assert found[largest][2] < MEMORY
    assert found[slowest][1] < SECONDS
    assert outcomes["refused"] > n / 2
    assert outcomes["opened"] > n / 50, "what is refused whatever it says is not tested"


def test_the_fuzzer_sees_errors_crashes_and_bloat(honest, tmp_path, monkeypatch):
    """A reader that does one of these for every fifth seed."""

    def bad_use(path):
        bad_use.calls += 1
        if bad_use.calls % 5 == 1:
            raise IndexError("not ours")
        if bad_use.calls % 5 == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if bad_use.calls % 5 == 3:
            np.ones(2**26)
        return "refused"

    bad_use.calls = 0
    monkeypatch.setitem(globals(), "use", bad_use)
    found = run(range(6), honest, tmp_path)
    assert found[0][0].startswith("raised IndexError")
    assert found[1][0] == "died, exit code -11"
    assert found[2][0].startswith("raised IndexError"), "a new process goes on with the next seed"
    assert len(found) == 6


def test_the_fuzzer_measures_memory():
    give_back()
    resident()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    np.ones(2**26).sum()
    assert resident() - before > 200 * 2**20, "half a gigabyte; other pages of the process may go meanwhile"
