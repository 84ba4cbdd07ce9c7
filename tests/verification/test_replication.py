"""The test of a head on fresh prompts, its placebo, and completeness, on numbers made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from mechrl.tasks import Prompts
from mechrl.verification.fresh import placebo
from mechrl.verification.replication import Measured, completeness, head_tests, random_tests, rank_limit
from mechrl.verification.result import Specific, random_heads, tells_apart

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
    tests = head_tests(measured(), [0, 1, 2, 3, 7], 6)
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
    assert [test.why for test in head_tests(measured(control=2.0), [0, 2], 6)] == ["", "score not above zero"]


def test_the_top_is_ten_heads_or_an_eighth_of_a_small_model():
    assert [rank_limit(n) for n in (270, 144, 80, 79, 48, 24, 12, 6, 3, 1)] == [10, 10, 10, 9, 6, 3, 3, 2, 1, 1]
    assert rank_limit(8, 3) == 3, "whoever asks for three heads of eight asks whether they are the best three"
    crowd = np.array([*np.full(6, 5.0), 1.0, *np.zeros(13)])
    found = head_tests(measured(crowd), [6], 6)[0]
    assert (found.why, found.rank[0], found.top_share) == ("not in the top 6", 7, 0)
    assert [test.why for test in head_tests(measured(crowd), [6, *range(6)], 7)] == [""] * 7


def test_a_head_that_is_in_the_top_in_too_few_resamples_is_not_in_it():
    """Two heads of nearly the same damage: either is the second in some of the resamples."""
    found = head_tests(measured(np.array([3.0, 2.0, 1.98, *np.zeros(17)])), [0, 1, 2], 2)
    assert [test.why for test in found] == ["", "not in the top 2", "not in the top 2"]
    assert 0.5 < found[1].top_share < 0.95
    assert found[1].top_share + found[2].top_share == pytest.approx(1), "they are resampled together"


CROWD = 75  # heads measured on a model of 270: five tested, thirty best, twenty others, and twenty more to draw from


def measured_crowd(means: np.ndarray, noise: float = 0.3) -> Measured:
    drawn = np.random.default_rng(5).normal(size=(64, CROWD))
    drawn = noise * (drawn - drawn.mean(0)) / drawn.std(0)
    control = np.random.default_rng(6).normal(size=(16, CROWD)) * 1e-3
    return Measured(np.arange(CROWD), means + drawn, GROUPS, control, 10.0)


def test_a_planted_head_passes_where_random_heads_fail():
    """Though thirty heads do something, three of which more than the last planted one."""
    means = np.array([4.0, 2.8, 2.3, *np.full(3, 3.0), *np.linspace(1.5, 0.6, 24), *np.zeros(CROWD - 30)])
    crowd = measured_crowd(means)
    assert [test.why for test in head_tests(crowd, [0, 1, 2], rank_limit(270, 3))] == ["", "", ""]
    others = random_tests(crowd, range(35, 55), rank_limit(270, 3))
    assert len(others) == 20
    assert all("not in the top 10" in test.why for test in others)


@pytest.mark.parametrize("noise", [0.3, 0.0])
def test_heads_of_equal_damage_do_not_pass(noise):
    """Each costs a quarter of the clean measure; also where they are equal to the last bit."""
    equal = measured_crowd(np.full(CROWD, 2.5), noise)
    if not noise:
        equal = replace(equal, control=np.zeros((16, CROWD)))
    found = random_tests(equal, range(20), rank_limit(270, 5))
    assert [test.why for test in found] == ["not in the top 10"] * 20
    assert all(test.share == pytest.approx(0.25) for test in found)


def test_a_random_head_is_tested_as_if_it_were_the_only_one():
    """Its p is not corrected for the others: what Holm lets fail among five may pass alone."""
    weak = measured_crowd(np.array([*np.full(5, 0.52), *np.full(CROWD - 5, -1.0)]), noise=2.0)
    together, alone = head_tests(weak, range(5), 10), random_tests(weak, range(5), 10)
    assert [test.why for test in together] == ["score not above zero"] * 5
    assert [test.why for test in alone] == [""] * 5


@pytest.mark.parametrize(
    ("passed", "of", "apart"),
    [(0, 20, True), (1, 20, True), (2, 20, False), (0, 15, True), (1, 15, False), (0, 0, None)],
)
def test_one_random_head_of_twenty_may_pass(passed, of, apart):
    assert tells_apart(of - passed, of) is apart
    names = [f"1.{i}" for i in range(passed)]
    counts = {"random_failed": (of - passed, of), "random_passed": names}
    said = random_heads(Specific(answer=apart, permuted=False, passed=[], clean=None, **counts))
    assert ("does not tell heads apart" in said) == (apart is False)
    assert all(name in said for name in names)
    assert str(of) in said or not of


def test_few_groups_and_tasks_that_the_model_does_not_do_pass_nothing():
    few = head_tests(measured(groups=np.arange(64) % 7), [0], 6)
    assert few[0].why == "fewer than 8 groups"
    undone = head_tests(measured(clean=-1.0), [0], 6)[0]
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
