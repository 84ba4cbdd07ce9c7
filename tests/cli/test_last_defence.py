"""Faults that nobody foresaw: one sentence, exit code 1, and the trace for who asks."""

import click
import pytest
import torch

from mechrl.cache.reader import Cache
from mechrl.cli import app
from mechrl.cli.cache import cache as cache_command
from mechrl.cli.main import mechrl as umbrella


class Panic(BaseException):
    """As extensions in Rust raise it."""


def endless() -> None:
    endless()


def failing(monkeypatch, error) -> None:
    """Has every command fail that opens a cache."""

    def fail(*arguments):
        if error is RecursionError:
            endless()
        raise error

    monkeypatch.setattr(Cache, "open", fail)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (IndexError("list index out of range"), "(IndexError: list index out of range)"),
        (RecursionError, "(RecursionError: "),
        (EOFError("Ran out of input"), "(EOFError: Ran out of input)"),  # click takes one for the end of the keyboard
        (Panic("in a library"), "(Panic: in a library)"),
        (ValueError("one\n  two \x1b[31m"), "(ValueError: one two \\x1b[31m)"),
        (UnicodeEncodeError("ascii", "×", 0, 1, "no"), "UnicodeEncodeError"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_fault_is_one_sentence_about_the_command(call, monkeypatch, error, said):
    failing(monkeypatch, error)
    code, out, err = call(umbrella, "cache", "info", "x.h5")
    assert code == 1
    assert out == ""
    assert err.strip().startswith("error: ")
    assert "command cache info failed (" in err
    assert said in err
    assert err.endswith("). This is a fault of mechrl's, or of a library under it; --debug shows where\n")
    assert err.strip().count("\n") == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_no_fault_of_ours(call, monkeypatch, error):
    failing(monkeypatch, error)
    assert call(cache_command, "info", "x.h5") == (1, "", "error: out of memory\n")


def test_a_fault_says_what_was_going_on(call):
    @click.command()
    def work():
        with app.progress("sweeping") as show:
            show(0, 0)

    assert "command failed while sweeping (ZeroDivisionError: " in call(work)[2]


def test_debug_shows_the_trace(call, monkeypatch):
    failing(monkeypatch, IndexError("list index out of range"))
    for arguments in (["--debug", "info", "x.h5"], ["info", "--debug", "x.h5"], ["info", "x.h5", "--debug"]):
        code, _, err = call(cache_command, *arguments)
        assert code == 1
        assert "in fail" in err
        assert "command info failed (IndexError" in err.splitlines()[-1]


def below(command, path=()):
    """All commands, as they are called."""
    yield path
    for name, found in getattr(command, "commands", {}).items():
        yield from below(found, (*path, name))


@pytest.mark.parametrize("path", list(below(umbrella)), ids=" ".join)
def test_every_command_and_group_takes_debug(call, path):
    code, out, _ = call(umbrella, *path, "--debug", "--help")
    assert code == 0
    assert out.count("--debug") == 1
