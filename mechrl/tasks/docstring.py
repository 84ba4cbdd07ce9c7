"""Docstring: the parameter whose turn it is, when a docstring goes through a signature in order."""

from collections.abc import Mapping, Sequence

from numpy.random import RandomState

from mechrl.tasks.base import Example, Pool, Task

PARAMETERS = (
    "load", "size", "file", "last", "name", "value", "key", "path", "mode", "data", "type", "index", "count", "code",
    "user", "state", "color", "width", "height", "length", "limit", "model", "source", "target", "order", "level",
    "group", "label", "format", "option", "number", "table", "field", "event", "image", "token",
)  # fmt: skip
NOUNS = ("record", "result", "setting", "window", "buffer", "server", "matrix", "worker", "signal", "folder")
ADJECTIVES = ("given", "current", "default", "final", "first", "hidden", "main", "next", "old", "optional")


def draw_docstring(rng: RandomState, pools: Mapping[str, Sequence]) -> Example:
    """`def fn(self, …)` with five parameters and a line for each of the first four; the answer is the fifth.

    The wrong is one of the four that have had their line.
    """
    parameters = [pools["parameter"][i] for i in rng.permutation(len(pools["parameter"]))[:5]]
    lines = [f"def fn(self, {', '.join(parameters)}):", '    """']
    for parameter in parameters[:4]:
        adjective, noun = ADJECTIVES[rng.randint(len(ADJECTIVES))], NOUNS[rng.randint(len(NOUNS))]
        lines.append(f"    :param {parameter}: the {adjective} {noun}")
    text = "\n".join([*lines, "    :param"])
    return Example(text, [parameters[4]], [parameters[rng.randint(4)]], tuple(parameters))


docstring = Task(
    "docstring",
    "Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer",
    {"parameter": Pool(PARAMETERS, least=10)},
    draw_docstring,
)
