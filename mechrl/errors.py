"""The errors that a user can meet, each with the exit code of its command."""

import contextlib
from collections.abc import Iterator
from math import inf


class MechrlError(Exception):
    """Something went wrong that the user should read about; never a bug in mechrl.

    `exit_code` is what the command ends with.
    """

    exit_code = 1


class MachineError(MechrlError):
    """The machine failed: network, disk, memory, a non-finite number; or a cache cannot be replayed."""

    exit_code = 1


class UsageError(MechrlError):
    """Wrong usage: an unknown name, a value out of range, no such file."""

    exit_code = 2


class LibraryError(UsageError):
    """A library failed on what the user named; its own error is the cause."""


class FileError(MechrlError):
    """A file is damaged, foreign, unfinished, of another version, or does not fit the others."""

    exit_code = 4


def unknown_name(kind: str, name: str, known: list[str]) -> UsageError:
    """The error for a name that is not among `known`, with the nearest one as a hint."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    separator = "; " if any("," in other for other in known) else ", "
    return UsageError(f"unknown {kind} {name!r}.{hint} Known: {separator.join(known)}")


def check_range(**numbers: tuple[float | None, float, float]) -> None:
    """Whether numbers are in their ranges.

    :param numbers: (value, least, most) by name. A value of None was not given; where the least is an int, it must be
        a whole number.
    :raises UsageError: one is not.
    """
    for name, (value, least, most) in numbers.items():
        if value is None:
            continue
        said = name.replace("_", " ")
        if not least <= value <= most:
            limits = f"at least {least:.15g}" if most == inf else f"between {least:.15g} and {most:.15g}"
            raise UsageError(f"{said} must be {limits}, not {value}")
        if isinstance(least, int) and value % 1 != 0:
            raise UsageError(f"{said} must be a whole number, not {value}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; without importing torch, whose error on a CPU has no class."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


@contextlib.contextmanager
def refused(what: str) -> Iterator[None]:
    """Turns what a library raises about a model into one sentence of ours; its own is for those who write libraries.

    :param what: what cannot be done, with which model and which of its files.
    :raises LibraryError: the library failed.
    :raises MachineError: memory ran out.
    """
    try:
        yield
    except (MechrlError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        if is_out_of_memory(error):
            raise MachineError(f"{what}: out of memory") from error
        raise LibraryError(what) from error
