"""From a behaviour to its circuit: the search, and the verdict on prompts that the search did not see."""

from math import inf
from typing import Any

import numpy as np

import mechrl
from mechrl.ablation import Ablation
from mechrl.ablation.intact.direct import direct_effect
from mechrl.ablation.intact.roles import measure_roles
from mechrl.circuits.kept import Judge, names, random_sets, summed_up
from mechrl.circuits.result import Circuit, CircuitHead, HeadSet, Judged
from mechrl.circuits.search import Subject
from mechrl.circuits.smallest import MOST_RUNS, Found, check_keep, smallest_set
from mechrl.circuits.stability import measure_stability
from mechrl.circuits.subjects import Subjects
from mechrl.errors import check_range
from mechrl.models import Model
from mechrl.progress import Show
from mechrl.results import safe_text
from mechrl.tasks import Task, TaskFile

RANDOM_SETS = 20
JUDGING, STABILITY = 120, 450  # about so many runs, for progress


def find_circuit(
    model: Model,
    task: Task | TaskFile,
    keep: float = 0.8,
    ablation: Ablation | None = None,
    seed: int = 0,
    most_runs: int = MOST_RUNS,
    stability: bool = False,
    on_step: Show = lambda done, total, doing="": None,
) -> Circuit:
    """The smallest set of heads that is found to keep a behaviour, and the verdict on it.

    What is measured is written down as it comes, and removed at the end: after an interrupt the same call goes on.

    :param keep: the share of the behaviour to be kept, above 0 and below 1.
    :param ablation: what is put in place of the other heads; by default the counterfactual twins' outputs where there
        are twins, else the mean over the task's prompts.
    :param most_runs: of the model on the prompts that are searched on.
    :param stability: whether to measure the best sets of other sizes, to search on five other halves of the training
        prompts, and to keep the same heads under other ablations.
    :raises UsageError: `keep` is out of range, the task does not fit the model, or the ablation does not fit the task.
    :raises MachineError: the model cannot be run.
    """
    check_keep(keep)
    check_range(most_runs=(most_runs, 50, inf))
    subjects = Subjects(model, task, seed)
    ablation = ablation or subjects.best
    journal = subjects.journal(ablation)
    searched, checked = subjects.halves()
    parts = [subjects.recorded(rows, ablation, journal) for rows in (searched, checked, subjects.judged)]
    groups = subjects.prompts.group[subjects.judged]
    check_runs = -(-len(checked) // max(1, len(searched)))
    total = most_runs + JUDGING + stability * STABILITY
    found = smallest_set(
        parts[0], parts[1], check_runs, keep, most_runs, lambda runs: on_step(runs, total, "searching")
    )
    on_step(most_runs, total, "judging on unseen prompts")
    fields = judged(parts[2], found, groups, keep, model.n_layers, seed)
    if found.kept is not None:
        fields["heads"] = _heads(subjects, ablation, parts[2], found.kept, groups, keep)
    if stability:
        so_far = most_runs + JUDGING
        fields["stability"] = measure_stability(
            subjects, ablation, found, parts[2], keep,
            lambda share, doing: on_step(so_far + share * STABILITY, total, doing),
        )  # fmt: skip
    journal.remove()
    return Circuit(
        mechrl_version=mechrl.__version__, model=safe_text(model.name), model_sha256=model.sha256,
        task=safe_text(subjects.task), ablation=ablation.value, keep=keep, seed=seed, searched=len(searched),
        runs=found.runs, prompts=len(groups), groups=len(np.unique(groups)), n_layers=model.n_layers,
        n_heads=model.n_heads, refused=None if found.refused is None else safe_text(found.refused), **fields,
    )  # fmt: skip


def judged(unseen: Subject, found: Found, groups: np.ndarray, keep: float, n_layers: int, seed: int) -> dict[str, Any]:
    """The fields of a `Circuit` that say what the sets are worth that a search ended with."""
    verdict = Judge(unseen, groups, keep)
    fields: dict[str, Any] = {}
    if found.by_logit_diff is not None:
        (of,) = verdict(found.by_logit_diff[None])
        fields["by_logit_diff"] = HeadSet(heads=names(found.by_logit_diff, n_layers), kept=of)
    if found.kept is not None:
        kept, ablated = verdict(np.stack([found.kept, ~found.kept]))
        random = verdict(random_sets(found.kept, n_layers, RANDOM_SETS, seed))
        fields["judged"] = Judged(kept=kept, ablated=ablated, random=summed_up(random))
    return fields


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
