"""The report: one page that holds everything it shows, and sends nothing anywhere."""

import base64
import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import mechrl
from mechrl.cache.format import UNKNOWN
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_whole
from mechrl.cache.top import TopHead
from mechrl.reporting.blocks import ModelSection, PageSection, Table, TaskSection
from mechrl.reporting.run import OfModel, Run, VerificationFile
from mechrl.reporting.sections import cache as cache_section
from mechrl.reporting.sections.attention import looked_at
from mechrl.reporting.sections.cache import cache_claim, control_weight, heads_in_order
from mechrl.reporting.sections.circuits import audited, found
from mechrl.reporting.sections.search import bench_on_caches, compared, searched
from mechrl.reporting.sections.verification import verdict_claim, verification_claim, verified
from mechrl.results import library_versions
from mechrl.tasks import TASKS

if TYPE_CHECKING:  # it needs torch, which a report without a checkpoint does not
    from mechrl.search.ppo.checkpoint import CheckpointNote

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
        ablated=any(map(_ablated, run.models)),
    )


def _script_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _ablated(model: OfModel) -> bool:
    """Whether there is anything that heads were removed for, and not their attention alone."""
    return bool(
        model.caches or model.checkpoints or model.verifications or model.benches or model.circuits or model.audits
    )


def _model(model: OfModel) -> ModelSection:
    parts = [_cache_part(model, cache) for cache in model.caches]
    parts += [_part_without_cache(f) for f in model.verifications if model.cache(f.content.cache_sha256) is None]
    return ModelSection(
        shown_model(model.name),
        model.sha256,
        list(_notes(model)),
        list(_missing(model)),
        parts,
        [block for bench in bench_on_caches(model) for block in compared(bench)],
        [block for file in model.attentions for block in looked_at(file)],
        [block for file in model.circuits for block in found(file)]
        + [block for claim in model.audits for block in audited(claim)],
        list(_commands(model)),
        _fingerprints(model),
    )


def _cache_part(model: OfModel, cache: Cache) -> PageSection:
    weight = control_weight(model, cache)
    tops = {task: heads_in_order(cache, task, weight) for task in cache.tasks}
    blocks = [cache_section.asked(cache, tops)]
    if not cache.imported:
        blocks.append(cache_section.control(cache, tops))
    return PageSection(
        "scores measured elsewhere" if cache.imported else f"{cache.attributes['ablation']} ablation",
        cache_section.facts(cache, weight),
        blocks,
        [_task(model, cache, task, tops[task]) for task in cache.tasks],
        [cache_section.measured_roles(cache)] if cache.roles else [],
    )


def _task(model: OfModel, cache: Cache, task: str, heads: Sequence[TopHead]) -> TaskSection:
    files = [f for f in model.verifications if f.content.cache_sha256 == cache.sha256 and task in f.content.tasks]
    if files:
        claim = verification_claim(files[0].content.tasks[task], cache.attributes["ablation"])
        claim += verdict_claim(files[0].content)
    else:
        claim = cache_claim(cache, task, heads)
    blocks = [cache_section.maps(cache, task, heads, files)]
    for file in files:
        blocks += verified(file, task)
    for checkpoint in model.checkpoints:
        if checkpoint.note.cache_sha256 == cache.sha256 and task in (checkpoint.evaluations or {}):
            blocks.append(searched(checkpoint, task))
    return TaskSection(task, claim, blocks)


def _part_without_cache(file: VerificationFile) -> PageSection:
    content = file.content
    tasks = [
        TaskSection(
            name,
            verification_claim(task, content.ablation) + verdict_claim(content),
            verified(file, name),
        )
        for name, task in content.tasks.items()
    ]
    facts = [("model", content.model), ("ablation", content.ablation), ("verification", str(file.path))]
    return PageSection("verification of a cache that is not here", facts, [], tasks, [])


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
            yield f"{file.path} verified a cache that is not here (content {file.content.cache_sha256[:12]})"
        if here and file.content.checkpoint_sha256 not in here:
            yield (
                f"{file.path} verified a checkpoint that is not here (file "
                f"{(file.content.checkpoint_sha256 or '?')[:12]})"
            )
    for bench in model.benches:
        if not any(model.cache(f.cache_sha256) for f in bench.content.caches.values()):
            yield f"{bench.path} searched caches of this model that are not here"


def _missing(model: OfModel) -> Iterable[tuple[str, str]]:
    """What there could be, and the command that makes it."""
    if not model.sha256 or not _ablated(model) or any(cache.imported for cache in model.caches):
        return
    name = shown_model(model.name)
    cache: object = model.caches[0].path if model.caches else "cache.h5"
    checkpoint: object = model.checkpoints[0].path if model.checkpoints else "checkpoint.zip"
    if not model.caches:
        yield "a cache", command("mechrl-cache", "build", "--model", name, "--out", cache)
    if not model.checkpoints:
        yield "a search", command("mechrl-train", "--from-cache", cache, "--out", checkpoint)
    if not model.verifications:
        parts = ("mechrl-verify", checkpoint, "--cache", cache, "--model", name, "--json")
        yield "a verification on the live model", command(*parts) + " > verification.json"
    replicated = [
        (task, [head.head for head in of.heads if head.answer])
        for file in model.verifications
        for task, of in file.content.tasks.items()
        if any(head.answer for head in of.heads)
    ]
    if replicated and not model.attentions:
        line = attention_command(name, *replicated[0], "--out", "attention.json")
        yield f"where the heads look that replicate on {replicated[0][0]}", line
    if not model.benches:
        yield (
            "a comparison of searches",
            command("mechrl", "bench", "--cache", cache, "--json") + " > bench.json",
        )


