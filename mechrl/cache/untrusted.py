"""Reading an HDF5 file that somebody else wrote: what a cache has no use for is refused before HDF5 reads it.

HDF5 2.0 believes what a file says of its texts: it takes the memory that a text is said to be long, up to 4 GiB, before
it looks whether it is there, and it looks for the end of a heap that has none forever. Offsets are those of the HDF5
File Format Specification 3.0: II.A superblock 0, IV.A.1.a object header 1, IV.A.2.m attribute, III.E global heap.
"""

import collections
import contextlib
import math
import mmap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mechrl.cache.format import dataset_rule
from mechrl.errors import FileError

# Version 0, with addresses of 8 bytes that count from the beginning of the file, as h5py writes by default.
SUPERBLOCK = b"\x89HDF\r\n\x1a\n" + bytes((0, 0, 0, 0, 0, 8, 8, 0))
HEAP = b"GCOL\1\0\0\0"
ATTRIBUTE, CONTINUATION = 0x0C, 0x10  # kinds of messages in an object header
VARIABLE_LENGTH = 9  # class of a datatype
MOST_MESSAGES = 10_000
LEAST_OBJECT = 256  # bytes that a group or dataset and the link to it take of a file

Data = bytes | mmap.mmap


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file that is laid out as a cache is."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        check_superblock(data)
        yield data


class Budget:
    """How much a file may still make us read: twice what it has itself, however its parts are linked.

    Twice, because texts count where they lie and where they are named.
    """

    def __init__(self, data: mmap.mmap):
        self.data = data
        self.left = 2 * len(data)
        self.heaps: dict[int, dict[int, int]] = {}
        self.seen: set[int] = set()

    def spend(self, n: int) -> None:
        self.left -= n
        if self.left < 0:
            raise FileError("it claims to hold more bytes than it has")

    def meet(self, item: h5py.HLObject) -> None:
        """:raises FileError: the same object was met before, under another name."""
        address = h5py.h5o.get_info(item.id).addr
        if address in self.seen:
            raise FileError(f"{item.name!r} is another name of something else in the file")
        self.seen.add(address)


def read_group(
    group: h5py.Group, arrays: dict[str, np.ndarray], attributes: dict[str, dict[str, Any]], budget: Budget
) -> None:
    budget.meet(group)
    for name in group:
        budget.spend(LEAST_OBJECT)
        where = f"{group.name.rstrip('/')}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise FileError(f"{where!r} is a link to somewhere else")
        item = group[name]
        if isinstance(item, h5py.Group):
            if where.count("/") > 5:
                raise FileError(f"{where!r}: too deep")
            if found := read_attributes(item, item.attrs, budget):
                attributes[where] = found
            read_group(item, arrays, attributes, budget)
        elif isinstance(item, h5py.Dataset):
            budget.meet(item)
            arrays[where] = _read_dataset(item, where, budget)
        else:
            raise FileError(f"{where!r} is neither a group nor a dataset")


def _read_dataset(item: h5py.Dataset, where: str, budget: Budget) -> np.ndarray:
    dtype, dimensions = dataset_rule(where)
    settings = item.id.get_create_plist()
    filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
    if item.chunks is None or filters != [h5py.h5z.FILTER_FLETCHER32]:
        raise FileError(f"{where} is virtual, external, filtered, or not in chunks with a checksum")
    if item.dtype != np.dtype(dtype) or item.ndim != len(dimensions):
        raise FileError(f"{where} is {item.dtype} {item.shape}, not {dtype} in {len(dimensions)} dimensions")
    budget.spend(max(item.nbytes, _chunk_bytes(item, where)))
    return np.asarray(item[()])


