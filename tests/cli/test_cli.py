"""The command line: what it imports, prints and ends with."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from numpy.random import RandomState

from mechrl import progress as progress_module
from mechrl.ablation import reference
from mechrl.cache.reader import Cache
from mechrl.cli import app
from mechrl.cli.cache import cache as cache_command
from mechrl.cli.main import mechrl as umbrella
from mechrl.cli.train import train as train_command
from mechrl.cli.verify import verify as verify_command
from mechrl.models import MINI
from mechrl.tasks import TASKS, TRAIN, as_text, generate
from mechrl.tasks.prose import prose

HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "stable_baselines3",
    "numba",
    "h5py",
    "numpy",
    "matplotlib",
    "rich",
    "pydantic",
)
SIZES = ("--batches", 3, "--batch-size", 4, "--device", "cpu")


def modules_after(code: str, cwd) -> set[str]:
    """The top-level modules that are loaded once some code has run in a process of its own."""
    code += "\nimport sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    return set(
        subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize(
    "command", ["main:mechrl", "cache:cache", "train:train", "verify:verify", "bench:bench", "report:report"]
)
def test_help_imports_only_click(command, tmp_path):
    module, name = command.split(":")
    code = f"from mechrl.cli.{module} import {name} as c\nc.main(['--help'], standalone_mode=False)"
    assert not modules_after(code, tmp_path) & set(HEAVY)


def test_training_and_reading_a_cache_import_neither_transformer_lens_nor_transformers(small_cache, tmp_path):
    code = f"""
import sys
from mechrl import progress as progress_module
from mechrl.cli import app
from mechrl.cli.train import train
from mechrl.cli.cache import cache
for command, flags in (
    (train, ['--from-cache', {str(small_cache.path)!r}, '--steps', '2000', '--out', 'c.zip']),
    (cache, ['top', {str(small_cache.path)!r}]),
):
    sys.argv = ['command', *flags]
    try: app.run(command)
    except SystemExit as e: assert e.code == 0
