"""The folder `<out>.build/` of a build in progress: one build at a time, finished shards kept, leftovers removed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mechrl.cache.storage import write_whole
from mechrl.errors import FileError, MachineError, UsageError


@contextmanager
def workspace(out: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """Holds the build folder of `out`; when the build is through, the folder goes.

    The lock is the operating system's: it ends with the process that holds it, however that ends.

    :param settings: what the build is made of; a folder that another build left must agree with it.
    :raises UsageError: another build of the same file is running; the message names it.
    :raises FileError: an unfinished build has other settings; the message names the difference.
    :raises MachineError: the folder cannot be made.
    """
    folder = out.with_name(out.name + ".build")
    lock = FileLock(folder / "lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        (folder / "owner").write_text(str(os.getpid()))
        for leftover in (*folder.glob(".*.tmp"), *out.parent.glob(f".{out.name}.*.tmp")):
            leftover.unlink()
    except Timeout as error:
        raise UsageError(
            f"{out} is being built by process {_read(folder / 'owner')} already; wait for it, or stop it"
        ) from error
    except OSError as error:
        raise MachineError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        _claim(folder, settings)
        yield folder
        shutil.rmtree(folder)
    finally:
        if not any(folder.glob("*.h5")):  # nothing worth keeping
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    note = folder / "build.json"
    text = json.dumps(settings, indent=1)
    if note.is_file():
        try:
            before = json.loads(note.read_text())
        except ValueError:
            before = {}
        now = json.loads(text)
        differing = [f"{key} {before.get(key)!r} → {now[key]!r}" for key in now if before.get(key) != now[key]]
        if differing:
            raise FileError(
                f"{folder} holds an unfinished build with other settings: {', '.join(differing)}. "
                "Repeat that command to finish it, or remove the folder"
            )
    write_whole(note, lambda temporary: temporary.write_text(text))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return "unknown"
