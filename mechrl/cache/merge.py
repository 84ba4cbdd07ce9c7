"""Joining shards into one cache."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mechrl.cache.format import Content


def merge(shards: Sequence[Content]) -> Content:
    """The content of the finished cache: rows in the order of `first_row`, the sites and `does_task` added.

    :param shards: parts of one build, each of one task or of control, none missing.
    """
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    attributes: dict[str, dict[str, Any]] = {}
    for shard in shards:
        first_row = json.loads(shard.root["shard"])["first_row"]
        for path, array in shard.arrays.items():
            parts.setdefault(path, []).append((first_row, array))
        attributes |= {group: dict(values) for group, values in shard.attributes.items()}
    root = attributes["/"]
    for key in ("shard", "content_sha256"):
        root.pop(key)
    root["complete"] = True
    arrays = {
        path: np.concatenate([array for _, array in sorted(found, key=lambda part: part[0])])
        for path, found in parts.items()
    }
    n_heads, n_sites = root["n_heads"], root["n_layers"] * root["n_heads"]
    arrays["/sites/kind"] = np.zeros(n_sites, np.uint8)
    arrays["/sites/layer"] = (np.arange(n_sites) // n_heads).astype(np.int16)
    arrays["/sites/index"] = (np.arange(n_sites) % n_heads).astype(np.int16)
    for name in json.loads(root["task_order"]):
        attributes[f"/tasks/{name}"]["does_task"] = bool(arrays[f"/tasks/{name}/clean/logit_diff"].mean() > 0)
    return Content(arrays, attributes)
