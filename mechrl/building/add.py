"""Adding behaviours to a finished cache, whose own tasks and control are not swept again."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mechrl.building.build import build
from mechrl.building.settings import BuildSettings
from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import check_writable, write_content
from mechrl.errors import FileError, UsageError
from mechrl.models import Model, load_model
from mechrl.progress import progress as shown_progress
from mechrl.tables import FOLDER
from mechrl.tasks import TaskFile


def add_tasks(
    cache: Cache,
    model: str,
    tasks: Sequence[str] = (),
    files: Sequence[TaskFile] = (),
    out: Path | None = None,
    *,
    batches: int | None = None,
    revision: str = "",
    device: str = "auto",
    progress: bool = True,
) -> Path:
    """Sweep further tasks with the model, ablation, precision, seed and control text of a cache, and write both.

    :param tasks: names of built-in tasks; `files` are tasks of your own.
    :param out: where to; by default in place of the cache.
    :param batches: of each built-in task; by default as many as the cache's first task has.
    :raises UsageError: the cache has the task already, or is a table and no `out` is given; and as `build` does.
    :raises FileError: the cache was built from another model, or with another tokenizer.
    :raises MachineError: the cache is imported; and as `build` does.
    """
    cache.check_replayable()
    if out is None and cache.path.parent == FOLDER:
        raise UsageError(
            f"{cache.path.stem} is a table that comes with mechrl and does not change: write to another file"
        )
    a, out = cache.attributes, cache.path if out is None else out
    if again := sorted({*tasks, *(file.name for file in files)} & set(cache.tasks)):
        raise UsageError(f"{cache.path} has {', '.join(again)} already")
    settings = BuildSettings(
        tasks=tuple(tasks),
        files=tuple(files),
        batches=len(cache.prompts(cache.tasks[0])) // a["batch_size"] if batches is None else batches,
        batch_size=a["batch_size"],
        control_batches=len(cache.content.arrays["/control/split"]) // a["batch_size"],
        control_source=a["control_source"],
        ablation=a["ablation"],
        seed=a["seed"],
        dtype=a["dtype"],
        tf32=a.get("tf32", False),
        sets=a.get("sets", ""),
    )
    check_writable(out)
    loaded = load_model(model, device=device, revision=revision, bos=a["prepend_bos"])
    check_same(cache, loaded)
    added = out.with_name(out.name + ".added.h5")
    with shown_progress("sweeping", progress) as show:
        build(loaded, settings, added, on_progress=show, base=cache)
    write_content(out, joined(cache.content, Cache.open(added).content))
    for made in (added, added.with_name(added.name + ".json")):
        made.unlink(missing_ok=True)
    return out


def check_same(cache: Cache, model: Model) -> None:
    """:raises FileError: the cache was built from another model, or with another tokenizer."""
    found = {
        "model_sha256": model.sha256,
        "tokenizer_sha256": model.tokenizer_sha256,
        "weight_processing": model.weight_processing,
        "prepend_bos": model.vocabulary.bos is not None,
    }
    for name, value in found.items():
        if cache.attributes[name] != value:
            raise FileError(
                f"{cache.path} was built from {cache.attributes['model']!r}, and {model.name!r} is not that model: "
                f"{name} is {cache.attributes[name]!r} in the cache, and {value!r} of the model"
            )


def joined(base: Content, added: Content) -> Content:
    """A cache's content and the tasks of another with the same control."""
    new = json.loads(added.root["task_order"])
    root = dict(base.root)
    root["task_order"] = json.dumps([*json.loads(root["task_order"]), *new])
    root["task_files"] = json.dumps(json.loads(root.get("task_files", "{}")) | json.loads(added.root["task_files"]))
    root["self_check_error"] = max(root["self_check_error"], added.root["self_check_error"])
    for name, values in added.root.items():
        if name == "effective_batch":
            root[name] = min(root.get(name, values), values)
        if name == "device":
            root[name] = ",".join(sorted({*root.get(name, values).split(","), *values.split(",")}))
    root.pop("content_sha256", None)
    arrays = dict(base.arrays) | {path: array for path, array in added.arrays.items() if path.startswith("/tasks/")}
    attributes = {place: values for place, values in added.attributes.items() if place.startswith("/tasks/")}
    return replace(base, arrays=arrays, attributes={**base.attributes, **attributes, "/": root})
