"""Files that mean harm, and what each does to a reader that does not look: `ZIPS` and `CACHES`, by name.

Each function makes its file in a folder where `good.h5` and `good.zip` lie, and returns its path and `harm`, which
reads the file as one would without mechrl and says whether the harm was done. Memory is said in MEMORY: `harm` is run
with no more than that to spare, and running out of it is harm.
"""

import base64
import io
import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from sb3_contrib import MaskablePPO

from mechrl.search.ppo.training import make_policy

MEMORY = 96 * 2**20
BOMB = 128 * 2**20  # bytes that a bomb unpacks to
SECRET = np.arange(8, dtype=np.float32) + 1234
Hostile = Callable[[Path], tuple[Path, Callable[[], object]]]


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return (open, (self.marker, "w"))


def rezipped(folder: Path, members: dict[str, bytes | Callable[[bytes], bytes]], compression: int = 0) -> Path:
    """The good checkpoint with some members replaced or added, and these compressed."""
    path = folder / "evil.zip"
    with zipfile.ZipFile(folder / "good.zip") as good, zipfile.ZipFile(path, "w") as evil:
        for name in [*good.namelist(), *(members.keys() - set(good.namelist()))]:
            content = good.read(name) if name in good.namelist() else b""
            new = members.get(name, content)
            new = new(content) if callable(new) else new
            evil.writestr(name, new, compress_type=compression if name in members else zipfile.ZIP_STORED)
    return path


def repacked(policy: bytes, change: Callable[[str, bytes], bytes], compression: int = 0) -> bytes:
    """policy.pth with the members of its own zip changed; `change` takes the name and the content of each."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(policy)) as inner, zipfile.ZipFile(out, "w", compression) as new:
        for name in inner.namelist():
            new.writestr(name, change(name, inner.read(name)))
    return out.getvalue()


def saved(value: object, **how: bool) -> bytes:
    """What torch.save writes."""
    out = io.BytesIO()
    torch.save(value, out, **how)
    return out.getvalue()


def member(path: Path, name: str) -> io.BytesIO:
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read(name))


def state_dict(policy: bytes) -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO(policy), weights_only=True)


def unpickled(folder: Path, path: Path, name: str) -> Callable[[], bool]:
    """Whether a plain torch.load of a member runs the payload."""

    def harm() -> bool:
        torch.load(member(path, name), weights_only=False)
        return (folder / "marker").exists()

    return harm


def pickle_in_the_data_of_stable_baselines3(folder):
    def change(data: bytes) -> bytes:
        serialized = base64.b64encode(pickle.dumps(Payload(folder / "marker"))).decode()
        return json.dumps({**json.loads(data), "extra": {":type:": "str", ":serialized:": serialized}}).encode()

    path = rezipped(folder, {"data": change})

    def harm() -> bool:
        MaskablePPO.load(path, device="cpu")
        return (folder / "marker").exists()

    return path, harm


def pickle_in_the_policy(folder):
    path = rezipped(folder, {"policy.pth": lambda p: saved({**state_dict(p), "x": Payload(folder / "marker")})})
    return path, unpickled(folder, path, "policy.pth")


def pickle_in_a_policy_of_the_old_format(folder):
    def change(policy: bytes) -> bytes:
        state = {**state_dict(policy), "x": Payload(folder / "marker")}
        return saved(state, _use_new_zipfile_serialization=False)

    path = rezipped(folder, {"policy.pth": change})
    return path, unpickled(folder, path, "policy.pth")


def pickle_in_the_variables(folder):
    path = rezipped(folder, {"pytorch_variables.pth": saved(Payload(folder / "marker"))})
    return path, unpickled(folder, path, "pytorch_variables.pth")


def pickle_in_the_optimizer(folder):
    path = rezipped(folder, {"policy.optimizer.pth": saved(Payload(folder / "marker"))})
    return path, unpickled(folder, path, "policy.optimizer.pth")


def member_that_climbs_out_of_the_folder(folder):
    path = rezipped(folder, {"../marker": b"here I am"})

    def harm() -> bool:
        (folder / "unpacked").mkdir()
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                (folder / "unpacked" / name).write_bytes(archive.read(name))
        return (folder / "marker").exists()

    return path, harm


def few_bytes_that_torch_makes_gigabytes_of(folder):
    """torch's restricted unpickler calls bytearray for whoever asks."""
    program = b"\x80\x02cbuiltins\nbytearray\n(J" + struct.pack("<i", BOMB) + b"tR."
    path = rezipped(
        folder,
        {"policy.pth": lambda p: repacked(p, lambda name, data: program if name.endswith("data.pkl") else data)},
    )
    return path, lambda: torch.load(member(path, "policy.pth"), weights_only=True)


