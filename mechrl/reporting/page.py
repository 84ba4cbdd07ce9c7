"""The report: one page that holds everything it shows, and sends nothing anywhere."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import mechrl
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_whole
from mechrl.cache.top import TopHead
from mechrl.reporting import claims, of_cache
from mechrl.reporting.blocks import ModelSection, Part, Table, TaskSection
from mechrl.reporting.findings import bench_on_caches, control_weight, heads_in_order
from mechrl.reporting.of_search import compared, searched
from mechrl.reporting.of_verification import verified
from mechrl.reporting.run import OfModel, Run, VerificationFile

HERE = Path(__file__).parent


def write_page(run: Run, path: Path) -> None:
    """Write the page.

    :raises MachineError: the path cannot be written to.
    """
    write_whole(path, lambda temporary: temporary.write_bytes(render(run).encode("utf-8", "replace")))


def render(run: Run) -> str:
    """The page as HTML. Every text is escaped; scripts other than our two are forbidden by its policy."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    scripts = [get_plotlyjs(), (HERE / "page.js").read_text()]
    return environment.get_template("page.html").render(
        version=mechrl.__version__,
        scripts=[Markup(script) for script in scripts],
        script_hashes=[_script_hash(script) for script in scripts],
        style=Markup((HERE / "page.css").read_text()),
        run=run,
        models=[_model(model) for model in run.models],
    )


def _script_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _model(model: OfModel) -> ModelSection:
    parts = [_cache_part(model, cache) for cache in model.caches]
    parts += [_part_without_cache(f) for f in model.verifications if model.cache(f.content.cache_sha256) is None]
    return ModelSection(
        claims.shown_model(model.name),
        model.sha256,
        list(_notes(model)),
        list(_missing(model)),
        parts,
        [block for bench in bench_on_caches(model) for block in compared(bench)],
        list(_commands(model)),
        _fingerprints(model),
    )


def _cache_part(model: OfModel, cache: Cache) -> Part:
    weight = control_weight(model, cache)
    tops = {task: heads_in_order(cache, task, weight) for task in cache.tasks}
    blocks = [of_cache.asked(cache, tops)]
    if not cache.imported:
        blocks.append(of_cache.control(cache, tops))
    return Part(
        "scores measured elsewhere" if cache.imported else f"{cache.attributes['ablation']} ablation",
        of_cache.facts(cache, weight),
        blocks,
        [_task(model, cache, task, tops[task]) for task in cache.tasks],
        [of_cache.measured_roles(cache)] if cache.roles else [],
    )


def _task(model: OfModel, cache: Cache, task: str, heads: Sequence[TopHead]) -> TaskSection:
    files = [f for f in model.verifications if f.content.cache_sha256 == cache.sha256 and task in f.content.tasks]
    if files:
        claim = claims.of_verification(files[0].content.tasks[task], cache.attributes["ablation"])
        claim += claims.of_verdict(files[0].content)
    else:
        claim = claims.of_cache(cache, task, heads)
    blocks = [of_cache.maps(cache, task, heads, files)]
    for file in files:
        blocks += verified(file, task)
    for checkpoint in model.checkpoints:
        if checkpoint.note.cache_sha256 == cache.sha256 and task in (checkpoint.evaluations or {}):
            blocks.append(searched(checkpoint, task))
    return TaskSection(task, claim, blocks)


def _part_without_cache(file: VerificationFile) -> Part:
    content = file.content
    tasks = [
        TaskSection(
            name,
            claims.of_verification(task, content.ablation or "unknown") + claims.of_verdict(content),
            verified(file, name),
        )
        for name, task in content.tasks.items()
    ]
    facts = [("model", content.model or "?"), ("ablation", content.ablation or "?"), ("verification", str(file.path))]
    return Part("verification of a cache that is not here", facts, [], tasks, [])


