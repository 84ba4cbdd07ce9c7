"""The policy that shares its weights over heads: of any number, in any order; and it infers what it was not told."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import bench, load_checkpoint, rewritten_note, table_cache

from mechrl.cache.reader import Cache
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable
from mechrl.errors import FileError
from mechrl.search.ppo.checkpoint import CheckpointNote, adapt_to_cache, save_checkpoint
from mechrl.search.ppo.heads_policy import HeadsPolicy, make_heads_policy
from mechrl.search.ppo.heads_training import train_heads
from mechrl.search.ppo.policy_search import policy_search
from mechrl.search.ppo.training import PRESETS, make_policy, train
from mechrl.search.protocol import evaluate
from mechrl.search.structure import HeadStructure, family_folds, head_structure
from mechrl.tasks import TRAIN

PROBE, GROUPS = 0, (range(4, 10), range(10, 16))  # the score of the probe tells which group is live
TRAINED, UNSEEN = [f"t{i}" for i in range(6)], ["t6", "t7"]
PICKS = 4


def planted(path, n_layers: int, n_heads: int, seed: int = 0, tasks=range(8)) -> Cache:
    """16 heads or more: tasks of even number have the one live group, those of odd number the other."""
    rng = np.random.default_rng(seed)
    damage = {}
    for i in tasks:
        mean = np.zeros(n_layers * n_heads)
        mean[PROBE] = (3.5, 1.5)[i % 2]
        mean[list(GROUPS[i % 2])] = rng.uniform(2, 3, 6)
        damage[f"t{i}"] = (mean + 0.2 * rng.normal(size=(16, len(mean)))).astype(np.float32)
    control = (0.01 * rng.normal(size=(16, n_layers * n_heads))).astype(np.float32)
    return table_cache(path, damage, control, n_layers, n_heads, batch_size=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted") / "t.h5", 2, 8)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("larger") / "t.h5", 3, 10)


@pytest.fixture(scope="module")
def trained(cache):
    return run_training(cache)


def run_training(cache, seed=0, steps=6000, **others):
    return train_heads(cache, TRAINED, picks=PICKS, steps=steps, seed=seed, **others)


@pytest.fixture
def note(cache, trained):
    a = cache.attributes
    return CheckpointNote(
        TRAINED, UNSEEN, PICKS, 1.0, 5.0, -1.0, 1, "default", [trained.policy.width], 0, trained.num_timesteps, 2, 8,
        a["model"], a["model_sha256"], a["ablation"], a["weight_processing"], cache.sha256,
        policy="heads", task_signal=False,
    )  # fmt: skip


def found(cache, policy, shuffled=False) -> float:
    """Mean sum of scores over the evaluation episodes of the tasks that it never saw."""
    search = policy_search(policy)
    return float(np.mean([evaluate(cache, task, search, PICKS, shuffled=shuffled).seen.sum(1) for task in UNSEEN]))


def best_fixed_order(cache) -> float:
    """What the best of all fixed orders gets there, chosen with the answers in hand."""
    means = np.mean([evaluate(cache, t, lambda episode: [0], 1).scores.mean(0) for t in UNSEEN], axis=0)
    return float(np.sort(means)[-PICKS:].sum())


def random_structure(rng, n_sites: int, n_tasks: int = 5) -> HeadStructure:
    mean, spread, best = np.abs(rng.normal(size=(3, n_sites))).astype(np.float32)
    loadings = rng.normal(size=(n_tasks, n_sites)).astype(np.float32)
    noise = rng.uniform(0.1, 1, n_sites).astype(np.float32)
    return HeadStructure(0.5, np.zeros(n_sites, np.float32), mean, spread, best, loadings, noise)


def test_it_infers_a_task_it_never_saw_better_than_every_fixed_order(cache, trained):
    assert found(cache, trained.policy) > best_fixed_order(cache) + 1


def test_shuffling_the_scores_it_sees_destroys_that(cache, trained):
    shuffled = found(cache, trained.policy, shuffled=True)
    assert shuffled < found(cache, trained.policy) - 1
    assert shuffled < best_fixed_order(cache) + 0.5


def test_without_structure_it_cannot_know_the_live_group_from_the_probe(cache, trained):
    blind = run_training(cache, structure=False)
    assert found(cache, blind.policy) < found(cache, trained.policy) - 1


def test_its_weights_fit_any_number_of_heads_and_tasks():
    rng = np.random.default_rng(0)
    small, large = (make_heads_policy(random_structure(rng, n, t), 8) for n, t in ((12, 3), (30, 7)))
    shapes = [{name: p.shape for name, p in policy.named_parameters()} for policy in (small, large)]
    assert shapes[0] == shapes[1]


def test_on_a_larger_model_it_infers_with_the_weights_it_has(larger, trained, note, tmp_path):
    save_checkpoint(trained, note, tmp_path / "c.zip")
    policy, read = load_checkpoint(tmp_path / "c.zip")
    moved = adapt_to_cache(policy, read, larger)
    assert moved.picks == PICKS * 30 // 16
    assert found(larger, policy) > best_fixed_order(larger) + 1


def test_permuting_heads_permutes_logits():
    """Heads of one layer, so that nothing but the order tells them apart."""
    rng = np.random.default_rng(0)
    n = 12
    structure = random_structure(rng, n)
    order = rng.permutation(n)
    moved = replace(
        structure,
        **{name: getattr(structure, name)[..., order] for name in ("mean", "spread", "best", "loadings", "noise")},
    )
    one, other = make_heads_policy(structure, 16), make_heads_policy(moved, 16)
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(one.parameters()), other.parameters())
    tried = rng.random((7, n)) < 0.4
    score = rng.normal(size=(7, n)) * tried
    ours, theirs = (
        torch.as_tensor(np.column_stack([tried[:, o], score[:, o]]), dtype=torch.float32) for o in (np.arange(n), order)
    )
    untried = torch.as_tensor(~tried)
    logs, values = one.log_probs_and_values(ours, untried)
    moved_logs, moved_values = other.log_probs_and_values(theirs, untried[:, order])
    torch.testing.assert_close(logs[:, order], moved_logs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(values, moved_values, atol=1e-4, rtol=1e-4)
    assert logs.std(1).min() > 1e-3


def test_what_is_expected_of_a_head_is_the_gaussian_conditional():
    """Against the textbook formula with the whole covariance matrix."""
    rng = np.random.default_rng(1)
    s = random_structure(rng, 10)
    tried = np.zeros(10, bool)
    tried[[1, 4, 7]] = True
    squashed = rng.normal(size=10)
    shown = (torch.as_tensor(x[None], dtype=torch.float32) for x in (tried, squashed * tried))
    expected, deviation = (
        x.numpy()[0] for x in make_heads_policy(s, 8).expect(*shown, torch.zeros(1, dtype=torch.int64))
    )
    prior = s.loadings.T @ s.loadings
    gain = prior[:, tried] @ np.linalg.inv(prior[np.ix_(tried, tried)] + np.diag(s.noise[tried]))
    np.testing.assert_allclose(expected, s.mean + gain @ (squashed - s.mean)[tried], atol=1e-4)
    np.testing.assert_allclose(deviation**2, np.diag(prior - gain @ prior[tried]) + s.noise, atol=1e-4)


def test_a_task_is_learned_with_the_structure_of_other_families():
    folds = family_folds(["ioi", "gendered_pronoun", "induction", "my_own"])
    assert folds["ioi"] == folds["gendered_pronoun"] == ("induction", "my_own")
    assert folds["my_own"] == ("ioi", "gendered_pronoun", "induction")
    assert family_folds(["ioi"]) == {"ioi": ("ioi",)}


def test_structure_comes_from_training_batches(cache):
    structure = head_structure(cache, TRAINED)
    scores = np.stack([cache.scores(task, TRAIN) for task in TRAINED])
    assert structure.scale == pytest.approx(np.median(scores.max(1)) / 3)
    covariance = structure.loadings.T @ structure.loadings
    live = [np.corrcoef(np.arcsinh(scores / structure.scale).T)[4, i] for i in (5, 10)]
    assert [covariance[4, 5] > 0, covariance[4, 10] < 0] == [live[0] > 0, live[1] < 0] == [True, True]


def test_tried_heads_are_never_picked(cache, trained):
    evaluation = evaluate(cache, "t6", policy_search(trained.policy), 16)
    assert [sorted(row) for row in evaluation.picked.tolist()] == [list(range(16))] * len(evaluation.picked)
    untried = torch.zeros(1, 16, dtype=torch.bool)
    untried[0, 3] = True
    logs, _ = trained.policy.log_probs_and_values(torch.zeros(1, 32), untried)
    assert logs.exp()[0, 3] == 1


def test_hints_are_seen_where_there_are_hints():
    rng = np.random.default_rng(0)
    structure = random_structure(rng, 6)
    policy = make_heads_policy(structure, 8, hints=True)
    nothing = torch.zeros(1, 18)
    hinted = nothing.clone()
    hinted[0, 12:] = torch.as_tensor(rng.normal(size=6))
    untried = torch.ones(1, 6, dtype=torch.bool)
    one, other = (policy.log_probs_and_values(obs, untried)[0] for obs in (nothing, hinted))
    assert (one - other).abs().max() > 1e-4


def test_one_seed_gives_one_agent(cache):
    parameters = [
        torch.cat([p.flatten() for p in run_training(cache, seed=seed, steps=500).policy.parameters()])
        for seed in (1, 1, 2)
    ]
    assert torch.equal(parameters[0], parameters[1])
    assert not torch.equal(parameters[0], parameters[2])


def test_a_checkpoint_comes_back_as_it_was(cache, trained, note, tmp_path):
    save_checkpoint(trained, note, tmp_path / "c.zip")
    policy, again = load_checkpoint(tmp_path / "c.zip")
    assert again == note
    assert isinstance(policy, HeadsPolicy)
    assert adapt_to_cache(policy, again, cache) == note
    one, other = (evaluate(cache, "t6", policy_search(p), PICKS) for p in (trained.policy, policy))
    np.testing.assert_array_equal(one.picked, other.picked)


def test_a_checkpoint_of_one_output_per_head_is_refused_for_another_number_of_heads(note, larger):
    paper = replace(note, policy="paper", layers=[8])
    with pytest.raises(FileError, match="one output per head, 16, and the model of the cache has 30"):
        adapt_to_cache(make_policy(6, 16, [8]), paper, larger)


def test_a_checkpoint_is_benchmarked_on_another_model_and_on_no_family_that_it_knows(trained, note, larger, tmp_path):
    save_checkpoint(trained, note, tmp_path / "c.zip")
    found = bench([larger.path], names=["checkpoint c.zip", "random"], workers=1, checkpoint=tmp_path / "c.zip")
    assert {o.task for o in found.tasks if o.method == "checkpoint c.zip"} == set(UNSEEN)
    assert {o.task for o in found.tasks if o.method == "random"} == {*TRAINED, *UNSEEN}


def test_a_benchmark_takes_a_checkpoint_with_the_tasks_that_the_cache_holds(trained, note, tmp_path, capsys):
    save_checkpoint(trained, note, tmp_path / "c.zip")
    fewer = planted(tmp_path / "fewer.h5", 3, 10, tasks=(2, 3, 6))
    found = bench([fewer.path], names=["checkpoint c.zip"], workers=1, checkpoint=tmp_path / "c.zip")
    assert {o.task for o in found.tasks} == {"t6"}
    assert "what t2, t3 say" in capsys.readouterr().err
    none = planted(tmp_path / "none.h5", 3, 10, tasks=(6, 7))
    with pytest.raises(FileError, match=f"holds none of its tasks: {', '.join(TRAINED)}"):
        bench([none.path], names=["checkpoint c.zip"], workers=1, checkpoint=tmp_path / "c.zip")


def test_a_benchmark_refuses_a_checkpoint_of_one_output_per_head_for_another_model(note, larger, tmp_path):
    paper = replace(note, policy="paper", layers=[8], tasks=TRAINED[:5], task_signal=False)
    ppo = train(
        ParallelEpisodes(ScoreTable.from_cache(larger, ["t0"]), 4, 2), replace(PRESETS["default"], n_envs=4), steps=8
    )
    ppo.policy = make_policy(0, 16, [8])
    save_checkpoint(ppo, paper, tmp_path / "p.zip")
    with pytest.raises(FileError, match="one output per head"):
        bench([larger.path], names=["checkpoint p.zip"], workers=1, checkpoint=tmp_path / "p.zip")


def test_a_checkpoint_is_refused_for_a_cache_without_its_tasks(cache, trained, note):
    with pytest.raises(FileError, match="trained on t9"):
        adapt_to_cache(trained.policy, replace(note, tasks=["t1", "t9"]), cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "paper"}, "is not what mechrl.json describes"),
        ({"layers": []}, "one width"),
        ({"layers": [16, 16]}, "one width"),
        ({"layers": [4096]}, "sizes out of range"),
        ({"layers": [1], "n_layers": 4096, "n_heads": 4096}, "sizes out of range"),
        ({"hints": 1}, "'hints' is 1"),
        ({"told": True}, "is not what mechrl.json describes"),
        ({"n_heads": 9}, "is not what mechrl.json describes"),
        ({"format_version": 1}, "checkpoint format"),
    ],
)
def test_a_checkpoint_whose_note_is_wrong_is_refused(trained, note, tmp_path, change, message):
    save_checkpoint(trained, note, tmp_path / "good.zip")
    with pytest.raises(FileError, match=message):
        load_checkpoint(rewritten_note(tmp_path / "good.zip", tmp_path / "bad.zip", change))
