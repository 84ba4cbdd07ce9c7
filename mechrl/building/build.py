"""Building a cache: prompts, self-check, one piece after another into `<out>.build/`, and the merge."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import mechrl
from mechrl.ablation import NOTHING, Ablation, Replacement
from mechrl.ablation.forward import Forward
from mechrl.ablation.replacement import ReplacementMaker
from mechrl.ablation.roles import measure_roles
from mechrl.building.flops import Shape
from mechrl.building.merge import Part, Piece, join_parts, merge
from mechrl.building.worker import Recipe, Shard, Swept, Worker
from mechrl.building.workspace import workspace
from mechrl.cache.format import FROM_FILE, PAIRS, Content
from mechrl.cache.storage import write_content
from mechrl.errors import FileError, MechrlError, UsageError, unknown_name
from mechrl.models import Model, absolute_name, check_length
from mechrl.tasks import EVALUATION, TRAIN, Prompts, TaskFile, generate, get_task, join, usable_pools
from mechrl.tasks.control import control_spans, fitting_span
from mechrl.tasks.fitting import check_file
from mechrl.tasks.task_file import arrange

SHARD_BATCHES = 4
DTYPES = ("float32", "bfloat16", "float16")
LIBRARIES = ("torch", "transformers", "transformer-lens", "numpy", "h5py")


@dataclass(frozen=True)
class BuildSettings:
    """What a cache is made of, apart from the model.

    :param tasks: names of built-in tasks.
    :param batches: prompt batches of each task; the last quarter of them, at least 2, is for evaluation.
    :param control_batches: batches of control spans, split likewise.
    :param dtype: what the swept model computes in, after folding in float32; `tf32` lets a GPU round float32 factors.
    :param files: tasks from files, with as many batches as they fill.
    :param sets: `pairs` to ablate all pairs of heads, too.
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
    dtype: str = "float32"
    tf32: bool = False
    files: tuple[TaskFile, ...] = ()
    sets: str = ""

    def __post_init__(self) -> None:
        for name in self.tasks:
            get_task(name)
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, list(DTYPES))
        if self.tf32 and self.dtype != "float32":
            raise UsageError(f"--tf32 is a way to multiply float32; it does not go with --dtype {self.dtype}")
        if self.sets not in ("", PAIRS):
            raise unknown_name("kind of sets", self.sets, [PAIRS])
        kinds = [kind.value for kind in Ablation]
        if self.ablation not in kinds:
            raise unknown_name("ablation", self.ablation, kinds)
        if not self.names or len(set(self.names)) < len(self.names):
            raise UsageError(f"a cache needs one or more tasks, each once; got {', '.join(self.names) or 'none'}")
        for flag, number, least in (
            ("--batches", self.batches, 3),
            ("--control-batches", self.control_batches, 3),
            ("--batch-size", self.batch_size, 1),
            ("--seed", self.seed, 0),
        ):
            if number < least:
                raise UsageError(f"{flag} must be at least {least}, not {number}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tasks, in the order of the cache."""
        return (*self.tasks, *(file.name for file in self.files))

    def identity(self) -> dict[str, Any]:
        """What two builds must share to be one; files by their hash."""
        skipping = " without bad lines"
        files = {file.name: file.sha256 + skipping * file.skip_bad_lines for file in self.files}
        return {**vars(self), "files": files}


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

    def shard(self, piece: Piece, batch_size: int, replacement: Replacement) -> Shard:
        """The rows of a piece, as a worker gets them; `replacement` is for all rows of the task or of control."""
        rows = slice(piece.first_row, piece.first_row + piece.rows)
        if piece.name == "control":
            return Shard(piece, batch_size, replacement[rows], spans=self.control_tokens[rows])
        return Shard(piece, batch_size, replacement[rows], prompts=self.prompts[piece.name][rows])

    def replacements(self, model: Model, settings: "BuildSettings", names: Iterable[str]) -> dict[str, Replacement]:
        """What the ablation puts in, on each of some tasks, or on "control".

        :raises UsageError: the ablation does not fit a task or the model.
        """
        of = ReplacementMaker(
            Ablation(settings.ablation), Forward(model), self.control_tokens, self.control_split, settings.seed
        )
        return {
            name: of.of_control() if name == "control" else of.of_task(name, self.prompts[name])
            for name in sorted(names)
        }

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
    for file in settings.files:
        fitting = check_file(file, model.vocabulary, model.n_ctx)
        prompts[file.name] = arrange(fitting, model.vocabulary, settings.batch_size)
        left_out = {"skipped": fitting.skipped} if file.skip_bad_lines else {}
        left_out |= {"dropped_answers": fitting.dropped} if fitting.dropped else {}
        attributes[f"/tasks/{file.name}"] = {
            "generator": FROM_FILE,
            "generator_version": 1,
            "generator_params": json.dumps({"file": file.path.name, "sha256": file.sha256, **left_out}),
            "source": f"{file.path.name}",
        }
    n_train, n_evaluation = (n * settings.batch_size for n in split_batches(settings.control_batches))
    span = fitting_span(model.vocabulary, model.n_ctx)
    tokens = np.concatenate(
        [
            control_spans(model.vocabulary, control_text, n, split, settings.seed, span)
            for split, n in ((TRAIN, n_train), (EVALUATION, n_evaluation))
        ]
    )
    check_length(model, max(tokens.shape[1], *(of.tokens.shape[1] for of in prompts.values())))
    split = np.repeat(np.array([TRAIN, EVALUATION], np.uint8), [n_train, n_evaluation])
    return Material(prompts, tokens, split, attributes)


def plan(settings: BuildSettings, material: Material, shard: tuple[int, int] = (1, 1)) -> list[Piece]:
    """The pieces of a build, or those of its `shard` = (i, n), in the order in which they are swept."""
    step = SHARD_BATCHES * settings.batch_size
    pieces = [
        Piece(name, first, min(step, material.rows(name) - first))
        for name in ("control", *settings.names)
        for first in range(0, material.rows(name), step)
    ]
    return pieces[shard[0] - 1 :: shard[1]]


def build(
    model: Model,
    settings: BuildSettings,
    out: Path,
    control_text: str | None = None,
    shard: tuple[int, int] = (1, 1),
    on_progress: Callable[[float, float], None] = lambda done, total: None,
    cluster: Any = None,
    device: str = "auto",
) -> Path:
    """Sweep every head on every prompt and write the cache, or one shard of it, to `out`.

    Pieces that an interrupted build with the same settings left in `<out>.build/` are kept.

    :param model: in float32; without a cluster it is cast to the settings' dtype in place.
    :param control_text: the text that `settings.control_source` stands for; None for generated prose.
    :param shard: (i, n) for the i-th of n parts, counted from 1; `merge` joins the parts.
    :param on_progress: called with the work done and all of it, in floating-point operations.
    :param cluster: a Dask client whose workers do the sweeping; by default this process does.
    :param device: which device the workers of a cluster use.
    :raises UsageError: a task does not fit the model, or another build of the same file is running.
    :raises MachineError: a number is not finite, the self-check fails, the disk is full or not writable, a worker
        failed three times.
    :raises FileError: `<out>.build/` belongs to a build with other settings, or a worker has another model or mechrl.
    """
    material = prepare(model, settings, control_text)
    pieces = plan(settings, material, shard)
    if not pieces:
        raise UsageError(
            f"shard {shard[0]}/{shard[1]} would be empty: use at most {len(plan(settings, material))} shards"
        )
    identity = {
        "mechrl_version": mechrl.__version__,
        "model_sha256": model.sha256,
        "tokenizer_sha256": model.tokenizer_sha256,
        "device": model.device.type if cluster is None else device,
        **settings.identity(),
        "shard": list(shard),
    }
    with workspace(out, identity) as folder:
        finished = {piece: _finished(_shard_path(folder, piece)) for piece in pieces}
        progress = _Progress(model, material, on_progress)
        progress.start(finished)
        missing = [piece for piece in pieces if finished[piece] is None]
        begins = plan(settings, material)[0]  # the roles are in the file that holds this piece
        roles = measure_roles(model) if begins in missing else {}  # in float32: a worker casts the model
        first = settings.names[0]
        rows = _rows_to_check(material.prompts[first].length)
        other = material.replacements(model, settings, {first, *(piece.name for piece in missing)}) if missing else {}
        recipe = Recipe(
            mechrl.__version__,
            absolute_name(model.name),
            model.revision,
            model.sha256,
            settings.dtype,
            settings.tf32,
            (material.prompts[first][rows], other.get(first, NOTHING)[rows]),
            min((part.root["effective_batch"] for part in finished.values() if part is not None), default=None),
            settings.sets == PAIRS,
        )
        shards = [material.shard(piece, settings.batch_size, other[piece.name]) for piece in missing]
        if cluster is None:
            swept = _sweep_here(model, recipe, shards, progress) if shards else iter(())
        else:
            from mechrl.building.cluster import sweep_shards

            swept = progress.over(sweep_shards(cluster, recipe, device, shards))
        root = _root_attributes(model, settings)
        root["shard"] = json.dumps({"rows": {name: material.rows(name) for name in ("control", *settings.names)}})
        for result in swept:
            sha256 = other[result.piece.name].sha256
            sites = roles if result.piece == begins else {}
            _write_shard(_shard_path(folder, result.piece), result, material, root, sha256, sites)
        parts = [Part.read(_shard_path(folder, piece)) for piece in pieces]
        write_content(out, merge(parts) if shard[1] == 1 else join_parts(parts))
    return out


def merge_files(out: Path, parts: Sequence[Path]) -> None:
    """Join parts that `build` wrote with `shard` into the finished cache.

    :raises UsageError: no such file.
    :raises FileError: a part is damaged, missing, there twice, or of another build.
    """
    read = [Part.read(path) for path in parts]
    try:
        whole = merge(read)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"the parts do not belong together, or are damaged ({error})") from error
    write_content(out, whole)


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


