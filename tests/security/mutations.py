"""Random changes to honest files: of their bytes, and of what they hold with the seals made anew."""

import io
import json
import math
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from hostile import repacked, saved, state_dict

from mechrl.cache.format import Content
from mechrl.cache.storage import read_content, write_content

SIZES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 4097, 40_000, 2**31, 2**63, -(2**63), 10**400, 0.5, math.nan, math.inf, 1e300,
    "", "a", "/etc/passwd", "../../x", "<b>", "\x1b[2J", "\ud800", "x" * 10_000, "[" * 3000, "1" * 5000, '{"a": 1}',
    '["a", "a"]', "5", [], [[]], ["a"], ["a", "b", "c"], [1], [64] * 65, [4096] * 3, [0], {}, {"a": {}},
)  # fmt: skip
ATTRIBUTES: tuple[Any, ...] = (
    0, -1, 2**40, np.uint64(2**64 - 1), np.int8(1), np.float16(2), math.nan, math.inf, True, "", "x", "\x07",
    "[" * 3000, b"bytes", b"\xff\xfe", np.bytes_(b"fixed"), [1, 2], ["a", "b"], np.zeros((3, 3)), h5py.Empty("f4"), 1j,
    np.datetime64(0, "s").astype("i8"), np.array([(1, 2.0)], "i4,f4"), np.void(b"opaque"), ">i4", '["a"]', "{}",
)  # fmt: skip
DTYPES = ("i1", "u1", "i2", "i4", ">i4", "i8", "u8", "f2", "f4", ">f4", "f8", "c8", "S5", "V3", "?", "i4,f4")


def mutate_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Bits flipped, ends cut off, blocks doubled, moved, overwritten or taken from another file, sizes made absurd."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(out)), rng.choice((1, 2, 4, 8, 16, 64, 512, 4096))
        kind = rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[max(1, at) :]
        elif kind == 2:
            out[at:at] = out[at : at + length]
        elif kind == 3:
            out[at : at + length] = other[at : at + length]
        elif kind == 4:
            out[at : at + length] = rng.randbytes(length)
        elif kind == 5:
            to = rng.randrange(len(out))
            out[to : to + length] = out[at : at + length]
        else:
            places = [i for i in range(at - at % 4, min(len(out) - 8, at + 2000), 4) if out[i] > 0 and not out[i + 3]]
            size = rng.choice((*SIZES, len(out), rng.randrange(len(out))))
            width = rng.choice((2, 4, 8))
            i = rng.choice(places or [0])
            out[i : i + width] = (size % 2 ** (8 * width)).to_bytes(width, "little")
    return bytes(out)


def mutate_note(data: bytes, rng: random.Random) -> bytes:
    """Fields of mechrl.json replaced, taken away or added, or its text changed."""
    note = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice([*note, "more"])
        if rng.random() < 0.2:
            note.pop(name, None)
        else:
            note[name] = rng.choice(VALUES)
    text = json.dumps(note)
    for old, new in ((("NaN", "1e999"),) if rng.random() < 0.1 else ()) + ((("{", "{" * 500),) * (rng.random() < 0.02)):
        text = text.replace(old, new)
    return mutate_bytes(text.encode(), data, rng) if rng.random() < 0.2 else text.encode()


def mutate_state(policy: bytes, rng: random.Random) -> bytes:
    """Tensors of other shapes, types and numbers, more or fewer of them, or another thing altogether."""
    state: dict[Any, Any] = dict(state_dict(policy))
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(state))
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor) or not tensor.numel():
            continue
        state[name] = rng.choice((
            lambda t: t.double(), lambda t: t.half(), lambda t: t.to(torch.int64), lambda t: t * torch.nan,
            lambda t: t * 1e38, lambda t: -t, lambda t: t[None], lambda t: t.flatten()[:1].expand(t.shape),
            lambda t: t.flatten()[:1].expand(2**40), lambda t: t.T if t.ndim == 2 else t, lambda t: t.to_sparse(),
            lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), lambda t: t.to(torch.complex64),
            torch.nn.Parameter, lambda t: t.numpy().tolist(), lambda t: "text", lambda t: None,
            lambda t: t.to("meta"), lambda t: t.bool(), lambda t: t.flatten()[:0],
        ))(tensor.detach())  # fmt: skip
        if rng.random() < 0.2:
            state[rng.choice(("more", 5, None))] = state.pop(name)
    value: Any = rng.choice([state] * 8 + [list(state.values()), {}, [], 5, {"state": state}])
    return saved(value, _use_new_zipfile_serialization=rng.random() < 0.9)


def mutate_inner(policy: bytes, rng: random.Random) -> bytes:
    """Members of torch's own zip changed, with sums that are right."""
    with zipfile.ZipFile(io.BytesIO(policy)) as inner:
        names = inner.namelist()
    chosen = rng.choice([*names, names[0], names[0], names[0]])

    def change(name: str, data: bytes) -> bytes:
        return mutate_bytes(data or b"\0", policy, rng) if name == chosen else data

    return repacked(policy, change, rng.choice((zipfile.ZIP_STORED,) * 4 + (zipfile.ZIP_DEFLATED,)))


