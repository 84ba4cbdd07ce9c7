"""The benchmark: every family held out, the comparator chosen elsewhere, the same table twice, the closing sentence."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import bench, table_cache, with_attribution

from mechrl.cache.imported import import_table
from mechrl.cache.reader import Cache
from mechrl.cache.storage import manifest_path
from mechrl.cli.bench import bench as command
from mechrl.errors import MachineError, UsageError
from mechrl.intervals import Estimate
from mechrl.reporting.terminal import sentence
from mechrl.results import read_result
from mechrl.search.bench.result import BUDGETS, Benchmark
from mechrl.search.bench.run import run_benchmark
from mechrl.search.bench.verdict import NO_DIFFERENCE, UNDECIDED, WINS, choose_comparators, make_verdict
from mechrl.search.ppo.heads_training import train_heads
from mechrl.search.ppo.training import PRESETS
from mechrl.search.problem import Problem, episode_attribution, families, z_scored
from mechrl.tasks import TRAIN

QUICK = ["random", "static order", "Gaussian, expected improvement", "sweep on 1 prompt"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Tasks a and b hang on heads 1, 2, 3, task c on 6, 7, 8."""
    rng = np.random.default_rng(0)
    damage = {}
    for name, heads in {"a": (1, 2, 3), "b": (1, 2, 3), "c": (6, 7, 8)}.items():
        damage[name] = 0.3 * rng.normal(size=(48, 12)).astype(np.float32)
        damage[name][:, heads] += 3 if name == "c" else 5
    control = 0.1 * rng.normal(size=(48, 12)).astype(np.float32)
    return table_cache(tmp_path_factory.mktemp("t") / "t.h5", damage, control, 3, 4, batch_size=4)


@pytest.fixture(scope="module")
def run(cache):
    return run_benchmark([cache.path], names=QUICK, seeds=2, workers=1)


def outcome(run, method, task, seed=0):
    return next(o for o in run.outcomes if (o.method, o.task, o.seed) == (method, task, seed))


def test_every_family_is_held_out_and_nothing_of_it_is_known(run, cache, monkeypatch):
    assert families(cache) == {"a": ["a"], "b": ["b"], "c": ["c"]}
    assert {(o.method, o.task) for o in run.outcomes} == {(m, t) for m in QUICK for t in "abc"}
    # The order of b finds a's heads at once; that of a and b does not know those of c.
    assert np.exp(outcome(run, "static order", "a").log_cost[0]) == pytest.approx(1 + 3)
    assert np.exp(outcome(run, "static order", "c").log_cost[0]) > 1 + 4
    seen = []
    real = Problem.training_scores
    monkeypatch.setattr(
        Problem, "training_scores", lambda self, task: seen.append((self.task, task)) or real(self, task)
    )
    bench([cache.path], names=["static order"], workers=1)
    assert set(seen) == {(held, task) for held in "abc" for task in "abc" if task != held}


def test_looking_at_one_prompt_of_every_head_is_cheap_where_prompts_agree(run):
    for task in "abc":
        cost = np.exp(outcome(run, "sweep on 1 prompt", task).log_cost[0])
        assert cost <= 1 / 4 + 8 / 4


def test_seeds_change_what_is_random_and_nothing_else(run):
    assert {o.seed for o in run.outcomes if o.method == "random"} == {0, 1}
    assert {o.seed for o in run.outcomes if o.method == "static order"} == {0}
    one, other = outcome(run, "random", "a", 0), outcome(run, "random", "a", 1)
    assert not np.array_equal(one.curve, other.curve)


def test_two_runs_give_the_same_table_in_one_process_or_two(run, cache):
    again = bench([cache.path], names=QUICK, seeds=2, workers=2)
    drop = {"set_up_seconds"}
    one, other = run.result.model_dump(mode="json"), again.model_dump(mode="json")
    for found in (one, other):
        for row in found["methods"].values():
            for name in drop:
                row.pop(name)
        found.pop("by_protocol")
    assert json.dumps(one) == json.dumps(other)


def test_costs_have_intervals(run):
    found = run.result.model_dump(mode="json")["methods"]
    for row in found.values():
        assert row["cost_low"] <= row["cost"] <= row["cost_high"]
    assert found["static order"]["cost_low"] < found["static order"]["cost_high"]


def test_the_set_up_is_told(run):
    assert outcome(run, "static order", "a").set_up_runs == 2 * 9 * (1 + 4 * 2)
    assert outcome(run, "random", "a").set_up_runs == 0


def fake_selection(costs):
    """costs[target][method][family]"""
    for target, by_method in costs.items():
        for method, by_family in by_method.items():
            for family, cost in by_family.items():
                yield target, SimpleNamespace(cache="p", method=method, family=family, log_cost=np.log([cost]))


