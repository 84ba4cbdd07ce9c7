"""What was found, in sentences; all numbers in nats."""

import shlex
from collections.abc import Sequence

from mechrl.cache.format import UNKNOWN
from mechrl.cache.reader import Cache
from mechrl.cache.top import TopHead
from mechrl.reporting.documents import Curves, Joint, ReplayedHead, Verification, VerifiedTask

Interval = Sequence[float]  # mean, lower and upper end


def number(value: float | None, digits: int = 2) -> str:
    """A number for people; – where there is none."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def estimate(value: Interval | None, digits: int = 2) -> str:
    """A mean with its 95 % interval."""
    if value is None:
        return "–"
    mean, low, high = (number(v, digits) for v in value)
    return f"{mean} ({low} to {high})"


def of_cache(cache: Cache, task: str, heads: Sequence[TopHead]) -> str:
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


def of_verification(task: VerifiedTask, ablation: str) -> str:
    """The answer for a task on the live model: the first head that replicates, or else the first one."""
    if not task.heads:
        return "No head was replayed on the live model."
    replicated = [head for head in task.heads if head.answer]
    head = (replicated or task.heads)[0]
    said = f"Removing {head.head} (total effect, {ablation} ablation, {_prompts(task)}) costs "
    clean = task.replicates.clean if task.replicates else None
    if head.damage is not None:
        of = f" of {number(clean)}" if clean is not None else ""
        said += f"{number(head.damage[0])} nats{of} ({number(head.damage[1])} to {number(head.damage[2])})"
    else:
        said += f"a score of {number(head.live)} nats on the cached prompts"
    if head.direct is not None:
        said += f"; its direct effect is {number(head.direct[0])}"
    if head.elsewhere is not None:
        said += f"; on other tasks it costs {number(head.elsewhere[0])}"
    said += "."
    if not head.answer:
        said += " This does not replicate" + (f": {head.why}." if head.why else ".")
    if others := [other.head for other in replicated if other is not head]:
        said += f" Also replicated: {', '.join(others)}."
    if failed := [_failed(other) for other in task.heads if not other.answer and other is not head]:
        said += f" Not replicated: {', '.join(failed)}."
    return said


def of_verdict(verification: Verification) -> str:
    """What a verification says as a whole, which is more than that its heads replicate."""
    if verification.confirmed is None:
        return ""
    return f" The verification as a whole: {'confirmed' if verification.confirmed else 'NOT confirmed'}."


def _prompts(task: VerifiedTask) -> str:
    replicates = task.replicates
    if replicates is None or replicates.prompts is None:
        return "prompts not said"
    fresh = replicates.fresh_from or ""
    kind = fresh if fresh.endswith("prompts") else "fresh prompts"  # "evaluation prompts" stand in for fresh ones
    return f"{replicates.prompts} {kind}"


def _failed(head: ReplayedHead) -> str:
    return f"{head.head} ({head.why})" if head.why else head.head


def of_joint(joint: Joint) -> str:
    """Whether heads stand in for one another, from the damage of all together and one by one."""
    said = (
        f"{', '.join(joint.heads)}: together {number(joint.joint[0])} nats, one by one {number(joint.summed[0])} in sum"
    )
    if joint.interaction is None:
        return said + "."
    _, low, high = joint.interaction
    if low <= 0 <= high:
        return said + ": within the interval their damages add up."
    if joint.joint[0] < joint.summed[0]:
        return said + ": less than their damages add up to."
    if joint.summed[0] < joint.joint[0] / 2:
        return said + ": these heads stand in for one another, and single damages hide it."
    return said + ": more than their damages add up to, as heads that stand in for one another do."


def of_curves(curves: Curves) -> list[str]:
    """For each ranking, how many heads alone keep half of the behaviour, and without how many half of it is lost."""
    if curves.full is None or curves.empty is None:
        return []
    half, said = (curves.full + curves.empty) / 2, []
    for name, ranking in curves.rankings.items():
        kept = [k for k, v in zip(curves.counts, ranking.kept, strict=False) if v >= half]
        lost = [k for k, v in zip(curves.counts, ranking.ablated, strict=False) if v <= half]
        parts = [f"the best {kept[0]} alone keep half of the behaviour"] if kept else []
        parts += [f"without the best {lost[0]} half of it is lost"] if lost else []
        if parts:
            said.append(f"{name}: {'; '.join(parts)}.")
    return said


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


def train_command(note, cache: object, out: object) -> str:
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


def shown_model(name: str) -> str:
    return "a model without a name" if name in ("", UNKNOWN) else name
