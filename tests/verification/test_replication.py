"""The test of a head on fresh prompts, its placebo, and completeness, on numbers made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from mechrl.tasks import Prompts
from mechrl.verification.fresh import placebo
from mechrl.verification.replication import Measured, completeness, head_tests, rank_limit

HEADS = [f"{site // 4}.{site % 4}" for site in range(20)]
GROUPS = np.arange(64)
RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(64, 20)) * 0.3
MEANS = np.array([3.0, 2.5, 1.0, 0.3, *np.zeros(16)])


def measured(means=MEANS, control=0.0, clean=10.0, sites=range(20), groups=GROUPS) -> Measured:
    sites = np.array(sites)
    spans = np.full((16, 20), control) + 0.01 * RNG.normal(size=(16, 20))
    return Measured(sites, (means + NOISE - NOISE.mean(0))[:, sites], groups, spans[:, sites], clean)


def test_a_head_passes_with_a_twentieth_of_the_clean_measure_above_zero_and_in_the_top():
    tests = head_tests(measured(), [0, 1, 2, 3, 7], swept=True)
    assert [test.why for test in tests[:3]] == ["", "", ""]
    assert tests[3].why == "damage below 5% of the clean measure"
    assert tests[4].why == "damage below 5% of the clean measure; score not above zero; not in the top 6"
    assert tests[0].damage[0] == pytest.approx(3.0)
    assert tests[0].share == pytest.approx(0.3)
    assert tests[0].rank[0] == 1
    assert tests[0].p == pytest.approx(1 / 2001)
    assert tests[0].p_adjusted == pytest.approx(5 / 2001), "Holm over the five that are tested"
    assert tests[0].damage[1] < 3.0 < tests[0].damage[2]


def test_what_a_head_costs_on_ordinary_text_is_taken_off():
    assert [test.why for test in head_tests(measured(control=2.0), [0, 2], swept=True)] == ["", "score not above zero"]


def test_the_top_is_ten_heads_or_three_tenths_of_a_small_model():
    assert [rank_limit(n) for n in (144, 48, 20, 12, 3)] == [10, 10, 6, 3, 1]
    crowd = np.array([*np.full(6, 5.0), 1.0, *np.zeros(13)])
    assert head_tests(measured(crowd), [6], swept=True)[0].why == "not in the top 6"
    assert head_tests(measured(crowd), [6], swept=True)[0].rank[0] == 7
    assert rank_limit(8, 3) == 3, "whoever asks for three heads of eight asks whether they are the best three"
    assert [test.why for test in head_tests(measured(crowd), [6, *range(6)], swept=True)] == [""] * 7


def test_without_a_sweep_a_head_must_be_above_the_random_ones():
    sites = [0, 1, 2, *range(4, 20)]
    assert [test.why for test in head_tests(measured(sites=sites), [0, 1], swept=False)] == ["", ""]
    found = head_tests(measured(sites=sites), [0, 2], swept=False)
    assert found[1].why == "not above 17 random heads", "1 is among them, and better"
    assert found[0].rank is None


def test_few_groups_and_tasks_that_the_model_does_not_do_pass_nothing():
    few = head_tests(measured(groups=np.arange(64) % 7), [0], swept=True)
    assert few[0].why == "fewer than 8 groups"
    undone = head_tests(measured(clean=-1.0), [0], swept=True)[0]
    assert undone.why == "the model does not do the task"
    assert undone.share == 0


def test_completeness_is_the_share_of_the_best_heads_scores():
    found = completeness(measured(), [0, 2], HEADS)
    assert found.coverage[0] == pytest.approx(4.0 / 5.5, abs=0.01)
    assert found.ratio[0] == pytest.approx(1.0)
    assert found.best == ["0.0", "0.1"]
    assert not found.answer
    assert completeness(measured(), [0, 1], HEADS).answer
    second = completeness(measured(), [1], HEADS)
    assert second.ratio[0] == second.coverage[0] == pytest.approx(2.5 / 3, abs=0.01)
    assert second.coverage[1] < 2.5 / 3 < second.coverage[2]


def prompts(n: int, groups, answers) -> Prompts:
    ids = np.array(answers, np.int32).reshape(n, 1)
    return Prompts(np.ones((n, 3), np.int32), np.full(n, 3, np.int32), ids, ids + 100,
                   np.array(groups, np.int32), np.ones(n, np.uint8), None)  # fmt: skip


def test_the_placebo_gives_every_prompt_the_answers_of_another_group():
    of = prompts(30, np.repeat(np.arange(10), 3), np.repeat(np.arange(10), 3))
    for seed in range(5):
        permuted = placebo(of, seed)
        assert (permuted.answers != of.answers).all()
        assert (permuted.wrongs == permuted.answers + 100).all(), "answers and wrongs stay together"
        assert np.unique(permuted.answers).tolist() == list(range(10))
    assert not np.array_equal(placebo(of, 0).answers, placebo(of, 1).answers)


def test_there_is_no_placebo_where_nothing_can_be_permuted():
    assert placebo(prompts(6, np.zeros(6), np.arange(6))) is None, "one group"
    assert placebo(prompts(6, np.arange(6), np.zeros(6))) is None, "one answer"
    two = prompts(6, np.arange(6), np.zeros(6))
    assert placebo(replace(two, wrongs=np.arange(6, dtype=np.int32)[:, None])) is not None
