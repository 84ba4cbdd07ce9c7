"""From a behaviour to its circuit: prompts, search, and the verdict on prompts that the search did not see."""

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np

from mechrl.ablation import Ablation
from mechrl.ablation.forward import Forward
from mechrl.ablation.intact.direct import direct_effect
from mechrl.ablation.intact.roles import measure_roles
from mechrl.ablation.replacement import ReplacementMaker
from mechrl.circuits.behaviour import Behaviour
from mechrl.circuits.kept import judge
from mechrl.circuits.result import Circuit, CircuitHead, Kept, RandomSets
from mechrl.circuits.search import NEARLY_ALL, Numbers, Search
from mechrl.errors import UsageError, check_range
from mechrl.models import Model, check_length
from mechrl.results import safe_text
from mechrl.tasks import EVALUATION, TRAIN, Prompts, Task, TaskFile, generate, join
from mechrl.tasks.batches import arrange, fitting_batch_size
from mechrl.tasks.fitting import fit_files

TRAIN_PROMPTS, JUDGED_PROMPTS = 64, 96  # of a built-in task; means are taken over the former
SEARCHED = 32  # training prompts that the search runs on
MOST_RUNS = 150
LEAST_DIFFERENCE = 0.1  # of the intact model's logit difference, between it and the model without any head
LEAST_KL = 0.1  # nats, of the model without any head
RANDOM_SETS = 20

