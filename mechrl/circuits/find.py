"""From a behaviour to its circuit: the search, and the verdict on prompts that the search did not see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

import mechrl
from mechrl.ablation import Ablation
from mechrl.ablation.intact.direct import direct_effect
from mechrl.ablation.intact.roles import measure_roles
from mechrl.circuits.journal import Journal, Recorded
from mechrl.circuits.kept import judge
from mechrl.circuits.result import Circuit, CircuitHead, HeadSet, Kept, RandomSets
from mechrl.circuits.search import NEARLY_ALL, Numbers, Search, Subject
from mechrl.circuits.subjects import Subjects
from mechrl.errors import UsageError, check_range
from mechrl.models import Model
from mechrl.results import safe_text
from mechrl.tasks import Task, TaskFile

MOST_RUNS = 150
LEAST_DIFFERENCE = 0.1  # of the intact model's logit difference, between it and the model without any head
LEAST_KL = 0.1  # nats, of the model without any head
RANDOM_SETS = 20

OnStep = Callable[[float, float, str], None]


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    :param kept: bool [site], the smallest set that was found; None where `refused` says why there is none.
    :param by_logit_diff: the smallest set that was tried whose logit difference alone is large enough; None where none
        was, or nothing was searched.
    """

    kept: np.ndarray | None
    refused: str | None
    by_logit_diff: np.ndarray | None
    runs: int


