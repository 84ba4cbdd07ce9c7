"""What lies in the folders and files that a report is made of, and what belongs together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from mechrl.ablation.intact.attention import Attention
from mechrl.cache.format import UNKNOWN
from mechrl.cache.reader import Cache
from mechrl.cache.storage import file_sha256
from mechrl.circuits.result import Audit, Circuit
from mechrl.errors import FileError, MechrlError, UsageError
from mechrl.results import Result, read_result
from mechrl.search.bench.result import Benchmark
from mechrl.verification.result import Verification

if TYPE_CHECKING:  # they need torch, which a report without a checkpoint does not
    from mechrl.search.ppo.checkpoint import CheckpointNote
    from mechrl.search.ppo.training import PlanningPolicy
    from mechrl.search.protocol import Evaluation

    LoadedCheckpoint = tuple[Path, str, PlanningPolicy, CheckpointNote]  # path, hash of the file, agent, note

RESULTS = (Verification, Benchmark, Attention, Circuit, Audit)
R = TypeVar("R", bound=Result)
SUFFIXES = (".h5", ".zip", ".json")
BUILDING = ".h5.build"  # the folder of an unfinished build


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint, and its agent beside the baselines on the cache that it was trained on, where that is here."""

    path: Path
    sha256: str
    note: "CheckpointNote"
    evaluations: "dict[str, list[tuple[str, Evaluation]]] | None" = None


@dataclass(frozen=True)
class ResultFile(Generic[R]):
    """A result, and the file that it was read from."""

    path: Path
    content: R


VerificationFile = ResultFile[Verification]
BenchFile = ResultFile[Benchmark]
AttentionFile = ResultFile[Attention]
CircuitFile = ResultFile[Circuit]
AuditFile = ResultFile[Audit]


@dataclass(frozen=True)
class OfModel:
    """The pieces of one model: those with the same fingerprint.

    :param sha256: its fingerprint; empty where the pieces name none.
    """

    name: str
    sha256: str
    caches: list[Cache] = field(default_factory=list)
    checkpoints: list[CheckpointFile] = field(default_factory=list)
    verifications: list[VerificationFile] = field(default_factory=list)
    benches: list[BenchFile] = field(default_factory=list)
    attentions: list[AttentionFile] = field(default_factory=list)
    circuits: list[CircuitFile] = field(default_factory=list)
    audits: list[AuditFile] = field(default_factory=list)

    def cache(self, sha256: str | None) -> Cache | None:
        """The cache with this fingerprint."""
        return next((cache for cache in self.caches if cache.sha256 == sha256), None)


@dataclass(frozen=True)
class Run:
    """Everything that was found.

    :param models: one entry a model, in the order in which they were found.
    :param ignored: (path, why) of files that a report has no use for.
    :param damaged: (path, message) of files that cannot be read or do not fit the others.
    """

    models: list[OfModel]
    ignored: list[tuple[Path, str]]
    damaged: list[tuple[Path, str]]


def alone(path: Path, attention: Attention) -> Run:
    """The attention of some heads and nothing else, for a page of its own at `path`."""
    file = AttentionFile(path, attention)
    return Run([OfModel(attention.model, attention.model_sha256, attentions=[file])], [], [])


def collect(paths: Sequence[Path], leave_out: Sequence[Path] = ()) -> Run:
    """Read all pieces in some folders and files.

    :param leave_out: files and folders that an earlier report wrote.
    :raises UsageError: no such file, or nothing that a report could be made of.
    :raises FileError: nothing could be read, and something is damaged.
    """
    run = Run([], [], [])
    seen: dict[str, Path] = {}
    checkpoints: list[LoadedCheckpoint] = []
    verifications: list[VerificationFile] = []
    benches: list[BenchFile] = []
    attentions: list[AttentionFile] = []
    circuits: list[CircuitFile] = []
    audits: list[AuditFile] = []
    caches: list[Cache] = []
    for path in _files(paths, run, {p.resolve() for p in leave_out}):
        try:
            if not path.is_file():  # an unfinished build: opening it says so
                Cache.open(path)
            sha256 = file_sha256(path)
            if sha256 in seen:
                run.ignored.append((path, f"the same as {seen[sha256]}"))
                continue
            seen[sha256] = path
            if path.suffix == ".h5":
                caches.append(Cache.open(path))
            elif path.suffix == ".zip":
                from mechrl.search.ppo.checkpoint import Checkpoint

                loaded = Checkpoint.load(path)
                checkpoints.append((path, sha256, loaded.policy, loaded.note))
            elif isinstance(document := read_result(path, RESULTS), Verification):
                verifications.append(VerificationFile(path, document))
            elif isinstance(document, Benchmark):
                benches.append(BenchFile(path, document))
            elif isinstance(document, Attention):
                attentions.append(AttentionFile(path, document))
            elif isinstance(document, Circuit):
                circuits.append(CircuitFile(path, document))
            elif isinstance(document, Audit):
                audits.append(AuditFile(path, document))
            else:
                run.ignored.append((path, "not a JSON that a report knows"))
        except FileError as error:
            run.damaged.append((path, str(error)))
        except OSError as error:
            run.damaged.append((path, f"{path}: cannot be read ({error.strerror or error})"))
    _place(run, caches, checkpoints, verifications, benches, attentions, circuits, audits)
    if not run.models:
        if run.damaged:
            raise FileError("; ".join(message for _, message in run.damaged))
        named = f"{', '.join(map(str, paths))}: " if paths else ""
        raise UsageError(
            f"{named}nothing to report. A report is made of a cache (mechrl-cache build), a "
            "checkpoint (mechrl-train), and what mechrl-verify, mechrl circuit, mechrl audit, mechrl bench and "
            "mechrl-cache attention write as JSON"
        )
    return run


