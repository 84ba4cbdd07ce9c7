"""Search: the protocol by hand, the methods, PPO on a planted table, and the checkpoint."""

import io
import json
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import load_checkpoint, rewritten_note, table_cache

from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable
from mechrl.errors import FileError, UsageError
from mechrl.search.comparison import compare
from mechrl.search.methods.orders import in_order, random_order, static_order
from mechrl.search.ppo.checkpoint import CheckpointNote, save_checkpoint
from mechrl.search.ppo.policy_search import policy_search
from mechrl.search.ppo.training import PRESETS, train
from mechrl.search.problem import Problem
from mechrl.search.protocol import Evaluation, coverage_k, evaluate, mean_of_others
from mechrl.tasks import TRAIN

TASKS = ["a", "b"]
BEST = {"a": 2, "b": 7}
PICKS = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """12 heads; head 2 is what task a hangs on, head 7 what task b does; head 5 damages everything, control too."""
    rng = np.random.default_rng(0)
    damage = {}
    for task, best in {**BEST, "c": 2}.items():
        damage[task] = 0.1 * rng.normal(size=(16, 12)).astype(np.float32)
        damage[task][:, best] += 5
        damage[task][:, 5] += 4
    control = 0.1 * rng.normal(size=(16, 12)).astype(np.float32)
    control[:, 5] += 4
    return table_cache(tmp_path_factory.mktemp("table") / "t.h5", damage, control, 3, 4, batch_size=2)


@pytest.fixture(scope="module")
def trained(cache):
    return run_training(cache)


def run_training(cache, seed=0, plan_k=1, steps=8000):
    preset = replace(PRESETS["default"], n_envs=16)
    episodes = ParallelEpisodes(ScoreTable.from_cache(cache, TASKS), 16, PICKS, drop_signal=preset.drop_signal)
    return train(episodes, preset, steps=steps, seed=seed, plan_k=plan_k)


@pytest.fixture
def note(cache, trained):
    a = cache.attributes
    return CheckpointNote(
        TASKS, ["c"], PICKS, 1.0, 5.0, -1.0, 1, "default", [64, 64], 0, trained.num_timesteps, 3, 4, a["model"],
        a["model_sha256"], a["ablation"], a["weight_processing"], cache.sha256,
    )  # fmt: skip


def test_ratio_and_coverage_by_hand():
    """Two episodes, four heads; the second has no head above 0.05 and thus no ratio."""
    evaluation = Evaluation(
        task="t",
        picked=np.array([[3, 0, 1], [0, 1, 2]]),
        seen=np.array([[1, 4, 2], [0.01, 0.02, -1]], np.float32),
        runs=np.zeros((2, 3)),
        scores=np.array([[4, 2, 8, 1], [0.01, 0.02, -1, 0.0]], np.float32),
        true_scores=np.array([[3, 1, 6, -2], [1, 1, 1, 1]], np.float32),
    )
    assert coverage_k(4) == 3
    assert evaluation.ratios(1) == pytest.approx([1 / 8])
    assert evaluation.ratios(3) == pytest.approx([4 / 8])
    assert evaluation.left_out() == 1
    # Episode 1: the three best true scores sum to 10; head 3 is worth nothing, head 0 is worth 3, head 1 is worth 1.
    np.testing.assert_allclose(evaluation.coverages(), [[0, 0.3, 0.4], [1 / 3, 2 / 3, 1]])
    assert evaluation.summary()["coverage after 3"] == pytest.approx(0.7)


def test_k_of_coverage_is_seven_percent_and_at_least_three():
    assert [coverage_k(n) for n in (144, 48, 20)] == [10, 3, 3]


def test_true_scores_leave_the_episodes_own_prompts_out():
    np.testing.assert_allclose(mean_of_others(np.array([[1.0], [2.0], [6.0]])), [[4], [3.5], [1.5]])


def test_evaluation_plays_the_evaluation_batches_in_pairs(cache):
    evaluation = evaluate(cache, "a", in_order(np.arange(12)), 12)
    scores = cache.batch_damage("a") - cache.batch_control()
    np.testing.assert_allclose(evaluation.seen, scores, atol=1e-6)
    np.testing.assert_allclose(evaluation.scores, scores, atol=1e-6)
    assert evaluation.picked.tolist() == [list(range(12))] * 2
    # Cost: one clean run, then 1, 2/3 and 1/3 of a run for a head of layer 0, 1 and 2.
    np.testing.assert_allclose(evaluation.runs[0], 1 + np.cumsum(np.repeat([1, 2 / 3, 1 / 3], 4)))