def one_number_seen_as_a_huge_tensor(folder):
    def change(policy: bytes) -> bytes:
        state = state_dict(policy)
        return saved({**state, next(iter(state)): torch.ones(1).expand(BOMB)})

    path = rezipped(folder, {"policy.pth": change})

    def harm() -> object:
        first = next(iter(torch.load(member(path, "policy.pth"), weights_only=True).values()))
        return first.isfinite().all()

    return path, harm


def sparse_tensor(folder):
    def change(policy: bytes) -> bytes:
        state = state_dict(policy)
        huge = torch.sparse_coo_tensor(torch.tensor([[1], [1]]), torch.ones(1), (2**20, 2**20), check_invariants=True)
        return saved({**state, next(iter(state)): huge})

    path = rezipped(folder, {"policy.pth": change})

    def harm() -> object:
        return next(iter(torch.load(member(path, "policy.pth"), weights_only=True).values())).to_dense()

    return path, harm


def zeros() -> bytes:
    """BOMB zeros, deflated to a thousandth, as a zip member holds them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(BOMB // len(block))) + packer.flush()


def raw_zip(name: bytes, method: int, content: bytes, size: int, crc: int = 0) -> bytes:
    """A zip with one member whose size is what we say."""
    sizes = struct.pack("<III", crc, len(content), size)
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, method, 0, 0) + sizes + struct.pack("<HH", len(name), 0) + name
    entry = b"PK\1\2" + struct.pack("<HHHHHH", 20, 20, 0, method, 0, 0) + sizes
    entry += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
    end = b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local) + len(content), 0)
    return local + content + entry + end


def deflated_note(folder):
    path = folder / "evil.zip"
    path.write_bytes(raw_zip(b"mechrl.json", zipfile.ZIP_DEFLATED, zeros(), BOMB))
    return path, lambda: member(path, "mechrl.json")


def deflated_note_that_says_it_is_short(folder):
    path = folder / "evil.zip"
    path.write_bytes(raw_zip(b"mechrl.json", zipfile.ZIP_DEFLATED, zeros(), 1000))
    return path, lambda: member(path, "mechrl.json")


def note_in_bzip2(folder):
    path = folder / "evil.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive, archive.open("mechrl.json", "w") as note:
        for _ in range(BOMB // 2**20):
            note.write(bytes(2**20))
    return path, lambda: member(path, "mechrl.json")


def deflated_policy(folder):
    path = rezipped(folder, {"policy.pth": bytes(BOMB)}, zipfile.ZIP_DEFLATED)
    return path, lambda: member(path, "policy.pth")


def deflated_tensor_in_the_policy(folder):
    """A zip in a zip; the outer one is small and not compressed."""

    def change(policy: bytes) -> bytes:
        state = state_dict(policy)
        huge = saved({**state, next(iter(state)): torch.zeros(BOMB // 4)})
        return repacked(huge, lambda name, data: data, zipfile.ZIP_DEFLATED)

    path = rezipped(folder, {"policy.pth": change})
    return path, lambda: torch.load(member(path, "policy.pth"), weights_only=True)


def note_of_millions_of_lists(folder):
    path = rezipped(folder, {"mechrl.json": b"[" + b"[]," * (8 * 10**6) + b"[]]"})
    return path, lambda: json.loads(member(path, "mechrl.json").read())


def note_of_a_giant_policy(folder):
    layers = [4096] * 64
    path = rezipped(folder, {"mechrl.json": lambda note: json.dumps({**json.loads(note), "layers": layers}).encode()})
    return path, lambda: make_policy(2, 6, layers)


def directory_of_many_members(folder):
    """zipfile makes an object of each, and there is but one."""
    entry = b"PK\1\2" + bytes(24) + struct.pack("<HHH", 1, 0, 0) + bytes(12) + b"x"
    directory = entry * 650_000
    path = folder / "evil.zip"
    path.write_bytes(directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), 0, 0))
    return path, lambda: zipfile.ZipFile(path)


def changed(folder: Path, change: Callable[[h5py.File], object]) -> Path:
    """A copy of the good cache that was changed."""
    path = folder / "evil.h5"
    shutil.copy(folder / "good.h5", path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def read(path: Path, dataset: str = "/control/clean") -> np.ndarray:
    with h5py.File(path) as file:
        return file[dataset][()]


def with_control_clean(folder: Path, make: Callable[[h5py.File, str], object]) -> Path:
    """A copy of the good cache in which `make` makes /control/clean anew."""

    def change(file: h5py.File) -> None:
        del file["/control/clean"]
        make(file, "/control/clean")

    return changed(folder, change)


def with_secret(folder: Path) -> Path:
    """A cache that is not the sender's business."""
    path = folder / "secret.h5"
    with h5py.File(path, "w") as file:
        file["secret"] = SECRET
    return path