def test_the_comparator_is_the_cheapest_on_the_other_families():
    chosen = choose_comparators(
        list(fake_selection({"a": {"x": {"b": 2, "c": 8}, "y": {"b": 3, "c": 3}}, "b": {"x": {"a": 1}, "y": {"a": 2}}}))
    )
    assert chosen == {"p": {"a": "y", "b": "x"}}


def verdict(low, high, p, families=("a",), censored=0.0):
    families = dict.fromkeys(families, 0.0)
    return make_verdict(
        "scores", "agent", {"p": {"a": "x"}}, families, Estimate((low + high) / 2, low, high), censored, p, p
    )


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (-0.5, -0.2, 0.01, WINS),
        (-0.5, -0.2, 0.06, UNDECIDED),
        (-0.08, 0.05, 0.5, NO_DIFFERENCE),
        (-0.08, -0.05, 0.01, WINS),
        (-0.08, 0.2, 0.5, UNDECIDED),
        (0.2, 0.5, 1.0, UNDECIDED),
    ],
)
def test_the_closing_sentence(low, high, p, said):
    found = verdict(low, high, p)
    assert found.sentence == said
    assert sentence(found).startswith(f"scores: {said}")
    assert "too few families to claim transfer" in sentence(found)
    assert "too few" not in sentence(verdict(low, high, p, families="abcde"))


def test_two_that_never_get_there_are_not_called_alike():
    found = verdict(0.0, 0.0, 0.5, censored=0.6)
    assert found.sentence == UNDECIDED
    assert "on 60% of the tasks neither" in sentence(found)


def test_what_the_protocol_does_not_describe_is_exploratory(run):
    assert not run.result.by_protocol


def test_the_same_cache_under_two_names_is_refused(cache, tmp_path):
    for path in (cache.path, manifest_path(cache.path)):
        shutil.copy(path, tmp_path / path.name)
    with pytest.raises(UsageError, match="the same cache is named twice"):
        bench([cache.path, tmp_path / cache.path.name], names=["random"], workers=1)


def test_a_method_of_another_track_is_refused(cache):
    with pytest.raises(UsageError, match="'static order' is of the track scores, not of attribution"):
        bench([cache.path], names=["static order"], tracks=["attribution"], workers=1)


def test_set_up_seconds_count_what_others_have_fitted(run):
    """Expected improvement alone, and after another method that shares its prior."""
    both = run_benchmark([run.outcomes[0].cache], names=["Gaussian, UCB", "Gaussian, expected improvement"], workers=1)
    assert all(o.set_up_seconds > 0 for o in both.outcomes)


