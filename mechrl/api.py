"""What `import mechrl` offers: each function does what the command of its name does."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechrl.cache.reader import Cache
from mechrl.errors import UsageError, unknown_name
from mechrl.process import keep_freed_memory

if TYPE_CHECKING:
    from mechrl.ablation import Ablation
    from mechrl.ablation.intact.attention import Attention
    from mechrl.circuits.result import Audit, Circuit
    from mechrl.results import Result
    from mechrl.search.bench.result import Benchmark
    from mechrl.search.ppo.checkpoint import Checkpoint
    from mechrl.verification.result import Verification

Paths = str | Path | Sequence[str | Path]


def build(
    model: str | Path = "mini",
    tasks: Paths | None = None,
    *,
    out: str | Path | None = None,
    batches: int | None = None,
    batch_size: int | None = None,
    control_batches: int | None = None,
    control_text: str | Path | None = None,
    bos: bool | None = None,
    ablation: "str | Ablation" = "zero",
    sets: str = "",
    seed: int = 0,
    revision: str = "",
    device: str = "auto",
    dtype: str = "float32",
    tf32: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> Cache:
    """Ablate every head on every prompt, write the cache, and open it.

    :param model: `mini`, `smollm2-135m` once it was fetched, a folder, a GGUF file, or a name on the hub, there of a
        `revision`.
    :param tasks: names of built-in tasks ("all" for all of them), and paths of files with tasks of your own, see
        `mechrl.tasks.task_file`; by default induction, ioi and docstring.
    :param out: the file; by default cache/<model>.h5. What an interrupted build of it left is used.
    :param batches: prompt batches of each built-in task; by default 16 for `mini` and 64 for other models.
    :param batch_size: prompts in a batch; by default 32, or less for a small task file.
    :param control_batches: batches of control text; by default as many as `batches`.
    :param control_text: a text file, or "model" for what the intact model writes itself at temperature 1; by default
        WikiText-2, for `mini` generated prose, for `smollm2-135m` "model".
    :param bos: whether BOS is put before every prompt, where the tokenizer has one; by default it is, but for
        `smollm2-135m`.
    :param ablation: zero, zero_raw, mean_task, mean_control, resample or counterfactual.
    :param sets: "pairs" to ablate all pairs of heads together, too.
    :param device: auto, cpu, cuda or mps.
    :param dtype: what to compute in: float32, bfloat16 or float16; `tf32` lets a CUDA GPU round float32 products.
    :param workers: so many processes on this machine; or a `scheduler`, tcp://HOST:8786, of a Dask cluster.
    :param progress: whether to show, on stderr, what is going on.
    :raises UsageError: an unknown name, a number out of range, a task that does not fit the model, a wrong file.
    :raises MachineError: no network, no memory, no disk, or a model that cannot be swept correctly.
    :raises FileError: an unfinished build of the same file has other settings.
    """
    from mechrl.building.build import build_files
    from mechrl.building.settings import choose_settings
    from mechrl.tasks import TASKS
    from mechrl.tasks.records import ENDINGS
    from mechrl.tasks.task_file import read_task_files

    keep_freed_memory()
    given = None if tasks is None else _listed(tasks)
    is_file = [str(task).lower().endswith(ENDINGS) for task in given or ()]
    files = read_task_files([Path(t) for t, own in zip(given or (), is_file, strict=True) if own], TASKS)
    names = None if given is None else [str(t) for t, own in zip(given, is_file, strict=True) if not own]
    settings = choose_settings(
        str(model), names, files, batches=batches, batch_size=batch_size, control_batches=control_batches,
        ablation=getattr(ablation, "value", ablation), sets=sets, seed=seed, dtype=dtype, tf32=tf32,
    )  # fmt: skip
    [path] = build_files(
        str(model), [settings], _path(out),
        control_text=control_text, revision=revision, bos=bos, device=device,
        workers=workers, scheduler=scheduler, progress=progress,
    )  # fmt: skip
    return open_built(path)


def open_built(path: Path) -> Cache:
    """Open a cache that was just written, and warn of the tasks that the model does not do."""
    from mechrl.progress import warn

    cache = Cache.open(path)
    for task in cache.tasks:
        if not cache.task_attributes(task)["does_task"]:
            warn(
                f"the model does not do {task}: its clean logit difference is {cache.clean(task).mean():.3f}, not "
                "above zero. Damage on this task means little; the cache records it"
            )
    return cache


def load(path: str | Path) -> "Cache | Checkpoint":
    """Open a cache, or, where the name ends in .zip, a checkpoint.

    :raises UsageError: no such file.
    :raises FileError: it is damaged, foreign, unfinished or of another version.
    """
    if Path(path).suffix == ".zip":
        from mechrl.search.ppo.checkpoint import Checkpoint

        return Checkpoint.load(path)
    return Cache.load(path)


def train(
    cache: Cache | str | Path = "cache/mini.h5",
    tasks: str | Sequence[str] | None = None,
    hold_out: str | Sequence[str] | None = None,
    *,
    policy: str = "paper",
    preset: str = "default",
    steps: int | None = None,
    picks: int | None = None,
    plan_k: int = 1,
    control_weight: float = 1.0,
    seed: int = 0,
    live: bool = False,
    model: str | Path = "mini",
    revision: str = "",
    device: str = "auto",
    tensorboard: str | Path | None = None,
    out: str | Path = "checkpoint.zip",
    progress: bool = True,
) -> "Checkpoint":
    """Train PPO to find the heads that matter, on the training batches of a cache, and save it.

    :param cache: a cache, or the path of one.
    :param tasks: to train on; by default induction and ioi, and if one is missing all tasks that are not held out.
    :param hold_out: only to evaluate on; by default docstring, if it is there and not trained on.
    :param policy: `paper`, one output per head, or `heads`, the same weights for every head, which fits any model.
    :param preset: `default` or `paper`, the settings of the policy `paper`; `heads` has its own.
    :param steps: picks in all, in whole rollouts; the preset's by default.
    :param picks: in an episode; 35 % of the heads by default.
    :param plan_k: heads to query before a pick.
    :param control_weight: score = damage − control weight × control damage.
    :param live: whether to ask the model (`model`, `revision`, `device`) for every score; the cache then gives prompts
        and evaluation.
    :param tensorboard: a folder for TensorBoard logs.
    :param out: the file of the checkpoint.
    :param progress: whether to show, on stderr, what is going on.
    :raises UsageError: no such file, an unknown name, numbers that do not go together, or `out` is the cache.
    :raises FileError: the cache is damaged, or the live model is not the one that it was built from.
    :raises MachineError: `out` cannot be written, or the cache is imported and has no prompts for a live model.
    """
    from mechrl.cache.storage import check_writable, make_folder
    from mechrl.progress import progress as shown_progress

    opened, path = cache if isinstance(cache, Cache) else Cache.load(cache), Path(out)
    check_writable(path)
    if path.resolve() == opened.path.resolve():
        raise UsageError(f"{path} would overwrite the cache: give the checkpoint another name")
    if tensorboard is not None:
        make_folder(Path(tensorboard))
    live_model = None
    if live:
        from mechrl.models import load_model

        keep_freed_memory()
        opened.check_replayable()
        live_model = load_model(str(model), device=device, revision=revision, bos=opened.attributes["prepend_bos"])
    from mechrl.search.ppo.agent import train_agent

    with shown_progress("training", progress) as show:
        return train_agent(
            opened, _names(tasks), _names(hold_out), policy=policy, preset=preset, steps=steps, picks=picks,
            plan_k=plan_k, control_weight=control_weight, seed=seed, live_model=live_model,
            tensorboard=_path(tensorboard), on_progress=show,
        ).save(path)  # fmt: skip


def verify(
    checkpoint: "Checkpoint | str | Path" = "checkpoint.zip",
    cache: Cache | str | Path = "cache/mini.h5",
    model: str | Path = "mini",
    *,
    revision: str = "",
    device: str = "auto",
    top: int = 3,
    plan_k: int | None = None,
    fresh_batches: int = 4,
    fresh: Paths = (),
    tolerance: float | None = None,
    sweep: bool | None = None,
    joint: bool = False,
    curves: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = True,
) -> "Verification":
    """Ablate the heads that an agent picks on the live model, on the cached prompts and on fresh ones.

    Of each task it answers four questions. Faithful: does the cache equal the model? Replicates: does every pick do on
    fresh prompts what was claimed? Specific: does the test find nothing with the answers permuted among prompts, and
    nothing in random heads? Complete: do the picks reach 90 % of the best heads? `confirmed` is whether all that were
    asked of the trained tasks are a yes.

    :param checkpoint: a saved checkpoint, or the path of one; `cache` likewise.
    :param model: `mini`, a folder, or a name on the hub, there of a `revision`: the model that the cache is of.
    :param top: heads of each task to test.
    :param plan_k: heads to query before a pick; by default as many as the checkpoint says.
    :param fresh_batches: batches of prompts that the cache does not hold.
    :param fresh: files with such prompts, called like their tasks, for tasks that were built from files.
    :param tolerance: largest difference to the cache, in nats; by default 0.001, more in reduced precision.
    :param sweep: whether to measure all heads on the fresh prompts, or the picks, the cache's 30 best and 20 others at
        random (fewer in a small model); by default all, if within a minute.
    :param joint: ablate the picked heads together, too; `curves`: keep, and ablate, the first k heads of rankings.
    :param seed: of the fresh prompts.
    :param out: a file to write the result to as well, as JSON; `report` shows it.
    :param progress: whether to show, on stderr, what is going on.
    :raises UsageError: no such file, or fresh prompts of a task that the agent does not know.
    :raises FileError: checkpoint, cache and model do not belong together, or one of them is damaged.
    :raises MachineError: the cache is imported and has no prompts, or the model cannot be run.
    """
    from mechrl.cache.storage import check_writable
    from mechrl.progress import progress as shown_progress
    from mechrl.progress import say
    from mechrl.tasks.task_file import read_task_files
    from mechrl.verification.verify import verify_checkpoint

    keep_freed_memory()
    if out is not None:
        check_writable(Path(out))
    with shown_progress("verifying", progress) as show:
        result = verify_checkpoint(
            _checkpoint_file(checkpoint), cache if isinstance(cache, Cache) else Path(cache), str(model),
            revision=revision, device=device, top=top, plan_k=plan_k, fresh_batches=fresh_batches,
            fresh_files=read_task_files([Path(path) for path in _listed(fresh)]), tolerance=tolerance,
            sweep_all=sweep, joint=joint, curves=curves, seed=seed, say=say if progress else lambda text: None,
            on_step=show,
        )  # fmt: skip
    _write_result(result, out)
    return result


def bench(
    caches: "Cache | Paths" = "cache/mini.h5",
    methods: str | Sequence[str] | None = None,
    *,
    track: str = "both",
    seeds: int = 3,
    control_weight: float = 1.0,
    workers: int = 1,
    plugin: str | Path | None = None,
    checkpoint: "Checkpoint | str | Path | None" = None,
    progress: bool = True,
) -> "Benchmark":
    """Search every family of behaviours held out in turn, with every method, and compare what they find.

    :param caches: caches of one or more models, or their paths.
    :param methods: their names; by default all of the track.
    :param track: what methods may use: `scores`, `attribution` or `both`.
    :param seeds: how many, of whatever is random.
    :param control_weight: score = damage − this × control damage.
    :param workers: processes; a script that takes more than one needs `if __name__ == "__main__":`.
    :param plugin: a Python file that adds methods; it is executed.
    :param checkpoint: an agent, as one more method.
    :raises UsageError: an unknown method or track, tasks of fewer than two families, no such file.
    :raises FileError: a cache or the checkpoint is damaged.
    """
    from mechrl.progress import progress as shown_progress
    from mechrl.search.bench.run import run_benchmark
    from mechrl.search.problem import TRACKS

    if track not in (*TRACKS, "both"):
        raise unknown_name("track", track, [*TRACKS, "both"])
    with shown_progress("comparing methods", progress) as show:
        run = run_benchmark(
            [_file(path) for path in _listed(caches)], names=_names(methods),
            tracks=TRACKS if track == "both" else (track,), seeds=seeds, control_weight=control_weight,
            workers=workers, plugin=_path(plugin),
            checkpoint=None if checkpoint is None else _checkpoint_file(checkpoint), on_progress=show,
        )  # fmt: skip
    return run.result


def circuit(
    task: str | Path,
    model: str | Path = "mini",
    *,
    keep: float = 0.8,
    ablation: "str | Ablation | None" = None,
    stability: bool = False,
    seed: int = 0,
    revision: str = "",
    bos: bool | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> "Circuit":
    """Find the smallest set of heads that keeps a behaviour while all other heads are ablated, and judge it.

    Kept means three things at once, each with its whole 95 % interval and on prompts that the search did not see: the
    ratio of the logit difference lies between `keep` and 1 ÷ `keep`, the intact model's most probable token stays the
    most probable on a share `keep` of the prompts, and KL fidelity is at least `keep`. What is measured is kept in
    `MECHRL_HOME` until the end: after an interrupt the same call goes on.

    :param task: a built-in task, or a file with a task of your own.
    :param model: `mini`, `smollm2-135m` once it was fetched, a folder, a GGUF file, or a name on the hub, there of a
        `revision`.
    :param keep: the share of the behaviour to be kept, above 0 and below 1.
    :param ablation: what is put in place of the other heads; by default counterfactual, or mean_task where the task has
        no counterfactual twins.
    :param stability: whether to measure other sizes, to search on other prompts, and to try other ablations, too.
    :param seed: of the prompts and random sets.
    :param bos: whether BOS is put before every prompt, as in `build`.
    :param out: a file to write the result to as well, as JSON; `report` shows it.
    :param progress: whether to show, on stderr, what is going on.
    :raises UsageError: an unknown name, `keep` out of range, or a task that does not fit the model or the ablation.
    :raises MachineError: `out` cannot be written, or the model cannot be run.
    """
    from mechrl.cache.storage import check_writable
    from mechrl.circuits.find import find_circuit
    from mechrl.circuits.smallest import check_keep
    from mechrl.models import load_model
    from mechrl.progress import progress as shown_progress
    from mechrl.tasks import find_task

    check_keep(keep)
    source, kind = find_task(task), None if ablation is None else _ablation(ablation)
    if out is not None:
        check_writable(Path(out))
    keep_freed_memory()
    loaded = load_model(str(model), device=device, revision=revision, bos=bos)
    with shown_progress("circuit", progress) as show:
        result = find_circuit(loaded, source, keep, kind, seed, stability=stability, on_step=show)
    _write_result(result, out)
    return result


def audit(
    claim: str | Path,
    model: str | Path = "mini",
    *,
    task: str | Path | None = None,
    keep: float = 0.8,
    ablations: "str | Ablation | Sequence[str | Ablation]" = (),
    seed: int = 1,
    revision: str = "",
    bos: bool | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> "Audit":
    """Judge the claim that some heads are the circuit of a behaviour.

    Under every ablation and on two halves of unseen prompts: are the heads sufficient, necessary, minimal, and better
    than random sets of their size (arXiv 2410.13032)?

    :param claim: a JSON file with a task and a list of heads, or with the circuit that `circuit` wrote.
    :param model: as in `circuit`; a claim that names another is refused.
    :param task: a file with the prompts of a task that is not built in, called like the claim's.
    :param ablations: by default all that the task can be put to without control text.
    :param seed: of the prompts and random sets: another than the search's, so that its prompts are not asked again.
    :param out: a file to write the result to as well, as JSON; `report` shows it.
    :raises UsageError: no such file, an unknown name, a head that the model does not have, or `keep` out of range.
    :raises FileError: no claim, or one about another model or task.
    :raises MachineError: `out` cannot be written, or the model cannot be run.
    """
    from mechrl.cache.storage import check_writable
    from mechrl.circuits.audit import audit_claim, read_claim
    from mechrl.circuits.smallest import check_keep
    from mechrl.models import load_model
    from mechrl.progress import progress as shown_progress
    from mechrl.tasks import find_task, get_task

    check_keep(keep)
    found = read_claim(Path(claim))
    source = get_task(found.task) if task is None else find_task(task)
    listed = [ablations] if isinstance(ablations, str) or not isinstance(ablations, Sequence) else ablations
    kinds = [_ablation(kind) for kind in listed]
    if out is not None:
        check_writable(Path(out))
    keep_freed_memory()
    loaded = load_model(str(model), device=device, revision=revision, bos=bos)
    with shown_progress("audit", progress) as show:
        result = audit_claim(loaded, found, source, keep, kinds, seed, show)
    _write_result(result, out)
    return result


def attention(
    heads: str | Sequence[str],
    task: str | Path,
    model: str | Path = "mini",
    *,
    prompts: int = 3,
    seed: int = 0,
    revision: str = "",
    device: str = "auto",
    out: str | Path | None = None,
) -> "Attention":
    """Where heads of the intact model look on a task's prompts: whole patterns, and means from the last position.

    :param heads: written `layer.head`, at most 32.
    :param task: a built-in task, or a file with a task of your own.
    :param model: `mini`, a folder, or a name on the hub, there of a `revision`.
    :param prompts: how many are kept with their whole patterns, 1 to 10.
    :param seed: of the prompts.
    :param out: a file to write the result to as well: a page (.html), or what `report` shows beside other results
        (.json).
    :raises UsageError: an unknown name, a head that the model does not have, a task that does not fit its tokenizer, a
        model whose patterns cannot be read, or another ending of `out`.
    :raises MachineError: `out` cannot be written, or the model cannot be run.
    """
    from mechrl.ablation.intact.attention import measure_attention, parse_heads
    from mechrl.cache.storage import check_writable
    from mechrl.models import load_model
    from mechrl.reporting.page import write_page
    from mechrl.reporting.run import alone
    from mechrl.tasks import find_task

    path, names, source = _path(out), _names(heads) or (), find_task(task)
    parse_heads(names)
    if path is not None:
        if path.suffix not in (".html", ".json"):
            raise UsageError(f"{path}: the attention of heads is written to a page (.html) or to a .json file")
        check_writable(path)
    keep_freed_memory()
    result = measure_attention(load_model(str(model), device=device, revision=revision), source, names, prompts, seed)
    if path is not None and path.suffix == ".html":
        write_page(alone(path, result), path)
    else:
        _write_result(result, path)
    return result


def report(runs: "Cache | Checkpoint | Paths", out: str | Path = "report.html") -> Path:
    """Write one page about everything in some folders or files, that needs no network; its path is given back.

    :param runs: caches (.h5), checkpoints (.zip), verifications, benchmarks and the attention of heads (.json), or
        folders with them.
    :param out: the page; its name ends in .html.
    :raises UsageError: no such file, nothing that a report could be made of, or `out` is no .html.
    :raises FileError: nothing could be read, and something is damaged; of one file among others it is a warning.
    :raises MachineError: `out` cannot be written.
    """
    from mechrl.cache.storage import check_writable
    from mechrl.progress import warn
    from mechrl.reporting.files import files_folder
    from mechrl.reporting.page import write_page
    from mechrl.reporting.run import collect

    path = Path(out)
    if path.suffix != ".html":
        raise UsageError(f"{path}: a page ends in .html")
    run = collect([_file(part) for part in _listed(runs)], leave_out=[path, files_folder(path)])
    check_writable(path)
    for _, message in run.damaged:
        warn(message)
    write_page(run, path)
    return path


def _write_result(result: "Result", out: str | Path | None) -> None:
    from mechrl.cache.storage import write_whole

    if out is not None:
        text = result.model_dump_json(indent=1)
        write_whole(Path(out), lambda temporary: temporary.write_text(text))


def _ablation(kind: "str | Ablation") -> "Ablation":
    """:raises UsageError: there is no such kind."""
    from mechrl.ablation import Ablation

    kinds = [known.value for known in Ablation]
    if not isinstance(kind, Ablation) and kind not in kinds:
        raise unknown_name("ablation", kind, kinds)
    return Ablation(kind)


def _checkpoint_file(checkpoint: "Checkpoint | str | Path") -> Path:
    return Path(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint.check_saved()


def _file(saved: Any) -> Path:
    """The path of a cache or a checkpoint, or that path itself."""
    return Path(getattr(saved, "path", saved))


def _listed(given: Any) -> Sequence[Any]:
    """Several things as they are; one thing, such as a path or a cache, as a list of it."""
    return [given] if isinstance(given, str | Path) or hasattr(given, "path") else given


def _names(given: str | Sequence[str] | None) -> Sequence[str] | None:
    return [given] if isinstance(given, str) else given


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