def test_evaluation_goes_round_the_control_batches_and_leaves_the_episodes_own_out(tmp_path):
    """Eight task batches against three of control: the i-th pairs with the i-th modulo their number."""
    rng = np.random.default_rng(3)
    damage, control = rng.normal(size=(32, 4)).astype(np.float32), rng.normal(size=(12, 4)).astype(np.float32)
    uneven = table_cache(tmp_path / "t.h5", {"a": damage}, control, 1, 4)
    evaluation = evaluate(uneven, "a", in_order(np.arange(4)), 4)
    task, spans = damage[24:], control[9:]
    assert (len(task), len(spans)) == (8, 3)
    for i in range(8):
        own = i % 3
        np.testing.assert_allclose(evaluation.seen[i], task[i] - spans[own], atol=1e-5)
        expected = np.delete(task, i, 0).mean(0) - np.delete(spans, own, 0).mean(0)
        np.testing.assert_allclose(evaluation.true_scores[i], expected, atol=1e-5)


def test_planning_in_training_never_looks_at_a_head_that_was_tried(cache):
    queried_untried = []

    class Watched(ParallelEpisodes):
        def query(self, sites):
            queried_untried.append(self.untried[np.arange(self.n), sites].copy())
            return super().query(sites)

    preset = replace(PRESETS["default"], n_envs=4)
    train(Watched(ScoreTable.from_cache(cache, TASKS), 4, 10), preset, steps=80, plan_k=3)
    assert len(queried_untried) >= 3 * 20
    assert np.all(queried_untried)


def test_random_order_tries_every_head_once(cache):
    evaluation = evaluate(cache, "a", random_order(None), 12)
    assert [sorted(row) for row in evaluation.picked.tolist()] == [list(range(12))] * 2
    assert evaluation.picked[0].tolist() != evaluation.picked[1].tolist()


def test_static_order_comes_from_training_batches_and_ignores_heads_that_damage_everything(cache):
    first = evaluate(cache, "b", static_order(Problem(cache, "b", ("a",))), 12).picked[0]
    assert first[0] == 2
    assert cache.batch_damage("a", TRAIN)[:, 5].min() > 3
    assert cache.scores("a", TRAIN)[5] < 1, "its damage is large and so is its control damage"
    both = evaluate(cache, "c", static_order(Problem(cache, "c", ("a", "b"))), 12).picked[0]
    assert set(both[:2].tolist()) == {2, 7}


def test_the_agent_finds_the_planted_heads(cache, trained):
    for task, best in BEST.items():
        evaluation = evaluate(cache, task, policy_search(trained.policy, TASKS, task), PICKS)
        assert (evaluation.picked[:, 0] == best).all(), "told which task it is, it starts with that task's head"
        assert evaluation.ratios(3).mean() >= 0.99
        untold = evaluate(cache, task, policy_search(trained.policy, TASKS), PICKS)
        assert best in untold.picked[0, :2]


def test_planning_looks_at_k_heads_picks_the_best_and_pays_for_all(cache, trained):
    plain = evaluate(cache, "b", policy_search(trained.policy, TASKS, "b"), PICKS)
    planned = evaluate(cache, "b", policy_search(trained.policy, TASKS, "b", 3), PICKS)
    assert planned.seen[:, 0].min() >= plain.seen[:, 0].min()
    assert (planned.runs[:, 0] - 1 > plain.runs[:, 0] - 1).all()
    everything = evaluate(cache, "b", policy_search(trained.policy, TASKS, "b", 12), 1)
    np.testing.assert_allclose(everything.seen[:, 0], everything.scores.max(1))
    assert everything.runs[0, 0] == pytest.approx(1 + 8)


def test_one_seed_gives_one_agent(cache):
    parameters = [
        torch.cat([p.flatten() for p in run_training(cache, seed=seed, steps=500).policy.parameters()])
        for seed in (1, 1, 2)
    ]
    assert torch.equal(parameters[0], parameters[1])
    assert not torch.equal(parameters[0], parameters[2])


def test_training_with_planning_picks_better_heads_from_the_start(cache):
    returns = []
    for plan_k in (1, 4):
        ppo = run_training(cache, plan_k=plan_k, steps=64)
        returns.append(np.mean([info["r"] for info in ppo.ep_info_buffer]))
    assert returns[1] > returns[0] + 1


