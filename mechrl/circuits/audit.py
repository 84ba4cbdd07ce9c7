"""Anybody's claim that some heads are the circuit of a behaviour, put to four tests under every analysis at hand.

The tests are those of Shi et al. 2024 (arXiv 2410.13032): is it sufficient, necessary, minimal, and better than random
sets of its size? An analysis is an ablation, a half of the unseen prompts, and what is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mechrl
from mechrl.ablation import Ablation
from mechrl.circuits.kept import judge, names, random_sets
from mechrl.circuits.result import NUMBERS, Analysis, Audit, Circuit, Claim, Excluded, FourTests, Kept, Verdict
from mechrl.circuits.search import Subject
from mechrl.circuits.smallest import check_keep, ends, why_not
from mechrl.circuits.subjects import Subjects
from mechrl.errors import FileError, UsageError
from mechrl.intervals import LEAST_GROUPS
from mechrl.models import Model
from mechrl.progress import Show
from mechrl.results import read_result, safe_text
from mechrl.search.bench.statistics import holm
from mechrl.tasks import Task, TaskFile

AUDITED_PROMPTS = 128  # unseen ones of a built-in task, in two halves of 64
LEAST_RANDOM_SETS = 100
ALPHA = 0.05
ALL = "all three"

Measured = Mapping[str, np.ndarray]


def read_claim(path: Path) -> Claim:
    """A claim from a JSON file, or the circuit that `mechrl circuit` wrote as one.

    :raises UsageError: there is no such file.
    :raises FileError: it is neither, or it is a circuit without heads.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; a claim is a JSON file with a task and a list of heads")
    found = read_result(path, (Claim, Circuit), otherwise=Claim)
    if isinstance(found, Claim):
        return found
    if not isinstance(found, Circuit):
        raise FileError(f"{path}: no claim: a JSON object with a task and a list of heads")
    if not found.heads:
        raise FileError(f"{path}: a search that found no circuit, so there is nothing to audit")
    return Claim(
        task=found.task, heads=[head.head for head in found.heads], model=found.model, model_sha256=found.model_sha256,
        ablation=found.ablation, source=f"mechrl circuit, seed {found.seed}",
    )  # fmt: skip


def audit_claim(
    model: Model,
    claim: Claim,
    task: Task | TaskFile,
    keep: float = 0.8,
    ablations: Sequence[Ablation] = (),
    seed: int = 1,
    on_step: Show = lambda done, total, doing="": None,
) -> Audit:
    """Put a claim to the four tests, under every ablation and on both halves of the unseen prompts.

    :param task: the behaviour that the claim is about.
    :param keep: the share of the behaviour that has to be kept.
    :param ablations: by default all that the task can be put to without more text, `zero_raw` left out.
    :param seed: of the prompts and random sets; another than the search's, so that its prompts are not asked again.
    :raises UsageError: a head that the model does not have, `keep` out of range, the task does not fit the model, or no
        ablation is left.
    :raises FileError: the claim is about another model or task.
    :raises MachineError: the model cannot be run.
    """
    check_keep(keep)
    check_fits(claim, model, task.name)
    kept = _mask(claim.heads, model.n_layers, model.n_heads)
    subjects = Subjects(model, task, seed, judged=AUDITED_PROMPTS)
    rows = subjects.judged
    excluded, under = [], {}
    for kind, refused in subjects.usual.items() if not ablations else [(kind, "") for kind in ablations]:
        unseen = None if refused else subjects.on(rows, kind)
        why = refused if unseen is None else why_not(ends(unseen)[0])
        if unseen is None or why:
            excluded.append(Excluded(ablation=kind.value, why=safe_text(why)))
        else:
            under[kind.value] = unseen
    if not under:
        raise UsageError(
            f"nothing can be asked of {task.name!r}: " + "; ".join(f"{of.ablation}: {of.why}" for of in excluded)
        )
    tested = put_to_tests(under, subjects.prompts.group[rows], kept, keep, model.n_layers, seed, on_step)
    return Audit(
        mechrl_version=mechrl.__version__, model=safe_text(model.name), model_sha256=model.sha256,
        task=safe_text(task.name), heads=names(kept, model.n_layers), claimed_under=claim.ablation, source=claim.source,
        keep=keep, seed=seed, n_layers=model.n_layers, n_heads=model.n_heads, random_sets=tested.random_sets,
        analyses=tested.analyses, excluded=excluded, placebo_heads=names(tested.placebo_set, model.n_layers),
        placebo=tested.placebo,
    )  # fmt: skip


