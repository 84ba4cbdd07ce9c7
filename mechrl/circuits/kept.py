"""Whether a set of heads keeps a behaviour: three numbers together, each with its interval.

A logit difference can survive a behaviour that is gone, so it is never judged alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mechrl.circuits.result import NUMBERS, Kept, Part, RandomSets, Verdict
from mechrl.circuits.search import Subject
from mechrl.intervals import LEAST_GROUPS, Estimate, bootstrap_means, interval

Measures = Mapping[str, np.ndarray]


def judge(circuit: Measures, full: np.ndarray, empty: Measures, groups: np.ndarray, keep: float) -> Kept:
    """What a set keeps, and whether that is enough.

    - the ratio of its mean logit difference to the intact model's, which must lie between `keep` and 1 ÷ `keep`;
    - agreement: the share of prompts with the intact model's most probable token, at least `keep`; it does not count
      where the model without any head has as much;
    - KL fidelity: 1 − KL(intact‖circuit) ÷ KL(intact‖empty), at least `keep`.

    Kept means that the whole interval of each lies where it must; not kept, that one of them lies outside altogether.
    With fewer than 8 groups nothing is kept: intervals of so few say little.

    :param circuit: `logit_diff`, `kl` and `top1_margin` with the set kept, [prompt] each; `empty` with no head kept.
    :param full: the logit difference of the intact model, [prompt].
    :param groups: int [prompt], which are resampled together.
    """
    columns = [circuit["logit_diff"], full, circuit["top1_margin"] >= 0, circuit["kl"]]
    columns += [empty["logit_diff"], empty["top1_margin"] >= 0, empty["kl"]]
    values = np.stack(columns, 1)
    resampled = bootstrap_means(values, groups)
    means = values.mean(0)

    def numbers(of: np.ndarray) -> np.ndarray:
        """Ratio, agreement, KL fidelity, each […, 3], from means […, column]."""
        ratio, fidelity = of[..., 0] / of[..., 1], 1 - of[..., 3] / of[..., 6]
        return np.stack([ratio, of[..., 2], fidelity], -1)

    found, (low, high) = numbers(means), interval(numbers(resampled))
    estimates = [Estimate(*map(float, of)) for of in zip(found, low, high, strict=True)]
    of_empty = [float(means[4] / means[1]), float(means[5]), 0.0]
    parts = {
        name: _part(name, estimate, of, keep, enough=len(np.unique(groups)) >= LEAST_GROUPS)
        for name, estimate, of in zip(NUMBERS, estimates, of_empty, strict=True)
    }
    counted = {name: part for name, part in parts.items() if part.counts}
    binding: Any = min(counted, key=lambda name: _room(name, counted[name].value, keep)[0])
    verdicts = {part.verdict for part in counted.values()}
    verdict: Verdict = "not kept" if "not kept" in verdicts else "undecided" if "undecided" in verdicts else "kept"
    kl = Estimate(float(means[3]), *map(float, interval(resampled[:, 3])))
    return Kept(verdict=verdict, binding=binding, **parts, kl=kl, empty_kl=float(means[6]), full=float(means[1]))


def _part(name: str, value: Estimate, empty: float, keep: float, enough: bool) -> Part:
    """:param enough: whether there are groups enough for an interval."""
    worse, better = _room(name, value, keep)
    verdict: Verdict = "not kept" if better < 0 else "kept" if worse >= 0 and enough else "undecided"
    return Part(value=value, empty=empty, counts=name != "agreement" or empty < keep, verdict=verdict)


def _room(name: str, value: Estimate, keep: float) -> tuple[float, float]:
    """How far inside what is asked for an interval lies, at its worse end and at its better one.

    The ratio must not lie above 1 ÷ `keep` either.
    """
    if name != "ratio":
        return value.low - keep, value.high - keep
    return min(value.low - keep, 1 / keep - value.high), min(value.high - keep, 1 / keep - value.low)


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


def summed_up(of: Sequence[Kept]) -> RandomSets:
    """Random sets as one."""
    return RandomSets(
        sets=len(of),
        kept=sum(one.verdict == "kept" for one in of),
        ratio=float(np.median([one.ratio.value.mean for one in of])),
        agreement=float(np.median([one.agreement.value.mean for one in of])),
        kl_fidelity=float(np.median([one.kl_fidelity.value.mean for one in of])),
    )


def names(kept: np.ndarray, n_layers: int) -> list[str]:
    """The heads of a set, `layer.head`, of bool [site]."""
    return [f"{layer}.{head}" for layer, head in np.argwhere(kept.reshape(n_layers, -1)).tolist()]


def random_sets(kept: np.ndarray, n_layers: int, n: int, seed: int) -> np.ndarray:
    """Random sets with as many heads in each layer as a set has, bool [set, site]."""
    rng = np.random.default_rng(seed)
    layers = np.repeat(kept.reshape(1, n_layers, -1), n, 0)
    return np.asarray(rng.permuted(layers, axis=2).reshape(n, -1))