def _commands(model: OfModel) -> Iterable[tuple[str, str]]:
    for cache in model.caches:
        yield str(cache.path), build_command(cache)
    for checkpoint in model.checkpoints:
        trained_on = model.cache(checkpoint.note.cache_sha256)
        path = trained_on.path if trained_on else "CACHE.h5"
        yield str(checkpoint.path), train_command(checkpoint.note, path, checkpoint.path)
    for file in model.verifications:
        yield str(file.path), file.content.command or "(the file does not say)"
    for shown in model.attentions:
        content, more = shown.content, ("--prompts", max(1, len(shown.content.drawn)), "--seed", shown.content.seed)
        yield str(shown.path), attention_command(content.model, content.task, (h.head for h in content.heads), *more)
    for circuit in model.circuits:
        of = circuit.content
        task = of.task if of.task in TASKS else f"{of.task}.jsonl"
        parts = ("--model", of.model, "--keep", f"{of.keep:g}", "--ablation", of.ablation, "--seed", of.seed)
        yield str(circuit.path), command("mechrl", "circuit", task, *parts, *["--stability"] * bool(of.stability))
    for audit in model.audits:
        claim = ("CLAIM.json", "--model", audit.content.model, "--keep", f"{audit.content.keep:g}")
        yield str(audit.path), command("mechrl", "audit", *claim, "--seed", audit.content.seed)
    for bench in model.benches:
        caches = [part for cache in bench.content.caches for part in ("--cache", cache)]
        seeds = len({row.seed for row in bench.content.tasks})
        yield str(bench.path), command("mechrl", "bench", *caches, "--seeds", seeds, "--json")


def _fingerprints(model: OfModel) -> Table:
    rows = []
    for cache in model.caches:
        a = cache.attributes
        rows.append([str(cache.path), "cache, content", cache.sha256, str(a.get("seed", "–")), _versions(a)])
    for c in model.checkpoints:
        rows.append([str(c.path), "checkpoint, file", c.sha256, str(c.note.seed), "–"])
    for file in model.verifications:
        content = file.content
        versions = {"mechrl": content.mechrl_version, **content.library_versions}
        rows.append([str(file.path), "verification", "–", str(content.seed), _listed(versions)])
    for shown in model.attentions:
        versions = {"mechrl": shown.content.mechrl_version}
        rows.append([str(shown.path), "attention", "–", str(shown.content.seed), _listed(versions)])
    for what, files in (("circuit", model.circuits), ("audit", model.audits)):
        for one in files:
            versions = {"mechrl": one.content.mechrl_version}
            rows.append([str(one.path), what, "–", str(one.content.seed), _listed(versions)])
    return Table(["file", "what", "fingerprint", "seed", "versions"], rows)


def _versions(attributes: Mapping[str, Any]) -> str:
    libraries = library_versions(attributes.get("library_versions", "{}"))
    return _listed({"mechrl": attributes.get("mechrl_version", "?"), **libraries})


def _listed(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def command(*parts: object) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(str(part) for part in parts)


def build_command(cache: Cache) -> str:
    """The command that built a cache, as far as the cache says."""
    a = cache.attributes
    if cache.imported:
        return command(
            "mechrl-cache", "import", a["imported"], "--task", cache.tasks[0], "--n-layers", cache.n_layers,
            "--n-heads", cache.n_heads, "--model", a["model"], "--out", cache.path,
        )  # fmt: skip
    own = [task for task in cache.tasks if cache.task_attributes(task)["generator"] == "file"]
    built_in = [task for task in cache.tasks if task not in own]
    parts: list[object] = ["mechrl-cache", "build", "--model", a["model"]]
    if a.get("model_revision"):
        parts += ["--revision", a["model_revision"]]
    if built_in:
        parts += ["--tasks", ",".join(built_in), "--batches", len(cache.clean(built_in[0])) // cache.batch_size]
    for task in own:
        parts += ["--task", f"{task}.jsonl"]
    parts += ["--batch-size", cache.batch_size, "--control-batches", len(cache.control_damage) // cache.batch_size]
    if str(a["control_source"]).startswith("text:"):
        parts += ["--control-text", "CONTROL.txt"]
    parts += ["--ablation", a["ablation"], "--dtype", a["dtype"], *(["--tf32"] if a.get("tf32") else [])]
    return command(*parts, "--seed", a["seed"], "--out", cache.path)


def train_command(note: "CheckpointNote", cache: object, out: object) -> str:
    """The command that trained a checkpoint.

    :param note: its `CheckpointNote`.
    :param cache: the path of the cache it was trained on.
    """
    parts: list[object] = ["mechrl-train", "--from-cache", cache, "--tasks", ",".join(note.tasks)]
    if note.hold_out:
        parts += ["--hold-out", ",".join(note.hold_out)]
    parts += ["--policy", note.policy]
    if note.policy == "paper":
        parts += ["--preset", note.preset]
    parts += ["--steps", note.steps, "--picks", note.picks, "--plan-k", note.plan_k]
    return command(*parts, "--control-weight", f"{note.control_weight:g}", "--seed", note.seed, "--out", out)


def attention_command(model: str, task: str, heads: Iterable[str], *more: object) -> str:
    """The command that measures the attention of some heads."""
    named = [part for head in heads for part in ("--head", head)]
    given = task if task in TASKS else f"{task}.jsonl"
    return command("mechrl-cache", "attention", "--model", model, *named, "--task", given, *more)


def shown_model(name: str) -> str:
    return "a model without a name" if name in ("", UNKNOWN) else name
