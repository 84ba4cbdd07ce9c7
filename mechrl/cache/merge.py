"""Joining parts of a build: shards into a part of it, parts into the finished cache."""

import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mechrl.cache.format import Content
from mechrl.errors import FileError

# What parts of one build may differ in, because they may come from different machines.
PER_MACHINE = ("device", "effective_batch", "self_check_error", "content_sha256", "shard")


class Piece(NamedTuple):
    """Consecutive rows of a task, or of control (`name` "control"), that one file holds."""

    name: str
    first_row: int
    rows: int


def pieces_of(part: Content) -> list[Piece]:
    """The pieces of a part of a build, in the order of its arrays.

    :raises FileError: the file is not a part of a build.
    """
    if "shard" not in part.root:
        raise FileError("not a part of a build but a finished cache")
    return [Piece(*piece) for piece in json.loads(part.root["shard"])["pieces"]]


def join_parts(parts: Sequence[Content]) -> Content:
    """The rows of several parts as one part, in the order of the whole build.

    :raises FileError: the parts belong to different builds, or two hold the same rows.
    """
    root = dict(parts[0].root)
    for part in parts[1:]:
        for key in sorted(set(root) | set(part.root) - set(PER_MACHINE)):
            if key not in PER_MACHINE and root.get(key) != part.root.get(key):
                raise FileError(
                    f"the parts belong to different builds: {key} is {root.get(key)!r} and {part.root.get(key)!r}"
                )
    found: list[tuple[Piece, dict[str, np.ndarray]]] = []
    attributes: dict[str, dict[str, Any]] = {}
    for part in parts:
        taken: dict[str, int] = {}
        for piece in pieces_of(part):
            place = "/control/" if piece.name == "control" else f"/tasks/{piece.name}/"
            start = taken.get(piece.name, 0)
            taken[piece.name] = start + piece.rows
            columns = {
                path: array[start : start + piece.rows] for path, array in part.arrays.items() if path.startswith(place)
            }
            found.append((piece, columns))
        attributes |= {group: dict(values) for group, values in part.attributes.items() if group != "/"}
    found.sort(key=lambda item: (item[0].name, item[0].first_row))
    for (one, _), (other, _) in itertools.pairwise(found):
        if one.name == other.name and one.first_row + one.rows > other.first_row:
            raise FileError(f"two parts hold {one.name} rows from {other.first_row} on")
    arrays: dict[str, list[np.ndarray]] = {}
    for _, columns in found:
        for path, array in columns.items():
            arrays.setdefault(path, []).append(array)
    totals = json.loads(root["shard"])["rows"]
    root["shard"] = json.dumps({"pieces": [piece for piece, _ in found], "rows": totals})
    root["self_check_error"] = max(part.root["self_check_error"] for part in parts)
    root["effective_batch"] = max(part.root["effective_batch"] for part in parts)
    root["device"] = ",".join(sorted({part.root["device"] for part in parts}))
    root.pop("content_sha256", None)
    return Content({path: np.concatenate(rows) for path, rows in arrays.items()}, {**attributes, "/": root})


def merge(parts: Sequence[Content]) -> Content:
    """The content of the finished cache: all rows in order, the sites and `does_task` added.

    :raises FileError: the parts do not belong together, or one is missing or there twice.
    """
    whole = join_parts(parts)
    for name, rows in json.loads(whole.root["shard"])["rows"].items():
        next_row = 0
        for piece in (p for p in pieces_of(whole) if p.name == name):
            if piece.first_row != next_row:
                break
            next_row += piece.rows
        if next_row != rows:
            raise FileError(f"a part is missing: there is none with {name} rows from {next_row} on, of {rows}")
    root = {**whole.root, "complete": True}
    del root["shard"]
    arrays = dict(whole.arrays)
    n_heads, n_sites = root["n_heads"], root["n_layers"] * root["n_heads"]
    arrays["/sites/kind"] = np.zeros(n_sites, np.uint8)
    arrays["/sites/layer"] = (np.arange(n_sites) // n_heads).astype(np.int16)
    arrays["/sites/index"] = (np.arange(n_sites) % n_heads).astype(np.int16)
    attributes = {**whole.attributes, "/": root}
    for name in json.loads(root["task_order"]):
        does_task = bool(arrays[f"/tasks/{name}/clean/logit_diff"].mean() > 0)
        attributes[f"/tasks/{name}"] = {**whole.attributes[f"/tasks/{name}"], "does_task": does_task}
    return Content(arrays, attributes)