def _rows_to_check(length: np.ndarray) -> np.ndarray:
    """A few rows for the self-check, int [row]: the shortest, the longest, and two between."""
    by_length = np.argsort(length, kind="stable")
    return by_length[np.linspace(0, len(length) - 1, 4).astype(int)]


def _check_length(model: Model, what: str, length: int) -> None:
    if length > model.n_ctx:
        raise UsageError(f"{what} has {length} tokens in a sequence and {model.name!r} takes {model.n_ctx} at most")


def _sweep_here(model: Model, recipe: Recipe, shards: Sequence[Shard], progress: "_Progress") -> Iterator[Swept]:
    """Sweep shards in this process, one after the other."""
    worker = Worker(model, recipe)
    for shard in shards:
        yield worker(shard, partial(progress.add, shard.piece, shard.batch_size))


class _Progress:
    """Adds up what is done, in operations, so that a control batch counts for what it costs."""

    def __init__(self, model: Model, material: Material, on_progress: Callable[[float, float], None]):
        shape = Shape.of(model)
        positions = {name: prompts.tokens.shape[1] for name, prompts in material.prompts.items()}
        self.per_row = {name: shape.sweep(1, n) for name, n in positions.items()}
        self.per_row["control"] = shape.sweep(1, material.control_tokens.shape[1], task=False)
        self.on_progress = on_progress
        self.done = self.total = 0

    def start(self, finished: Mapping[Piece, Part | None]) -> None:
        """Begins with what an earlier run has finished, so that it does not count for the speed."""
        work = {piece: piece.rows * self.per_row[piece.name] for piece in finished}
        self.total = sum(work.values())
        self.done = sum(work[piece] for piece, part in finished.items() if part is not None)
        self.on_progress(self.done, self.total)

    def add(self, piece: Piece, rows: int) -> None:
        self.done += rows * self.per_row[piece.name]
        self.on_progress(self.done, self.total)

    def over(self, swept: Iterator[Swept]) -> Iterator[Swept]:
        """Counts whole shards as they come."""
        for result in swept:
            self.add(result.piece, result.piece.rows)
            yield result


