"""Commands in odd surroundings: closed or full streams, other encodings, no home, no folder, signals."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_content
from mechrl.cli import surroundings

# A command that says what ours say, in the time that Python takes to start.
SMALL = """
import logging, os, sys, time, warnings
import click
from mechrl.cli import app

@click.command()
@click.option("--wait", is_flag=True)
def work(wait):
    with app.progress("working") as show:
        for done in range(5):
            show(done, 4)
    warnings.warn("a library warns")
    logging.getLogger("library").warning("a library logs")
    app.warn("take care")
    print("6 × 8")
    if wait:
        print("waiting", flush=True)
        time.sleep(60)

app.run(work)
"""
BUILD = "cache build --device cpu --tasks ioi --batches 3 --batch-size 2 --out x.h5"


def shell(arguments: str, redirect: str, cwd, code: str | None = None, **environment: str):
    """What bash makes of a mechrl command, or of a Python program, with this redirection."""
    start = [sys.executable, *(("-c", code) if code else ("-m", "mechrl.cli.main"))]
    command = f"{shlex.join(start)} {arguments} {redirect}"
    return subprocess.run(
        ["bash", "-c", command], check=False, cwd=cwd, capture_output=True, text=True, errors="replace",
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("redirect", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_a_stream_that_nobody_has_opened_or_can_hold_stops_no_work(redirect, tmp_path):
    ended = shell("", redirect, tmp_path, SMALL)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ("" if ">&-" in redirect.replace("2>&-", "") else "6 × 8\n")
    assert ("WARNING: take care" in ended.stderr) == ("2>" not in redirect)


def test_a_result_that_could_not_be_written_is_an_error(tmp_path):
    """Though it was still to be written when the work was done."""
    ended = shell("", ">/dev/full", tmp_path, SMALL, PYTHONUNBUFFERED="")
    assert ended.returncode == 1
    assert ended.stderr.endswith("error: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("arguments", ["cache info nowhere.h5", "cache nothing"])
def test_an_error_that_nobody_reads_keeps_its_exit_code(arguments, redirect, tmp_path):
    assert shell(arguments, redirect, tmp_path).returncode == 2


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = SMALL.replace('print("6 × 8")', 'file = open("out.txt", "w"); print("result"); os.write(1, b"lost")')
    assert shell("", ">&-", tmp_path, code).returncode == 0
    assert (tmp_path / "out.txt").read_text() == ""


@pytest.mark.parametrize("arguments", ["--help", "cache tasks", "cache info CACHE"])
def test_a_reader_that_goes_away_is_no_error(arguments, small_cache, tmp_path):
    arguments = arguments.replace("CACHE", str(small_cache.path))
    for reader in ("head -n 1", "true"):
        assert shell(arguments, f"| {reader}", tmp_path).stderr == ""


def test_a_character_that_a_terminal_does_not_know_is_a_question_mark(tmp_path):
    ended = shell("", "", tmp_path, SMALL, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stdout) == (0, "6 ? 8\n")


def test_an_export_keeps_its_bytes_whatever_a_terminal_knows(small_cache, tmp_path):
    root = {**small_cache.content.root, "model": "modèle"}
    write_content(tmp_path / "x.h5", Content(small_cache.content.arrays, {**small_cache.content.attributes, "/": root}))
    arguments = "cache export x.h5 --task ioi --format transformer-lens"
    assert shell(arguments, "> latin", tmp_path, PYTHONIOENCODING="latin-1").returncode == 0
    assert shell(arguments, "--out whole", tmp_path).returncode == 0
    assert "modèle" in (tmp_path / "whole").read_text(encoding="utf-8")
    assert (tmp_path / "latin").read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_libraries_warn_of_is_for_debug_only(tmp_path):
    quiet, loud = shell("", "", tmp_path, SMALL), shell("--debug", "", tmp_path, SMALL)
    for said in ("a library warns", "a library logs"):
        assert said not in quiet.stderr
        assert said in loud.stderr


def test_a_folder_that_was_removed_is_said_to_be(tmp_path):
    (tmp_path / "gone").mkdir()
    command = f"cd gone && rmdir ../gone && {sys.executable} -m mechrl.cli.main train"
    ended = subprocess.run(["bash", "-c", command], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "has been removed" in ended.stderr


def test_a_user_without_a_home_gets_no_folder_called_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "~")
    surroundings.prepare(debug=True)
    assert os.path.isabs(os.path.expanduser("~/.cache"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_is_an_interrupt(number, tmp_path):
    process = waiting(tmp_path, signal.SIGINT, signal.default_int_handler)
    process.send_signal(number)
    assert process.communicate(timeout=30)[1].endswith("interrupted\n")
    assert process.returncode == 130


def test_nohup_stays_nohup(tmp_path):
    process = waiting(tmp_path, signal.SIGHUP, signal.SIG_IGN)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.kill()
    process.communicate()


def started(command, cwd, number, handler, **settings) -> subprocess.Popen:
    """A process that treats a signal so; a background job of a shell, and what it starts, ignores interrupts."""
    before = signal.signal(number, handler)
    try:
        return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)
    finally:
        signal.signal(number, before)


def waiting(cwd, number, handler) -> subprocess.Popen:
    """The small command, in the middle of its work."""
    process = started([sys.executable, "-c", SMALL, "--wait"], cwd, number, handler)
    assert [process.stdout.readline() for _ in range(2)][1] == "waiting\n"
    return process


READING = ["cache tasks", "cache info CACHE", "--help"]
WORKING = [
    BUILD,
    "cache roles --device cpu",
    "train --from-cache CACHE --steps 200",
    "report CACHE -o r.html",
    "bench --cache CACHE --seeds 1 --method random",
]


@pytest.mark.parametrize(
    "arguments", [*READING, *(pytest.param(arguments, marks=pytest.mark.slow) for arguments in WORKING)]
)
def test_nothing_reads_the_keyboard(arguments, small_cache, tmp_path):
    inside, outside = os.pipe()
    os.write(outside, b"typed ahead\n")
    command = [sys.executable, "-m", "mechrl.cli.main", *arguments.replace("CACHE", str(small_cache.path)).split()]
    ended = subprocess.run(command, check=False, cwd=tmp_path, stdin=inside, capture_output=True)
    os.close(outside)
    assert ended.returncode == 0
    assert os.read(inside, 100) == b"typed ahead\n"
    os.close(inside)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [*WORKING, "cache top CACHE", "cache check own.jsonl --device cpu"])
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"},
        {"TERM": "dumb"},
        {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null", "HF_HOME": "/dev/null"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_every_command_works_with_other_terminals_and_without_a_home(arguments, environment, small_cache, tmp_path):
    things = ("ring", "bone", "book", "ball", "hat", "key", "Čapek", "名前")
    line = '{{"prompt": "Mary saw the {} and the", "answer": " dog", "wrong": " cat"}}\n'
    (tmp_path / "own.jsonl").write_text("".join(line.format(thing) for thing in things), encoding="utf-8")
    ended = shell(arguments.replace("CACHE", str(small_cache.path)), "", tmp_path, **environment)
    assert ended.returncode == 0, ended.stderr
    assert not re.search("Traceback|Warning:|atplotlib", ended.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_told_to_end_goes_on_where_it_was(number, tmp_path):
    command = [sys.executable, "-m", "mechrl.cli.main", *BUILD.replace("--batches 3", "--batches 8").split()]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("x.h5.build/*.h5")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.communicate(timeout=60)[1].endswith("interrupted\n")
    assert process.returncode == 130
    assert not (tmp_path / "x.h5").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("x.h5.build/*.h5")}
    assert kept
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    subprocess.run([*command[:-1], "y.h5"], cwd=tmp_path, check=True, capture_output=True)
    assert Cache.open(tmp_path / "x.h5").sha256 == Cache.open(tmp_path / "y.h5").sha256


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_comparison_that_is_told_to_end_takes_its_processes_along(number, small_cache, tmp_path):
    command = [sys.executable, "-m", "mechrl.cli.main", "bench", "--cache", str(small_cache.path)]
    process = started(command, tmp_path, signal.SIGINT, signal.default_int_handler, start_new_session=True)
    deadline = time.monotonic() + 300
    while len(session(process.pid)) < 4 and time.monotonic() < deadline:  # this one, two others, Python's own tracker
        time.sleep(0.05)
    time.sleep(1)  # amid the imports of the others
    # A terminal's interrupt goes to all of them, a supervisor's signal to the one that it started.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    time.sleep(2)
    assert session(process.pid) == []


def session(leader: int) -> list[str]:
    """The processes of a session."""
    return subprocess.run(["pgrep", "-s", str(leader)], check=False, capture_output=True, text=True).stdout.split()