def _files(paths: Sequence[Path], run: Run, leave_out: set[Path]) -> Iterator[Path]:
    """The files worth a look, each once; the others are noted as ignored."""
    given: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.resolve() in given | leave_out:
                continue
            given.add(file.resolve())
            if file.is_file() and file.suffix in SUFFIXES:
                # The manifest of a cache is read with the cache.
                if not (file.name.endswith(".h5.json") and file.with_suffix("").is_file()):
                    yield file
            elif file.is_dir() and file.name.endswith(BUILDING):
                if not file.with_suffix("").exists():
                    yield file.with_suffix("")
            elif not file.name.startswith("."):
                run.ignored.append((file, "a folder in a folder" if file.is_dir() else "not a kind of file it knows"))


def _place(
    run: Run,
    caches: Sequence[Cache],
    checkpoints: Sequence["LoadedCheckpoint"],
    verifications: Sequence[VerificationFile],
    benches: Sequence[BenchFile],
    attentions: Sequence[AttentionFile],
    circuits: Sequence[CircuitFile],
    audits: Sequence[AuditFile],
) -> None:
    """Puts every piece to its model, by fingerprint."""
    models: dict[str, OfModel] = {}

    def of(name: str, sha256: str) -> OfModel:
        return models.setdefault(sha256, OfModel(name, sha256))

    by_content: dict[str, Cache] = {}
    for cache in caches:
        if first := by_content.get(cache.sha256):
            run.ignored.append((cache.path, f"the same numbers as {first.path}"))
            continue
        by_content[cache.sha256] = cache
        name, model_sha256 = cache.attributes["model"], cache.attributes["model_sha256"]
        # An imported table does not say which weights it is of: it belongs to nothing else.
        key = cache.sha256 if cache.imported or model_sha256 == UNKNOWN else model_sha256
        models.setdefault(key, OfModel(name, "" if key == cache.sha256 else key)).caches.append(cache)
    for path, sha256, policy, note in checkpoints:
        trained_on = by_content.get(note.cache_sha256)
        try:
            evaluations = None
            if trained_on is not None:
                if trained_on.attributes["model_sha256"] != note.model_sha256:
                    raise FileError(f"{path}: names the model of another cache than the one it was trained on")
                evaluations = _compare(trained_on, policy, note)
        except MechrlError as error:
            run.damaged.append((path, f"{error}"))
            continue
        if trained_on is not None:
            place = next(model for model in models.values() if trained_on in model.caches)
        else:
            place = of(note.model, note.cache_sha256 if note.model_sha256 == UNKNOWN else note.model_sha256)
        place.checkpoints.append(CheckpointFile(path, sha256, note, evaluations))
    for file in verifications:
        verified = by_content.get(file.content.cache_sha256)
        try:
            if verified is not None:
                _check_fits(file, verified)
        except FileError as error:
            run.damaged.append((file.path, str(error)))
            continue
        of(file.content.model, file.content.model_sha256).verifications.append(file)
    for bench in benches:
        found = {f.model_sha256: f.model for f in bench.content.caches.values()}
        for model_sha256, name in found.items():
            of(name, model_sha256).benches.append(bench)
    for shown in attentions:
        place = of(shown.content.model, shown.content.model_sha256)
        try:
            for cache in place.caches:
                _check_heads(shown.path, (head.head for head in shown.content.heads), cache)
        except FileError as error:
            run.damaged.append((shown.path, str(error)))
            continue
        place.attentions.append(shown)
    for circuit in circuits:
        of(circuit.content.model, circuit.content.model_sha256).circuits.append(circuit)
    for audit in audits:
        of(audit.content.model, audit.content.model_sha256).audits.append(audit)
    run.models.extend(models.values())


def _compare(
    cache: Cache, policy: "PlanningPolicy", note: "CheckpointNote"
) -> "dict[str, list[tuple[str, Evaluation]]]":
    from mechrl.search.comparison import compare
    from mechrl.search.ppo.checkpoint import adapt_to_cache

    return compare(cache, policy, adapt_to_cache(policy, note, cache))


def _check_fits(file: VerificationFile, cache: Cache) -> None:
    """:raises FileError: it speaks of a model, tasks or heads that the cache it names does not have."""
    content = file.content
    if content.model_sha256 != cache.attributes["model_sha256"]:
        raise FileError(f"{file.path}: names another model than the cache it names ({cache.path})")
    for name, task in content.tasks.items():
        if name not in cache.tasks:
            raise FileError(f"{file.path}: task {name!r} is not in the cache it names ({cache.path})")
        curves = task.curves.rankings.values() if task.curves else ()
        heads = [
            *(h.head for h in task.heads),
            *(task.complete.best if task.complete else ()),
            *task.specific.passed,
            *task.specific.random_passed,
            *(head for joint in task.joint or () for head in joint.heads),
            *(head for ranking in curves for head in ranking.heads),
        ]
        _check_heads(file.path, heads, cache)


def _check_heads(path: Path, heads: Iterable[str], cache: Cache) -> None:
    """:raises FileError: a head is not in a cache of the same model."""
    for head in heads:
        layer, index = map(int, head.split("."))
        if layer >= cache.n_layers or index >= cache.n_heads:
            raise FileError(f"{path}: head {head} is not in the cache of its model ({cache.path})")
