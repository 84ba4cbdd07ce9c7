"""Whether a set of heads keeps a behaviour: three numbers together, and none of them alone."""

import numpy as np
import pytest

from mechrl.circuits.kept import judge

N = 96
GROUPS = np.arange(N) // 4


def measures(logit_diff, kl, agreement):
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.normal(size=N)
    agrees = (np.arange(N) % 20) < round(20 * agreement)
    return {"logit_diff": logit_diff + noise, "kl": kl + abs(noise), "top1_margin": np.where(agrees, 1.0, -1.0)}


EMPTY = measures(0.2, 4.0, 0.0)
FULL = measures(5.0, 0.0, 1.0)["logit_diff"]


@pytest.mark.parametrize(
    ("circuit", "verdict", "binding"),
    [
        (measures(4.5, 0.2, 1.0), "kept", "ratio"),
        (measures(5.0, 0.2, 0.95), "kept", "agreement"),
        (measures(5.0, 0.76, 1.0), "kept", "kl_fidelity"),
        (measures(3.0, 0.2, 1.0), "not kept", "ratio"),
        (measures(7.0, 0.2, 1.0), "not kept", "ratio"),  # more than was there is not what was there
        (measures(5.0, 0.2, 0.4), "not kept", "agreement"),
        (measures(5.0, 2.0, 1.0), "not kept", "kl_fidelity"),
        (measures(6.5, 5.0, 0.0), "not kept", "kl_fidelity"),  # the ratio of two tokens survives, nothing else does
        (measures(5.0, 0.2, 0.8), "undecided", "agreement"),
    ],
)
def test_kept_means_all_three(circuit, verdict, binding):
    found = judge(circuit, FULL, EMPTY, GROUPS, 0.8)
    assert (found.verdict, found.binding) == (verdict, binding)
    assert found.ratio.value.mean == pytest.approx(circuit["logit_diff"].mean() / FULL.mean())
    assert found.kl_fidelity.value.mean == pytest.approx(1 - circuit["kl"].mean() / EMPTY["kl"].mean())
    assert found.agreement.value.mean == pytest.approx((circuit["top1_margin"] > 0).mean())


def test_agreement_does_not_count_where_the_empty_set_has_it():
    empty = {**EMPTY, "top1_margin": np.ones(N)}
    found = judge(measures(5.0, 0.2, 0.4), FULL, empty, GROUPS, 0.8)
    assert found.verdict == "kept"
    assert not found.agreement.counts


def test_few_groups_keep_nothing_and_can_still_fail():
    good, bad = measures(5.0, 0.2, 1.0), measures(1.0, 3.0, 0.0)
    groups = np.arange(N) % 7
    assert judge(good, FULL, EMPTY, groups, 0.8).verdict == "undecided"
    assert judge(bad, FULL, EMPTY, groups, 0.8).verdict == "not kept"
