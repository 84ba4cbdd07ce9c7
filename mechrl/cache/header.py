"""The texts in an HDF5 file, checked before HDF5 reads them.

HDF5 2.0 believes what a file says of its texts: it takes the memory that a text is said to be long, up to 4 GiB, before
it looks whether it is there, and it looks for the end of a heap that has none forever. Offsets are those of the HDF5
File Format Specification 3.0: II.A superblock 0, IV.A.1.a object header 1, IV.A.2.m attribute, III.E global heap.
"""

import mmap
from collections.abc import Callable

from mechrl.errors import FileError

# Version 0, with addresses of 8 bytes that count from the beginning of the file, as h5py writes by default.
SUPERBLOCK = b"\x89HDF\r\n\x1a\n" + bytes((0, 0, 0, 0, 0, 8, 8, 0))
HEAP = b"GCOL\1\0\0\0"
ATTRIBUTE, CONTINUATION = 0x0C, 0x10  # kinds of messages in an object header
VARIABLE_LENGTH = 9  # class of a datatype
MOST_MESSAGES = 10_000

Data = bytes | mmap.mmap


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
