"""A cache from a table of scores that others measured: a row for each episode, a column for each head."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import mechrl
from mechrl.cache.format import LARGEST, LEAST_EPISODES, UNKNOWN, Content
from mechrl.cache.storage import write_content
from mechrl.errors import FileError, UsageError

HEAD = re.compile(r"(0|[1-9][0-9]{0,4})\.(0|[1-9][0-9]{0,4})")


def import_table(table: Path, task: str, n_layers: int, n_heads: int, out: Path, model: str = UNKNOWN) -> Path:
    """Write the cache of a .csv table of scores to `out`.

    The header names the columns: each head once as `layer.head`, in any order; a first column that is no head names
    the episodes. An episode is a batch of its own; the last quarter of them, at least 2, is for evaluation. The scores
    are damage minus control damage, as the reward of arXiv 2605.26343.

    :param model: what to call the model.
    :returns: `out`.
    :raises UsageError: no such table, a task or model that cannot be called so, heads that are not the model's.
    :raises FileError: a table that is not text, lacks cells, has fewer than 3 episodes, or a cell that is no number.
    :raises MachineError: `out` cannot be written to.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", task):
        raise UsageError(f"a task is called in letters, digits, _ and -, not {task!r}")
    if not model.isprintable():
        raise UsageError(f"a model cannot be called {model!r}")
    try:
        data = table.read_bytes()
    except OSError as error:
        raise UsageError(f"{table}: {error.strerror}") from error
    scores = _read_scores(table, data, n_layers, n_heads)
    n_sites = n_layers * n_heads
    root = {
        "mechrl_version": mechrl.__version__,
        "imported": "".join(c if c.isprintable() else "?" for c in table.name),
        "imported_sha256": hashlib.sha256(data).hexdigest(),
        "model": model,
        **dict.fromkeys(("model_sha256", "ablation", "weight_processing"), UNKNOWN),
        "n_layers": n_layers,
        "n_heads": n_heads,
        "batch_size": 1,
        "task_order": json.dumps([task]),
        "complete": True,
    }
    arrays = {
        "/sites/kind": np.zeros(n_sites, np.uint8),
        "/sites/layer": (np.arange(n_sites) // n_heads).astype(np.int16),
        "/sites/index": (np.arange(n_sites) % n_heads).astype(np.int16),
        f"/tasks/{task}/scores": scores,
        f"/tasks/{task}/split": (np.arange(len(scores)) >= len(scores) - max(2, len(scores) // 4)).astype(np.uint8),
    }
    write_content(out, Content(arrays, {"/": root}))
    return out


def _read_scores(table: Path, data: bytes, n_layers: int, n_heads: int) -> np.ndarray:
    """The scores, float32 [episode, site]."""
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{table}: not a .csv file in UTF-8 ({error})") from error
    if not rows:
        raise FileError(f"{table} is empty; it needs a header that names the heads, and a row for each episode")
    names = [name.strip() for name in rows[0][1]]
    first = 0 if HEAD.fullmatch(names[0]) else 1
    columns = first + np.argsort(_sites(table, names[first:], first, n_layers, n_heads))
    for line, row in rows[1:]:
        if len(row) != len(names):
            raise FileError(f"{table}, line {line}{_named(row, first)}: {len(row)} cells, the header has {len(names)}")
    if len(rows) <= LEAST_EPISODES:
        raise FileError(
            f"{table} has {len(rows) - 1} episodes; {LEAST_EPISODES} are the least, 1 to train on and 2 for evaluation"
        )
    return np.array(
        [
            [
                _number(row[column], f"{table}, line {line}{_named(row, first)}, head {names[column]}")
                for column in columns
            ]
            for line, row in rows[1:]
        ],
        np.float32,
    )


def _named(row: Sequence[str], first: int) -> str:
    return f" (episode {row[0]!r})" if first else ""


def _number(cell: str, place: str) -> float:
    try:
        value = float(cell.replace("_", "?"))  # Python reads 1_5 as 15
    except ValueError as error:
        raise FileError(f"{place}: {cell!r} is not a number") from error
    if not abs(value) < LARGEST:
        raise FileError(f"{place}: {cell!r} is not finite, or beyond any measurement")
    return value


def _sites(table: Path, names: Sequence[str], first: int, n_layers: int, n_heads: int) -> np.ndarray:
    """The site of each column, int [column].

    :raises UsageError: not every head of the model once.
    """
    heads: dict[tuple[int, int], int] = {}
    for column, name in enumerate(names, first + 1):
        match = HEAD.fullmatch(name)
        if not match:
            raise UsageError(f"{table}: column {column} is called {name!r}, not layer.head, such as 9.6")
        head = int(match[1]), int(match[2])
        if heads.setdefault(head, column) != column:
            cut = 0 < 10 * head[1] < n_heads and f"{name}0" not in names
            hint = f". Did a spreadsheet make {name} of {name}0?" if cut else ""
            raise UsageError(f"{table}: head {name} is there twice, in columns {heads[head]} and {column}{hint}")
    if not heads:
        raise UsageError(f"{table}: its header names no head; heads are written layer.head and separated by commas")
    layers, per_layer = (max(numbers) + 1 for numbers in zip(*heads, strict=True))
    hint = (
        f"The table has {layers} × {per_layer} heads: did you mean {layers} layers of {per_layer} heads?"
        if len(heads) == layers * per_layer
        else f"A model of {n_layers} × {n_heads} has heads 0.0 to {n_layers - 1}.{n_heads - 1}, each in one column"
    )
    for (layer, index), column in heads.items():
        if layer >= n_layers or index >= n_heads:
            raise UsageError(f"{table}: the model has no head {layer}.{index} (column {column}). {hint}")
    if len(heads) < n_layers * n_heads:
        missing = next(divmod(i, n_heads) for i in range(n_layers * n_heads) if divmod(i, n_heads) not in heads)
        more = n_layers * n_heads - len(heads) - 1
        raise UsageError(
            f"{table}: head {missing[0]}.{missing[1]} is missing" + f", and {more} more" * bool(more) + f". {hint}"
        )
    return np.array([layer * n_heads + index for layer, index in heads])