def test_the_comparison_holds_every_method_to_the_same_episodes(cache, trained, note):
    results = compare(cache, trained.policy, note)
    assert list(results) == ["a", "b", "c"]
    assert [name for name, _ in results["a"]] == ["agent", "agent, no task signal", "random", "static order"]
    assert [name for name, _ in results["c"]] == ["agent, no task signal", "random", "static order"]
    for rows in results.values():
        for _, evaluation in rows[1:]:
            np.testing.assert_array_equal(evaluation.scores, rows[0][1].scores)
    assert results["a"][-1][1].picked[0, 0] == 7, "the static order of a comes from b"


def test_a_checkpoint_comes_back_as_it_was(cache, trained, note, tmp_path):
    path = tmp_path / "c.zip"
    save_checkpoint(trained, note, path)
    policy, again = load_checkpoint(path)
    assert again == note
    one, other = (evaluate(cache, "a", policy_search(p, TASKS, "a"), PICKS) for p in (trained.policy, policy))
    np.testing.assert_array_equal(one.picked, other.picked)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_nothing_in_a_checkpoint_is_executed(trained, note, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(trained, note, tmp_path / "good.zip")
    bomb = io.BytesIO()
    torch.save({**trained.policy.state_dict(), "x": Bomb()}, bomb)
    data = json.dumps({"policy_class": {":type:": "x", ":serialized:": pickle.dumps(Bomb()).hex()}})
    for name, member in (("policy.pth", bomb.getvalue()), ("data", data.encode())):
        with zipfile.ZipFile("good.zip") as good, zipfile.ZipFile("evil.zip", "w") as evil:
            for item in good.namelist():
                evil.writestr(item, member if item == name else good.read(item))
        if name == "policy.pth":
            with pytest.raises(FileError, match="no part of a state dict"):
                load_checkpoint(tmp_path / "evil.zip")
        else:
            load_checkpoint(tmp_path / "evil.zip")  # never looks at `data`
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "checkpoint format 'other'"),
        ({"format_version": 1}, "checkpoint format"),
        ({"n_layers": 10**9}, "sizes out of range"),
        ({"layers": [10**9]}, "sizes out of range"),
        ({"tasks": "ioi"}, "'tasks' is 'ioi'"),
        ({"picks": None}, "'picks' is None"),
        ({"n_heads": 5}, "is not what mechrl.json describes"),
        ({"policy": "cnn"}, "unknown algorithm"),
        ({"layers": [1] * 200_000}, "sizes out of range"),
        ({"layers": [4096, 4096], "n_layers": 4096, "n_heads": 4096}, "sizes out of range"),
        ({"plan_k": 0}, "sizes out of range"),
        ({"picks": 13}, "sizes out of range"),
        ({"tasks": [1, 2]}, "tasks are"),
        ({"hold_out": ["a"]}, "named twice"),
        ({"control_weight": float("nan")}, "control_weight is nan"),
        ({"score_scale": 1e9}, "another game"),
    ],
)
def test_a_checkpoint_whose_note_is_wrong_is_refused(trained, note, tmp_path, change, message):
    save_checkpoint(trained, note, tmp_path / "good.zip")
    with pytest.raises(FileError, match=message):
        load_checkpoint(rewritten_note(tmp_path / "good.zip", tmp_path / "bad.zip", change))


def repacked(tensors, compression):
    """A state dict as torch writes it, its inner zip packed again."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(tensors, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", compression) as target:
        for item in source.namelist():
            target.writestr(item, source.read(item))
    return packed.getvalue()


def test_tensors_that_are_no_policy_are_refused(trained, note, tmp_path):
    save_checkpoint(trained, note, tmp_path / "good.zip")
    state = trained.policy.state_dict()
    first = next(iter(state))
    for tensors, compression, message in (
        (state, zipfile.ZIP_DEFLATED, "compressed"),
        ({**state, "more": torch.zeros(10**6)}, zipfile.ZIP_STORED, "at most are expected"),
        ({**state, first: state[first] * torch.nan}, zipfile.ZIP_STORED, "not finite"),
    ):
        with zipfile.ZipFile(tmp_path / "good.zip") as good, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
            for item in good.namelist():
                bad.writestr(item, repacked(tensors, compression) if item == "policy.pth" else good.read(item))
        with pytest.raises(FileError, match=message):
            load_checkpoint(tmp_path / "bad.zip")


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "nothing.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(FileError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("x", "y")
    with pytest.raises(FileError, match=r"no mechrl\.json"):
        load_checkpoint(tmp_path / "other.zip")