def _chunk_bytes(item: h5py.Dataset, where: str) -> int:
    """How many bytes the chunks of a dataset take.

    :raises FileError: they are not as many or not as long as they should be. HDF5 2.0 does not look at the length of
        a chunk with a filter: from a short one it reads on into whatever memory comes next.
    """
    expected = math.prod(item.chunks) * item.dtype.itemsize + 4  # the checksum
    lengths = collections.Counter[tuple[int, int]]()
    item.id.chunk_iter(lambda chunk: lengths.update([(chunk.size, chunk.filter_mask)]))
    n = math.prod(-(-length // chunk) for length, chunk in zip(item.shape, item.chunks, strict=True))
    if lengths != collections.Counter({(expected, 0): n}):
        raise FileError(f"{where} is {item.shape}, and has not its {n} chunks of {expected} bytes")
    return int(n * expected)


def read_attributes(item: h5py.HLObject, names: Iterable[str], budget: Budget) -> dict[str, str | int | float | bool]:
    """Attributes of a group as Python scalars, and texts without control characters.

    :raises FileError: one is anything else.
    """
    check_texts(budget.data, h5py.h5o.get_info(item.id).addr, budget.heaps, budget.spend)
    found = {}
    for name in names:
        stored = item.attrs.get_id(name)
        kinds = (h5py.h5t.STRING, h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)
        if stored.get_type().get_class() not in kinds or stored.get_space().get_simple_extent_type() != h5py.h5s.SCALAR:
            raise FileError(f"the attribute {name!r} is not a text or a number")
        budget.spend(stored.get_storage_size())
        value = item.attrs[name]
        value = value.item() if isinstance(value, np.generic) else value
        if not isinstance(value, str | int | float | bool) or (isinstance(value, float) and not math.isfinite(value)):
            raise FileError(f"the attribute {name!r} is not a text or a finite number")
        if not name.isprintable() or (isinstance(value, str) and not value.isprintable()):
            raise FileError(f"the attribute {name!r} holds control characters")
        budget.spend(len(value) if isinstance(value, str) else 0)
        found[name] = value
    return found


def check_superblock(data: Data) -> None:
    """:raises FileError: the file is not laid out as a cache is."""
    if data[:16] != SUPERBLOCK or _number(data, 24, 8):
        raise FileError("not a mechrl cache")


def check_texts(data: Data, address: int, heaps: dict[int, dict[int, int]], spend: Callable[[int], None]) -> None:
    """Whether each text attribute of a group lies where it is said to lie, in a heap that ends.

    :param data: the whole file.
    :param address: of the group's header.
    :param heaps: the heaps that were looked through, by address: the lengths of what lies in them, by index.
    :param spend: told the bytes of each heap that is looked through.
    :raises FileError: one does not.
    """
    if _number(data, address, 1) != 1:
        raise FileError("a group has a header of another version")
    blocks, messages = [(address + 16, _number(data, address + 8, 4))], 0
    for start, size in blocks:
        at = start
        while at + 8 <= start + size:
            messages += 1
            kind, length, flags = (_number(data, at + i, n) for i, n in ((0, 2), (2, 2), (4, 1)))
            if messages > MOST_MESSAGES or (kind == ATTRIBUTE and flags & 2):  # 2: it is kept elsewhere
                raise FileError("a group has more attributes than a cache, or keeps them elsewhere")
            if kind == CONTINUATION:
                blocks.append((_number(data, at + 8, 8), _number(data, at + 16, 8)))
            if kind == ATTRIBUTE and (text := _text(data, at + 8)):
                heap, index, n = text
                if heap not in heaps:
                    heaps[heap] = _heap(data, heap, spend)
                if heaps[heap].get(index, -1) < n:
                    raise FileError("a text is not as long as it says")
            at += 8 + length


def _text(data: Data, at: int) -> tuple[int, int, int] | None:
    """Of an attribute that is a text: the address of its heap, its index there, and its length; else None."""
    version, shared, *sizes = (_number(data, at + i, n) for i, n in ((0, 1), (1, 1), (2, 2), (4, 2), (6, 2)))
    if version not in (1, 2, 3) or (version > 1 and shared):
        raise FileError("an attribute is of another version, or its type is kept elsewhere")
    name, datatype, dataspace = (-(-n // 8) * 8 if version == 1 else n for n in sizes)
    datatype_at = at + 8 + (version == 3) + name
    if _number(data, datatype_at, 1) & 15 != VARIABLE_LENGTH:
        return None
    cell = datatype_at + datatype + dataspace
    n, heap, index = (_number(data, cell + i, n) for i, n in ((0, 4), (4, 8), (12, 4)))
    return (heap, index, n) if heap else None


def _heap(data: Data, heap: int, spend: Callable[[int], None]) -> dict[int, int]:
    """The lengths of what lies in a heap, by index.

    :raises FileError: it has no end, or is no heap.
    """
    size = _number(data, heap + 8, 8)
    spend(size)
    if data[heap : heap + 8] != HEAP or heap + size > len(data):
        raise FileError("texts lie in what is no heap")
    lengths: dict[int, int] = {}
    at, end = heap + 16, heap + size
    while at + 16 <= end:
        index, length = _number(data, at, 2), _number(data, at + 8, 8)
        step = 16 + -(-length // 8) * 8 if index else length  # what is free counts its header
        if step < 16 or at + step > end:
            raise FileError("a heap of texts is broken")
        lengths[index] = length
        at += step
    return lengths


def _number(data: Data, at: int, n: int) -> int:
    """:raises FileError: the file ends before it."""
    if at + n > len(data):
        raise FileError("it is cut off")
    return int.from_bytes(data[at : at + n], "little")
