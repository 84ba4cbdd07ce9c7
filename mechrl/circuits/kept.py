"""Whether a set of heads keeps a behaviour: three numbers together, each with its interval.

A logit difference can survive a behaviour that is gone, so it is never judged alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mechrl.circuits.result import Kept, Part, Verdict
from mechrl.intervals import Estimate, bootstrap_means, interval

Measures = Mapping[str, np.ndarray]


def judge(circuit: Measures, full: np.ndarray, empty: Measures, groups: np.ndarray, keep: float) -> Kept:
    """What a set keeps, and whether that is enough.

    - the ratio of its mean logit difference to the intact model's, which must lie between `keep` and 1 ÷ `keep`;
    - agreement: the share of prompts with the intact model's most probable token, at least `keep`; it does not count
      where the model without any head has as much;
    - KL fidelity: 1 − KL(intact‖circuit) ÷ KL(intact‖empty), at least `keep`.

    Kept means that the whole interval of each lies where it must; not kept, that one of them lies outside altogether.

    :param circuit: `logit_diff`, `kl` and `top1_agreement` with the set kept, [prompt] each; `empty` with no head kept.
    :param full: the logit difference of the intact model, [prompt].
    :param groups: int [prompt], which are resampled together.
    """
    columns = [circuit["logit_diff"], full, circuit["top1_agreement"], circuit["kl"]]
    columns += [empty["logit_diff"], empty["top1_agreement"], empty["kl"]]
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
        name: Part(value=estimate, empty=of, counts=name != "agreement" or of < keep)
        for name, estimate, of in zip(("ratio", "agreement", "kl_fidelity"), estimates, of_empty, strict=True)
    }
    room = {name: _room(part.value, keep, bounded=name == "ratio") for name, part in parts.items() if part.counts}
    binding: Any = min(room, key=lambda name: room[name][0])
    verdict: Verdict = "undecided"
    if room[binding][0] >= 0:
        verdict = "kept"
    elif min(most for _, most in room.values()) < 0:
        verdict = "not kept"
    kl = Estimate(float(means[3]), *map(float, interval(resampled[:, 3])))
    return Kept(verdict=verdict, binding=binding, **parts, kl=kl, empty_kl=float(means[6]), full=float(means[1]))


def _room(value: Estimate, keep: float, bounded: bool) -> tuple[float, float]:
    """How far inside what is asked for an interval lies, at its worse end and at its better one.

    :param bounded: whether it must not lie above 1 ÷ `keep` either.
    """
    if not bounded:
        return value.low - keep, value.high - keep
    return min(value.low - keep, 1 / keep - value.high), min(value.high - keep, 1 / keep - value.low)
