"""Joint damage and the curves of necessity and sufficiency: by hand, and on planted models."""

import numpy as np
import pytest
from helpers import planted_model, save

from mechrl.ablation.forward import Forward
from mechrl.ablation.sweep import sweep_task
from mechrl.models import load_model
from mechrl.reporting.sections.verification import joint_claim
from mechrl.tasks import Prompts
from mechrl.verification.sets import MIB_SIZES, areas, counts, faithfulness, joint_damage, measure_curves, mib_counts

GROUPS = np.arange(32)
HEADS = [f"{site // 4}.{site % 4}" for site in range(12)]


def test_counts_are_every_one_up_to_64_heads_and_20_with_those_of_mib_beyond():
    assert counts(12) == list(range(13))
    assert counts(64) == list(range(65))
    of_gpt2 = counts(144)
    assert of_gpt2[0] == 0
    assert of_gpt2[-1] == 144
    even = sorted({*of_gpt2} - {7, 14, 28, 72})
    assert len(even) == 21
    assert (np.diff(np.diff(even)) >= -2).all(), "steps grow"
    for n in (65, 72, 144, 1024):
        assert {*mib_counts(n)} <= {*counts(n)}
        assert 21 <= len(counts(n)) <= 21 + 10


def test_the_sizes_of_mib_are_rounded_down_as_its_evaluator_does():
    assert mib_counts(48) == [0, 0, 0, 0, 0, 2, 4, 9, 24, 48]
    assert mib_counts(144) == [0, 0, 0, 1, 2, 7, 14, 28, 72, 144]


def test_head_cpr_and_head_cmd_by_hand():
    """Two heads; with the first alone 3 of 4 nats above the empty model's 1; more than all in between."""
    f = faithfulness(np.array([1.0, 4.0, 5.0]), full=5.0, empty=1.0)
    np.testing.assert_allclose(f, [0, 0.75, 1])
    assert areas([0, 0.5, 1], f) == (pytest.approx(0.5 * 0.375 + 0.5 * 0.875), pytest.approx(0.5 * 0.625 + 0.5 * 0.125))
    beyond = faithfulness(np.array([1.0, 7.0, 5.0]), full=5.0, empty=1.0)
    assert areas([0, 0.5, 1], beyond) == (pytest.approx(0.375 + 0.625), pytest.approx(0.375 + 0.125)), "CMD counts both"
    assert areas([0, 0.25, 1], np.array([0.0, 1.0, 1.0])) == (pytest.approx(0.125 + 0.75), pytest.approx(0.125))


def additive(strengths: np.ndarray):
    """A made-up model: the logit difference is 2 plus what the heads that are left add."""

    def measure(sets: np.ndarray) -> np.ndarray:
        return np.tile(2 + (~sets * strengths).sum(1), (len(GROUPS), 1))

    return measure


def test_curves_of_an_additive_model_by_hand():
    strengths = np.array([1.0, 3.0, 0.0, 0.0])
    found = measure_curves(additive(strengths), HEADS[:4], {"right": [1, 0, 2, 3], "wrong": [3, 2, 0, 1]})
    assert (found.full, found.empty, found.counts) == (6.0, 2.0, [0, 1, 2, 3, 4])
    right, wrong = found.rankings["right"], found.rankings["wrong"]
    assert right.kept == [2, 5, 6, 6, 6]
    assert right.ablated == [6, 3, 2, 2, 2]
    assert wrong.kept == [2, 2, 2, 3, 6]
    assert right.cpr == pytest.approx((0.375 + 0.875 + 1 + 1) / 4)
    assert right.cmd == pytest.approx(1 - right.cpr)
    assert right.necessity == pytest.approx((0.625 + 0.125) / 4)
    assert wrong.cpr == pytest.approx((0.125 + 0.625) / 4)
    assert right.heads == ["0.1", "0.0", "0.2", "0.3"]


def test_the_areas_at_the_sizes_of_mib_by_hand():
    """Of twelve heads, 0 are kept up to 5 %, then 1, 2, 6 and 12; the first two do it all."""
    strengths = np.zeros(12)
    strengths[:2] = 3, 1
    ranking = measure_curves(additive(strengths), HEADS, {"right": range(12)}).rankings["right"]
    assert mib_counts(12) == [0] * 6 + [1, 2, 6, 12]
    cpr = 0.05 * 0.375 + 0.1 * 0.875 + 0.3 + 0.5
    assert ranking.mib_cpr == pytest.approx(cpr)
    assert ranking.mib_cmd == pytest.approx(MIB_SIZES[-1] - MIB_SIZES[0] - cpr), "the area begins at 0.1 %"
    assert ranking.cpr == pytest.approx((0.375 + 0.875 + 10) / 12)