def check_fits(claim: Claim, model: Model, task: str) -> None:
    """:raises FileError: the claim is about another model or task than is asked."""
    if claim.task != task:
        raise FileError(f"the claim is about the task {claim.task!r}, not {task!r}")
    if claim.model_sha256 and claim.model_sha256 != model.sha256:
        raise FileError(
            f"the claim is about {claim.model!r} with fingerprint {claim.model_sha256[:12]}; {model.name!r}, which is "
            f"loaded, has {model.sha256[:12]}"
        )
    if claim.model and not claim.model_sha256 and claim.model != model.name:
        raise FileError(f"the claim is about {claim.model!r}, and {model.name!r} is loaded: name the claim's model")


def _mask(heads: Sequence[str], n_layers: int, n_heads: int) -> np.ndarray:
    """bool [site].

    :raises UsageError: the model has no such head, or they are all that it has.
    """
    kept = np.zeros((n_layers, n_heads), bool)
    for head in heads:
        layer, index = map(int, head.split("."))
        if layer >= n_layers or index >= n_heads:
            raise UsageError(f"there is no head {head} in a model of {n_layers} layers with {n_heads} heads each")
        kept[layer, index] = True
    if kept.all():
        raise UsageError("the claim names every head of the model: nothing is left to ablate")
    return kept.ravel()


@dataclass(frozen=True)
class Tested:
    """A set of heads and a random one of its size under every analysis."""

    analyses: list[Analysis]
    placebo_set: np.ndarray
    placebo: list[Analysis]
    random_sets: int


def put_to_tests(
    under: Mapping[str, Subject],
    groups: np.ndarray,
    kept: np.ndarray,
    keep: float,
    n_layers: int,
    seed: int,
    on_step: Show = lambda done, total, doing="": None,
) -> Tested:
    """The four tests of a set of heads.

    :param under: what is asked, by ablation; all on the same prompts.
    :param groups: int [prompt]; each half of the prompts has half of them.
    :param kept: bool [site].
    """
    halves = _halves(groups, seed)
    n_random = max(LEAST_RANDOM_SETS, int(np.ceil(len(under) * len(halves) / ALPHA)))  # Holm's smallest p is reached
    placebo, *random = _others(kept, n_layers, 1 + n_random, seed)
    fields: dict[tuple[str, str], _Asked] = {}
    of_placebo: dict[tuple[str, str], _Asked] = {}
    for done, (ablation, subject) in enumerate(under.items()):
        on_step(done, len(under), f"{ablation}: the claim")
        measured, placebo_measured = (subject.measure(_sets(of)) for of in (kept, placebo))
        asked = {part: _Asked(measured, groups, rows, keep) for part, rows in halves.items()}
        for part, rows in halves.items():
            of_placebo[ablation, part] = _Asked(placebo_measured, groups, rows, keep)
        worth_it = any(asked[part].passes_so_far(by) for part in halves for by in (ALL, *NUMBERS))
        if worth_it:
            on_step(done + 0.3, len(under), f"{ablation}: {n_random} random sets")
            chance = subject.measure(np.stack(random))
            for part in halves:
                asked[part].compare(chance)
                of_placebo[ablation, part].compare(chance)
        fields |= {(ablation, part): of for part, of in asked.items()}
    analyses, placebos = (_analyses(of, names_of, n_layers) for of, names_of in ((fields, kept), (of_placebo, placebo)))
    return Tested(analyses, placebo, placebos, n_random)


