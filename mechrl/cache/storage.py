"""Reading and writing `Content` as HDF5: whole or not at all, and never trusting what somebody else wrote."""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mechrl.cache.format import FORMAT, VERSION, Content, blocks, check_version, content_sha256, dataset_rule
from mechrl.cache.untrusted import Budget, mapped, read_attributes, read_group
from mechrl.errors import FileError, MachineError, UsageError
from mechrl.progress import size

CHUNK_BYTES = 2**20
DATASET_BYTES = 3200  # that HDF5 needs for a dataset beside its numbers: its description and its index of chunks
LARGEST_MANIFEST = 2**22  # bytes


def manifest_path(path: Path) -> Path:
    """Where the manifest of a cache lies: `<cache>.json`."""
    return path.with_name(path.name + ".json")


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, where there is none.

    :raises MachineError: there is a file of that name, or the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{path}: cannot be made ({error.strerror})") from error


def write_whole(
    path: Path, write: Callable[[Path], object], before_replace: Callable[[Path], object] | None = None
) -> None:
    """Lets `write` fill a temporary file in the same folder, which then takes the place of `path` in one step.

    :param before_replace: called with the temporary file, complete and on disk, just before.
    :raises MachineError: the folder cannot be written to; nothing is left behind.
    """
    try:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            _sync(temporary)
            if before_replace:
                before_replace(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """Makes the folder of an output file and tries it, before hours of work go towards that file.

    :raises MachineError: a file cannot be written there.
    :raises UsageError: something that is not a file is there.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is a folder or a device; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}") from error


def check_space(folder: Path, need: int) -> None:
    """Whether a folder's disk has room, before hours of work go towards a file there.

    :param need: in bytes.
    :raises MachineError: it has less.
    """
    if (free := shutil.disk_usage(folder).free) < need:
        raise MachineError(f"{folder}: the disk has {size(free)} free, and the build needs {size(need)}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_content(path: Path, content: Content, manifest: bool = True) -> Content:
    """Writes a cache file (format, version and hash are added) and, unless told otherwise, its manifest.

    The manifest is on disk as `.json.new` before the file appears and renamed after; `settle_manifest` finishes what
    was cut off in between.

    :returns: the content as written.
    :raises MachineError: no space, no permission, no folder.
    """
    root = {"format": FORMAT, "format_version": VERSION, **content.root}
    content = Content(content.arrays, {**content.attributes, "/": root})
    root["content_sha256"] = content_sha256(content)

    def write_manifest(temporary: Path) -> None:
        text = json.dumps({"file": path.name, "sha256": file_sha256(temporary), **root}, indent=1)
        write_whole(_new(path), lambda new: new.write_text(text))

    write_whole(path, lambda temporary: _write_hdf5(temporary, content), write_manifest if manifest else None)
    if manifest:
        with contextlib.suppress(FileNotFoundError):  # a reader has done it
            os.replace(_new(path), manifest_path(path))
    return content


def _new(path: Path) -> Path:
    return path.with_name(path.name + ".json.new")


class _DiskFile(io.FileIO):
    """A file whose first failed write is kept as `error` instead of raised, because HDF5 crashes on a full disk."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return len(data)


def _write_hdf5(path: Path, content: Content) -> None:
    """:raises OSError: the disk is full, or fails otherwise."""
    with _DiskFile(path, "w+b") as disk:
        with h5py.File(disk, "w") as file:
            for name, array in content.arrays.items():
                chunks = _chunks(array.shape, array.dtype.itemsize)
                dataset = file.create_dataset(name, array.shape, array.dtype, chunks=chunks, fletcher32=True)
                first = 0
                for block in blocks(array):
                    if disk.error is None:
                        dataset[first : first + len(block)] = block
                    first += len(block)
            for group, attributes in content.attributes.items():
                for key, value in attributes.items():
                    file.require_group(group).attrs[key] = value
        if disk.error is not None:
            raise disk.error


def _chunks(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    rows = CHUNK_BYTES // max(1, math.prod(shape[1:]) * itemsize)
    return (min(max(1, rows), max(1, shape[0])), *(max(1, n) for n in shape[1:]))


def file_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """About how many bytes a cache takes, from the shapes of its datasets by their paths.

    HDF5 writes whole chunks, each with a checksum, and an index of them.
    """
    total = 0
    for path, shape in shapes.items():
        itemsize = np.dtype(dataset_rule(path)[0]).itemsize
        chunks = _chunks(shape, itemsize)
        total += DATASET_BYTES + -(-shape[0] // chunks[0]) * (math.prod(chunks) * itemsize + 4)
    return total


def _read_manifest(manifest: Path) -> dict[str, Any]:
    """:raises ValueError: it is not JSON, or too long."""
    with open(manifest, "rb") as file:
        text = file.read(LARGEST_MANIFEST + 1)
    if len(text) > LARGEST_MANIFEST:
        raise ValueError("too long")
    noted: dict[str, Any] = json.loads(text)
    return noted


def settle_manifest(path: Path) -> None:
    """Finishes the rename of a manifest whose writer was cut off just before it."""
    new = _new(path)
    if path.is_file() and new.is_file():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            if _read_manifest(new)["sha256"] == file_sha256(path):
                os.replace(new, manifest_path(path))


def read_content(path: Path) -> Content:
    """Reads a whole file into memory, refusing whatever a cache has no use for.

    The bytes are compared with the manifest, where there is one, before HDF5 sees them; links, external storage,
    virtual datasets, filters, foreign dtypes, sizes beyond the file's own, and attributes that are no plain text or
    number are refused before they are read; the hash of the content is compared last.

    :raises UsageError: no such file.
    :raises FileError: damaged, foreign, unfinished, or of another version.
    """
    if not path.is_file():
        if path.with_name(path.name + ".build").is_dir():
            raise FileError(f"{path} is not finished; run its mechrl-cache build again, which goes on where it stopped")
        raise UsageError(f"{path}: no such file")
    settle_manifest(path)
    check_manifest(path)
    try:
        with mapped(path) as data, h5py.File(path, "r") as file:
            budget = Budget(data)
            names = [name for name in ("format", "format_version") if name in file.attrs]
            check_version(read_attributes(file, names, budget))
            arrays: dict[str, np.ndarray] = {}
            attributes = {"/": read_attributes(file, file.attrs, budget)}
            read_group(file, arrays, attributes, budget)
        content = Content(arrays, attributes)
        if content.root.get("content_sha256") != content_sha256(content):
            raise FileError("the numbers do not match the hash that was stored with them: it was changed")
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    except Exception as error:  # a hostile file can fail in any way; all of them mean the same
        raise FileError(f"{path}: damaged, or not a mechrl cache ({error})") from error
    return content


def read_rows(path: Path, dataset: str, rows: slice) -> np.ndarray:
    """A few rows out of a file that `read_content` has found sound.

    :raises FileError: it has become damaged since.
    """
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file[dataset][rows])
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise FileError(f"{path}: damaged ({error})") from error


def check_manifest(path: Path, content: Content | None = None) -> bool:
    """Compares the file's bytes, and its attributes if given, with its manifest; False where there is no manifest.

    :raises FileError: they do not match, or the manifest is unreadable.
    """
    manifest = manifest_path(path)
    if not manifest.is_file():
        return False
    try:
        noted = _read_manifest(manifest)
        expected = noted["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileError(f"{manifest}: the manifest is damaged") from error
    if content is not None and {**noted, **content.root} != noted:
        raise FileError(f"{manifest}: the manifest says other things of the cache than the cache itself")
    if file_sha256(path) != expected:
        raise FileError(f"{path}: the file was changed since it was written (sha256 differs from {manifest.name})")
    return True
