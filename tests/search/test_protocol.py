"""The protocol: what looks cost, few prompts, what a method must not know; the statistics by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import table_cache, with_attribution

from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_content
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable
from mechrl.errors import UsageError
from mechrl.search.bench import statistics
from mechrl.search.methods.orders import in_order
from mechrl.search.methods.prior import Gaussian
from mechrl.search.methods.registry import METHODS
from mechrl.search.ppo.policy_search import policy_search
from mechrl.search.problem import (
    ATTRIBUTION,
    REFERENCE,
    SCORES,
    Few,
    Problem,
    episode_attribution,
    episode_scores,
    z_scored,
)  # fmt: skip
from mechrl.search.protocol import Evaluation, cost_to, evaluate, exhaustive_runs, mean_curve
from mechrl.tasks import EVALUATION, TRAIN

LAYERS, HEADS, SIZE = 3, 4, 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    rng = np.random.default_rng(0)
    damage = {name: rng.normal(size=(48, 12)).astype(np.float32) for name in ("a", "b", "c")}
    control = 0.1 * rng.normal(size=(48, 12)).astype(np.float32)
    return table_cache(tmp_path_factory.mktemp("t") / "t.h5", damage, control, LAYERS, HEADS, batch_size=SIZE)


def test_a_look_at_few_prompts_costs_its_share_and_sees_their_mean(cache):
    def search(episode):
        first = yield Few(0, 1)
        more = yield Few(0, 2)
        whole = yield Few(4, SIZE)
        seen.append((first, more, whole))

    seen = []
    found = evaluate(cache, "a", search, 12)
    rows, control = cache.damage("a")[cache.in_split("a", EVALUATION)], cache.batch_control()[0]
    assert not found.whole
    assert seen[0][0] == pytest.approx(rows[0, 0] - control[0], abs=1e-6)
    assert seen[0][1] == pytest.approx(rows[:2, 0].mean() - control[0], abs=1e-6)
    assert seen[0][2] == pytest.approx(found.scores[0, 4], abs=1e-6)
    # The clean model on as many prompts as were needed; layer 0 costs 1, layer 1 two thirds.
    np.testing.assert_allclose(found.runs[0], [1 / 4 + 1 / 4, 2 / 4 + 2 / 4, 1 + 2 / 4 + 2 / 3])
    # Control: the clean run and, once, each head on a whole batch.
    np.testing.assert_allclose(found.control_runs[0] - found.runs[0], [2, 2, 2 + 2 / 3])


def test_all_looks_can_be_at_few_prompts(cache):
    found = evaluate(cache, "a", in_order(np.array([0, 11])), 12, prompts=2)
    np.testing.assert_allclose(found.runs[0], [0.5 + 0.5, 0.5 + 0.5 + 0.5 / 3])
    rows = cache.damage("a")[cache.in_split("a", EVALUATION)]
    assert found.seen[0, 0] == pytest.approx(rows[:2, 0].mean() - cache.batch_control()[0, 0], abs=1e-6)
    assert not found.whole


def test_looking_at_several_picks_the_best_and_pays_for_all(cache):
    found = evaluate(cache, "a", lambda episode: [[0, 1, 2], [3]], 12)
    assert (found.picked[:, 0] == found.scores[:, :3].argmax(1)).all()
    np.testing.assert_allclose(found.runs, [[4, 5]] * len(found.runs))
    one_by_one = evaluate(cache, "a", lambda episode: [0, 1, 2], 12)
    np.testing.assert_allclose(found.coverages()[:, 0], one_by_one.coverages()[:, 2], err_msg="what is seen counts")
    again = evaluate(cache, "a", lambda episode: [[0, 1], [0, 1]], 12)
    np.testing.assert_allclose(again.runs, [[3, 3]] * len(again.runs), err_msg="what is known is not paid for twice")


def test_coverage_ranks_by_the_last_estimate(cache):
    """Head 3 looks best on one prompt and worst on more; it leaves the best three."""
    evaluation = Evaluation(
        "t", np.array([[3, 0, 1, 2, 3]]), np.array([[9, 1, 1, 1, -9]], np.float32), np.zeros((1, 5)),
        np.zeros((1, 4), np.float32), np.array([[1, 1, 1, 0]], np.float32),
    )  # fmt: skip
    np.testing.assert_allclose(evaluation.coverages(), [[0, 1 / 3, 2 / 3, 2 / 3, 1]])


def test_cost_to_90_percent_is_where_the_mean_curve_gets_there():
    """One episode covers everything at 2 runs, the other at 5: their mean is enough at 5; weighted, at 2."""
    runs = np.array([[2.0, 3], [4, 5]])
    reached = np.repeat(np.array([[[1.0, 1], [0, 1]]]), 3, 0)
    weights = np.array([[1, 1], [2, 0], [0, 2]])
    np.testing.assert_allclose(mean_curve(reached, runs, weights, np.array([1, 2, 4.9, 5]))[0], [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(cost_to(reached, runs, weights, 10.0), [5, 2, 5])
    np.testing.assert_allclose(cost_to(reached, runs, weights, 4.5), [4.5, 2, 4.5])
    np.testing.assert_allclose(cost_to(0 * reached, runs, weights, 7.0), [7, 7, 7], err_msg="never: censored")


def test_the_exhaustive_sweep_costs_what_it_says(cache):
    found = evaluate(cache, "a", in_order(np.arange(12)), 12)
    assert found.runs[0, -1] == pytest.approx(exhaustive_runs(LAYERS, HEADS))


def test_attribution_is_that_of_the_episodes_prompts_and_is_paid_for_once(attributed):
    asked = []

    def search(episode):
        asked.append((episode.attribution(), episode.attribution(), episode.attribution(integrated=True)))
        yield 0

    found = evaluate(attributed, "a", search, 12, control_weight=0.5, track=ATTRIBUTION)
    np.testing.assert_allclose(found.runs[:, 0], 1 + 1 + 2 + 15)
    np.testing.assert_allclose(found.control_runs[:, 0], 2 * (1 + 1 + 2 + 15), err_msg="and once more on control")
    rows, train = attributed.in_split("a", EVALUATION), attributed.in_split(None, TRAIN)
    for integrated, which in ((False, 0), (True, 2)):
        by_prompt = attributed.attribution("a", integrated)[rows]
        control = attributed.control_attribution(integrated)[train].mean(0)
        for i, of_episode in enumerate(asked):
            expected = by_prompt[i * SIZE : (i + 1) * SIZE].mean(0) - 0.5 * control
            np.testing.assert_allclose(of_episode[which], expected, atol=1e-6)
    few = evaluate(attributed, "a", search, 12, track=ATTRIBUTION, prompts=1)
    np.testing.assert_allclose(few.runs[:, 0], (1 + 1 + 2 + 15) / SIZE)
    np.testing.assert_allclose(
        asked[-1][0],
        attributed.attribution("a")[rows][-SIZE] - attributed.control_attribution()[train].mean(0), atol=1e-6,
    )  # fmt: skip


def test_features_come_with_the_clean_run_on_all_prompts(attributed):
    asked = []

    def search(episode):
        asked.append(episode.features())
        yield Few(0, 1)

    found = evaluate(attributed, "a", search, 12, track=ATTRIBUTION)
    np.testing.assert_allclose(found.runs[:, 0], 1 + 1 / SIZE)
    rows = attributed.in_split("a", EVALUATION)
    for name, values in attributed.head_features("a").items():
        np.testing.assert_allclose(asked[1][name], values[rows][SIZE : 2 * SIZE].mean(0), atol=1e-6)
    assert len(asked[0]) == 4


def test_orders_by_attribution_go_by_it(attributed):
    problem = Problem(attributed, "a", ("b", "c"), ATTRIBUTION)
    by_name = {m.name: evaluate(attributed, "a", m.prepare(problem), 12, track=ATTRIBUTION).picked[0]
               for m in METHODS if m.track == ATTRIBUTION and not m.agent}  # fmt: skip
    one_step, integrated = (
        episode_attribution(attributed, "a", EVALUATION, which)[0].argsort()[::-1] for which in (False, True)
    )
    static = problem.static_mean.argsort()[::-1]
    assert by_name["attribution"].tolist() == one_step.tolist()
    assert by_name["integrated attribution"].tolist() == integrated.tolist()
    assert by_name["alternating"][0] == one_step[0]
    assert by_name["alternating"][1] == next(s for s in static if s != one_step[0])
    z = [(v - v.mean()) / v.std() for v in (episode_attribution(attributed, "a", EVALUATION)[0], problem.static_mean)]
    assert by_name["attribution + static"].tolist() == (z[0] + z[1]).argsort()[::-1].tolist()


@pytest.mark.parametrize("name", ["ridge regression", "boosted regression"])
def test_regression_finds_the_feature_that_tells(cache, tmp_path, name):
    """Damage is attribution, and nothing else says anything."""
    plain = with_attribution(cache, tmp_path / "t.h5")
    arrays = dict(plain.content.arrays)
    for task in "abc":
        arrays[f"/tasks/{task}/attribution"] = np.ascontiguousarray(plain.damage(task))
    arrays["/control/attribution"] = np.ascontiguousarray(plain.control_damage)
    write_content(tmp_path / "e.h5", Content(arrays, plain.content.attributes))
    exact = Cache.open(tmp_path / "e.h5")
    method = next(m for m in METHODS if m.name == name)
    found = evaluate(exact, "a", method.prepare(Problem(exact, "a", ("b", "c"), ATTRIBUTION)), 12, track=ATTRIBUTION)
    assert found.ratios(3).mean() > 0.9


@pytest.mark.parametrize("hints", [False, True])
def test_a_policy_sees_what_the_environment_shows(attributed, hints):
    seen = []

    class Watching:
        def set_training_mode(self, on):
            assert not on

        def log_probs_and_values(self, observation, untried):
            seen.append((observation.numpy().copy(), untried.numpy().copy()))
            return untried.float() * torch.arange(12), None

    track = ATTRIBUTION if hints else SCORES
    table = ScoreTable.from_cache(attributed, ["a"], EVALUATION)
    if hints:
        table = replace(table, hints=z_scored(episode_attribution(attributed, "a", EVALUATION)))
    evaluate(attributed, "a", policy_search(Watching(), ["b", "a"], "a", hints=hints), 4, track=track)
    for i in range(len(table.damage)):
        env = ParallelEpisodes(table, 1, 4, ["b", "a"])
        env.start(0, 0, i, i % len(table.control))
        for site in (11, 10, 9, 8):
            observation, untried = seen.pop(0)
            np.testing.assert_allclose(observation, env.observation, atol=1e-6)
            np.testing.assert_array_equal(untried, env.untried)
            env.step(np.array([site]))


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (lambda episode: [12], "heads are 0 to 11"),
        (lambda episode: [], "no head at all"),
        (lambda episode: [Few(0, 5)], "1 to 4 prompts"),
        (lambda episode: episode.attribution(), "another"),
        (lambda episode: episode.features(), "another"),
    ],
)
def test_a_method_that_breaks_the_rules_is_told(cache, search, message):
    with pytest.raises(UsageError, match=message):
        evaluate(cache, "a", search, 12)


def test_more_picks_than_heads_are_refused(cache):
    with pytest.raises(UsageError, match="between 1 and the 12 heads"):
        evaluate(cache, "a", in_order(np.arange(12)), 13)


def test_scores_of_a_held_out_task_are_not_to_be_had(cache):
    problem = Problem(cache, "a", ("b", "c"))
    for ask in (problem.training_scores, problem.training_attribution, problem.training_features):
        with pytest.raises(UsageError, match="held out"):
            ask("a")
    np.testing.assert_allclose(problem.training_scores("b"), episode_scores(cache, "b", TRAIN))


@pytest.fixture(scope="module")
def attributed(cache, tmp_path_factory):
    return with_attribution(cache, tmp_path_factory.mktemp("a") / "t.h5")


@pytest.mark.parametrize("method", [m for m in METHODS if not m.agent], ids=lambda m: m.name)
def test_every_method_looks_at_every_head(attributed, method):
    problem = Problem(attributed, "a", ("b", "c"), method.track)
    found = evaluate(attributed, "a", method.prepare(problem), 12, track=method.track, prompts=method.prompts)
    for row in found.picked:
        assert set(row.tolist()) == set(range(12))
        assert len(row) == 12 or not found.whole


def test_a_method_is_ten_lines(cache, monkeypatch):
    """What docs and README say of registering a method."""
    from mechrl.search.methods.registry import Method

    def last_layer_first(problem):
        return lambda episode: reversed(range(episode.n_sites))

    found = evaluate(cache, "a", Method("mine", SCORES, last_layer_first).prepare(Problem(cache, "a", ())), 12)
    assert found.picked[0].tolist() == list(range(11, -1, -1))


def test_portfolio_covers_one_task_after_the_other(tmp_path):
    """Its first pick serves two tasks a little, its second what the first left; then what a third task is short of."""
    from mechrl.search.methods.orders import portfolio, static_order

    def task(**scores):
        return np.tile(np.array([scores.get(f"h{i}", 0.0) for i in range(12)], np.float32), (12, 1))

    damage = {"a": task(h5=10, h6=6), "b": task(h7=4, h6=3), "c": task()}
    control = np.zeros((12, 12), np.float32)
    planted = table_cache(tmp_path / "t.h5", damage, control, LAYERS, HEADS)
    problem = Problem(planted, "c", ("a", "b"))
    assert portfolio(problem)(None)[:3].tolist() == [6, 5, 7]
    assert static_order(problem)(None)[:3].tolist() == [5, 6, 7]
    assert sorted(portfolio(problem)(None).tolist()) == list(range(12))
    twice = {"a": task(h5=10, h6=9), "b": task(h5=10, h6=9), "c": task(h7=4), "d": task()}
    problem = Problem(table_cache(tmp_path / "twice.h5", twice, control, LAYERS, HEADS), "d", ("a", "b", "c"))
    assert portfolio(problem)(None)[:3].tolist() == [5, 7, 6], "what two tasks have found counts no more"
    assert static_order(problem)(None)[:3].tolist() == [5, 6, 7]


def test_halving_spends_more_prompts_on_fewer_heads(cache):
    method = next(m for m in METHODS if m.name == "sequential halving")
    found = evaluate(cache, "a", method.prepare(Problem(cache, "a", ())), 12)
    assert found.picked.shape[1] == 12 + 6 + 3, "on 1, 2 and 4 prompts"
    assert set(found.picked[0, 18:]) <= set(found.picked[0, 12:18])
    np.testing.assert_allclose(found.seen[0, 18:], found.scores[0, found.picked[0, 18:]], rtol=1e-5)


def test_the_gaussian_is_conditioned_as_the_formula_says():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    prior = Gaussian.of(rng.normal(size=5), root @ root.T)
    now = prior.given(1, 2.0).given(3, -1.0)
    seen, values = [1, 3], np.array([2.0, -1.0])
    gain = prior.covariance[:, seen] @ np.linalg.inv(prior.covariance[np.ix_(seen, seen)])
    np.testing.assert_allclose(now.mean, prior.mean + gain @ (values - prior.mean[seen]), atol=1e-4)
    np.testing.assert_allclose(now.covariance, prior.covariance - gain @ prior.covariance[seen], atol=1e-4)
    drawn = np.stack([now.draw(rng) for _ in range(20_000)])
    np.testing.assert_allclose(drawn.mean(0), now.mean, atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), now.covariance, atol=0.2)


def test_resampled_truth_is_what_resampling_prompts_by_hand_gives(cache):
    truth, weights = statistics.resampled_truth(cache, "a", EVALUATION, 0.5, n=3, seed=1)
    plain = evaluate(cache, "a", in_order(np.arange(12)), 12, control_weight=0.5)
    np.testing.assert_allclose(truth[0], plain.true_scores, atol=1e-5)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == weights.shape[1]).all()
    rng = np.random.default_rng(1)
    n = cache.in_split("a", EVALUATION).sum()
    drawn = [rng.multinomial(n, np.full(n, 1 / n), 3) for _ in range(2)]  # every prompt is a group of its own
    rows = cache.damage("a")[cache.in_split("a", EVALUATION)]
    spans = cache.control_damage[cache.in_split(None, EVALUATION)]
    outside = np.arange(n) >= SIZE
    means = [
        np.average(values[outside], axis=0, weights=of_row[2][outside])
        for values, of_row in zip((rows, spans), drawn, strict=True)
    ]
    np.testing.assert_allclose(truth[3, 0], means[0] - 0.5 * means[1], atol=1e-5)


def test_sign_flips_and_holm_by_hand():
    assert statistics.sign_flips([-1, -2, -3]) == pytest.approx(1 / 8)
    assert statistics.sign_flips([1, 2, 3]) == pytest.approx(1)
    assert statistics.sign_flips([-3, 1]) == pytest.approx(2 / 4)
    assert statistics.holm({"x": 0.03, "y": 0.02, "z": 0.5}) == pytest.approx({"y": 0.06, "x": 0.06, "z": 0.5})
    assert statistics.holm({"x": 0.021, "y": 0.02}) == pytest.approx({"y": 0.04, "x": 0.04}), "never below a smaller p"


def test_hierarchical_means_weigh_families_alike_and_the_interval_comes_from_all_levels():
    def parts(*values):
        return {"cache": [(1, np.array([values] * 2, float))]}

    cells = {"f": {"t1": parts(1, 1, 1), "t2": parts(3, 3, 3)}, "g": {"t3": parts(10, 10, 10)}}
    mean, low, high = statistics.hierarchical(cells)
    assert mean == pytest.approx((2 + 10) / 2)
    many = {f: {t: {"c": [(1, np.full((1, 400), v))]} for t, v in of.items()} for f, of in
            {"f": {"t1": 1.0, "t2": 3.0}, "g": {"t3": 10.0}}.items()}  # fmt: skip
    mean, low, high = statistics.hierarchical(many)
    assert low < 3 < 9 < high, "families are drawn, so that the interval spans them"
    signed = {"f": {"t": {"c": [(1, np.full((1, 9), 5.0)), (-1, np.full((3, 9), 2.0))]}}}
    assert statistics.hierarchical(signed) == pytest.approx((3, 3, 3))


def test_references_are_no_comparators():
    assert {m.name for m in METHODS if m.track == REFERENCE} == {"random", "exhaustive", "own order (cheats)"}