def find_circuit(
    model: Model,
    task: Task | TaskFile,
    keep: float = 0.8,
    ablation: Ablation | None = None,
    seed: int = 0,
    most_runs: int = MOST_RUNS,
    on_step: OnStep = lambda done, total, doing: None,
) -> Circuit:
    """The smallest set of heads that is found to keep a behaviour, and the verdict on it.

    What is measured is written down as it comes, and removed at the end: after an interrupt the same call goes on.

    :param keep: the share of the behaviour to be kept, above 0 and below 1.
    :param ablation: what is put in place of the other heads; by default the counterfactual twins' outputs where there
        are twins, else the mean over the task's prompts.
    :param most_runs: of the model on the prompts that are searched on.
    :raises UsageError: `keep` is out of range, the task does not fit the model, or the ablation does not fit the task.
    :raises MachineError: the model cannot be run.
    """
    check_keep(keep)
    check_range(most_runs=(most_runs, 30, inf))
    subjects = Subjects(model, task, seed)
    ablation = ablation or subjects.best
    journal = open_journal(subjects, ablation)
    searched, checked = subjects.halves()
    parts = [
        Recorded(subjects.on(rows, ablation), journal, name, len(rows))
        for name, rows in (("searched", searched), ("checked", checked), ("judged", subjects.judged))
    ]
    groups = subjects.prompts.group[subjects.judged]
    check_runs = -(-len(checked) // max(1, len(searched)))
    found = smallest_set(
        parts[0], parts[1], check_runs, keep, most_runs, lambda runs: on_step(runs, most_runs, "searching")
    )
    on_step(most_runs, most_runs, "judging on unseen prompts")
    result = Circuit(
        mechrl_version=mechrl.__version__, model=safe_text(model.name), model_sha256=model.sha256,
        task=safe_text(subjects.task), ablation=ablation.value, keep=keep, seed=seed, searched=len(searched),
        runs=found.runs, prompts=len(groups), groups=len(np.unique(groups)), n_layers=model.n_layers,
        n_heads=model.n_heads,
        refused=None if found.refused is None else safe_text(found.refused), **judged(parts[2], found, groups, keep,
        model.n_layers, seed),
    )  # fmt: skip
    if found.kept is not None:
        result = result.model_copy(update={"heads": _heads(subjects, ablation, parts[2], found.kept, groups, keep)})
    journal.remove()
    return result


def check_keep(keep: float) -> None:
    """:raises UsageError: the share is not one."""
    if not 0 < keep < 1:
        raise UsageError(f"the share to keep must lie above 0 and below 1, and is {keep:g}")


def open_journal(subjects: Subjects, ablation: Ablation) -> Journal:
    """The journal of a task under an ablation: what is measured depends on nothing else."""
    prompts, other = subjects.prompts, subjects.other(ablation)
    arrays = [prompts.tokens, prompts.length, prompts.answers, prompts.wrongs, prompts.split]
    model = subjects.model
    return Journal(
        mechrl.__version__, model.sha256, str(model.device), ablation.value, other.sha256,
        *(np.ascontiguousarray(array).tobytes() for array in arrays),
    )  # fmt: skip


def smallest_set(
    searched: Subject,
    checked: Subject,
    check_runs: int,
    keep: float,
    most_runs: int = MOST_RUNS,
    on_runs: Callable[[int], None] = lambda runs: None,
) -> Found:
    """Search for the smallest set that keeps a behaviour on the prompts of two subjects.

    :param searched: what the search runs on; `checked` has other prompts, on which what it finds is tried.
    :param check_runs: what one such trial costs.
    """
    numbers, empty_agreement = ends(searched)
    if refused := why_not(numbers):
        return Found(None, refused, None, 2)
    search = Search(
        searched, checked, check_runs, keep, most_runs, (numbers, ends(checked)[0]), empty_agreement < keep,
        lambda runs: on_runs(min(runs, most_runs)), runs=2 + 2 * check_runs,
    )  # fmt: skip
    point = search.smallest()
    refused = None
    if point is None:
        refused = (
            f"no set of fewer than {NEARLY_ALL:.0%} of the {searched.n_sites} heads was found that keeps {keep:.0%} "
            "of the behaviour"
        )
    return Found(
        None if point is None else point.kept, refused, _by_logit_diff(search.known.values(), keep), search.runs
    )


def _by_logit_diff(points: Any, keep: float) -> np.ndarray | None:
    """The smallest set of those that were tried whose logit difference is large enough; of two the closer to 1."""
    enough = [point for point in points if point.ratio >= keep and point.size]
    return min(enough, key=lambda point: (point.size, abs(point.ratio - 1))).kept if enough else None


def ends(subject: Subject) -> tuple[Numbers, float]:
    """What the intact and the empty model do, and how often the empty one says what the intact one says."""
    measured = subject.measure(np.stack([np.ones(subject.n_sites, bool), np.zeros(subject.n_sites, bool)]))
    means = {name: values.mean(0).tolist() for name, values in measured.items()}
    full, empty = means["logit_diff"]
    return Numbers(full, empty, means["kl"][1]), means["top1_agreement"][1]


def why_not(numbers: Numbers) -> str | None:
    """Why there is nothing to search for; None where there is."""
    full, empty, kl = numbers
    if not full > 0:
        return f"the model does not do the task: its logit difference is {full:.2f} nats, not above zero"
    if full - empty < LEAST_DIFFERENCE * full:
        return (
            f"heads make less than a tenth of the logit difference: {full:.2f} nats, and {empty:.2f} without any head"
        )
    if kl < LEAST_KL:
        return f"without any head the next token hardly changes: KL divergence {kl:.3f} nats, less than {LEAST_KL}"
    return None


class Judge:
    """The verdict on sets of heads on unseen prompts, beside the intact model and the one without any head.

    :param groups: int [prompt], which are resampled together.
    """

    def __init__(self, unseen: Subject, groups: np.ndarray, keep: float):
        self.unseen, self.groups, self.keep = unseen, groups, keep
        n = unseen.n_sites
        self.ends = unseen.measure(np.stack([np.ones(n, bool), np.zeros(n, bool)]))

    @property
    def full(self) -> np.ndarray:
        """The intact model's logit differences, [prompt]."""
        return self.ends["logit_diff"][:, 0]

    def __call__(self, sets: np.ndarray) -> list[Kept]:
        """What each of some sets keeps, bool [set, site]."""
        measured = self.unseen.measure(sets)
        empty = {name: values[:, 1] for name, values in self.ends.items()}
        return [
            judge({name: values[:, i] for name, values in measured.items()}, self.full, empty, self.groups, self.keep)
            for i in range(len(sets))
        ]


def judged(unseen: Subject, found: Found, groups: np.ndarray, keep: float, n_layers: int, seed: int) -> dict[str, Any]:
    """The fields of a `Circuit` that say what the sets are worth that a search ended with."""
    verdict = Judge(unseen, groups, keep)
    fields: dict[str, Any] = {}
    if found.by_logit_diff is not None:
        (of,) = verdict(found.by_logit_diff[None])
        fields["by_logit_diff"] = HeadSet(heads=names(found.by_logit_diff, n_layers), kept=of)
    if found.kept is not None:
        fields["kept"], fields["ablated"] = verdict(np.stack([found.kept, ~found.kept]))
        random = random_sets(found.kept, n_layers, RANDOM_SETS, seed)
        fields["random"] = summed_up(verdict(random))
    return fields


def summed_up(of: Sequence[Kept]) -> RandomSets:
    """Random sets as one."""
    return RandomSets(
        sets=len(of),
        kept=sum(one.verdict == "kept" for one in of),
        ratio=float(np.median([one.ratio.value.mean for one in of])),
        agreement=float(np.median([one.agreement.value.mean for one in of])),
        kl_fidelity=float(np.median([one.kl_fidelity.value.mean for one in of])),
    )


def _heads(
    subjects: Subjects, ablation: Ablation, unseen: Subject, kept: np.ndarray, groups: np.ndarray, keep: float
) -> list[CircuitHead]:
    """The heads of a circuit: what each does in the intact model, and what the circuit is without it."""
    sites = np.flatnonzero(kept)
    without = np.repeat(kept[None], len(sites), 0)
    without[np.arange(len(sites)), sites] = False
    alone = np.ones((len(sites), len(kept)), bool)
    alone[np.arange(len(sites)), sites] = False
    verdict = Judge(unseen, groups, keep)
    verdicts, damage = verdict(without), verdict.full[:, None] - unseen.measure(alone)["logit_diff"]
    rows = subjects.judged
    direct = direct_effect(subjects.forward, subjects.prompts[rows], subjects.other(ablation)[rows])
    roles = measure_roles(subjects.model)
    return [
        CircuitHead(
            head=name,
            damage=float(damage[:, i].mean()),
            without_ratio=less.ratio.value.mean,
            without_agreement=less.agreement.value.mean,
            without_kl_fidelity=less.kl_fidelity.value.mean,
            direct=None if direct is None else float(direct[:, site].mean()),
            roles={role: float(values[site]) for role, values in roles.items()},
        )
        for i, (name, site, less) in enumerate(zip(names(kept, subjects.model.n_layers), sites, verdicts, strict=True))
    ]


def names(kept: np.ndarray, n_layers: int) -> list[str]:
    """The heads of a set, `layer.head`, of bool [site]."""
    return [f"{layer}.{head}" for layer, head in np.argwhere(kept.reshape(n_layers, -1)).tolist()]


def random_sets(kept: np.ndarray, n_layers: int, n: int, seed: int) -> np.ndarray:
    """Random sets with as many heads in each layer as a set has, bool [set, site]."""
    rng = np.random.default_rng(seed)
    layers = np.repeat(kept.reshape(1, n_layers, -1), n, 0)
    return np.asarray(rng.permuted(layers, axis=2).reshape(n, -1))