def test_curves_are_refused_where_heads_hardly_matter():
    refused = measure_curves(additive(np.array([0.1, 0.0])), HEADS[:2], {"any": [0, 1]})
    assert refused.rankings == {}
    assert "nothing to divide" in refused.refused
    assert measure_curves(additive(np.array([0.3, 0.0])), HEADS[:2], {"any": [0, 1]}).rankings
    for strengths in ([-2.0, 0.0], [-3.0, 0.0], [0.0, -0.5]):  # all heads: nothing, less than nothing, less than none
        assert measure_curves(additive(np.array(strengths)), HEADS[:2], {"any": [0, 1]}).rankings == {}
    for full, empty in ((-1.0, -3.0), (0.0, 0.0)):  # the model does not do the task

        def measure(sets, full=full, empty=empty):
            return np.tile(np.where(sets.all(1), empty, full), (4, 1))

        assert measure_curves(measure, HEADS[:2], {"any": [0, 1]}).rankings == {}


@pytest.fixture
def repeating():
    """Prompts in which one of tokens 1 to 8 has occurred, against one that has not."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(20, 60, (32, 6)).astype(np.int32)
    tokens[:, 2] = answers = rng.integers(1, 9, 32)
    column = answers.astype(np.int32)[:, None]
    return Prompts(tokens, np.full(32, 6, np.int32), column, column + 7, GROUPS.astype(np.int32),
                   np.ones(32, np.uint8), None)  # fmt: skip


def of_model(model, folder, prompts):
    """Gives the logit difference with the heads of each set ablated, on a model."""
    forward = Forward(load_model(str(save(model, folder)), device="cpu"))
    return lambda sets: sweep_task(forward, prompts, sets=sets)[1]["logit_diff"]


def test_the_curve_reaches_full_faithfulness_at_exactly_the_planted_heads(repeating, tmp_path):
    """Heads 0.2, 1.1 and 2.3 of twelve do it all."""
    measure = of_model(planted_model({(0, 2): 1.0, (1, 1): 0.7, (2, 3): 0.4}), tmp_path / "planted", repeating)
    rest = [0, 1, 3, 4, 6, 7, 8, 9, 10]
    found = measure_curves(measure, HEADS, {"right": [2, 5, 11, *rest], "late": [*rest, 2, 5, 11]})
    right = faithfulness(np.array(found.rankings["right"].kept), found.full, found.empty)
    assert found.full > 0.5
    assert right[2] < 0.9
    np.testing.assert_allclose(right[3:], 1, atol=1e-3)
    np.testing.assert_allclose(right[:3], [0, 1 / 2.1, 1.7 / 2.1], atol=0.02)
    late = faithfulness(np.array(found.rankings["late"].kept), found.full, found.empty)
    np.testing.assert_allclose(late[:10], 0, atol=1e-3)
    gone = faithfulness(np.array(found.rankings["right"].ablated), found.full, found.empty)
    np.testing.assert_allclose(gone[3:], 0, atol=1e-3)
    assert found.rankings["right"].cpr > 0.8 > 0.2 > found.rankings["late"].cpr


def test_two_heads_that_stand_in_for_one_another_cost_little_alone_and_all_together(repeating, tmp_path):
    """Heads 2.1 and 2.2 write so much that the final norm leaves the same of either as of both."""
    measure = of_model(planted_model({(2, 1): 1e6, (2, 2): 1e6}), tmp_path / "redundant", repeating)
    clean = measure(np.zeros((1, 12), bool)).mean()
    alone, both = joint_damage(measure, HEADS, [9, 10], GROUPS)
    other = joint_damage(measure, HEADS, [10], GROUPS)[0]
    assert clean > 1
    assert abs(alone.joint[0]) < 0.1 * clean
    assert abs(other.joint[0]) < 0.1 * clean
    assert alone.interaction[0] == 0
    assert both.heads == ["2.1", "2.2"]
    assert both.joint[0] > 0.9 * clean
    assert both.summed[0] == pytest.approx(alone.joint[0] + other.joint[0], rel=1e-5)
    assert both.interaction[0] == pytest.approx(both.joint[0] - both.summed[0], rel=1e-5)
    assert both.interaction[1] > 0
    assert joint_claim(both).endswith("these heads stand in for one another, and single damages hide it.")
