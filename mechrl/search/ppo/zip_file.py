"""Reading a checkpoint's zip, which may come from anybody: bounded in memory, and nothing in it is executed."""

import io
import pickletools
import zipfile
from collections.abc import Mapping
from typing import BinaryIO

import torch

from mechrl.errors import FileError

NOTE, POLICY = "mechrl.json", "policy.pth"  # the members that are read
LARGEST_DIRECTORY = 2**18  # bytes of the list of a zip's members
# All that the pickle in a state dict of float32 tensors names. torch's restricted unpickler knows more names, with
# which a few bytes can make gigabytes.
STATE_DICT = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"}


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """A zip, once it is known that its directory is short: zipfile makes an object of every line of it."""
    file.seek(max(0, file.seek(0, io.SEEK_END) - 98))
    end = file.read().rjust(98, b"\0")  # the end record and, before it, that of zip64 with its locator
    if end[-22:-18] != b"PK\5\6" or end[-2:] != b"\0\0":
        raise FileError("not a checkpoint of mechrl-train: it does not end as a zip does")
    sizes = [end[-10:-6], end[-58:-50] if end[-42:-38] == b"PK\6\7" else b""]
    if max(int.from_bytes(size, "little") for size in sizes) > LARGEST_DIRECTORY:
        raise FileError("it lists more members than a checkpoint has")
    return zipfile.ZipFile(file)


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member of at most so many bytes, stored as it is: what unpacks can unpack to anything."""
    if archive.namelist().count(name) != 1:
        raise FileError(f"not a checkpoint of mechrl-train: it has no {name}, or several")
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise FileError(f"{name} is compressed")
    if member.file_size > most:
        raise FileError(f"{name} holds {member.file_size} bytes, {most} at most are expected")
    return archive.read(name)


def read_tensors(archive: zipfile.ZipFile, blank: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict in torch's own zip, of the names, shapes and dtypes of `blank`; nothing in it is executed.

    torch is given a copy of that zip with the members that were checked here, because it reads zips in its own way.
    """
    most = 2 * sum(t.numel() * t.element_size() for t in blank.values()) + 2**20
    copy = io.BytesIO()
    with open_zip(io.BytesIO(read_member(archive, POLICY, most))) as inner, zipfile.ZipFile(copy, "w") as target:
        for name in inner.namelist():
            content = read_member(inner, name, most)
            if name.endswith(".pkl") and (
                named := {arg for op, arg, _ in pickletools.genops(content) if "GLOBAL" in op.name} - STATE_DICT
            ):
                raise FileError(f"{POLICY} asks for {min(named, key=str)!r}, which is no part of a state dict")
            target.writestr(name, content)
    copy.seek(0)
    tensors: dict[str, torch.Tensor] = torch.load(copy, map_location="cpu", weights_only=True)
    for name, expected in blank.items():
        tensor = tensors.get(name)
        if not isinstance(tensor, torch.Tensor) or (tensor.shape, tensor.dtype, tensor.layout, tensor.device.type) != (
            expected.shape,
            expected.dtype,
            torch.strided,
            "cpu",
        ):
            raise FileError(f"{POLICY}: {name} is not what {NOTE} describes")
        if not torch.isfinite(tensor).all():
            raise FileError(f"{POLICY} holds numbers that are not finite")
    return tensors
