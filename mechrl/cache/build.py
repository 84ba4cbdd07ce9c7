"""Building a cache: prompts, self-check, one piece after another into `<out>.build/`, and the merge."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import mechrl
from mechrl.ablation import Ablation
from mechrl.ablation.sweep import Sweep
from mechrl.cache.files import read_content, write_content
from mechrl.cache.format import Content
from mechrl.cache.merge import Piece, join_parts, merge, pieces_of
from mechrl.cache.workspace import workspace
from mechrl.errors import FileError, MachineError, MechrlError, UsageError, unknown_name
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
        kinds = [kind.value for kind in Ablation]
        if self.ablation not in kinds:
            raise unknown_name("ablation", self.ablation, kinds)
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


@dataclass(frozen=True)
class Material:
    """What a build sweeps: the prompts of each task, control spans, and the attributes that describe them."""

    prompts: dict[str, Prompts]
    control_tokens: np.ndarray
    control_split: np.ndarray
    attributes: dict[str, dict[str, Any]]

    def rows(self, name: str) -> int:
        """How many prompts a task has, or how many control spans there are."""
        return len(self.control_tokens if name == "control" else self.prompts[name])


def prepare(model: Model, settings: BuildSettings, control_text: str | None = None) -> Material:
    """Draw all prompts and control spans of a build.

    :param control_text: the text that `settings.control_source` stands for; None for generated prose.
    :raises UsageError: a task or the control text does not fit the model's tokenizer or context.
    """
    prompts, attributes = {}, {}
    for name in settings.tasks:
        prompts[name], attributes[f"/tasks/{name}"] = make_prompts(model, name, settings)
    n_train, n_evaluation = (n * settings.batch_size for n in split_batches(settings.control_batches))
    tokens = np.concatenate(
        [
            control_spans(model.vocabulary, control_text, n, split, settings.seed)
            for split, n in ((TRAIN, n_train), (EVALUATION, n_evaluation))
        ]
    )
    _check_length(model, "control text", tokens.shape[1])
    split = np.repeat(np.array([TRAIN, EVALUATION], np.uint8), [n_train, n_evaluation])
    return Material(prompts, tokens, split, attributes)


def plan(settings: BuildSettings, material: Material, shard: tuple[int, int] = (1, 1)) -> list[Piece]:
    """The pieces of a build, or those of its `shard` = (i, n), in the order in which they are swept."""
    step = SHARD_BATCHES * settings.batch_size
    pieces = [
        Piece(name, first, min(step, material.rows(name) - first))
        for name in ("control", *settings.tasks)
        for first in range(0, material.rows(name), step)
    ]
    return pieces[shard[0] - 1 :: shard[1]]


def build(
    model: Model,
    settings: BuildSettings,
    out: Path,
    control_text: str | None = None,
    shard: tuple[int, int] = (1, 1),
    on_batches: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Sweep every head on every prompt and write the cache, or one shard of it, to `out`.

    Pieces that an interrupted build with the same settings left in `<out>.build/` are kept.

    :param control_text: the text that `settings.control_source` stands for; None for generated prose.
    :param shard: (i, n) for the i-th of n parts, counted from 1; `merge` joins the parts.
    :param on_batches: called with the batches done and their total.
    :raises UsageError: a task does not fit the model, or another build of the same file is running.
    :raises MachineError: a number is not finite, the self-check fails, the disk is full or not writable.
    :raises FileError: `<out>.build/` belongs to a build with other settings.
    """
    material = prepare(model, settings, control_text)
    pieces = plan(settings, material, shard)
    if not pieces:
        raise UsageError(
            f"shard {shard[0]}/{shard[1]} would be empty: use at most {len(plan(settings, material))} shards"
        )
    sweep = Sweep(model)
    identity = {
        "mechrl_version": mechrl.__version__,
        "model_sha256": model.sha256,
        "tokenizer_sha256": model.tokenizer_sha256,
        "device": model.device.type,
        **asdict(settings),
        "shard": list(shard),
    }
    with workspace(out, identity) as folder:
        root = _root_attributes(model, settings, sweep)
        try:
            root["self_check_error"] = sweep.self_check(material.prompts[settings.tasks[0]])
        except (RuntimeError, ValueError, KeyError, AttributeError) as error:
            raise MachineError(f"{model.name!r} cannot be swept: {error}") from error
        rows = {name: material.rows(name) for name in ("control", *settings.tasks)}
        total = sum(piece.rows for piece in pieces) // settings.batch_size
        done = 0
        parts = []
        for piece in pieces:
            path = folder / f"{piece.name}-{piece.first_row:07}.h5"
            part = _finished(path)
            if part is None:
                columns: dict[str, list[np.ndarray]] = {}
                for first in range(piece.first_row, piece.first_row + piece.rows, settings.batch_size):
                    batch = slice(first, first + settings.batch_size)
                    for key, array in _sweep_batch(sweep, material, piece.name, batch).items():
                        columns.setdefault(key, []).append(array)
                    done += 1
                    on_batches(done, total)
                note = json.dumps({"pieces": [piece], "rows": rows})
                attributes = {"/": {**root, "complete": False, "shard": note}}
                if piece.name != "control":
                    attributes[f"/tasks/{piece.name}"] = material.attributes[f"/tasks/{piece.name}"]
                joined = {key: np.concatenate(arrays) for key, arrays in columns.items()}
                part = write_content(path, Content(joined, attributes), manifest=False)
            else:
                done += piece.rows // settings.batch_size
                on_batches(done, total)
            parts.append(part)
        write_content(out, merge(parts) if shard[1] == 1 else join_parts(parts))
    return out


def merge_files(out: Path, parts: Sequence[Path]) -> None:
    """Join parts that `build` wrote with `shard` into the finished cache.

    :raises UsageError: no such file.
    :raises FileError: a part is damaged, missing, there twice, or of another build.
    """
    contents = []
    for path in parts:
        content = read_content(path)
        try:
            pieces_of(content)
        except FileError as error:
            raise FileError(f"{path}: {error}") from error
        contents.append(content)
    write_content(out, merge(contents))


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


def _sweep_batch(sweep: Sweep, material: Material, name: str, rows: slice) -> dict[str, np.ndarray]:
    """The columns of one batch of a task, or of control, by their paths."""
    try:
        if name == "control":
            tokens, split = material.control_tokens[rows], material.control_split[rows]
            clean_loss, ablated_loss = sweep.control(tokens)
            columns = {"tokens": tokens, "split": split, "clean": clean_loss, "ablated": ablated_loss}
            return {f"/control/{key}": array for key, array in columns.items()}
        prompts = material.prompts[name][rows]
        clean, ablated = sweep.task(prompts)
    except MachineError as error:
        raise MachineError(f"{name}, rows {rows.start} to {rows.stop - 1}: {error}") from error
    columns = {**vars(prompts)}
    columns |= {f"clean/{measure}": values for measure, values in clean.items()}
    columns |= {f"ablated/{measure}": values for measure, values in ablated.items()}
    return {f"/tasks/{name}/{key}": array for key, array in columns.items()}


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


def _finished(path: Path) -> Content | None:
    """A shard that an earlier run finished; None if there is none, or a damaged one."""
    try:
        return read_content(path)
    except MechrlError:
        return None
