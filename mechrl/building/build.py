"""Building a cache: self-check, one piece after another into `<out>.build/`, and the merge."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

import mechrl
from mechrl.ablation import NOTHING, Ablation, Replacement
from mechrl.ablation.intact.roles import measure_roles
from mechrl.building.check import file_notes
from mechrl.building.cost import Estimate, Work, columns, estimate
from mechrl.building.kept import ControlSweep, control_key, find_control, keep_control, table_with_control
from mechrl.building.material import Material, prepare
from mechrl.building.merge import Part, Piece, join_parts, merge
from mechrl.building.settings import BuildSettings
from mechrl.building.workers.cluster import connect, sweep_shards
from mechrl.building.workers.worker import Recipe, Swept, Worker
from mechrl.building.workspace import workspace
from mechrl.cache.format import PAIRS, Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import check_space, check_writable, file_size, write_content
from mechrl.errors import FileError, MechrlError, UsageError, check_range
from mechrl.models import Model, absolute_name, cache_name, find_folder, load_model, pick_device
from mechrl.progress import progress as shown_progress
from mechrl.progress import say, warn
from mechrl.tasks import TRAIN
from mechrl.tasks.base import tokenize
from mechrl.tasks.control import read_control
from mechrl.tasks.fitting import fit_files

SHARD_BATCHES = 4
LIBRARIES = ("torch", "transformers", "transformer-lens", "numpy", "h5py")


def plan(settings: BuildSettings, material: Material, shard: tuple[int, int] = (1, 1)) -> list[Piece]:
    """The pieces of a build, or those of its `shard` = (i, n), in the order in which they are swept.

    :raises UsageError: there are fewer pieces than shards.
    """
    step = SHARD_BATCHES * settings.batch_size
    pieces = [
        Piece(name, first, min(step, material.rows(name) - first))
        for name in ("control", *settings.names)
        for first in range(0, material.rows(name), step)
    ]
    if shard[0] > len(pieces):
        raise UsageError(f"shard {shard[0]}/{shard[1]} would be empty: use at most {len(pieces)} shards")
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
    base: Cache | None = None,
) -> Path:
    """Sweep every head on every prompt and write the cache, or one shard of it, to `out`.

    Pieces that an interrupted build with the same settings left in `<out>.build/` are kept, and control is not swept
    where `MECHRL_HOME` holds such a sweep.

    :param model: in float32; without a cluster it is cast to the settings' dtype in place.
    :param control_text: the text that `settings.control_source` stands for; None for generated prose.
    :param shard: (i, n) for the i-th of n parts, counted from 1; `merge` joins the parts.
    :param on_progress: called with the work done and all of it, in floating-point operations.
    :param cluster: a Dask client whose workers do the sweeping; by default this process does.
    :param device: which device the workers of a cluster use.
    :param base: a finished cache whose control, spans and damage, is taken.
    :raises UsageError: a task does not fit the model, or another build of the same file is running.
    :raises MachineError: a number is not finite, the self-check fails, the disk is full or not writable, a worker
        failed three times.
    :raises FileError: `<out>.build/` belongs to a build with other settings, or a worker has another model or mechrl.
    """
    if base is None and (base := table_with_control(model, settings)) is not None:
        say(f"control, text and sweep, is that of the table {base.path.stem}")
    material = prepare(model, settings, control_text, base)
    pieces = plan(settings, material, shard)
    identity = {
        "mechrl_version": mechrl.__version__,
        "model_sha256": model.sha256,
        "tokenizer_sha256": model.tokenizer_sha256,
        "prepend_bos": model.vocabulary.bos is not None,
        "control_sha256": hashlib.sha256(material.control_tokens.tobytes()).hexdigest(),
        "device": model.device.type if cluster is None else device,
        **settings.identity(),
        "shard": list(shard),
    }
    begins = plan(settings, material)[0]  # the roles are in the file that holds this piece
    with workspace(out, identity) as folder:
        finished = {piece: _finished(_shard_path(folder, piece)) for piece in pieces}
        root = _root_attributes(model, settings)
        root["shard"] = json.dumps({"rows": {name: material.rows(name) for name in ("control", *settings.names)}})
        control = [piece for piece in pieces if piece.name == "control"]
        key = _control_key(model, settings, material, identity["device"]) if control else {}
        if any(finished[piece] is None for piece in control):
            known = ControlSweep.of(base.content) if base is not None else find_control(key)
            for piece in control:
                if known is not None:
                    sites, path = measure_roles(model) if piece == begins else {}, _shard_path(folder, piece)
                    _write_shard(path, known.piece(piece), material, root, key["replacement"], sites)
                    finished[piece] = _finished(path)
        work = Work(model, material, settings, on_progress)
        work.start(finished)
        missing = [piece for piece in pieces if finished[piece] is None]
        size = file_size(columns(model, work, pieces))
        check_space(folder, size + size * sum(p.rows for p in missing) // sum(p.rows for p in pieces))
        roles = measure_roles(model) if begins in missing else {}  # in float32: a worker casts the model
        swept_names = {settings.names[0], *(piece.name for piece in missing)}
        other = material.replacements(model, settings, swept_names) if missing else {}
        recipe = _recipe(model, settings, material, other, finished.values())
        shards = [material.shard(piece, settings.batch_size, other[piece.name]) for piece in missing]
        if cluster is None:
            swept = map(Worker(model, recipe, work.ran), shards) if shards else iter(())
        else:
            swept = sweep_shards(cluster, recipe, device, shards)
        for result in work.over(swept):
            sha256 = other[result.piece.name].sha256
            sites = roles if result.piece == begins else {}
            _write_shard(_shard_path(folder, result.piece), result, material, root, sha256, sites)
        parts = [Part.read(_shard_path(folder, piece)) for piece in pieces]
        whole = merge(parts) if shard[1] == 1 else join_parts(parts)
        write_content(out, whole)
        if shard[1] == 1 and base is None:
            keep_control(key, whole)
    return out


def _control_key(model: Model, settings: BuildSettings, material: Material, device: str) -> dict[str, Any]:
    replacement = material.replacements(model, settings, ["control"])["control"]
    return control_key(model, settings, device, material.control_tokens, material.control_split, replacement.sha256)


def _recipe(
    model: Model,
    settings: BuildSettings,
    material: Material,
    other: Mapping[str, Replacement],
    finished: Iterable[Part | None],
) -> Recipe:
    """What all workers must agree on; passes are as large as those of the shards that are there already."""
    first = settings.names[0]
    rows = _rows_to_check(material.prompts[first].length)
    return Recipe(
        mechrl.__version__,
        absolute_name(model.name),
        model.revision,
        model.sha256,
        settings.dtype,
        settings.tf32,
        (material.prompts[first][rows], other.get(first, NOTHING)[rows]),
        min((part.root["effective_batch"] for part in finished if part is not None), default=None),
        settings.sets == PAIRS,
    )


def build_files(
    model: str,
    every: Sequence[BuildSettings],
    out: Path | None = None,
    *,
    control_text: str | Path | None = None,
    revision: str = "",
    bos: bool | None = None,
    device: str = "auto",
    workers: int | None = None,
    scheduler: str | None = None,
    threads: int | None = None,
    shard: tuple[int, int] = (1, 1),
    progress: bool = True,
) -> Iterator[Path]:
    """Load a model, and build a file for each of some settings; each is given as it is ready.

    :param model: `mini`, a folder, or a name on the hub.
    :param out: where to; by default cache/<model>.h5, with the ablation in the name where it is another than zero.
    :param control_text: a text file, or "model"; see `tasks.control.read_control`.
    :param bos: as in `load_model`.
    :param workers: so many processes on this machine sweep; `threads` are for all of them together.
    :param scheduler: tcp://HOST:8786 of a running Dask cluster, which sweeps.
    :param progress: whether to say what is going on, and to show how far it has come.
    :raises MechrlError: as `build` does; UsageError also for several settings and one `out`, or for both `workers` and
        `scheduler`; MachineError also if WikiText-2 cannot be had.
    """
    if workers and scheduler:
        raise UsageError("workers are started here and a scheduler is of a cluster: give one of them")
    check_range(workers=(workers, 1, inf))
    if out is not None and len(every) > 1:
        raise UsageError(f"{out} is one file, and {len(every)} ablations make as many")
    if out is not None:
        check_writable(out)
    find_folder(model, revision)
    source, text = read_control(control_text, model)
    device = device if scheduler else pick_device(device)
    for wanted in every:
        settings = replace(wanted, control_source=source)
        with connect(workers, scheduler, threads) as client:
            loaded = load_model(model, device="cpu" if client else device, revision=revision, bos=bos)
            if wanted is every[0]:
                for file in fit_files(settings.files, loaded.vocabulary, loaded.n_ctx):
                    for note in file_notes(loaded, file, tokenize(file.name, file.examples, loaded.vocabulary, TRAIN)):
                        warn(note)
            path = out or Path("cache") / cache_name(model, loaded.sha256, settings.ablation, shard)
            check_writable(path)
            if progress:
                where = scheduler or (f"{workers} workers" if workers else str(loaded.device))
                _announce(loaded, settings, path, where)
            with shown_progress("sweeping", progress, operations=True) as show:
                build(loaded, settings, path, text, shard, show, client, device)
        yield path


def estimate_build(
    model: str,
    settings: BuildSettings,
    *,
    control_text: str | Path | None = None,
    revision: str = "",
    bos: bool | None = None,
    device: str = "auto",
    shard: tuple[int, int] = (1, 1),
) -> Estimate:
    """What `build_files` would take, in one process here; the model is loaded and nothing is written.

    A control sweep that is kept from an earlier build, and would be taken, is counted all the same.

    :param control_text: a text file; by default, and for "model", generated prose stands for it, whose spans are as
        long.
    :raises MechrlError: as `build_files` does for what does not fit the model.
    """
    source, text = read_control("prose" if control_text in (None, "model") else control_text, model)
    loaded = load_model(model, device=pick_device(device), revision=revision, bos=bos)
    settings = replace(settings, control_source=source)
    material = prepare(loaded, settings, text)
    return estimate(loaded, settings, material, plan(settings, material, shard))


def _announce(model: Model, settings: BuildSettings, path: Path, where: str) -> None:
    """Says what is about to be swept."""
    if path.exists():
        say(f"{path} is there already and will be replaced")
    if settings.ablation == Ablation.ZERO.value:
        say(model.zero_means)
    tasks = [f"{len(settings.tasks)} tasks × {settings.batches} batches"] * bool(settings.tasks)
    tasks += [f"{len(file)} prompts of {file.name}" for file in settings.files]
    size = f"{model.n_layers} layers × {model.n_heads} heads on {where}"
    texts = {"model": "control text that the model writes itself", "prose": "generated prose as control text"}
    control = texts.get(settings.control_source, f"control text {settings.control_source:.12}")
    say(f"{size}, {model.vocabulary.said_of_bos}, {control}, {' and '.join(tasks)}")


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


def _rows_to_check(length: np.ndarray) -> np.ndarray:
    """A few rows for the self-check, int [row]: the shortest, the longest, and two between."""
    by_length = np.argsort(length, kind="stable")
    return np.asarray(by_length[np.linspace(0, len(length) - 1, 4).astype(int)])


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
    described = material.attributes.get(place, {})
    if replacement_sha256:
        described = {**described, "replacement_sha256": replacement_sha256}
    if described:
        attributes[place] = described
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