def test_coverage_at_a_budget_is_read_at_that_budget(run):
    """Three heads of layer 0 and the clean model: 90 % at exactly 4 runs, and 2 runs pay for the first of them."""
    assert set(BUDGETS) <= set(run.result.cost_grid)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return lambda episode: [1.9, 2.7]", "a query is a site"),
        ("return lambda episode: [[True] * 12]", "a query is a site"),
        ("return lambda episode: ['1.2']", "a query is a site"),
        ("return lambda episode: 1 / 0", "method 'mine' fails on a: ZeroDivisionError"),
        ("return 1 / 0", "method 'mine' fails on a: ZeroDivisionError"),
        ("return lambda episode: [-1]", "heads are 0 to 11"),
    ],
)
def test_a_method_that_is_wrong_is_named(cache, plugin, body, message):
    plugin.write_text(
        PLUGIN.replace('"backwards"', '"mine"').split("def backwards")[0]
        + f"""
def backwards(problem):
    {body}

METHODS = [Method("mine", "scores", backwards)]
"""
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        bench([cache.path], names=["mine"], workers=1, plugin=plugin)


@pytest.mark.parametrize(
    "record",
    [
        "42", "Method('mine', 'scroes', None)", "Method('random', 'scores', None)", "Method(3, 'scores', None)",
        r"Method('a\x1b[2J', 'scores', None)",
    ],
)  # fmt: skip
def test_a_record_that_is_no_method_is_refused(cache, plugin, record):
    plugin.write_text(f"from mechrl.search.methods.registry import Method\nMETHODS = [{record}]")
    with pytest.raises(
        UsageError, match=r"is no Method of one of the tracks|two methods are called 'random'|is no printable text"
    ):
        bench([cache.path], workers=1, plugin=plugin)


def test_one_family_cannot_be_left_out(tmp_path):
    only = table_cache(tmp_path / "t.h5", {"a": np.ones((12, 4), np.float32)}, np.zeros((12, 4), np.float32), 2, 2)
    with pytest.raises(UsageError, match="leaving one out needs two"):
        bench([only.path], workers=1)


def test_an_imported_table_cannot_be_benchmarked(tmp_path):
    (tmp_path / "t.csv").write_text("0.0,0.1,0.2\n1,2,3\n4,5,6\n7,8,9\n")
    with pytest.raises(MachineError, match="holds scores and no prompts"):
        bench([import_table(tmp_path / "t.csv", "mine", 1, 3, tmp_path / "c.h5")], workers=1)


def test_the_agent_is_trained_with_and_without_attribution_and_compared(cache, tmp_path, monkeypatch):
    """Everything at once, with little training: both agents, comparators and sentences."""
    monkeypatch.setitem(PRESETS, "heads", replace(PRESETS["heads"], steps=256))
    path = with_attribution(cache, tmp_path / "t.h5").path
    hints = []

    def watched(*args, **kwargs):
        hints.append(kwargs["hints"])
        return train_heads(*args, **kwargs)

    monkeypatch.setattr("mechrl.search.ppo.heads_training.train_heads", watched)
    found = run_benchmark(
        [path], names=["agent", "agent with attribution", "static order", "attribution"], seeds=1, workers=1
    )
    shown = [z_scored(episode_attribution(Cache.open(path), task, TRAIN)) for task in "bc"]
    assert sorted(given is None for given in hints) == [False] * 3 + [True] * 3
    np.testing.assert_array_equal(next(given for given in hints if given is not None), np.concatenate(shown))
    assert [v.track for v in found.result.verdicts] == ["scores", "attribution"]
    for verdict, other in zip(found.result.verdicts, ("static order", "attribution"), strict=True):
        assert verdict.comparators == {str(path): dict.fromkeys("abc", other)}
        assert set(verdict.family_cost_ratios) == set("abc")
        for family, ratio in verdict.family_cost_ratios.items():
            ours, theirs = (outcome(found, name, family).log_cost[0] for name in (verdict.agent, other))
            assert ratio == pytest.approx(np.exp(ours - theirs))
    assert outcome(found, "agent with attribution", "a").log_cost[0] >= np.log(1 + 2)


def test_a_cache_without_attribution_says_so(cache):
    with pytest.raises(UsageError, match="holds no attribution"):
        bench([cache.path], tracks=["attribution"], workers=1)


def test_a_wrong_method_gets_a_hint(cache):
    with pytest.raises(UsageError, match="static order"):
        bench([cache.path], names=["static ordr"], workers=1)


PLUGIN = """
from mechrl.search.methods.registry import Method

def backwards(problem):
    return lambda episode: reversed(range(episode.n_sites))

METHODS = [Method("backwards", "scores", backwards)]
"""


@pytest.fixture
def plugin(tmp_path):
    return tmp_path / "mine.py"


def test_a_plugin_adds_a_method_in_every_process(cache, plugin):
    plugin.write_text(PLUGIN)
    found = bench([cache.path], names=["backwards", "static order"], workers=2, plugin=plugin)
    assert {row.method for row in found.tasks} == {"backwards", "static order"}
    assert found.methods["backwards"].exploratory, "whatever it says of itself"


def test_the_plugin_of_the_readme_runs(cache, plugin):
    blocks = re.findall(r"```\w*\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)
    (block,) = [b for b in blocks if "METHODS = [" in b]
    plugin.write_text(block)
    found = bench([cache.path], names=["last layer first"], workers=1, plugin=plugin)
    assert {row.task for row in found.tasks} == set("abc")


@pytest.mark.parametrize("text", ["", "METHODS = 3", "from mechrl.search.methods.registry import METHODS"])
def test_a_plugin_without_a_list_of_its_own_is_named(cache, plugin, text):
    plugin.write_text(text)
    with pytest.raises(UsageError, match=r"mine\.py defines no list METHODS"):
        bench([cache.path], workers=1, plugin=plugin)


def test_a_plugin_that_fails_is_named(cache, plugin):
    plugin.write_text("1 / 0")
    with pytest.raises(
        UsageError, match=r"mine\.py cannot be run: ZeroDivisionError: .*\. It should define a list METHODS of its own"
    ):
        bench([cache.path], workers=1, plugin=plugin)


def test_the_command_prints_tables_a_figure_and_json(call, cache, tmp_path):
    flags = ("--cache", cache.path, "--method", "random", "--method", "static order", "--workers", "1", "--seeds", "1")
    code, out, _ = call(command, *flags, "--out", tmp_path / "curves.png")
    assert code == 0
    assert "track scores: cost to 90 % coverage" in out
    assert "exploratory" in out
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    code, out, _ = call(command, *flags, "--json")
    (tmp_path / "bench.json").write_text(out)
    assert "<table>" in read_result(tmp_path / "bench.json", [Benchmark])._repr_html_()
    found = json.loads(out)
    assert set(found["methods"]) == {"random", "static order"}
    assert found["pairs"][str(cache.path)]["a on b"]["cost"] == pytest.approx(4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cache", "nowhere.h5"), "there is no cache at nowhere.h5"),
        (("--plugin", "nowhere.py"), "nowhere.py: no such file"),
        (("--out", "curves.txt"), "ends in one of"),
    ],
)
def test_wrong_input_of_the_command(call, cache, flags, message):
    if flags[0] == "--out":
        flags = ("--cache", cache.path, *flags)
    code, _, err = call(command, *flags)
    assert code == 2
    assert message in err