def mutated_zip(honest: Path, path: Path, rng: random.Random) -> None:
    """A checkpoint, of either policy, with changed bytes or with a changed member."""
    name, other = rng.sample(("good.zip", "heads.zip"), 2)
    data = (honest / name).read_bytes()
    kind = rng.randrange(6)
    if kind == 0:
        path.write_bytes(mutate_bytes(data, (honest / other).read_bytes(), rng))
        return
    with zipfile.ZipFile(honest / name) as good, zipfile.ZipFile(path, "w") as new:
        for member in good.namelist():
            content = good.read(member)
            if member == "mechrl.json" and kind == 1:
                content = mutate_note(content, rng)
            elif member == "policy.pth" and kind > 1:
                content = (
                    mutate_state(content, rng)
                    if kind == 2
                    else mutate_inner(content, rng)
                    if kind < 5
                    else mutate_bytes(content, data, rng)
                )
            new.writestr(member, content)


def mutate_hdf5(file: h5py.File, rng: random.Random) -> None:
    """One thing in it changed: an attribute, a dataset, a link."""
    groups: list[str] = ["/"]
    datasets: list[str] = []
    file.visititems(lambda name, item: (datasets if isinstance(item, h5py.Dataset) else groups).append(f"/{name}"))
    place, dataset, another = rng.choice(groups), rng.choice(datasets), rng.choice(datasets)
    kind = rng.randrange(8)
    if kind == 0:
        where = file[rng.choice(("/", place))]
        where.attrs[rng.choice([*where.attrs, "more", "\x1b"])] = rng.choice((*ATTRIBUTES, file[dataset].ref))
    elif kind == 1:
        where = file[place]
        if len(where.attrs):
            del where.attrs[rng.choice(list(where.attrs))]
    elif kind == 2:
        shape = tuple(rng.choice((0, 1, 2, 5, 6, 8, 1000)) for _ in range(rng.choice((0, 1, 1, 2, 2, 3))))
        del file[dataset]
        settings: dict[str, Any] = {}
        if shape and 0 not in shape:
            settings = rng.choice((
                {}, {"compression": "gzip"}, {"shuffle": True, "fletcher32": True}, {"fletcher32": True},
                {"maxshape": (None,) * len(shape), "chunks": (2**12,) * len(shape), "fletcher32": True},
                {"chunks": (1,) * len(shape), "fletcher32": True}, {"compression": "lzf"}, {"scaleoffset": 0},
            ))  # fmt: skip
        dtype = rng.choice(("i4", "f4", *DTYPES)) if "scaleoffset" not in settings else "i4"
        file.create_dataset(dataset, shape, dtype, **settings)
    elif kind == 3:
        name = f"{rng.choice(groups).rstrip('/')}/{rng.choice(('clean', 'more', '..', 'x' * 300, '<b>'))}"
        if name not in file:
            link = rng.choice((h5py.SoftLink(dataset), h5py.ExternalLink("x.h5", "/"), file[place], file[dataset]))
            file[name] = link
    elif kind == 4:
        del file[rng.choice((dataset, place if place != "/" else dataset))]
    elif kind == 5:
        file.move(dataset, another + rng.choice(("2", "/..", "/x"))) if another + "2" not in file else None
    elif kind == 6:
        item = file[dataset]
        if item.size:
            item.id.write_direct_chunk((0,) * item.ndim, rng.randbytes(rng.choice((0, 1, 4, 36, 5000))))
    else:
        item = file[dataset]
        item[...] = np.frombuffer(rng.randbytes(item.nbytes), item.dtype).reshape(item.shape)


def mutate_content(content: Content, rng: random.Random) -> Content:
    """Arrays and attributes of other values and sizes, to be sealed with the right hash."""
    arrays = dict(content.arrays)
    attributes = {place: dict(values) for place, values in content.attributes.items()}
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(list(arrays))
        array = arrays[name]
        if rng.random() < 0.5:
            arrays[name] = rng.choice((
                lambda a: a[: len(a) // 2], lambda a: a[..., :1], lambda a: np.concatenate([a, a]), lambda a: a[::-1],
                lambda a: a * 0, lambda a: a - 1, lambda a: a + 100, lambda a: a[:0], lambda a: a.T,
                lambda a: a * 0 - 1,
                lambda a: np.full_like(a, np.iinfo(a.dtype).max if a.dtype.kind in "iu" else np.nan),
            ))(array).astype(array.dtype)  # fmt: skip
        elif rng.random() < 0.7:
            where = attributes[rng.choice(list(attributes))]
            usable = [v for v in VALUES if type(v) in (int, float, bool, str) and v not in (10**400, "\ud800")]
            where[rng.choice(list(where))] = rng.choice(usable)
        else:
            other = rng.choice(list(arrays))
            del arrays[name]
            if rng.random() < 0.5:
                arrays[other] = array
    return Content(arrays, attributes)


def mutated_cache(honest: Path, path: Path, rng: random.Random) -> None:
    """A cache, an imported one, or a part of a build, with changed bytes, a changed structure, or changed numbers."""
    name, other = rng.sample(("good.h5", "good.h5", "imported.h5", "part.h5"), 2)
    kind = rng.randrange(4)
    if kind < 2:
        path.write_bytes(mutate_bytes((honest / name).read_bytes(), (honest / other).read_bytes(), rng))
    elif kind == 2:
        shutil.copy(honest / name, path)
        with h5py.File(path, "r+") as file:
            for _ in range(rng.choice((1, 1, 2))):
                mutate_hdf5(file, rng)
    else:
        write_content(path, mutate_content(read_content(honest / name), rng), manifest=False)


MUTATED: tuple[tuple[str, Callable[[Path, Path, random.Random], None]], ...] = (
    ("fuzzed.zip", mutated_zip),
    ("fuzzed.h5", mutated_cache),
)