"""
    loaded = modules_after(code, tmp_path)
    assert "torch" in loaded
    assert not loaded & {"transformers", "transformer_lens"}


def test_the_whole_pipeline_by_its_commands(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(cache_command, "build", *SIZES)
    assert code == 0
    assert "--model gpt2" in err.splitlines()[0]
    assert "induction" in out
    for arguments in (["info"], ["validate"], ["top", "-n", "3", "--by", "abs"]):
        assert call(cache_command, *arguments)[0] == 0
    top = json.loads(call(cache_command, "top", "--json", "--task", "ioi")[1])
    assert len(top["ioi"]) == 10
    assert json.loads(call(cache_command, "info", "--json")[1])["n_heads"] == 8

    code, out, err = call(train_command, "--steps", 500)
    assert code == 0
    assert "docstring (held out)" in out
    trained = json.loads(call(train_command, "--steps", 500, "--json", "--out", "other.zip")[1])
    assert set(trained["docstring"]) == {"agent, no task signal", "random", "static order"}

    code, out, _ = call(verify_command, "--fresh-batches", 2, "--top", 1, "--json", "--plan-k", 2)
    found = json.loads(out)
    assert code == (0 if found["confirmed"] else 3)
    assert found["faithful"]["answer"]
    assert set(found["tasks"]) == {"induction", "ioi", "docstring"}
    assert call(umbrella, "report", "-o", "heat.png")[0] == 0
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "checkpoint.zip", "heat.png", "mini.h5", "mini.h5.json", "other.zip",
    ]  # fmt: skip


def test_live_training_counts_its_passes(call, small_cache, tmp_path):
    flags = (
        "--from-cache",
        small_cache.path,
        "--picks",
        1,
        "--steps",
        64,
        "--device",
        "cpu",
        "--out",
        tmp_path / "c.zip",
    )
    code, _, err = call(train_command, "--live", *flags)
    assert code == 0
    # 64 picks, two passes each, and a clean one for each batch that came up: 2 + 2 of the tasks, 2 of control at most.
    passes = int(err.split(" passes of the model")[0].split()[-1])
    assert 128 < passes <= 128 + 6


def test_the_paper_preset_runs(call, small_cache, tmp_path):
    flags = ("--from-cache", small_cache.path, "--steps", 200, "--plan-k", 2, "--out", tmp_path / "c.zip")
    code, _, _ = call(train_command, "--preset", "paper", *flags)
    assert code == 0


def test_the_policy_heads_is_trained_and_verified(call, small_cache, tmp_path):
    out = tmp_path / "c.zip"
    flags = ("--policy", "heads", "--from-cache", small_cache.path, "--steps", 200, "--json", "--out", out)
    code, text, _ = call(train_command, *flags)
    assert code == 0
    assert set(json.loads(text)["ioi"]) == {"agent, no task signal", "random", "static order"}
    code, text, _ = call(verify_command, out, "--cache", small_cache.path, "--fresh-batches", 1, "--top", 1, "--json")
    assert code in (0, 3)
    assert json.loads(text)["faithful"]["answer"]


def test_tasks_are_listed_and_shown(call):
    code, out, _ = call(cache_command, "tasks")
    assert code == 0
    assert all(f"{task.name} " in out and task.family in out for task in TASKS.values())
    code, out, _ = call(cache_command, "tasks", "ioi", "--show", "2", "--json")
    assert code == 0
    found = json.loads(out)["ioi"]
    assert found["family"] == "names and pronouns"
    assert len(found["prompts"]) == 2
    for prompt in found["prompts"]:
        assert prompt["prompt"].endswith(" to")
        assert prompt["answer"] != prompt["wrong"]
        assert prompt["corrupted"] != prompt["prompt"]
    code, out, _ = call(cache_command, "tasks", "ioi", "--show", "1")
    assert "Wang et al. 2022" in out
    assert repr(found["prompts"][0]["prompt"]) in out


def test_check_says_what_the_model_does(call, tmp_path, mini):
    lines = [
        {"prompt": text["prompt"], "answer": text["answer"], "wrong": text["wrong"]}
        for text in as_text(generate(TASKS["ioi"], mini.vocabulary, 15, TRAIN), mini.vocabulary)
    ]
    lines.append({**lines[3], "prompt": lines[3]["prompt"] + ".", "answer": " the", "wrong": " Mary"})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, _ = call(cache_command, "check", tmp_path / "own.jsonl", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["prompts"] == 16
    assert found["accuracy"] >= 14 / 16
    assert len(found["worst"]) == 5
    differences = [prompt["logit_diff"] for prompt in found["worst"]]
    assert differences == sorted(differences)
    prompts = generate(TASKS["ioi"], mini.vocabulary, 15, TRAIN)
    expected = reference.logit_diff(mini, prompts)
    by_line = {prompt["line"]: prompt for prompt in found["worst"] if prompt["line"] <= 15}
    for line, prompt in by_line.items():
        assert prompt["logit_diff"] == pytest.approx(expected[line - 1], abs=1e-4)
        assert prompt["prompt"] == lines[line - 1]["prompt"]
    for line in lines:
        line["answer"], line["wrong"] = line["wrong"], line["answer"]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, err = call(cache_command, "check", tmp_path / "own.jsonl")
    assert code == 0
    assert "mini does not do own" in err


def test_several_ablations_make_one_file_each_and_a_file_rides_along(call, tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    texts = as_text(generate(TASKS["ioi"], tiny.vocabulary, 17, TRAIN), tiny.vocabulary)
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    (tmp_path / "text.txt").write_text(prose(RandomState(0), sentences=600))
    flags = ("--model", tiny.name, "--task", "own.jsonl", "--control-batches", "3", "--control-text", "text.txt")
    code, _, err = call(cache_command, "build", *flags, "--ablation", "mean_task,counterfactual")
    assert code == 0
    assert "batches of 4, for all tasks" in err
    name = f"tiny-{tiny.sha256[:8]}"
    for kind in ("mean_task", "counterfactual"):
        cache = Cache.open(tmp_path / "cache" / f"{name}.{kind}.h5")
        assert cache.tasks == ["own"]
        assert cache.attributes["ablation"] == kind
        assert len(cache.damage("own")) == 16
        assert cache.task_attributes("own")["generator"] == "file"
    assert not (tmp_path / "cache" / f"{name}.h5").exists()


@pytest.mark.parametrize(
    ("command", "arguments", "code", "message"),
    [
        (train_command, ["--from-cache", "nowhere.h5"], 2, "mechrl-cache build"),
        (train_command, [], 2, "there is no cache at cache/mini.h5; mechrl-cache build makes one"),
        (train_command, ["--from-cache", "CACHE", "--tasks", "iou"], 2, "Did you mean 'ioi'"),
        (train_command, ["--from-cache", "CACHE", "--hold-out", "ioi"], 2, "none twice"),
        (train_command, ["--from-cache", "CACHE", "--picks", "49"], 2, "48 heads, not 49"),
        (train_command, ["--from-cache", "CACHE", "--tasks", "ioi,ioi"], 2, "none twice"),
        (train_command, ["--from-cache", "CACHE", "--tasks", "induction_matched"], 2, "is not in"),
        (train_command, ["--from-cache", "CACHE", "--out", "CACHE"], 2, "would overwrite the cache"),
        (train_command, ["--from-cache", "CACHE", "--control-weight", "nan"], 2, "nan is not between"),
        (train_command, ["--from-cache", "CACHE", "--seed", str(2**32)], 2, "range"),
        (train_command, ["--from-cache", "CACHE", "--tensorboard", "text.h5"], 1, "File exists"),
        (verify_command, ["x.zip", "--tolerance", "-1"], 2, "-1.0 is not between"),
        (cache_command, ["build", "--device", "cpu:foo"], 2, "unknown device"),
        (cache_command, ["build", "--model", "text.h5"], 2, "no such folder"),
        (train_command, ["--from-cache", "CACHE", "--out", "CACHE/x.zip"], 1, "cannot write"),
        (train_command, ["--from-cache", "text.h5"], 4, "not a mechrl cache"),
        (train_command, ["--from-cache", "half.h5"], 4, "half.h5 is not finished; run its mechrl-cache build again"),
        (cache_command, ["top", "half.h5"], 4, "half.h5 is not finished"),
        (train_command, ["--from-cache", "CACHE", "--live", "--model", "./nope"], 2, "no such folder"),
        (cache_command, ["build", "--tasks", "docstrin"], 2, "Did you mean 'docstring'"),
        (cache_command, ["build", "--model", "./nope"], 2, "no such folder"),
        (cache_command, ["build", "--model", "empty"], 2, "no weights"),
        (
            cache_command,
            ["build", "--model", "gpt2-nobody-has", "--control-text", "prose.txt"],
            1,
            "the model mini",
        ),
        (cache_command, ["build", "--model", "MINI"], 1, "name a file as the control text"),
        (cache_command, ["build", "--out", "text.h5/x.h5"], 1, "cannot write"),
        (cache_command, ["build", "--batches", "2"], 2, "at least 3"),
        (cache_command, ["build", "--batches", "0"], 2, "at least 3"),
        (cache_command, ["build", "--shard", "17/16"], 2, "1 ≤ i ≤ n"),
        (cache_command, ["merge", "out.h5", "nowhere.h5"], 2, "no such file"),
        (cache_command, ["merge", "out.h5", "CACHE"], 4, "not a part of a build"),
        (cache_command, ["build", "--ablation", "mean_tsk"], 2, "Did you mean 'mean_task'"),
        (cache_command, ["build", "--ablation", "zero,mean_task", "--out", "x.h5"], 2, "--out names one file"),
        (cache_command, ["build", "--ablation", ","], 2, "needs one or more kinds, each once"),
        (cache_command, ["build", "--ablation", "zero,zero"], 2, "needs one or more kinds, each once"),
        (cache_command, ["check", "own.jsonl", "--model", "./nope"], 2, "no such folder"),
        (cache_command, ["build", "--ablation", "zero,mean_task", "--json"], 2, "one ablation at a time"),
        (cache_command, ["build", "--task", "ioi.jsonl"], 2, "there is a task 'ioi' already; rename the file"),
        (cache_command, ["build", "--task", "broken.jsonl"], 2, "line 2: not JSON"),
        (cache_command, ["build", "--task", "own.jsonl", "--batch-size", "32"], 2, "make batches of 1"),
        (cache_command, ["build", "--task", "own.jsonl", "--ablation", "counterfactual"], 2, "no counterfactual twins"),
        (cache_command, ["check", "nowhere.jsonl"], 2, "No such file"),
        (cache_command, ["check", "broken.jsonl"], 2, "line 2: not JSON"),
        (cache_command, ["tasks", "docstrings"], 2, "Did you mean 'docstring'"),
        (cache_command, ["build", "--device", "tpu"], 2, "unknown device"),
        (cache_command, ["top", "CACHE", "--task", "iou"], 2, "Did you mean 'ioi'"),
        (cache_command, ["info", "nowhere.h5"], 2, "no such file"),
        (cache_command, ["validate", "text.h5"], 4, "not a mechrl cache"),
        (train_command, ["--from-cache", "CACHE", "--policy", "heads", "--preset", "paper"], 2, "settings of its own"),
        (verify_command, ["nowhere.zip"], 2, "no such checkpoint"),
        (verify_command, ["text.h5"], 4, "not a checkpoint"),
        (umbrella, ["report", "CACHE", "-o", "x.txt"], 2, ".png"),
        (umbrella, ["no-such-command"], 2, "no-such-command"),
    ],
)
def test_wrong_input_gets_one_message_and_its_exit_code(
    call, small_cache, tmp_path, monkeypatch, command, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "prose.txt").write_text("hello")
    prompts = [
        {"prompt": f"Mary saw the {thing} and the", "answer": " dog", "wrong": " cat"}
        for thing in "ring bone book ball hat key".split()
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
    (tmp_path / "ioi.jsonl").write_text(json.dumps(prompts[0]))
    (tmp_path / "broken.jsonl").write_text(json.dumps(prompts[0]) + "\n{")
    (tmp_path / "half.h5.build").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((MINI / "config.json").read_text())
    before = sorted(tmp_path.rglob("*"))
    ended, out, err = call(
        command, *(a.replace("CACHE", str(small_cache.path)).replace("MINI", str(MINI)) for a in arguments)
    )
    assert ended == code
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.name != "cache"] == []


def test_the_time_left_goes_by_what_this_run_has_done(capsys, monkeypatch):
    """Half was done before; then a tenth a minute."""
    now = iter([0.0, 60.0, 120.0, 150.0, 300.0, 301.0])
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(progress_module, "resident_bytes", lambda: 1.25e9)
    with app.progress("sweeping") as progress:
        for done in (50, 60, 70, 75, 100, 100):
            progress(done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "sweeping: 60% done, 60 s gone, about 4 min left, 1.2 GB",
        "sweeping: 70% done, 2 min gone, about 3 min left, 1.2 GB",
        "sweeping: 100% done, 5 min gone, 1.2 GB",
    ]


def test_what_is_being_done_is_said_every_ten_seconds_at_most(capsys, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress_module, "time", clock)
    with app.progress("verifying") as progress:
        for seconds, done, doing in (
            (0, 0, "control text"), (9, 10, "a"), (2, 12, "b"), (9, 14, "c"), (0, 30, "d"), (9, 40, "e"), (2, 45, "f")
        ):  # fmt: skip
            clock.now += seconds
            progress(done, 100, doing)
    said = [line.split(", ") for line in capsys.readouterr().err.splitlines()]
    assert [(line[0], line[-1]) for line in said] == [
        ("verifying: 12% done", "b"),
        ("verifying: 40% done", "e"),
    ]


def test_a_full_stdout_is_a_message(small_cache, tmp_path):
    command = [sys.executable, "-m", "mechrl.cli.main", "cache", "info", str(small_cache.path)]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, check=False, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_one_pick_is_enough_for_the_paper_preset(call, small_cache, tmp_path):
    flags = ("--from-cache", small_cache.path, "--picks", 1, "--steps", 8, "--out", tmp_path / "c.zip")
    assert call(train_command, "--preset", "paper", *flags)[0] == 0


def test_a_task_that_the_model_cannot_do_is_warned_of_and_recorded(call, tmp_path, mini, monkeypatch):
    """Answers and wrongs exchanged: the clean logit difference is negative."""
    from mechrl.tasks import TASKS
    from mechrl.tasks.base import Example, Task

    draw = TASKS["ioi"].draw

    def exchanged(rng, pools):
        example = draw(rng, pools)
        return Example(example.context, example.wrongs, example.answers, example.group)

    monkeypatch.setitem(TASKS, "ioi", Task("ioi", "", "", TASKS["ioi"].pools, exchanged))
    out_path = tmp_path / "x.h5"
    code, _, err = call(cache_command, "build", *SIZES, "--tasks", "ioi", "--out", out_path)
    assert code == 0
    assert "WARNING: the model does not do ioi" in err
    assert json.loads(call(cache_command, "info", out_path, "--json")[1])["tasks"]["ioi"]["does_task"] is False


def test_an_interrupt_ends_with_130_and_leaves_nothing_half_written(tmp_path):
    build = ["cache", "build", "--device", "cpu", "--batch-size", "2", "--out", "x.h5"]
    command = [sys.executable, "-m", "mechrl.cli.main", *build]
    # A background job of a shell ignores interrupts, and what it starts would too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ})
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("x.h5.build/control-*.h5")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "x.h5").exists()
    assert not list(tmp_path.rglob("*.tmp"))
