"""Docstring: the parameter whose turn it is, when a docstring goes through a signature in order."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task

PARAMETERS = (
    "load", "size", "file", "last", "name", "value", "key", "path", "mode", "data", "type", "index", "count", "code",
    "user", "state", "color", "width", "height", "length", "limit", "model", "source", "target", "order", "level",
    "group", "label", "format", "option", "number", "table", "field", "event", "image", "token",
)  # fmt: skip
NOUNS = ("record", "result", "setting", "window", "buffer", "server", "matrix", "worker", "signal", "folder")
ADJECTIVES = ("given", "current", "default", "final", "first", "hidden", "main", "next", "old", "optional")


def draw_docstring(rng: RandomState, pools: Mapping[str, Sequence[Any]]) -> Example:
    """The fifth parameter of a signature, when a docstring has gone through the first four.

    The wrong is one of those four. In the twin the signature has another fifth parameter. Known of a 4-layer
    attention-only model; GPT-2 small does it fairly well.
    """
    *parameters, other = (pools["parameter"][i] for i in rng.permutation(len(pools["parameter"]))[:6])
    lines = ['    """']
    for parameter in parameters[:4]:
        adjective, noun = ADJECTIVES[rng.randint(len(ADJECTIVES))], NOUNS[rng.randint(len(NOUNS))]
        lines.append(f"    :param {parameter}: the {adjective} {noun}")
    text, twin = (
        "\n".join([f"def fn(self, {', '.join([*parameters[:4], last])}):", *lines, "    :param"])
        for last in (parameters[4], other)
    )
    return Example(text, [f" {parameters[4]}"], [f" {parameters[rng.randint(4)]}"], tuple(parameters), twin)


docstring = Task(
    "docstring",
    "recall and code",
    "Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer",
    {"parameter": Pool(PARAMETERS, least=12)},
    draw_docstring,
)