def external_link(folder):
    secret = with_secret(folder)
    path = with_control_clean(folder, lambda f, name: f.__setitem__(name, h5py.ExternalLink(str(secret), "/secret")))
    return path, lambda: np.array_equal(read(path), SECRET)


def external_storage(folder):
    secret = folder / "secret.txt"
    secret.write_bytes(SECRET.tobytes())
    path = with_control_clean(folder, lambda f, name: f.create_dataset(name, 8, "f4", external=[(str(secret), 0, 32)]))
    return path, lambda: np.array_equal(read(path), SECRET)


def virtual_dataset(folder):
    secret = with_secret(folder)

    def make(file, name):
        layout = h5py.VirtualLayout(8, "f4")
        layout[:] = h5py.VirtualSource(str(secret), "/secret", shape=(8,))
        file.create_virtual_dataset(name, layout)

    path = with_control_clean(folder, make)
    return path, lambda: np.array_equal(read(path), SECRET)


def soft_link(folder):
    path = with_control_clean(folder, lambda f, name: f.__setitem__(name, h5py.SoftLink("/tasks/a/length")))
    return path, lambda: np.array_equal(read(path), read(path, "/tasks/a/length"))


def terabytes_that_are_not_there(folder):
    make = {"shape": 10**12, "dtype": "f4", "chunks": 2**18, "fletcher32": True}
    path = with_control_clean(folder, lambda f, name: f.create_dataset(name, **make))
    return path, lambda: read(path)


def deflated_dataset(folder):
    def make(file, name):
        file.create_dataset(name, BOMB // 4, "f4", chunks=BOMB // 32, compression="gzip")[:] = 0

    path = with_control_clean(folder, make)
    return path, lambda: read(path)


def chunk_that_is_too_short(folder):
    """With a filter on it, HDF5 2.0 reads on beyond its end, until the process dies of it."""

    def make(file, name):
        whole = file.create_dataset("whole", data=SECRET, chunks=8, fletcher32=True)
        short = file.create_dataset(name, 10**8, "f4", chunks=10**8, fletcher32=True)
        short.id.write_direct_chunk((0,), whole.id.read_direct_chunk((0,))[1])
        del file["whole"]

    path = with_control_clean(folder, make)

    def harm() -> bool:
        code = f"import h5py; h5py.File({str(path)!r})['/control/clean'][()]"
        return subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGSEGV

    return path, harm


def filter_that_loads_a_library(folder):
    """HDF5 looks for a filter that it does not know in every library of a folder, and loads them all."""
    path = with_control_clean(folder, lambda f, name: f.create_dataset(name, data=SECRET, chunks=8, compression="gzip"))
    # 1, deflate, becomes 32,123, nobody's, in the message that names the filter
    raw = path.read_bytes()
    at = raw.index(struct.pack("<HHHH", 1, 8, 1, 1) + b"deflate\0")
    path.write_bytes(raw[:at] + struct.pack("<H", 32123) + raw[at + 2 :])
    plugins = folder / "plugins"
    plugins.mkdir()
    shutil.copy(np.random._mt19937.__file__, plugins / "libevil.so")

    def harm() -> bool:
        code = f"import h5py; h5py.File({str(path)!r})['/control/clean'][()]"
        env = {**os.environ, "HDF5_PLUGIN_PATH": str(plugins), "LD_DEBUG": "files"}
        said = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False).stderr
        return f"calling init: {plugins / 'libevil.so'}" in said

    return path, harm


