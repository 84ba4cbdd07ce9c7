"""The cache format, version 1: which arrays and attributes there are, and what is refused.

A cache is held as `Content`: every array and every attribute by its path in the file. Reading, writing, merging and
hashing all work on that.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechrl.ablation import FEATURES, MEASURES, ROLES
from mechrl.errors import FileError

FORMAT, VERSION = "mechrl-cache", 1
FROM_FILE = "file"  # the `generator` of a task that has none but a user's file
UNKNOWN = "unknown"  # what an imported cache says of a model and an ablation that its table says nothing about
PAIRS = "pairs"  # the name of the sets of two heads
LEAST_EPISODES = 3  # one of training and two of evaluation
NAME = r"[A-Za-z0-9_.-]+"
MEASURE = f"(?:{'|'.join(MEASURES)})"

# Path of a dataset: its dtype and its dimensions. A dimension of one name has one length within a group ("*" and
# "@": within the whole file), "" is free.
DATASETS: dict[str, tuple[str, tuple[str, ...]]] = {
    r"/sites/kind": ("uint8", ("*site",)),
    r"/sites/layer": ("int16", ("*site",)),
    r"/sites/index": ("int16", ("*site",)),
    rf"/sites/(?:{'|'.join(ROLES)})": ("float32", ("*site",)),
    rf"/tasks/{NAME}/(?:tokens|corrupted)": ("int32", ("prompt", "position")),
    rf"/tasks/{NAME}/(?:length|group)": ("int32", ("prompt",)),
    rf"/tasks/{NAME}/(?:answers|wrongs)": ("int32", ("prompt", "")),
    rf"/tasks/{NAME}/split": ("uint8", ("prompt",)),
    rf"/tasks/{NAME}/clean/{MEASURE}": ("float32", ("prompt",)),
    rf"/tasks/{NAME}/ablated/{MEASURE}": ("float32", ("prompt", "*site")),
    rf"/tasks/{NAME}/(?:attribution|attribution_integrated|direct)": ("float32", ("prompt", "*site")),
    rf"/tasks/{NAME}/(?:{'|'.join(FEATURES)})": ("float32", ("prompt", "*site")),
    rf"/tasks/{NAME}/scores": ("float32", ("episode", "*site")),
    r"/control/tokens": ("int32", ("span", "position")),
    r"/control/split": ("uint8", ("span",)),
    r"/control/clean": ("float32", ("span",)),
    r"/control/(?:ablated|attribution|attribution_integrated)": ("float32", ("span", "*site")),
    rf"/sets/{NAME}/sites": ("int32", ("set", "")),
    rf"/tasks/{NAME}/sets/{NAME}/{MEASURE}": ("float32", ("prompt", "")),
    rf"/control/sets/{NAME}": ("float32", ("span", "")),
}
REQUIRED_IN_TASK = (
    *("tokens", "length", "answers", "wrongs", "group", "split"),
    *(f"{kind}/{measure}" for kind in ("clean", "ablated") for measure in MEASURES),
)
TASK_ATTRIBUTES = {"generator": str, "generator_version": int, "generator_params": str, "does_task": bool}
LARGEST = 1e6  # nats; anything above is no measurement
REQUIRED_ATTRIBUTES = {
    "model": str, "model_sha256": str, "n_layers": int, "n_heads": int, "ablation": str, "weight_processing": str,
    "batch_size": int, "complete": bool, "task_order": str,
}  # fmt: skip
REQUIRED_OF_A_SWEEP = {
    "tokenizer_sha256": str, "prepend_bos": bool, "dtype": str, "seed": int, "self_check_error": float,
    "control_source": str,
}  # fmt: skip
REQUIRED_OF_AN_IMPORT = {"imported": str, "imported_sha256": str}  # name and hash of the table


@dataclass(frozen=True)
class Column:
    """An array that is read block by block, because the whole may not fit in memory.

    :param blocks: each gives consecutive rows, when it is called.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Sequence[Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Content:
    """Everything a file holds: arrays by path, attributes by the path of their group ("/" for the file).

    What is read from a file are numpy arrays; what is about to be written may be `Column`s.
    """

    arrays: Mapping[str, Any]
    attributes: Mapping[str, Mapping[str, Any]]

    @property
    def root(self) -> Mapping[str, Any]:
        return self.attributes["/"]

    @property
    def imported(self) -> bool:
        """Whether it holds scores that others measured, and no prompts."""
        return "imported" in self.root

    def task_names(self) -> list[str]:
        """In the order of the file's `task_order`."""
        names: list[str] = json.loads(self.root["task_order"])  # checked when a cache is opened
        return names


def blocks(array: np.ndarray | Column) -> Iterator[np.ndarray]:
    """The rows of an array, a few at a time if it is a `Column`."""
    if isinstance(array, Column):
        return (block() for block in array.blocks)
    return iter([array])


def content_sha256(content: Content) -> str:
    """The hash of every array and attribute except the hash itself: two builds of one cache agree in it."""
    digest = hashlib.sha256()
    for path, array in sorted(content.arrays.items()):
        digest.update(f"{path} {array.dtype.str} {array.shape}\n".encode())
        for block in blocks(array):
            digest.update(np.ascontiguousarray(block).tobytes())
    for path, attributes in sorted(content.attributes.items()):
        kept = {key: value for key, value in attributes.items() if key != "content_sha256"}
        digest.update(f"{path} {json.dumps(kept, sort_keys=True)}\n".encode())
    return digest.hexdigest()


def dataset_rule(path: str) -> tuple[str, tuple[str, ...]]:
    """dtype and dimensions of a dataset.

    :raises FileError: the format has no such dataset.
    """
    for pattern, rule in DATASETS.items():
        if re.fullmatch(pattern, path):
            return rule
    raise FileError(f"the format has no dataset {path!r}")


def check_version(attributes: Mapping[str, Any]) -> None:
    """:raises FileError: not a cache, or of a version this mechrl cannot read."""
    if attributes.get("format") != FORMAT:
        raise FileError("not a mechrl cache")
    if attributes.get("format_version") != VERSION:
        raise FileError(
            f"cache format version {attributes.get('format_version')!r}; this mechrl reads version {VERSION} only"
        )


def check_content(content: Content) -> None:
    """Checks what the shapes and numbers must satisfy in a finished cache.

    :raises FileError: something is missing, shapes do not agree, or a number is out of its range.
    """
    root = content.root
    check_attributes(
        root, REQUIRED_ATTRIBUTES | (REQUIRED_OF_AN_IMPORT if content.imported else REQUIRED_OF_A_SWEEP), "/"
    )
    if min(root["n_layers"], root["n_heads"], root["batch_size"]) < 1:
        raise FileError("layers, heads and batch size must be positive")
    n_sites = root["n_layers"] * root["n_heads"]
    lengths: dict[str, int] = {"*site": n_sites}
    for path, array in content.arrays.items():
        _, dimensions = dataset_rule(path)
        scope = "/control" if path.startswith("/control/") else "/".join(path.split("/")[:3])
        for dimension, length in zip(dimensions, array.shape, strict=True):
            key = dimension if dimension.startswith("*") else f"{scope} {dimension}"
            if dimension and lengths.setdefault(key, length) != length:
                raise FileError(f"{path} has {length} in dimension {dimension.strip('*')!r}, not {lengths[key]}")
        if array.dtype.kind == "f" and not (np.abs(array) < LARGEST).all():
            raise FileError(f"{path} holds numbers that are not finite, or beyond any measurement")
    for name in ("layer", "index", "kind"):
        if f"/sites/{name}" not in content.arrays:
            raise FileError(f"/sites/{name} is missing")
    layer, index = (content.arrays[f"/sites/{name}"].astype(np.int64) for name in ("layer", "index"))
    if content.arrays["/sites/kind"].any() or not np.array_equal(layer * root["n_heads"] + index, np.arange(n_sites)):
        raise FileError("/sites does not list the heads in order")
    _check_tasks(content)


def _check_tasks(content: Content) -> None:
    arrays = content.arrays
    found = sorted({path.split("/")[2] for path in arrays if path.startswith("/tasks/")})
    try:
        named = content.task_names()
        agrees = isinstance(named, list) and sorted(named) == found
    except (ValueError, TypeError, RecursionError):
        agrees = False
    if not agrees or not found:
        raise FileError(f"task_order is {content.root['task_order'][:80]!r}, the file holds {found}")
    if content.imported:
        return _check_imported(content, found)
    _check_sets(content)
    for name in found:
        check_attributes(content.attributes.get(f"/tasks/{name}", {}), TASK_ATTRIBUTES, f"/tasks/{name}")
        for column in REQUIRED_IN_TASK:
            if f"/tasks/{name}/{column}" not in arrays:
                raise FileError(f"/tasks/{name}/{column} is missing")
        tokens, length = arrays[f"/tasks/{name}/tokens"], arrays[f"/tasks/{name}/length"]
        if length.min(initial=1) < 1 or length.max(initial=1) > tokens.shape[1] or tokens.min(initial=0) < 0:
            raise FileError(f"/tasks/{name}: lengths or tokens out of range")
        for column in ("answers", "wrongs"):
            ids = arrays[f"/tasks/{name}/{column}"]
            if ids.min(initial=0) < -1 or not (ids >= 0).any(1).all():
                raise FileError(f"/tasks/{name}/{column}: a prompt has none, or an id out of range")
        _check_split(arrays[f"/tasks/{name}/split"], content.root["batch_size"], f"/tasks/{name}")
    for column in ("tokens", "split", "clean", "ablated"):
        if f"/control/{column}" not in arrays:
            raise FileError(f"/control/{column} is missing")
    if arrays["/control/tokens"].shape[1] < 2 or arrays["/control/tokens"].min(initial=0) < 0:
        raise FileError("/control/tokens: spans too short, or tokens out of range")
    _check_split(arrays["/control/split"], content.root["batch_size"], "/control")


def _check_sets(content: Content) -> None:
    """Sets of sites that there are, and a column for each wherever they were ablated."""
    n_sites = content.root["n_layers"] * content.root["n_heads"]
    for path, array in content.arrays.items():
        if path.startswith("/sets/") and (array.min(initial=0) < 0 or array.max(initial=0) >= n_sites):
            raise FileError(f"{path} names heads that there are not")
        if name := re.fullmatch(r"/(?:tasks/[^/]+|control)/sets/([^/]+)(?:/.+)?", path):
            sites = content.arrays.get(f"/sets/{name[1]}/sites")
            if sites is None or array.shape[1] != len(sites):
                raise FileError(f"{path} does not have a column for each set of /sets/{name[1]}")


def _check_imported(content: Content, tasks: Sequence[str]) -> None:
    """One task, of which there are scores and a split, an episode being a batch of its own; and nothing else."""
    place = f"/tasks/{tasks[0]}"
    held = {path for path in content.arrays if not path.startswith("/sites/")}
    if held != {f"{place}/scores", f"{place}/split"} or content.root["batch_size"] != 1:
        raise FileError("an imported cache holds the scores and the split of one task, in batches of 1, no more")
    scores, split = content.arrays[f"{place}/scores"], content.arrays[f"{place}/split"]
    if len(scores) != len(split):
        raise FileError(f"{place}: {len(scores)} episodes of scores, and a split of {len(split)}")
    _check_split(split, 1, place)


def check_attributes(attributes: Mapping[str, Any], required: Mapping[str, type], place: str) -> None:
    """:raises FileError: an attribute is missing, or not of its type."""
    for name, kind in required.items():
        if type(attributes.get(name)) is not kind:
            raise FileError(f"{place}: attribute {name!r} is missing or not {kind.__name__}")


def _check_split(split: np.ndarray, batch_size: int, place: str) -> None:
    """Whole batches, training first, at least one of training and two of evaluation."""
    train = int((split == 0).sum())
    if len(split) % batch_size or train % batch_size or np.any(split != (np.arange(len(split)) >= train)):
        raise FileError(f"{place}: the split does not go by whole batches of {batch_size}, training first")
    if train < batch_size or len(split) - train < 2 * batch_size:
        raise FileError(f"{place}: needs one training and two evaluation batches at least")


def pair_sites(n_sites: int) -> np.ndarray:
    """Every pair of sites, int32 [set, 2], the lower one first: `/sets/pairs/sites`."""
    return np.stack(np.triu_indices(n_sites, 1), axis=1).astype(np.int32)
