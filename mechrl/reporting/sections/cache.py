"""What the page says of a cache: what was asked, every head on every task, the roles that were measured."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.cache.top import ROLE, TopHead, top_heads
from mechrl.reporting import published
from mechrl.reporting.blocks import Block, Figure, Table, estimate, heatmap, number, plain
from mechrl.reporting.run import OfModel, VerificationFile
from mechrl.score import best_first

GPT2_SMALL = ("gpt2", "openai-community/gpt2")


def control_weight(model: OfModel, cache: Cache) -> float:
    """The control weight of the first checkpoint that was trained on a cache; 1 where there is none."""
    weights = [c.note.control_weight for c in model.checkpoints if c.note.cache_sha256 == cache.sha256]
    return weights[0] if weights else 1.0


def heads_in_order(cache: Cache, task: str, weight: float = 1.0) -> list[TopHead]:
    """All heads with their intervals, in the order of the sites."""
    return sorted(
        top_heads(cache, task, n=cache.n_sites, control_weight=weight), key=lambda head: cache.site(head.head)
    )


def cache_claim(cache: Cache, task: str, heads: Sequence[TopHead]) -> str:
    """The answer for a task from its cached numbers alone: the head with the highest score."""
    best = max(heads, key=lambda head: head.score[0])
    if best.damage is None:
        return (
            f"{best.head} scores highest: {estimate(best.score)} over {len(cache.episode_scores(task))} episodes, "
            "measured elsewhere."
        )
    said = (
        f"Removing {best.head} (total effect, {cache.attributes['ablation']} ablation, {len(cache.clean(task))} cached "
        f"prompts) costs {number(best.damage[0])} nats of {number(float(cache.clean(task).mean()))} "
        f"({number(best.damage[1])} to {number(best.damage[2])})"
    )
    if best.direct is not None:
        said += f"; its direct effect is {number(best.direct[0])}"
    if best.specificity is not None:
        said += f"; on other tasks it costs {number(best.damage[0] - best.specificity[0])}"
    said += ". No live model has confirmed it."
    if not cache.task_attributes(task)["does_task"]:
        said += " The model does not do this task, so this says nothing about heads."
    return said


def facts(cache: Cache, control_weight: float) -> list[tuple[str, str]]:
    """What its numbers are of."""
    a = cache.attributes
    facts = [("model", str(a["model"])), ("heads", f"{cache.n_layers} layers × {cache.n_heads} heads")]
    if cache.imported:
        facts += [
            ("imported from", str(a["imported"])),
            ("table, sha256", str(a["imported_sha256"])),
            ("what is not known", "prompts, ablation, damage and control: it cannot be replayed"),
        ]
    else:
        facts += [
            ("ablation", f"{a['ablation']} ({a['weight_processing']})"),
            ("computed in", f"{a['dtype']}{', TF32' if a.get('tf32') else ''}, on {a.get('device', '?')}"),
            ("control", f"{a['control_source']}, {len(cache.control_damage)} spans"),
            ("score", f"damage − {control_weight:g} × control damage"),
            ("seed", str(a["seed"])),
        ]
    return [*facts, ("cache", f"{cache.path}, content {cache.sha256[:12]}")]


def asked(cache: Cache, tops: Mapping[str, Sequence[TopHead]]) -> Block:
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


def control(cache: Cache, tops: Mapping[str, Sequence[TopHead]]) -> Block:
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


def maps(cache: Cache, task: str, heads: Sequence[TopHead], files: Sequence[VerificationFile]) -> Block:
    """Heat maps of damage and score, and all heads in numbers."""
    marked: dict[str, bool] = {}
    for file in files:
        for replayed in file.content.tasks[task].heads:
            marked[replayed.head] = replayed.answer
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


def measured_roles(cache: Cache) -> Block:
    figures = []
    for role, values in cache.roles.items():
        best = best_first(values)[:3]
        said = ", ".join(f"{cache.head(int(site))} ({values[site]:.2f})" for site in best)
        hover = [f"<b>{cache.head(site)}</b> {plain(role)} {value:.3f}" for site, value in enumerate(values)]
        magnitude = bool(values.min() >= 0)
        plot = heatmap(cache, values, hover, unit="", magnitude=magnitude)
        figures.append(
            Figure(f"{role} of every head, {_source(cache)}", f"{role}; highest: {said}.", plot, _grid(cache, values))
        )
    return Block("Roles measured on the model", figures=figures)