def one_dataset_under_thousands_of_names(folder):
    def change(file):
        file.create_dataset("/tasks/a/scores", data=np.zeros((2000, 6), np.float32), fletcher32=True)
        for i in range(300):
            file[f"/tasks/t{i}"] = file["/tasks/a"]

    path = changed(folder, change)

    def harm() -> bool:
        total = 0
        with h5py.File(path) as file:
            for i in range(300):
                total += file[f"/tasks/t{i}/scores"].nbytes
        return total > 50 * path.stat().st_size

    return path, harm


def groups_in_a_circle(folder):
    path = changed(folder, lambda file: file.__setitem__("/tasks/a/round", file["/tasks"]))

    def harm() -> bool:
        with h5py.File(path) as file:
            return "tasks" + "/a/round" * 1000 + "/a/tokens" in file

    return path, harm


def one_long_text_in_thousands_of_cells(folder):
    """An attribute of texts of any length, all pointing to the same one."""
    length, cells = 500_000, 3000

    def change(file):
        file.attrs["model"] = ["x" * length, *["y"] * cells]

    path = changed(folder, change)
    raw = bytearray(path.read_bytes())
    at = raw.index(struct.pack("<I", length))
    cell = raw[at : at + 16]  # length, address and index of the text
    assert raw[at + 16 : at + 20] == struct.pack("<I", 1)
    raw[at : at + 16 * (cells + 1)] = cell * (cells + 1)
    path.write_bytes(raw)

    def harm() -> object:
        with h5py.File(path) as file:
            return file.attrs["model"]

    return path, harm


def task_that_is_html(folder):
    path = changed(folder, lambda file: file.move("/tasks/a", "/tasks/<script>alert(1)<"))

    def harm() -> bool:
        with h5py.File(path) as file:
            return "<script>" in "".join(f"<li>{task}</li>" for task in file["tasks"])

    return path, harm


def group_that_steers_the_terminal(folder):
    path = changed(folder, lambda file: file.__setitem__("/\x1b[2J", h5py.SoftLink("/tasks")))

    def harm() -> bool:
        with h5py.File(path) as file:
            return "\x1b" in f"groups: {', '.join(file)}"

    return path, harm


def manifest_of_millions_of_lists(folder):
    path = changed(folder, lambda file: None)
    manifest = path.with_name("evil.h5.json")
    manifest.write_bytes(b"[" + b"[]," * (8 * 10**6) + b"[]]")
    return path, lambda: json.loads(manifest.read_text())


IGNORED = "never looked at: such a checkpoint is as good as any"
# What mechrl says of each.
ZIPS = {
    pickle_in_the_data_of_stable_baselines3: IGNORED,
    pickle_in_the_policy: "no part of a state dict",
    pickle_in_a_policy_of_the_old_format: "does not end as a zip does",
    pickle_in_the_variables: IGNORED,
    pickle_in_the_optimizer: IGNORED,
    member_that_climbs_out_of_the_folder: IGNORED,
    few_bytes_that_torch_makes_gigabytes_of: "'builtins bytearray', which is no part of a state dict",
    one_number_seen_as_a_huge_tensor: "is not what mechrl.json describes",
    sparse_tensor: "no part of a state dict",
    deflated_note: "mechrl.json is compressed",
    deflated_note_that_says_it_is_short: "mechrl.json is compressed",
    note_in_bzip2: "mechrl.json is compressed",
    deflated_policy: "policy.pth is compressed",
    deflated_tensor_in_the_policy: "is compressed",
    note_of_millions_of_lists: "1048576 at most are expected",
    note_of_a_giant_policy: "sizes out of range",
    directory_of_many_members: "lists more members",
}
CACHES = {
    external_link: "a link to somewhere else",
    external_storage: "not in chunks with a checksum",
    virtual_dataset: "not in chunks with a checksum",
    soft_link: "a link to somewhere else",
    terabytes_that_are_not_there: "has not its 3814698 chunks",
    deflated_dataset: "not in chunks with a checksum",
    chunk_that_is_too_short: "has not its 1 chunks of 400000004 bytes",
    filter_that_loads_a_library: "not in chunks with a checksum",
    one_dataset_under_thousands_of_names: "another name of something else",
    groups_in_a_circle: "another name of something else",
    one_long_text_in_thousands_of_cells: "'model' is not a text or a number",
    task_that_is_html: "has no dataset",
    group_that_steers_the_terminal: "a link to somewhere else",
    manifest_of_millions_of_lists: "the manifest is damaged",
}
