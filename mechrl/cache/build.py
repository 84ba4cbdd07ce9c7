"""Building a cache: prompts, self-check, one shard after another into `<out>.build/`, and the merge."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import mechrl
from mechrl.ablation import Ablation
from mechrl.ablation.sweep import Sweep
from mechrl.cache.files import read_content, write_content, write_whole
from mechrl.cache.format import Content
from mechrl.cache.merge import merge
from mechrl.cache.reader import Cache
from mechrl.errors import FileError, MachineError, MechrlError, UsageError
from mechrl.models import WEIGHT_PROCESSING, Model
from mechrl.tasks import EVALUATION, TRAIN, Prompts, generate, get_task, join, usable_pools
from mechrl.tasks.control import control_spans

SHARD_BATCHES = 4
LIBRARIES = ("torch", "transformers", "transformer-lens", "numpy", "h5py")


@dataclass(frozen=True)
class BuildSettings:
    """What a cache is made of, apart from the model.

    :param tasks: names of built-in tasks.
    :param batches: prompt batches of each task; the last quarter of them, at least 2, is for evaluation.
    :param control_batches: batches of control spans, split likewise.
    :param control_source: `prose`, `wikitext-2` or `text:` and the hash of a user's text; see `tasks.control`.
    :raises UsageError: a name that does not exist or a number out of range.
    """

    tasks: tuple[str, ...] = ("induction", "ioi", "docstring")
    batches: int = 16
    batch_size: int = 32
    control_batches: int = 16
    control_source: str = "prose"
    ablation: str = Ablation.ZERO.value
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.tasks:
            get_task(name)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UsageError(f"--tasks needs one or more tasks, each once; got {','.join(self.tasks)!r}")
        for flag, number, least in (
            ("--batches", self.batches, 3),
            ("--control-batches", self.control_batches, 3),
            ("--batch-size", self.batch_size, 1),
            ("--seed", self.seed, 0),
        ):
            if number < least:
                raise UsageError(f"{flag} must be at least {least}, not {number}")


def split_batches(batches: int) -> tuple[int, int]:
    """How many batches are for training and for evaluation."""
    evaluation = max(2, batches // 4)
    return batches - evaluation, evaluation


def build(
    model: Model,
    settings: BuildSettings,
    out: Path,
    control_text: str | None = None,
    on_batches: Callable[[int, int], None] = lambda done, total: None,
) -> Cache:
    """Sweep every head on every prompt and write the cache to `out`.

    Shards that an interrupted build with the same settings left in `<out>.build/` are kept.

    :param control_text: the text that `settings.control_source` stands for; None for generated prose.
    :param on_batches: called with the batches done and their total.
    :raises UsageError: a task does not fit the model's tokenizer or context.
    :raises MachineError: a number is not finite, the self-check fails, the disk is full or not writable.
    :raises FileError: `<out>.build/` belongs to a build with other settings.
    """
    prompts, tasks = {}, {}
    for name in settings.tasks:
        prompts[name], tasks[name] = make_prompts(model, name, settings)
    n_train, n_evaluation = (n * settings.batch_size for n in split_batches(settings.control_batches))
    spans = [
        control_spans(model.vocabulary, control_text, n, split, settings.seed)
        for split, n in ((TRAIN, n_train), (EVALUATION, n_evaluation))
    ]
    control = np.concatenate(spans), np.repeat(np.array([TRAIN, EVALUATION], np.uint8), [n_train, n_evaluation])
    _check_length(model, "control text", control[0].shape[1])

    sweep = Sweep(model)
    root = _root_attributes(model, settings, sweep)
    root["self_check_error"] = sweep.self_check(prompts[settings.tasks[0]])
    folder = out.with_name(out.name + ".build")
    _claim(folder, {"model_sha256": model.sha256, "tokenizer_sha256": model.tokenizer_sha256, **asdict(settings)})

    plan: list[tuple[str, int]] = [
        (name, first)
        for name in ("control", *settings.tasks)
        for first in range(0, _batches(settings, name), SHARD_BATCHES)
    ]
    total = sum(_batches(settings, name) for name in ("control", *settings.tasks))
    done = 0
    shards = []
    for name, first in plan:
        path = folder / f"{name}-{first:05}.h5"
        batches = range(first, min(first + SHARD_BATCHES, _batches(settings, name)))
        shard = _finished(path)
        if shard is None:
            arrays: dict[str, list[np.ndarray]] = {}
            for batch in batches:
                rows = slice(batch * settings.batch_size, (batch + 1) * settings.batch_size)
                try:
                    columns = (
                        _control_columns(sweep, control[0][rows], control[1][rows])
                        if name == "control"
                        else _task_columns(sweep, name, prompts[name][rows])
                    )
                except MachineError as error:
                    raise MachineError(f"{name}, batch {batch}: {error}") from error
                for key, array in columns.items():
                    arrays.setdefault(key, []).append(array)
                done += 1
                on_batches(done, total)
            joined = {key: np.concatenate(parts) for key, parts in arrays.items()}
            place = {"name": name, "first_row": first * settings.batch_size}
            attributes = {"/": {**root, "complete": False, "shard": json.dumps(place)}}
            if name != "control":
                attributes[f"/tasks/{name}"] = tasks[name]
            shard = write_content(path, Content(joined, attributes), manifest=False)
        else:
            done += len(batches)
            on_batches(done, total)
        shards.append(shard)
    content = merge(shards)
    write_content(out, content)
    shutil.rmtree(folder, ignore_errors=True)
    return Cache.open(out)


def make_prompts(model: Model, name: str, settings: BuildSettings) -> tuple[Prompts, dict[str, Any]]:
    """The prompts of a task, training ones first, and the attributes that describe them.

    :raises UsageError: the task does not fit the model's tokenizer or context.
    """
    task = get_task(name)
    parts = [
        generate(task, model.vocabulary, n * settings.batch_size, split, settings.seed)
        for split, n in zip((TRAIN, EVALUATION), split_batches(settings.batches), strict=True)
    ]
    prompts = join(parts)
    _check_length(model, f"task {name!r}", prompts.tokens.shape[1])
    dropped = {slot: n for slot, n in usable_pools(task, model.vocabulary)[1].items() if n}
    return prompts, {
        "generator": name,
        "generator_version": task.version,
        "generator_params": json.dumps({"seed": settings.seed, "dropped_fillers": dropped}),
        "source": task.source,
    }


def _check_length(model: Model, what: str, length: int) -> None:
    if length > model.n_ctx:
        raise UsageError(f"{what} has {length} tokens in a sequence and {model.name!r} takes {model.n_ctx} at most")


def _batches(settings: BuildSettings, name: str) -> int:
    return settings.control_batches if name == "control" else settings.batches


def _task_columns(sweep: Sweep, name: str, prompts: Prompts) -> dict[str, np.ndarray]:
    clean, ablated = sweep.task(prompts)
    columns = {f"/tasks/{name}/{key}": column for key, column in vars(prompts).items()}
    columns |= {f"/tasks/{name}/clean/{measure}": values for measure, values in clean.items()}
    return columns | {f"/tasks/{name}/ablated/{measure}": values for measure, values in ablated.items()}


def _control_columns(sweep: Sweep, tokens: np.ndarray, split: np.ndarray) -> dict[str, np.ndarray]:
    clean, ablated = sweep.control(tokens)
    return {"/control/tokens": tokens, "/control/split": split, "/control/clean": clean, "/control/ablated": ablated}


def _root_attributes(model: Model, settings: BuildSettings, sweep: Sweep) -> dict[str, Any]:
    return {
        "mechrl_version": mechrl.__version__,
        "model": model.name,
        "model_revision": model.revision,
        "model_sha256": model.sha256,
        "tokenizer_sha256": model.tokenizer_sha256,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "ablation": settings.ablation,
        "weight_processing": WEIGHT_PROCESSING,
        "prepend_bos": model.vocabulary.bos is not None,
        "dtype": "float32",
        "tf32": False,
        "device": model.device.type,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "effective_batch": sweep.rows,
        "control_source": settings.control_source,
        "library_versions": json.dumps({name: version(name) for name in LIBRARIES}),
        "task_order": json.dumps(list(settings.tasks)),
    }


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the build folder, or finds the one that an interrupted build with the same settings left.

    :raises FileError: the settings differ; the message names the difference.
    :raises MachineError: the folder cannot be made.
    """
    note = folder / "build.json"
    text = json.dumps({"mechrl_version": mechrl.__version__, **settings}, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write {folder}: {error.strerror}") from error
    if note.is_file() and note.read_text() != text:
        try:
            before = json.loads(note.read_text())
        except ValueError:
            before = {}
        now = json.loads(text)
        differing = [f"{key} {before.get(key)!r} → {now[key]!r}" for key in now if before.get(key) != now[key]]
        raise FileError(
            f"{folder} holds an unfinished build with other settings: {', '.join(differing)}. "
            "Repeat that command to finish it, or remove the folder"
        )
    write_whole(note, lambda temporary: temporary.write_text(text))


def _finished(path: Path) -> Content | None:
    """A shard that an earlier run finished; None if there is none, or a damaged one."""
    try:
        return read_content(path)
    except MechrlError:
        return None