OnStep = Callable[[float, float, str], None]


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

    :param keep: the share of the behaviour to be kept, above 0 and below 1.
    :param ablation: what is put in place of the other heads; by default the counterfactual twins' outputs where there
        are twins, else the mean over the task's prompts.
    :param most_runs: of the model on the prompts that are searched on.
    :raises UsageError: `keep` is out of range, the task does not fit the model, or the ablation does not fit the task.
    :raises MachineError: the model cannot be run.
    """
    if not 0 < keep < 1:
        raise UsageError(f"the share to keep must lie above 0 and below 1, and is {keep:g}")
    check_range(most_runs=(most_runs, 30, inf))
    prompts = _prompts(model, task, seed)
    if ablation is None:
        ablation = Ablation.MEAN_TASK if prompts.corrupted is None else Ablation.COUNTERFACTUAL
    if ablation is Ablation.MEAN_CONTROL:
        raise UsageError("a circuit is found without control text; ablate by mean_task instead of mean_control")
    forward = Forward(model)
    nothing = np.zeros((0, 1), np.int32)
    maker = ReplacementMaker(ablation, forward, nothing, np.zeros(0, np.uint8), seed)
    other = maker.for_task(task.name, prompts)
    train, judged = (np.flatnonzero(prompts.split == split) for split in (TRAIN, EVALUATION))
    searched, checked = np.split(train, [min(SEARCHED, len(train) // 2)])
    subject, check, unseen = (Behaviour(forward, prompts[of], other[of]) for of in (searched, checked, judged))
    n_sites = subject.n_sites

    def result(search: Search | None = None, refused: str | None = None, **found: Any) -> Circuit:
        return Circuit(
            model=safe_text(model.name), model_sha256=model.sha256, task=safe_text(task.name), ablation=ablation.value,
            keep=keep, seed=seed, searched=len(searched), runs=search.runs if search else 2,
            prompts=len(judged), groups=len(np.unique(prompts.group[judged])), n_heads=n_sites,
            refused=None if refused is None else safe_text(refused), **found,
        )  # fmt: skip

    numbers, empty_agreement = _ends(subject)
    if refused := why_not(numbers):
        return result(refused=refused)
    check_runs = -(-len(checked) // max(1, len(searched)))
    search = Search(
        subject, check, check_runs, keep, most_runs, (numbers, _ends(check)[0]), empty_agreement < keep,
        lambda runs: on_step(min(runs, most_runs), most_runs, "searching"), runs=2 + 2 * check_runs,
    )  # fmt: skip
    point = search.smallest()
    if point is None:
        return result(
            search,
            f"no set of fewer than {NEARLY_ALL:.0%} of the {n_sites} heads was found that keeps {keep:.0%}: under the "
            f"ablation {ablation.value} the behaviour needs nearly all of them",
        )
    on_step(most_runs, most_runs, "judging on unseen prompts")
    return result(search, **_judged(unseen, point.kept, keep, seed))


def _ends(subject: Behaviour) -> tuple[Numbers, float]:
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


def _prompts(model: Model, task: Task | TaskFile, seed: int) -> Prompts:
    """Training prompts and evaluation prompts, whose fillers differ where the task allows.

    :raises UsageError: the task does not fit the model's tokenizer or context.
    """
    if isinstance(task, Task):
        counts = (TRAIN, TRAIN_PROMPTS), (EVALUATION, JUDGED_PROMPTS)
        prompts = join([generate(task, model.vocabulary, n, split, seed) for split, n in counts])
    else:
        (file,) = fit_files([task], model.vocabulary, model.n_ctx)
        prompts = arrange(file, model.vocabulary, fitting_batch_size([file]))
    longest = int(prompts.length.max())
    if longest > model.n_ctx:
        raise UsageError(
            f"task {task.name!r} has {longest} tokens in a prompt and {model.name!r} takes {model.n_ctx} at most"
        )
    check_length(model, longest)
    return prompts


def _judged(unseen: Behaviour, kept: np.ndarray, keep: float, seed: int) -> dict[str, Any]:
    """The fields of a `Circuit` that say what a set is worth, on prompts that the search did not see."""
    model, groups, n_sites = unseen.forward.model, unseen.prompts.group, unseen.n_sites
    sites = np.flatnonzero(kept)
    without = np.repeat(kept[None], len(sites), 0)
    without[np.arange(len(sites)), sites] = False
    random = random_sets(kept, model.n_layers, RANDOM_SETS, seed)
    sets = [np.ones((1, n_sites), bool), np.zeros((1, n_sites), bool), kept[None], ~kept[None], without, random]
    measured = unseen.measure(np.concatenate(sets))
    full, empty = measured["logit_diff"][:, 0], {name: values[:, 1] for name, values in measured.items()}

    def verdict(column: int) -> Kept:
        return judge({name: values[:, column] for name, values in measured.items()}, full, empty, groups, keep)

    direct = direct_effect(unseen.forward, unseen.prompts, unseen.other)
    roles = measure_roles(model)
    heads = []
    for column, site in enumerate(sites, 4):
        less = verdict(column)
        heads.append(
            CircuitHead(
                head=f"{site // model.n_heads}.{site % model.n_heads}",
                without_ratio=less.ratio.value.mean,
                without_kl_fidelity=less.kl_fidelity.value.mean,
                direct=None if direct is None else float(direct[:, site].mean()),
                roles={name: float(values[site]) for name, values in roles.items()},
            )
        )
    others = [verdict(column) for column in range(4 + len(sites), 4 + len(sites) + len(random))]
    return {
        "heads": heads,
        "kept": verdict(2),
        "ablated": verdict(3),
        "random": RandomSets(
            sets=len(others),
            kept=sum(of.verdict == "kept" for of in others),
            ratio=float(np.median([of.ratio.value.mean for of in others])),
            agreement=float(np.median([of.agreement.value.mean for of in others])),
            kl_fidelity=float(np.median([of.kl_fidelity.value.mean for of in others])),
        ),
    }


def random_sets(kept: np.ndarray, n_layers: int, n: int, seed: int) -> np.ndarray:
    """Random sets with as many heads in each layer as a set has, bool [set, site]."""
    rng = np.random.default_rng(seed)
    layers = np.repeat(kept.reshape(1, n_layers, -1), n, 0)
    return np.asarray(rng.permuted(layers, axis=2).reshape(n, -1))