def _shard_path(folder: Path, piece: Piece) -> Path:
    return folder / f"{piece.name}-{piece.first_row:07}.h5"


def _write_shard(
    path: Path,
    swept: Swept,
    material: Material,
    root: dict[str, Any],
    replacement_sha256: str,
    sites: Mapping[str, np.ndarray],
) -> None:
    piece = swept.piece
    shard = material.shard(piece, piece.rows, NOTHING)
    if shard.prompts is None:
        place = "/control"
        rows = slice(piece.first_row, piece.first_row + piece.rows)
        arrays = {"tokens": shard.spans, "split": material.control_split[rows], **swept.arrays}
    else:
        place = f"/tasks/{piece.name}"
        prompts = {name: column for name, column in vars(shard.prompts).items() if column is not None}
        arrays = {**prompts, **swept.arrays}
    attributes = {
        "/": {
            **root,
            "shard": json.dumps({"pieces": [piece], **json.loads(root["shard"])}),
            "complete": False,
            "device": swept.device,
            "effective_batch": swept.pass_tokens,
            "self_check_error": swept.self_check_error,
        }
    }
    of_place = material.attributes.get(place, {})
    if replacement_sha256:
        of_place = {**of_place, "replacement_sha256": replacement_sha256}
    if of_place:
        attributes[place] = of_place
    columns = {f"{place}/{name}": array for name, array in arrays.items()}
    columns |= {f"/sites/{name}": array for name, array in sites.items()}
    write_content(path, Content(columns, attributes), manifest=False)


def _root_attributes(model: Model, settings: BuildSettings) -> dict[str, Any]:
    return {
        "mechrl_version": mechrl.__version__,
        "model": model.name,
        "model_revision": model.revision,
        "model_sha256": model.sha256,
        "tokenizer_sha256": model.tokenizer_sha256,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "d_model": int(model.bridge.cfg.d_model),
        "parallel_attn_mlp": bool(getattr(model.bridge.cfg, "parallel_attn_mlp", False)),
        "ablation": settings.ablation,
        "weight_processing": model.weight_processing,
        "prepend_bos": model.vocabulary.bos is not None,
        "bos_token": model.vocabulary.bos_token,
        "dtype": settings.dtype,
        "tf32": settings.tf32,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "control_source": settings.control_source,
        "library_versions": json.dumps({name: version(name) for name in LIBRARIES}),
        **({"sets": settings.sets} if settings.sets else {}),
        "task_order": json.dumps(list(settings.names)),
        "task_files": json.dumps({file.name: file.sha256 for file in settings.files}),
    }


def _finished(path: Path) -> Part | None:
    """A shard that an earlier run finished; None if there is none, or a damaged one."""
    try:
        return Part.read(path)
    except MechrlError:
        return None
