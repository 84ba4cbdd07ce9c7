"""What a build costs, said before it and while it goes on."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ARCHITECTURES, SMALL, randomize, save

import mechrl
from mechrl import progress as progress_module
from mechrl.ablation import NOTHING
from mechrl.ablation.tree import Tree
from mechrl.building import cost
from mechrl.building.build import build, plan
from mechrl.building.cost import Work, columns
from mechrl.building.material import prepare
from mechrl.building.settings import BuildSettings
from mechrl.building.workers.worker import Recipe, Worker, as_sets
from mechrl.cache.format import pair_sites
from mechrl.cache.storage import file_size
from mechrl.cli.cache import cache as cache_command
from mechrl.errors import MachineError
from mechrl.models import MINI, load_model
from mechrl.progress import progress

TINY = BuildSettings(tasks=("ioi",), batches=3, batch_size=2, control_batches=3)
UNITS = {"s": 1, "min": 60, "h": 3600}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until `clock.now` is changed."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def seconds(line: str, pattern: str) -> float | None:
    """A time that a line of progress says."""
    found = re.search(pattern.replace("TIME", r"([\d.]+) (s|min|h)"), line)
    return found and float(found[1]) * UNITS[found[2]]


@pytest.mark.parametrize(("sets", "dtype"), [("", "float32"), ("pairs", "float32"), ("", "bfloat16")])
def test_the_runs_of_a_sweep_add_up_to_what_was_planned(tmp_path, sets, dtype):
    model = load_model(str(save(randomize(ARCHITECTURES["gpt2"]()), tmp_path / "model")), device="cpu")
    settings = BuildSettings(("ioi",), batches=3, batch_size=2, control_batches=3, sets=sets, dtype=dtype)
    material = prepare(model, settings)
    pieces, told = plan(settings, material), []
    work = Work(model, material, settings, lambda done, total: told.append((done, total)))
    work.start(dict.fromkeys(pieces))
    of_pairs = Tree(as_sets(pair_sites(12), 12), 3).states() if sets else 0
    assert work.states == (Tree(np.eye(12, dtype=bool), 3).states() + of_pairs).tolist()
    check = material.prompts["ioi"][:1], NOTHING
    recipe = Recipe(mechrl.__version__, "", "", model.sha256, dtype, False, check, 100, sets == "pairs")
    worker, ends = Worker(model, recipe, work.ran), []
    for piece in pieces:
        worker(material.shard(piece, 2, NOTHING))
        ends.append(work.done)
    assert ends == np.cumsum([work.of(piece) for piece in pieces]).tolist()
    assert told[-1] == (work.total, work.total)
    assert max(np.diff([done for done, _ in told])) < work.total / 20, "nothing was told for long"


def test_the_time_left_is_right_within_half_from_a_tenth_on(mini, clock, capsys):
    """A batch of control is dearer than one of ioi, early heads than late ones; and the machine is not as regular."""
    settings = BuildSettings(("ioi", "docstring"), batches=6, batch_size=32, control_batches=6)
    material, said = prepare(mini, settings), []
    per_operation = {"control": 1.3e-8, "ioi": 0.9e-8, "docstring": 1e-8}

    def swept(work):
        for piece in plan(settings, material):
            task = piece.name != "control"
            tokens = material.prompts[piece.name].tokens if task else material.control_tokens
            for _ in range(piece.rows // 32):
                clean = SimpleNamespace(tokens=tokens[:32], every_position=not task)
                for layer, times in [(None, 1), *[(None, 2)] * 5, (None, 1), *[(n, 8) for n in range(mini.n_layers)]]:
                    before = work.done
                    size = *tokens[:32].shape, task
                    one = work.shape.intact(*size) if layer is None else work.shape.ablated(layer, *size)
                    layers = None if layer is None else range(layer, mini.n_layers)
                    clock.now += times * one * per_operation[piece.name] * (1 + (layer or 0) / mini.n_layers / 2)
                    work.ran(clean, times, layers)
                    assert work.done > before
            yield SimpleNamespace(piece=piece)

    began = clock.now
    with progress("sweeping", operations=True) as show:
        work = Work(mini, material, settings, show)
        work.start(dict.fromkeys(plan(settings, material)))
        for _ in work.over(swept(work)):
            pass
    whole = clock.now - began
    assert whole > 3600
    for line in capsys.readouterr().err.splitlines():
        gone, left = seconds(line, "TIME gone"), seconds(line, "about TIME left")
        if int(re.search(r"(\d+)%", line)[1]) >= 10 and whole - gone > 600:
            assert 1 / 1.5 < left / (whole - gone) < 1.5, line
            said.append(line)
    assert len(said) > 20


def test_without_a_terminal_there_is_a_line_a_minute(clock, capsys):
    began, lines = clock.now, []
    with progress("sweeping", operations=True) as show:
        for done in range(601):
            show(1e12 + done * 1e10, 7e12)
            lines += [(clock.now - began, line) for line in capsys.readouterr().err.splitlines()]
            clock.now += 7
    times = [when for when, _ in lines]
    assert times[0] <= 20
    assert max(np.diff(times)) <= 60
    assert min(np.diff(times)[:-1]) >= 50, "it talks too much"
    pattern = r"sweeping: \d+% done, .* gone, about .* left, 1.43 GFLOP/s, .* [MG]B"
    assert all(re.fullmatch(pattern, line) for _, line in lines[:-1])
    assert lines[-1][1].startswith("sweeping: 100% done, 70 min gone, 1.43 GFLOP/s")


def test_a_dry_run_says_what_the_build_then_takes_and_writes_nothing(mini, call, tmp_path, monkeypatch):
    """Of a folder, whose control text would come from the hub, which no test can reach."""
    monkeypatch.setattr(cost, "SECONDS", 1e-9)
    monkeypatch.chdir(tmp_path)
    flags = ("--tasks", "ioi", "--batches", 3, "--batch-size", 2, "--device", "cpu", "--out", "new/x.h5")
    code, out, err = call(cache_command, "build", "--model", MINI, *flags, "--dry-run", "--json")
    assert code == 0, err
    assert list(tmp_path.iterdir()) == []
    said, told = json.loads(out), []
    path = build(mini, TINY, tmp_path / "x.h5", on_progress=lambda done, total: told.append((done, total)))
    assert list(said["operations"]) == ["control", "ioi"]
    total = sum(said["operations"].values())
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert said["file_bytes"] == pytest.approx(path.stat().st_size, rel=0.05)
    for name, n in said["operations"].items():
        assert said["seconds"][name] == pytest.approx(n / said["operations_per_second"][name])
    weights = sum(p.numel() * 4 for p in mini.bridge.parameters())
    assert weights < said["memory_bytes"] < 100 * 2**30
    code, out, err = call(cache_command, "build", *flags, "--dry-run")
    assert (code, len(list(tmp_path.iterdir()))) == (0, 2)
    assert "GFLOP/s" in out
    assert re.search(r"memory: about [\d.]+ [MG]B at the peak; file: about [\d.]+ MB", out)


def test_the_columns_that_are_foreseen_are_those_of_the_file(mini, small_cache):
    material = prepare(mini, SMALL)
    foreseen = columns(mini, Work(mini, material, SMALL), plan(SMALL, material))
    assert foreseen == {path: array.shape for path, array in small_cache.content.arrays.items()}
    assert file_size(foreseen) == pytest.approx(small_cache.path.stat().st_size, rel=0.05)


def test_a_disk_without_room_is_said_before_the_sweep(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    told = []
    with pytest.raises(MachineError, match=r"the disk has 0\.1 MB free, and the build needs 0\.\d MB") as error:
        build(tiny, TINY, tmp_path / "x.h5", on_progress=lambda done, total: told.append(done))
    assert error.value.exit_code == 1
    assert told == []
    assert list(tmp_path.iterdir()) == []