def _notes(model: OfModel) -> Iterable[str]:
    """Pieces that fit nothing else."""
    for checkpoint in model.checkpoints:
        if checkpoint.evaluations is None:
            yield (
                f"{checkpoint.path} was trained on a cache that is not here (content "
                f"{checkpoint.note.cache_sha256[:12]}): its search is not shown"
            )
    here = {checkpoint.sha256 for checkpoint in model.checkpoints}
    for file in model.verifications:
        if model.cache(file.content.cache_sha256) is None:
            yield f"{file.path} verified a cache that is not here (content {(file.content.cache_sha256 or '?')[:12]})"
        if here and file.content.checkpoint_sha256 not in here:
            yield (
                f"{file.path} verified a checkpoint that is not here (file "
                f"{(file.content.checkpoint_sha256 or '?')[:12]})"
            )
    for bench in model.benches:
        if bench.content.caches is None:
            yield f"{bench.path} names no fingerprints, for an older mechrl printed it: it cannot be put to a model"
        elif not any(model.cache(f.cache_sha256) for f in bench.content.caches.values()):
            yield f"{bench.path} searched caches of this model that are not here"


def _missing(model: OfModel) -> Iterable[tuple[str, str]]:
    """What there could be, and the command that makes it."""
    if not model.sha256 or any(cache.imported for cache in model.caches):
        return
    name = claims.shown_model(model.name)
    cache: object = model.caches[0].path if model.caches else "cache.h5"
    checkpoint: object = model.checkpoints[0].path if model.checkpoints else "checkpoint.zip"
    if not model.caches:
        yield "a cache", claims.command("mechrl-cache", "build", "--model", name, "--out", cache)
    if not model.checkpoints:
        yield "a search", claims.command("mechrl-train", "--from-cache", cache, "--out", checkpoint)
    if not model.verifications:
        parts = ("mechrl-verify", checkpoint, "--cache", cache, "--model", name, "--json")
        yield "a verification on the live model", claims.command(*parts) + " > verification.json"
    if not model.benches:
        yield (
            "a comparison of searches",
            claims.command("mechrl", "bench", "--cache", cache, "--json") + " > bench.json",
        )


def _commands(model: OfModel) -> Iterable[tuple[str, str]]:
    for cache in model.caches:
        yield str(cache.path), claims.build_command(cache)
    for checkpoint in model.checkpoints:
        trained_on = model.cache(checkpoint.note.cache_sha256)
        path = trained_on.path if trained_on else "CACHE.h5"
        yield str(checkpoint.path), claims.train_command(checkpoint.note, path, checkpoint.path)
    for file in model.verifications:
        yield str(file.path), file.content.command or "(the file does not say)"
    for bench in model.benches:
        caches = [part for cache in _bench_paths(bench.content.tasks) for part in ("--cache", cache)]
        seeds = len({row.seed for row in bench.content.tasks})
        yield str(bench.path), claims.command("mechrl", "bench", *caches, "--seeds", seeds, "--json")


def _bench_paths(rows: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(row.cache for row in rows))


def _fingerprints(model: OfModel) -> Table:
    rows = []
    for cache in model.caches:
        a = cache.attributes
        rows.append([str(cache.path), "cache, content", cache.sha256, str(a.get("seed", "–")), _versions(a)])
    for c in model.checkpoints:
        rows.append([str(c.path), "checkpoint, file", c.sha256, str(c.note.seed), "–"])
    for file in model.verifications:
        content = file.content
        versions = {"mechrl": content.mechrl_version or "?", **content.library_versions}
        seed = "–" if content.seed is None else str(content.seed)
        rows.append([str(file.path), "verification", "–", seed, _listed(versions)])
    return Table(["file", "what", "fingerprint", "seed", "versions"], rows)


def _versions(attributes: Mapping[str, Any]) -> str:
    try:
        libraries = json.loads(str(attributes.get("library_versions", "{}")))
    except (ValueError, RecursionError):
        libraries = {}
    return _listed(
        {"mechrl": attributes.get("mechrl_version", "?"), **(libraries if isinstance(libraries, dict) else {})}
    )


def _listed(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