def _halves(groups: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Two halves of the prompts that share no group, int [prompt]; all at once where groups are too few for that."""
    unique = np.unique(groups)
    if len(unique) < 2 * LEAST_GROUPS:
        return {"all": np.arange(len(groups))}
    first = np.random.default_rng(seed).permutation(unique)[: len(unique) // 2]
    inside = np.isin(groups, first)
    return {"first half": np.flatnonzero(inside), "second half": np.flatnonzero(~inside)}


def _others(kept: np.ndarray, n_layers: int, n: int, seed: int) -> list[np.ndarray]:
    """Random sets with as many heads in each layer that are not the set itself."""
    found: list[np.ndarray] = []
    for again in range(100):
        drawn = random_sets(kept, n_layers, n, seed + again)
        found += [one for one in drawn if (one != kept).any()]
        if len(found) >= n:
            return found[:n]
    raise UsageError("the claim names every head of the layers that it is in: there is no other set of its size there")


def _sets(kept: np.ndarray) -> np.ndarray:
    """All heads, none, these, all others, and these without each of them; bool [set, site]."""
    sites = np.flatnonzero(kept)
    without = np.repeat(kept[None], len(sites), 0)
    without[np.arange(len(sites)), sites] = False
    return np.concatenate([[np.ones_like(kept), np.zeros_like(kept), kept, ~kept], without])


class _Asked:
    """A set of heads on some prompts under an ablation.

    :param measured: of the sets of `_sets`, [prompt, set].
    :param rows: the prompts.
    """

    def __init__(self, measured: Measured, groups: np.ndarray, rows: np.ndarray, keep: float):
        self.groups, self.rows, self.keep = groups[rows], rows, keep
        self.ends = {name: values[rows, :2] for name, values in measured.items()}
        self.kept, self.ablated, *self.without = self.verdicts({n: values[:, 2:] for n, values in measured.items()})
        self.p: dict[str, float] = {}

    def verdicts(self, measured: Measured) -> list[Kept]:
        empty = {name: values[:, 1] for name, values in self.ends.items()}
        n = measured["logit_diff"].shape[1]
        of_sets = ({name: values[self.rows, i] for name, values in measured.items()} for i in range(n))
        return [judge(of, self.ends["logit_diff"][:, 0], empty, self.groups, self.keep) for of in of_sets]

    def superfluous(self, by: str) -> list[int]:
        """Which of the heads, counted from the first, can go."""
        return [i for i, of in enumerate(self.without) if verdict_by(of, by) == "kept"]

    def passes_so_far(self, by: str) -> bool:
        """Whether the three tests without random sets pass."""
        return (
            verdict_by(self.kept, by) == "kept"
            and all(verdict_by(self.ablated, name) == "not kept" for name in self.numbers(by))
            and not self.superfluous(by)
        )

    def numbers(self, by: str) -> list[str]:
        """Which numbers count."""
        return [name for name in ([by] if by != ALL else NUMBERS) if getattr(self.kept, name).counts]

    def compare(self, chance: Measured) -> None:
        """Takes p-values from random sets: 1 + those at least as good, ÷ 1 + all. All three: of the worst number."""
        full, empty = self.ends["logit_diff"][:, 0].mean(), self.ends["kl"][:, 1].mean()
        means = {name: values[self.rows].mean(0) for name, values in chance.items()}
        agreement = (chance["top1_margin"][self.rows] >= 0).mean(0)
        random = {
            "ratio": _closeness(means["logit_diff"] / full),
            "agreement": agreement,
            "kl_fidelity": 1 - means["kl"] / empty,
        }
        for name in NUMBERS:
            value = getattr(self.kept, name).value.mean
            own = float(_closeness(np.array(value))) if name == "ratio" else value
            self.p[name] = float((1 + (random[name] >= own).sum()) / (1 + len(random[name])))
        self.p[ALL] = max(self.p[name] for name in self.numbers(ALL))


def _closeness(ratio: np.ndarray) -> np.ndarray:
    """Of a ratio to 1, from both sides: 0.8 and 1.25 are as close."""
    return np.where(ratio > 1, 1 / np.maximum(ratio, 1), ratio)


def verdict_by(kept: Kept, by: str) -> Verdict:
    """The verdict by one number, or by all three."""
    found: Verdict = kept.verdict if by == ALL else getattr(kept, by).verdict
    return found


def _analyses(asked: Mapping[tuple[str, str], _Asked], kept: np.ndarray, n_layers: int) -> list[Analysis]:
    heads = names(kept, n_layers)
    corrected = {by: holm({" ".join(key): of.p.get(by, 1.0) for key, of in asked.items()}) for by in (ALL, *NUMBERS)}
    return [
        Analysis(
            ablation=ablation, part=part, prompts=len(of.rows), groups=len(np.unique(of.groups)), kept=of.kept,
            ablated=of.ablated,
            tests=[_test(of, by, heads, corrected[by][f"{ablation} {part}"]) for by in (ALL, *NUMBERS)],
        )
        for (ablation, part), of in asked.items()
    ]  # fmt: skip


def _test(of: _Asked, by: str, heads: Sequence[str], p_holm: float) -> FourTests:
    sufficient = verdict_by(of.kept, by) == "kept"
    necessary = all(verdict_by(of.ablated, name) == "not kept" for name in of.numbers(by))
    superfluous = [heads[i] for i in of.superfluous(by)]
    p = of.p.get(by)
    failed = {
        "sufficient": not sufficient,
        "necessary": not necessary,
        "minimal": bool(superfluous),
        "better than random": p is not None and p_holm > ALPHA,
    }
    return FourTests.model_validate(
        {
            "by": by, "sufficient": sufficient, "necessary": necessary, "superfluous": superfluous, "p": p,
            "p_holm": None if p is None else p_holm, "breaks": [name for name, fails in failed.items() if fails],
        }
    )  # fmt: skip
