"""Episodes as a Minari dataset, read back by Minari's own loader and compared with the environment."""

import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from helpers import table_cache

import mechrl.envs  # noqa: F401, makes the environment known
from mechrl.cache.imported import import_table
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_whole
from mechrl.cli.cache import cache as cache_command
from mechrl.errors import MachineError, UsageError
from mechrl.search.methods.orders import random_order, static_order
from mechrl.search.problem import Problem
from mechrl.search.protocol import evaluate
from mechrl.search.trajectories import search, write_minari
from mechrl.tasks import TRAIN


@pytest.fixture
def minari(monkeypatch, tmp_path):
    """Minari, with a home of its own in which nothing may be written."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    yield pytest.importorskip("minari")
    assert not home.exists()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    rng = np.random.default_rng(0)
    damage = {name: rng.normal(size=(16, 6)).astype(np.float32) for name in ("a", "b")}
    control = rng.normal(size=(12, 6)).astype(np.float32)
    return table_cache(tmp_path_factory.mktemp("cache") / "c.h5", damage, control, 2, 3)


def compare(dataset, cache, task, split, sites, weight=1.0):
    """Every number of a dataset with what the gymnasium environment gives for the same picks."""
    env = gymnasium.make(
        "mechrl/HeadDiscovery-v0", cache=cache, tasks=[task], split=split, picks=sites.shape[1], control_weight=weight
    )
    assert dataset.observation_space == env.observation_space
    assert dataset.action_space == env.action_space
    assert dataset.total_episodes == len(sites)
    assert dataset.total_steps == sites.size
    metadata = list(dataset.storage.get_episode_metadata(range(len(sites))))
    for i, episode in enumerate(dataset.iterate_episodes()):
        options = {key: value if key == "task" else int(value) for key, value in metadata[i]["options"].items()}
        assert (options["task"], options["batch"]) == (task, i)
        observation, info = env.reset(options=options)
        seen, rewards, ends, infos = [observation], [], [], [info]
        for site in sites[i].tolist():
            observation, reward, terminated, truncated, info = env.step(site)
            seen.append(observation)
            rewards.append(reward)
            ends.append((terminated, truncated))
            infos.append(info)
        np.testing.assert_array_equal(episode.observations, seen)
        np.testing.assert_array_equal(episode.actions, sites[i])
        np.testing.assert_array_equal(episode.rewards, np.array(rewards, np.float32))
        np.testing.assert_array_equal(np.stack([episode.terminations, episode.truncations], 1), ends)
        for name in ("batch", "control"):
            assert episode.infos[name].tolist() == [info[name] for info in infos]


def test_minari_reads_back_what_the_environment_gives(minari, cache, tmp_path):
    sites = np.array([[5, 0, 3], [1, 1, 2], [0, 5, 4], [2, 0, 2]])  # with repeats, which cost 1
    data = write_minari(cache, "b", sites, tmp_path / "d", name="by hand")
    dataset = minari.MinariDataset(data)
    compare(dataset, cache, "b", "evaluation", sites)
    assert [episode.rewards.tolist().count(-1.0) for episode in dataset.iterate_episodes()] == [0, 1, 0, 1]
    controls = [episode.infos["control"][0] for episode in dataset.iterate_episodes()]
    assert controls == [0, 1, 2, 0], "the i-th control batch, modulo their number"


def test_training_episodes_at_another_control_weight(minari, cache, tmp_path):
    sites = np.random.default_rng(1).integers(0, 6, (12, 6))
    data = write_minari(cache, "a", sites, tmp_path / "d", name="by hand", split=TRAIN, control_weight=0.25)
    compare(minari.MinariDataset(data), cache, "a", "train", sites, 0.25)


def test_the_metadata_say_what_the_numbers_are_of(minari, cache, tmp_path, monkeypatch):
    out = tmp_path / "sets" / "a-by-hand-v2"
    write_minari(cache, "a", np.zeros((4, 2), int), out, name="by hand")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(out.parent))
    dataset = minari.load_dataset("a-by-hand-v2")
    assert dataset.id == "a-by-hand-v2"
    assert list(minari.list_local_datasets()) == ["a-by-hand-v2"]
    metadata = dataset.storage.metadata
    assert metadata["algorithm_name"] == "by hand"
    note = metadata["mechrl"]
    assert note["content_sha256"] == cache.sha256
    assert (note["model"], note["ablation"], note["task"], note["split"]) == ("by hand", "zero", "a", "evaluation")
    env = dataset.recover_environment(cache=str(cache.path))
    observation, _ = env.reset(options={"batch": 0, "control": 0})
    np.testing.assert_array_equal(observation, dataset[0].observations[0])
    assert str(cache.path.parent) not in json.dumps(metadata, default=str), "a path of this machine"
    assert gymnasium.spec("mechrl/HeadDiscovery-v0").kwargs == {}


@pytest.mark.parametrize("method", ["random", "static order"])
def test_the_command_writes_the_evaluation_episodes_of_a_search(minari, call, cache, tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    out = Path("some folder")
    flags = ("--format", "minari", "--task", "b", "--method", method, "--picks", 4, "--seed", 3)
    code, printed, err = call(cache_command, "export", cache.path, *flags, "--out", out)
    assert (code, err) == (0, "")
    assert printed.startswith(f"{out} written: 4 episodes of 4 picks")
    dataset = minari.MinariDataset(out / "data")
    assert dataset.id == "some-folder-v0"
    assert dataset.storage.metadata["algorithm_name"] == method
    prepare = {"random": random_order, "static order": static_order}[method]
    wanted = evaluate(cache, "b", prepare(Problem(cache, "b", ("a",))), 4, seed=3)
    compare(dataset, cache, "b", "evaluation", wanted.picked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some folder"]


def test_an_imported_table_gives_trajectories_too(minari, tmp_path):
    (tmp_path / "t.csv").write_text("0.0,0.1,0.2\n1,2,3\n4,5,6\n7,8,9\n")
    cache = Cache.open(import_table(tmp_path / "t.csv", "mine", 1, 3, tmp_path / "c.h5"))
    sites = search(cache, "mine", "random")
    compare(
        minari.MinariDataset(write_minari(cache, "mine", sites, tmp_path / "d", name="random")),
        cache, "mine", "evaluation", sites,
    )  # fmt: skip


def test_a_search_picks_a_third_of_the_heads_unless_told_otherwise(cache):
    assert search(cache, "a", "random").shape == (4, 2)
    assert search(cache, "a", "random", 6).shape == (4, 6)
    assert not np.array_equal(search(cache, "a", "random", 6, seed=1), search(cache, "a", "random", 6, seed=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "minari", "--task", "a"], "needs --out"),
        (["--format", "minari", "--task", "a", "-n", "3", "-o", "new"], "has no --n"),
        (["--format", "minari", "-o", "new"], "is of one task: give --task with one of a, b"),
        (["--format", "minari", "--task", "c", "-o", "new"], "unknown task 'c'"),
        (["--format", "minari", "--task", "a", "--method", "randm", "-o", "new"], "Did you mean 'random'?"),
        (["--format", "minari", "--task", "a", "--picks", "7", "-o", "new"], "between 1 and the 6 heads, not 7"),
        (["--format", "minari", "--task", "a", "-o", "there"], "there is there already: name a new folder"),
        (["--format", "csv", "--method", "random"], "--method goes with --format minari, not with csv"),
        (["--format", "csv", "--picks", "3"], "--picks goes with"),
        (["--format", "csv", "--seed", "3"], "--seed goes with"),
    ],
)
def test_wrong_usage_gets_one_message_and_writes_nothing(
    minari, call, cache, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    code, out, err = call(cache_command, "export", cache.path, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert not list((tmp_path / "there").iterdir())


def test_a_static_order_needs_another_task(tmp_path):
    numbers = np.zeros((4, 2), np.float32)
    with pytest.raises(UsageError, match=r"learns from tasks of other families than a, and .* holds none"):
        search(table_cache(tmp_path / "t.h5", {"a": numbers}, numbers, 1, 2), "a", "static order")


def test_queries_on_few_prompts_are_no_trajectories(tmp_path):
    numbers = np.zeros((12, 2), np.float32)
    with pytest.raises(UsageError, match="such queries are no picks"):
        search(table_cache(tmp_path / "t.h5", {"a": numbers}, numbers, 1, 2, batch_size=3), "a", "sweep on 1 prompt")


@pytest.mark.parametrize("shape", [(3, 2), (5, 2), (4,)])
def test_picks_for_other_episodes_are_refused(minari, cache, tmp_path, shape):
    with pytest.raises(UsageError, match=r"picks are \[episode, pick\] for 4 episodes, not"):
        write_minari(cache, "a", np.zeros(shape, int), tmp_path / "d", name="x")


def test_a_folder_that_cannot_be_written_leaves_nothing(minari, cache, tmp_path):
    write_whole(tmp_path / "file", lambda path: path.write_text("x"))
    with pytest.raises(MachineError, match="cannot write"):
        write_minari(cache, "a", np.zeros((4, 2), int), tmp_path / "file" / "d", name="x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_minari_the_message_says_what_to_install(call, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    code, out, err = call(
        cache_command, "export", cache.path, "--format", "minari", "--task", "a", "-o", tmp_path / "d"
    )
    assert (code, out) == (2, "")
    assert "pip install 'mechrl[minari]'" in err
    assert not list(tmp_path.iterdir())
