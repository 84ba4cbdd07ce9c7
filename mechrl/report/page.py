"""The report: one page that holds everything it shows, and sends nothing anywhere."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import mechrl
from mechrl.agents.bench import BUDGETS
from mechrl.agents.protocol import coverage_k, mean_curve
from mechrl.agents.verdict import AGENTS
from mechrl.cache.files import write_whole
from mechrl.cache.reader import Cache
from mechrl.cache.top import ROLE, TopHead
from mechrl.report import claims, published
from mechrl.report.claims import estimate, number
from mechrl.report.documents import Curves, Joint, VerifiedTask
from mechrl.report.figures import as_json, heatmap, joint_bars, lines, plain
from mechrl.report.findings import BenchOnCache, bench_on_caches, control_weight, heads_in_order
from mechrl.report.run import CheckpointFile, OfModel, Run, VerificationFile
from mechrl.report.tables import search_rows

HERE = Path(__file__).parent
MOST_CURVES = 6  # baselines in a figure of the benchmark; its table has all
GPT2_SMALL = ("gpt2", "openai-community/gpt2")


@dataclass(frozen=True)
class Table:
    """Texts, the first of each row naming it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A Plotly figure with its text alternative.

    :param label: what it is, for those who do not see it.
    :param caption: what it shows, in a sentence.
    """

    label: str
    caption: str
    plot: go.Figure
    table: Table

    @property
    def data(self) -> Markup:
        return Markup(as_json(self.plot))  # has no character that HTML knows


@dataclass(frozen=True)
class Block:
    """A piece of a section, from top to bottom: sentences, figures side by side, open tables, folded tables."""

    title: str = ""
    sentences: list[str] = field(default_factory=list)
    answers: list[tuple[str, bool | None]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[tuple[str, Table]] = field(default_factory=list)


@dataclass(frozen=True)
class TaskSection:
    name: str
    claim: str
    blocks: list[Block]


@dataclass(frozen=True)
class Part:
    """What belongs to one cache, or to a verification without one."""

    title: str
    facts: list[tuple[str, str]]
    blocks: list[Block]
    tasks: list[TaskSection]
    after: list[Block]


@dataclass(frozen=True)
class ModelSection:
    title: str
    sha256: str
    notes: list[str]
    missing: list[tuple[str, str]]
    parts: list[Part]
    benches: list[Block]
    commands: list[tuple[str, str]]
    fingerprints: Table


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


# A model


def _model(model: OfModel) -> ModelSection:
    parts = [_cache_part(model, cache) for cache in model.caches]
    parts += [_loose_verification(f) for f in model.verifications if model.cache(f.content.cache_sha256) is None]
    return ModelSection(
        claims.shown_model(model.name),
        model.sha256,
        list(_notes(model)),
        list(_missing(model)),
        parts,
        [block for bench in bench_on_caches(model) for block in _bench(bench)],
        list(_commands(model)),
        _fingerprints(model),
    )


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


# A cache


def _cache_part(model: OfModel, cache: Cache) -> Part:
    weight = control_weight(model, cache)
    tops = {task: heads_in_order(cache, task, weight) for task in cache.tasks}
    a = cache.attributes
    facts = [("model", str(a["model"])), ("heads", f"{cache.n_layers} layers × {cache.n_heads} heads")]
    if cache.imported:
        facts += [("imported from", str(a["imported"])), ("table, sha256", str(a["imported_sha256"]))]
        title = "scores measured elsewhere"
        facts.append(("what is not known", "prompts, ablation, damage and control: it cannot be replayed"))
    else:
        title = f"{a['ablation']} ablation"
        facts += [
            ("ablation", f"{a['ablation']} ({a['weight_processing']})"),
            ("computed in", f"{a['dtype']}{', TF32' if a.get('tf32') else ''}, on {a.get('device', '?')}"),
            ("control", f"{a['control_source']}, {len(cache.control_damage)} spans"),
            ("score", f"damage − {weight:g} × control damage"),
            ("seed", str(a["seed"])),
        ]
    facts.append(("cache", f"{cache.path}, content {cache.sha256[:12]}"))
    tasks = [_task(model, cache, task, tops, weight) for task in cache.tasks]
    blocks = [_asked(cache, tops)]
    if not cache.imported:
        blocks.append(_control(cache, tops))
    after = [_measured_roles(cache)] if cache.roles else []
    return Part(title, facts, blocks, tasks, after)


def _asked(cache: Cache, tops: Mapping[str, Sequence[TopHead]]) -> Block:
    """What was asked, a row a task."""
    rows = []
    for task in cache.tasks:
        best = ", ".join(f"{h.head} ({number(h.score[0])})" for h in sorted(tops[task], key=lambda h: -h.score[0])[:3])
        if cache.imported:
            rows.append([task, str(len(cache.episode_scores(task))), best])
        else:
            clean = cache.clean(task)
            does = "" if cache.task_attributes(task)["does_task"] else " (the model does not do it)"
            rows.append(
                [task + does, str(len(clean)), number(cache.accuracy(task), 3), number(float(clean.mean())), best]
            )
    if cache.imported:
        return Block("What was asked", tables=[Table(["task", "episodes", "best heads (score)"], rows)])
    columns = ["task", "prompts", "accuracy", "clean logit diff, nats", "best heads (score)"]
    caption = "Accuracy: the share of prompts on which the answers come before the wrongs, all heads at work."
    return Block("What was asked", tables=[Table(columns, rows, caption)])


def _control(cache: Cache, tops: Mapping[str, Sequence[TopHead]]) -> Block:
    heads = tops[cache.tasks[0]]
    hover = [f"<b>{h.head}</b> control damage {estimate(h.control, 4)} nats per token" for h in heads]
    values = np.array([h.control[0] for h in heads if h.control])
    caption = "Control damage: what removing a head adds to the mean next-token loss on ordinary text, nats per token."
    label = f"Control damage, {_source(cache)}"
    return Block("Control", figures=[Figure(label, caption, heatmap(cache, values, hover), _grid(cache, values))])


def _source(cache: Cache) -> str:
    return f"{cache.attributes['model']}, {cache.n_layers} layers × {cache.n_heads} heads"


def _grid(cache: Cache, values: np.ndarray) -> Table:
    """The numbers of a heat map, a row a layer."""
    rows = [
        [str(layer), *(number(float(v), 3) for v in row)]
        for layer, row in enumerate(np.reshape(values, (cache.n_layers, cache.n_heads)))
    ]
    return Table(["layer", *(f"head {i}" for i in range(cache.n_heads))], rows)


def published_roles(cache: Cache, task: str) -> dict[str, tuple[list[str], str]]:
    """What the literature says of heads on this task; of GPT-2 small alone."""
    if cache.attributes["model"] not in GPT2_SMALL or (cache.n_layers, cache.n_heads) != (12, 12):
        return {}
    return published.ROLES.get(task, {})


def _task(model: OfModel, cache: Cache, task: str, tops: Mapping[str, Sequence[TopHead]], weight: float) -> TaskSection:
    heads = tops[task]
    files = [f for f in model.verifications if f.content.cache_sha256 == cache.sha256 and task in f.content.tasks]
    if files:
        claim = claims.of_verification(files[0].content.tasks[task], cache.attributes["ablation"])
        claim += claims.of_verdict(files[0].content)
    else:
        claim = claims.of_cache(cache, task, heads)
    blocks = [_maps(cache, task, heads, files)]
    for file in files:
        blocks += _verified(file, task)
    for checkpoint in model.checkpoints:
        if checkpoint.note.cache_sha256 == cache.sha256 and task in (checkpoint.evaluations or {}):
            blocks.append(_searched(checkpoint, task))
    return TaskSection(task, claim, blocks)


def _maps(cache: Cache, task: str, heads: Sequence[TopHead], files: Sequence[VerificationFile]) -> Block:
    """Heat maps of damage and score, and all heads in numbers."""
    marked: dict[str, bool] = {}
    for file in files:
        for replayed in file.content.tasks[task].heads:
            marked[replayed.head] = bool(replayed.answer)
    said_of = published_roles(cache, task)
    named = {role: of for role, (of, _) in said_of.items()}
    notes = {h.head: _said_of_head(cache, task, h.head, marked) for h in heads}

    def hover(what: str, values: Sequence[Any]) -> list[str]:
        return [
            "<br>".join([f"<b>{h.head}</b> {what} {estimate(v, 3)} nats", *(plain(note) for note in notes[h.head])])
            for h, v in zip(heads, values, strict=True)
        ]

    sentences = []
    if marked:
        sentences.append("Outlined: the heads that were replayed live, dotted where the answer was no.")
    if said_of:
        sources = "; ".join(sorted({source for _, source in said_of.values()}))
        sentences.append(f"Symbols: roles of heads in the literature, after {sources}.")
    figures = []
    texts = {
        "damage": "Damage: what removing a head takes from the logit difference, mean over all prompts.",
        "score": "Score: damage minus control damage." if not cache.imported else "Score: mean over all episodes.",
    }
    for what, text in texts.items():
        column = [getattr(h, what) for h in heads]
        if column[0] is None:
            continue
        values = np.array([v[0] for v in column])
        plot = heatmap(cache, values, hover(what, column), marked=marked, roles=named)
        label = f"{what} of every head on {task}, {_source(cache)}"
        figures.append(Figure(label, text, plot, _grid(cache, values)))
    columns = ["head", "damage", "control damage", "score", "direct effect", "specificity", "notes"]
    rows = [
        [h.head, *(estimate(v, 3) for v in (h.damage, h.control, h.score, h.direct, h.specificity)),
         "; ".join([*h.marks, *notes[h.head]])]
        for h in sorted(heads, key=lambda h: -h.score[0])
    ]  # fmt: skip
    folded = ("all heads with 95 % intervals, by score", Table(columns, rows, "nats; means over all prompts"))
    return Block("Every head", figures=figures, sentences=sentences, folded=[folded])


def _said_of_head(cache: Cache, task: str, head: str, marked: Mapping[str, bool]) -> list[str]:
    notes = []
    if head in marked:
        notes.append("tested live: " + ("replicates" if marked[head] else "does not replicate"))
    for role, (of, source) in published_roles(cache, task).items():
        if head in of:
            notes.append(f"{role} ({source})")
    site = cache.site(head)
    measured = [f"{name} {values[site]:.2f}" for name, values in cache.roles.items() if values[site] >= ROLE]
    if measured:
        notes.append("measured: " + ", ".join(measured))
    return notes


def _measured_roles(cache: Cache) -> Block:
    figures = []
    for role, values in cache.roles.items():
        best = np.argsort(-values, kind="stable")[:3]
        said = ", ".join(f"{cache.head(int(site))} ({values[site]:.2f})" for site in best)
        hover = [f"<b>{cache.head(site)}</b> {plain(role)} {value:.3f}" for site, value in enumerate(values)]
        magnitude = bool(values.min() >= 0)
        plot = heatmap(cache, values, hover, unit="", magnitude=magnitude)
        figures.append(
            Figure(f"{role} of every head, {_source(cache)}", f"{role}; highest: {said}.", plot, _grid(cache, values))
        )
    return Block("Roles measured on the model", figures=figures)


# Search


def _searched(checkpoint: CheckpointFile, task: str) -> Block:
    """Coverage against cost of the agent and its baselines."""
    evaluations = (checkpoint.evaluations or {})[task]
    curves = {}
    for name, evaluation in evaluations:
        grid = np.unique(evaluation.runs)
        ones = np.ones((1, len(evaluation.runs)))
        curve = mean_curve(evaluation.coverages()[None], evaluation.runs, ones, grid)[0]
        curves[name] = grid.tolist(), curve.tolist()
    k = coverage_k(evaluations[0][1].scores.shape[1])
    columns, rows = search_rows(evaluations)
    table = Table(
        [c.replace("\n", " ") for c in columns], [[r[0], *(number(v, 3) for v in r[1:])] for r in rows],
        f"Means over {len(evaluations[0][1].picked)} evaluation episodes, by picks.",
    )  # fmt: skip
    role = "trained on" if task in checkpoint.note.tasks else "held out"
    caption = (
        f"Coverage@{k}, the share of the worth of the {k} best heads that is found, against the cost of the search "
        "(a run is one batch through the whole model)."
    )
    plot = lines(curves, "cost of the search, runs", f"coverage@{k}", steps=True, share=True)
    return Block(
        f"The search of {checkpoint.path.name} ({role})",
        figures=[Figure(f"Coverage against cost on {task}", caption, plot, table)],
    )


def _bench(bench: BenchOnCache) -> list[Block]:
    """A block a track: coverage against cost, and the costs of all methods."""
    blocks = []
    for track, methods in bench.tracks.items():
        agent = [name for name in methods if name == AGENTS.get(track)]
        others = [name for name in methods if name not in agent and not bench.exploratory(name)][:MOST_CURVES]
        curves = {name: (bench.grid, bench.curve(name)) for name in agent + others}
        rows = [
            [
                name + (" (exploratory)" if bench.exploratory(name) else ""),
                number(bench.cost(name)),
                f"{bench.never(name):.0%}",
            ]
            for name in methods
        ]
        table = Table(
            ["method", "cost to 90 %, runs", "never"],
            rows,
            "Geometric means over families of tasks; never: no cheaper than looking at every head.",
        )
        shown = [i for i, cost in enumerate(bench.grid) if cost in BUDGETS]
        at = [[name, *(number(curve[i]) for i in shown)] for name, (_, curve) in curves.items()]
        coverage = Table(["method", *(f"at {bench.grid[i]:g} runs" for i in shown)], at, "Coverage.")
        plot = lines(
            curves, "cost of the search, runs", "coverage@k", steps=True, log=True, share=True, levels={"90 %": 0.9}
        )
        caption = (
            f"Track {track}: coverage against cost, mean over held-out families; the agent and the cheapest others."
        )
        blocks.append(
            Block(
                f"Searches compared: track {track}, cache {bench.cache}",
                bench.verdicts(track),
                figures=[Figure(f"Coverage against cost, track {track}, {bench.cache}", caption, plot, coverage)],
                tables=[table],
            )
        )
    return blocks


# Verification


def _loose_verification(file: VerificationFile) -> Part:
    content = file.content
    tasks = [
        TaskSection(
            name,
            claims.of_verification(task, content.ablation or "unknown") + claims.of_verdict(content),
            _verified(file, name),
        )
        for name, task in content.tasks.items()
    ]
    facts = [("model", content.model or "?"), ("ablation", content.ablation or "?"), ("verification", str(file.path))]
    return Part("verification of a cache that is not here", facts, [], tasks, [])


def _verified(file: VerificationFile, name: str) -> list[Block]:
    task = file.content.tasks[name]
    role = {True: "trained on", False: "held out: does not decide", None: ""}[task.trained]
    title = f"On the live model ({file.path.name}{', ' * bool(role)}{role})"
    blocks = [Block(title, answers=_answers(file, task), tables=_head_tables(task))]
    if task.joint:
        blocks.append(_joint(name, task.joint))
    if task.curves:
        blocks.append(_curves(name, task.curves))
    return blocks


def _answers(file: VerificationFile, task: VerifiedTask) -> list[tuple[str, bool | None]]:
    """The questions with their answers; None is for what was not asked."""
    overall = file.content.faithful
    answers: list[tuple[str, bool | None]] = []
    if (f := task.faithful) is not None:
        tolerance = f", tolerance {overall.tolerance:g}" if overall and overall.tolerance is not None else ""
        difference = f"{f.difference:.1e}" if f.difference is not None else "–"
        control = overall.control_difference if overall else None
        on_text = f", by {control:.1e} on control text" if control is not None else ""
        said = f"faithful: cache and live model differ by {difference} nats at most{on_text}{tolerance}"
        answers.append((said, f.answer and (overall is None or overall.answer)))
    if (r := task.replicates) is not None:
        said = f"replicates: on {r.prompts or '?'} prompts in {r.groups or '?'} groups, from {r.fresh_from or '?'}"
        if r.known_answers is not None:
            said += f"; {r.known_answers[0]} of {r.known_answers[1]} answers occur in training"
            if r.searched_answers is not None:
                said += f", {r.searched_answers} where the agent searched"
        answers.append((said, r.answer))
    if (p := task.placebo) is not None:
        passed = ", ".join(p.passed) or "no head"
        answers.append((f"placebo: where there is nothing to find, {passed} passes", p.answer))
    if (c := task.complete) is not None:
        said = f"complete: coverage {estimate(c.coverage)}, ratio {estimate(c.ratio)}"
        if c.best:
            said += f"; best heads there are: {', '.join(c.best)}"
        answers.append((said, c.answer))
    for what, asked in (("placebo", task.placebo), ("complete", task.complete), ("joint damage", task.joint),
                        ("necessity and sufficiency", task.curves)):  # fmt: skip
        if asked is None:
            answers.append((f"{what}: not asked", None))
    return answers


def _head_tables(task: VerifiedTask) -> list[Table]:
    if not task.heads:
        return []
    first = [
        [h.head, {True: "yes", False: "NO", None: "–"}[h.answer], estimate(h.damage), _percent(h.share),
         estimate(h.score), number(h.p_adjusted, 3), estimate(h.direct), estimate(h.elsewhere), h.why or ""]
        for h in task.heads
    ]  # fmt: skip
    columns = ["head", "holds", "damage", "of clean", "score", "p, adjusted", "direct effect", "on other tasks", "why"]
    second = [
        [h.head, number(h.cached, 3), number(h.live, 3), "–" if h.difference is None else f"{h.difference:.1e}",
         estimate(h.rank, 0), _percent(h.stands)]
        for h in task.heads
    ]  # fmt: skip
    more = ["head", "score, cached", "score, live", "largest difference", "rank", "resamples it stands in"]
    return [
        Table(columns, first, "Nats, with 95 % intervals, on the prompts named above."),
        Table(
            more,
            second,
            "Scores on the cached prompts, and their difference on any one; the rank on the prompts named above.",
        ),
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def _joint(name: str, joint: Sequence[Joint]) -> Block:
    counts = [len(j.heads) for j in joint]
    series = {"together": [j.joint for j in joint], "one by one, in sum": [j.summed for j in joint]}
    rows = [[", ".join(j.heads), estimate(j.joint), estimate(j.summed), estimate(j.interaction)] for j in joint]
    table = Table(["heads", "together", "one by one, in sum", "interaction"], rows, "Damage in nats, 95 % intervals.")
    caption = "Damage of growing sets of heads, removed together, and the sum of their damages one by one."
    plot = joint_bars(counts, series, [", ".join(j.heads) for j in joint])
    sentences = [claims.of_joint(max(joint, key=lambda j: len(j.heads)))]
    return Block(
        "Together and one by one", sentences, figures=[Figure(f"Joint damage on {name}", caption, plot, table)]
    )


def _curves(name: str, curves: Curves) -> Block:
    title = "Necessity and sufficiency"
    if curves.refused:
        return Block(title, [f"Not measured: {curves.refused}"])
    levels = {"all heads": curves.full, "no heads": curves.empty}
    shown = {name: level for name, level in levels.items() if level is not None}
    figures = []
    for what, attribute, caption in (
        ("only the top heads left", "kept", "Sufficiency: the logit difference with only the best k heads left."),
        ("the top heads removed", "ablated", "Necessity: the logit difference without the best k heads."),
    ):
        drawn = {ranking: (curves.counts, v) for ranking, r in curves.rankings.items() if (v := getattr(r, attribute))}
        if drawn:
            rows = [[ranking, *(number(v) for v in values)] for ranking, (_, values) in drawn.items()]
            table = Table(["ranking", *(f"k = {k}" for k in curves.counts)], rows, "Logit difference in nats.")
            plot = lines(drawn, "heads, k", "logit difference, nats", levels=shown)
            figures.append(Figure(f"Logit difference with {what}, {name}", caption, plot, table))
    rows = [
        [ranking, number(r.cpr, 3), number(r.cmd, 3), number(r.necessity, 3), ", ".join(r.heads[:10])]
        for ranking, r in curves.rankings.items()
    ]
    columns = ["ranking", "head-CPR", "head-CMD", "necessity", "heads, the first first"]
    caption = (
        "With f(k) = (m(k) − m(empty)) ÷ (m(full) − m(empty)): CPR = ∫ f, CMD = ∫ |1 − f| over the share of heads "
        "kept, after the definitions of MIB (arXiv 2504.13151). MLPs are kept, and heads are removed whole, by the "
        "cache's ablation: these are not MIB's edge-level numbers. The agent's ranking ends with heads it never looked "
        "at, in the model's order."
    )
    return Block(title, claims.of_curves(curves), figures=figures, tables=[Table(columns, rows, caption)])
