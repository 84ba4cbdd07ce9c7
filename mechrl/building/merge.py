"""Joining parts of a build: shards into a part of it, parts into the finished cache."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mechrl.cache.format import (
    PAIRS,
    REQUIRED_ATTRIBUTES,
    REQUIRED_OF_A_SWEEP,
    Column,
    Content,
    blocks,
    check_attributes,
    pair_sites,
)
from mechrl.cache.storage import read_content, read_rows
from mechrl.errors import FileError

REQUIRED_IN_PART = {
    **REQUIRED_ATTRIBUTES, **REQUIRED_OF_A_SWEEP, "shard": str, "device": str, "effective_batch": int,
}  # fmt: skip
# What parts of one build may differ in, because they may come from different machines.
PER_MACHINE = ("device", "effective_batch", "self_check_error", "content_sha256", "shard")


class Piece(NamedTuple):
    """Consecutive rows of a task, or of control (`name` "control"), that one file holds."""

    name: str
    first_row: int
    rows: int


@dataclass(frozen=True)
class Part:
    """A part of a build on disk: its attributes, and dtype and shape of its arrays by their paths."""

    path: Path
    attributes: Mapping[str, Mapping[str, Any]]
    shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]]

    @classmethod
    def read(cls, path: Path) -> "Part":
        """Check every byte of a part, and keep what describes it.

        :raises UsageError: no such file.
        :raises FileError: it is damaged, or not a part of a build.
        """
        content = read_content(path)
        if "shard" not in content.root:
            raise FileError(f"{path}: not a part of a build but a finished cache")
        part = cls(path, content.attributes, {name: (a.dtype, a.shape) for name, a in content.arrays.items()})
        try:
            check_attributes(part.root, REQUIRED_IN_PART, "/")
            part._check_pieces()
        except (FileError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FileError(f"{path}: damaged ({error})") from error
        return part

    def _check_pieces(self) -> None:
        """Whether the arrays have the rows and heads that the part says it has."""
        pieces, rows = self.pieces, json.loads(self.root["shard"])["rows"]
        if not all(type(n) is int and n >= 0 for n in [*rows.values(), *(n for piece in pieces for n in piece[1:])]):
            raise ValueError("rows are not counted")
        for name in {piece.name for piece in pieces}:
            place, ablated = (
                ("/control/", "/control/ablated")
                if name == "control"
                else (f"/tasks/{name}/", f"/tasks/{name}/ablated/logit_diff")
            )
            held = sum(piece.rows for piece in pieces if piece.name == name)
            if any(shape[0] != held for path, (_, shape) in self.shapes.items() if path.startswith(place)):
                raise ValueError(f"{place} has not {held} rows in all its arrays")
            if self.shapes[ablated][1][1] != self.root["n_layers"] * self.root["n_heads"]:
                raise ValueError(f"{ablated} is not of {self.root['n_layers']} × {self.root['n_heads']} heads")

    @property
    def root(self) -> Mapping[str, Any]:
        return self.attributes["/"]

    @property
    def pieces(self) -> list[Piece]:
        """The pieces in it, in the order of its arrays."""
        return [Piece(*piece) for piece in json.loads(self.root["shard"])["pieces"]]


def join_parts(parts: Sequence[Part]) -> Content:
    """The rows of several parts as one part, in the order of the whole build; they are read when it is written.

    :raises FileError: the parts belong to different builds, or two hold the same rows.
    """
    root = dict(parts[0].root)
    for part in parts[1:]:
        for key in sorted((set(root) | set(part.root)) - set(PER_MACHINE)):
            if root.get(key) != part.root.get(key):
                raise FileError(
                    f"the parts belong to different builds: {key} is {root.get(key)!r} and {part.root.get(key)!r}"
                )
    found: list[tuple[Piece, int, Part]] = []
    attributes: dict[str, Mapping[str, Any]] = {}
    totals = json.loads(root["shard"])["rows"]
    for part in parts:
        if json.loads(part.root["shard"])["rows"] != totals:
            raise FileError(f"the parts belong to different builds: {part.path} has other numbers of prompts")
        for place, values in part.attributes.items():
            if place != "/" and attributes.setdefault(place, values) != values:
                raise FileError(f"the parts belong to different builds: {part.path} says other things of {place}")
        taken: dict[str, int] = {}
        for piece in part.pieces:
            start = taken.get(piece.name, 0)
            taken[piece.name] = start + piece.rows
            found.append((piece, start, part))
    found.sort(key=lambda item: item[0][:2])
    for (one, *_), (other, *_) in itertools.pairwise(found):
        if one.name == other.name and one.first_row + one.rows > other.first_row:
            raise FileError(f"two parts hold {one.name} rows from {other.first_row} on")
    arrays: dict[str, Column] = {}
    for name, group in itertools.groupby(found, key=lambda item: item[0].name):
        rows_of_name = list(group)
        place = "/control/" if name == "control" else f"/tasks/{name}/"
        for path, (dtype, shape) in rows_of_name[0][2].shapes.items():
            if path.startswith(place):
                if any(path not in part.shapes or part.shapes[path][1][1:] != shape[1:] for _, _, part in rows_of_name):
                    raise FileError(f"the parts belong to different builds: {path} is not the same in all of them")
                rows = [
                    partial(read_rows, part.path, path, slice(start, start + piece.rows))
                    for piece, start, part in rows_of_name
                ]
                arrays[path] = Column(dtype, (sum(piece.rows for piece, *_ in rows_of_name), *shape[1:]), rows)
    for part in parts:  # the roles of the heads come with the first rows of control
        for path, (dtype, shape) in part.shapes.items():
            if path.startswith("/sites/"):
                arrays[path] = Column(dtype, shape, [partial(read_rows, part.path, path, slice(None))])
    root["shard"] = json.dumps({"pieces": [piece for piece, *_ in found], "rows": totals})
    root["self_check_error"] = max(part.root["self_check_error"] for part in parts)
    root["effective_batch"] = min(part.root["effective_batch"] for part in parts)
    root["device"] = ",".join(sorted({part.root["device"] for part in parts}))
    root.pop("content_sha256", None)
    return Content(arrays, {**attributes, "/": root})


def merge(parts: Sequence[Part]) -> Content:
    """The content of the finished cache: all rows in order, the sites and `does_task` added.

    :raises FileError: the parts do not belong together, or one is missing or there twice.
    """
    whole = join_parts(parts)
    held = [Piece(*piece) for piece in json.loads(whole.root["shard"])["pieces"]]
    for name, rows in json.loads(whole.root["shard"])["rows"].items():
        next_row = 0
        for piece in (p for p in held if p.name == name):
            if piece.first_row != next_row:
                break
            next_row += piece.rows
        if next_row != rows:
            raise FileError(f"a part is missing: there is none with {name} rows from {next_row} on, of {rows}")
    root = {**whole.root, "complete": True}
    del root["shard"]
    n_heads, n_sites = root["n_heads"], root["n_layers"] * root["n_heads"]
    arrays = {
        **whole.arrays,
        "/sites/kind": np.zeros(n_sites, np.uint8),
        "/sites/layer": (np.arange(n_sites) // n_heads).astype(np.int16),
        "/sites/index": (np.arange(n_sites) % n_heads).astype(np.int16),
    }
    if root.get("sets") == PAIRS:
        arrays["/sets/pairs/sites"] = pair_sites(n_sites)
    attributes = {**whole.attributes, "/": root}
    for name in json.loads(root["task_order"]):
        clean = np.concatenate(list(blocks(arrays[f"/tasks/{name}/clean/logit_diff"])))
        attributes[f"/tasks/{name}"] = {**whole.attributes[f"/tasks/{name}"], "does_task": bool(clean.mean() > 0)}
    return Content(arrays, attributes)
