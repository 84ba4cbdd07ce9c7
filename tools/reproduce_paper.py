"""Set the figures of arXiv 2605.26343v1 beside ours: the last step of tools/reproduce_paper.sh.

python tools/reproduce_paper.py CACHE BEST_OF_1.zip BEST_OF_5.zip --out report.md
"""

from pathlib import Path

import click

from mechrl.cache.reader import Cache
from mechrl.cache.top import top_heads
from mechrl.cli import app
from mechrl.reporting import published
from mechrl.score import rank, score
from mechrl.search.methods.orders import random_order, static_order
from mechrl.search.ppo.checkpoint import Checkpoint, CheckpointNote
from mechrl.search.ppo.policy_search import policy_search
from mechrl.search.problem import Problem, Start
from mechrl.search.protocol import Evaluation, evaluate

PICKS = (1, 3, 5, 10, 25, 50)


def table(columns: list[str], rows: list[list]) -> str:
    """A table in Markdown; None is a dash."""
    cells = [["–" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def best_found(evaluation: Evaluation) -> float:
    """Mean over episodes of the best score among all picks, in nats: what the paper plots."""
    return float(evaluation.seen.max(1).mean())


def searches(cache: Cache, note: CheckpointNote, agents: dict[int, Checkpoint], task: str) -> dict[str, Evaluation]:
    """As the paper evaluated: the agent with a task signal and without; random picks; the static order."""
    problem = Problem(cache, task, tuple(t for t in note.tasks if t != task))

    def run(search: Start) -> Evaluation:
        return evaluate(cache, task, search, note.picks)

    evaluations = {}
    for k, agent in agents.items():
        signals = agent.note.signals
        signalled = task if task in note.tasks else note.tasks[0]
        name = f"agent, best-of-{k} training, told {signalled}"
        evaluations[name] = run(policy_search(agent.policy, signals, signalled))
        evaluations[f"agent, best-of-{k} training, no task signal"] = run(policy_search(agent.policy, signals))
    return evaluations | {
        "random picks": run(random_order(problem)),
        f"order of {' and '.join(problem.train)}": run(static_order(problem)),
    }


def report(cache: Cache, agents: dict[int, Checkpoint]) -> str:
    """The report, in Markdown."""
    note = agents[1].note
    model = cache.attributes["model"]
    is_theirs = model == published.MODEL and cache.attributes["ablation"] == "zero"
    lines = [
        f"# arXiv 2605.26343v1 on {model}\n",
        f"{cache.n_layers} × {cache.n_heads} heads, {cache.attributes['ablation']} ablation, cache "
        f"{cache.sha256[:12]}, {len(cache.batch_control())} evaluation episodes a task, {note.picks} picks, "
        f"{note.steps} training steps (theirs: {published.STEPS}). Published figures: {published.PAPER}.\n",
    ]
    if not is_theirs:
        lines.append(
            "**The published figures are of GPT-2 small with zero ablation, ours are not.** They stand side by side to "
            "show the form of the comparison; nothing follows from their difference.\n"
        )
    lines.append("## Mean best score after all picks, nats\n")
    results = {task: searches(cache, note, agents, task) for task in [*note.tasks, *note.hold_out]}
    rows = []
    for task, found in results.items():
        for name, evaluation in found.items():
            rows.append(
                [task, name, best_found(evaluation), _published(task, name), float(evaluation.scores.max(1).mean())]
            )
    lines.append(table(["task", "method", "ours", "published", "our oracle"], rows))
    lines.append("## Oracle ratio after so many picks, and coverage: as we evaluate\n")
    rows = []
    for task, found in results.items():
        for name, evaluation in found.items():
            ratios = [float(r.mean()) if p <= note.picks and len(r := evaluation.ratios(p)) else None for p in PICKS]
            rows.append([task, name, *ratios, float(evaluation.coverages()[:, -1].mean())])
    lines.append(table(["task", "method", *(f"ratio@{p}" for p in PICKS), "coverage at the end"], rows))
    lines.append("## The ten best heads\n")
    rows = []
    for task in results:
        ours = [head.head for head in top_heads(cache, task, n=10)]
        theirs = published.TOP_HEADS.get(task, [])
        rows.append([task, " ".join(ours), " ".join(theirs), f"{len(set(ours) & set(theirs))} of {len(theirs)}"])
    lines.append(table(["task", "ours, best first", "published, best first", "in both"], rows))
    lines.append("## Heads with a role in the literature (GPT-2 small)\n")
    rows = []
    for task, roles in published.ROLES.items():
        if task not in cache.tasks:
            continue
        ranks = rank(score(cache.damage(task).mean(0), cache.control_damage.mean(0)))
        by_head = {cache.head(site): place for site, place in enumerate(ranks.tolist())}
        for role, (heads, source) in roles.items():
            places = " ".join(f"{head}:{by_head[head]}" for head in heads if head in by_head)
            rows.append([task, role, places or None, source])
    lines.append(table(["task", "role", "head:rank by our score", "source"], rows))
    return "\n".join(lines)


def _published(task: str, name: str) -> float | None:
    """Their figure for this method, if there is one."""
    if name.startswith("random"):
        return published.RANDOM_50.get(task)
    if not name.startswith("agent"):
        return None
    k = int(name.split("best-of-")[1].split()[0])
    if task == "docstring":
        untold = name.endswith("no task signal")
        return (published.DOCSTRING_UNTOLD if untold else published.DOCSTRING_TOLD_INDUCTION)[k]
    return published.PLATEAU.get(task) if k == 1 and not name.endswith("no task signal") else None


@click.command()
@click.argument("cache", type=click.Path(exists=True, path_type=Path))
@click.argument("best_of_1", type=click.Path(exists=True, path_type=Path))
@click.argument("best_of_5", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(cache: Path, best_of_1: Path, best_of_5: Path, out: Path) -> None:
    """Write one report: published figures beside ours."""
    agents = {1: Checkpoint.load(best_of_1), 5: Checkpoint.load(best_of_5)}
    out.write_text(report(Cache.open(cache), agents))
    click.echo(f"{out} written")


if __name__ == "__main__":
    app.run(main)
