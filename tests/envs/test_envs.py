"""The game: the kernel against the rules written out, the VecEnv, the gymnasium Env, and the live game."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from helpers import table_cache
from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

from mechrl.building.build import build
from mechrl.building.settings import BuildSettings
from mechrl.cache.reader import Cache
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.live import LiveEpisodes, LiveScores
from mechrl.envs.single import HeadDiscoveryEnv
from mechrl.envs.table import ScoreTable, default_picks
from mechrl.envs.vec import HeadVecEnv
from mechrl.errors import UsageError
from mechrl.score import score
from mechrl.tasks import TRAIN

N_SITES = 6


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    rng = np.random.default_rng(0)
    damage = {name: rng.normal(size=(16, N_SITES)).astype(np.float32) for name in ("a", "b")}
    control = rng.normal(size=(12, N_SITES)).astype(np.float32)
    return table_cache(tmp_path_factory.mktemp("table") / "t.h5", damage, control, 2, 3, batch_size=2)


@pytest.fixture
def table(cache):
    return ScoreTable.from_cache(cache, ["a", "b"], control_weight=0.5)


def test_table_holds_batch_means(cache, table):
    assert table.damage.shape == (12, N_SITES)
    np.testing.assert_allclose(table.damage[6], cache.damage("b")[:2].mean(0), rtol=1e-6)
    np.testing.assert_allclose(table.control[1], cache.control_damage[2:4].mean(0), rtol=1e-5)


def test_default_picks_are_35_percent():
    assert (default_picks(144), default_picks(32), default_picks(1)) == (50, 11, 1)


def test_kernel_follows_the_rules(table):
    """Random picks, repeats among them, against the rules written out in plain Python."""
    episodes = ParallelEpisodes(table, 5, picks=4, drop_signal=0.5)
    rng = np.random.default_rng(1)
    for i in range(5):
        episodes.seed(i, i)
    repeats = 0
    for _ in range(50):
        episodes.draw(np.arange(5))
        tried = [{} for _ in range(5)]
        for pick in range(4):
            actions = rng.integers(0, N_SITES, 5)
            queried = episodes.query(actions)
            episodes.step(actions)
            for i, site in enumerate(actions):
                row, control = episodes.state.row[i], episodes.state.control[i]
                expected = table.damage[row, site] - np.float32(0.5) * table.control[control, site]
                assert queried[i] == pytest.approx(expected, abs=1e-6)
                repeats += site in tried[i]
                assert episodes.rewards[i] == pytest.approx(-1 if site in tried[i] else expected, abs=1e-6)
                tried[i][site] = expected
                signal, mask, scores = np.split(episodes.observation[i], [2, 2 + N_SITES])
                task = episodes.state.task[i]
                assert row // 6 == task
                assert signal.tolist() in ([0, 0], [float(task == 0), float(task == 1)])
                assert mask.tolist() == [float(s in tried[i]) for s in range(N_SITES)]
                np.testing.assert_allclose(scores, [tried[i].get(s, 0) / 5 for s in range(N_SITES)], atol=1e-6)
                assert episodes.untried[i].tolist() == [s not in tried[i] for s in range(N_SITES)]
            assert episodes.dones.tolist() == [pick == 3] * 5
    assert repeats > 100


@pytest.mark.parametrize("weight", [0, 0.1, 1, 3.7])
def test_the_kernels_scores_are_the_librarys_bit_for_bit(weight):
    """Every head of every batch with every control batch, on tables of numbers from tiny to large."""
    rng = np.random.default_rng(7)
    n, n_control, n_sites = 40, 30, 20
    damage, control = (
        (rng.normal(size=(rows, n_sites)) * 10.0 ** rng.integers(-6, 4, (rows, n_sites))).astype(np.float32)
        for rows in (n, n_control)
    )
    table = ScoreTable(("a",), damage, np.array([0]), np.array([n]), control, weight)
    episodes = ParallelEpisodes(table, n, picks=n_sites)
    for first in range(n_control):
        controls = (first + np.arange(n)) % n_control
        expected = score(damage, control[controls], weight)
        assert expected.dtype == np.float32
        for i in range(n):
            episodes.start(i, 0, i, int(controls[i]))
        for site in range(n_sites):
            actions = np.full(n, site)
            np.testing.assert_array_equal(episodes.query(actions), expected[:, site])
            episodes.step(actions)
            np.testing.assert_array_equal(episodes.rewards, expected[:, site])


def test_draws_cover_all_batches_and_drop_the_signal_as_often_as_asked(table):
    episodes = ParallelEpisodes(table, 1, picks=2, drop_signal=0.25)
    episodes.seed(0, 3)
    rows, controls, told = set(), set(), 0
    for _ in range(2000):
        episodes.draw(np.array([0]))
        rows.add(int(episodes.state.row[0]))
        controls.add(int(episodes.state.control[0]))
        told += episodes.observation[0, :2].any()
    assert rows == set(range(12))
    assert controls == set(range(len(table.control)))
    assert 1400 < told < 1600


def test_a_task_that_is_not_among_the_signals_gives_none(cache):
    episodes = ParallelEpisodes(ScoreTable.from_cache(cache, ["b"]), 1, picks=2, signals=["a"])
    episodes.start(0, 0, 1, 0)
    assert episodes.observation[0, 0] == 0
    assert episodes.observation.shape[1] == 1 + 2 * N_SITES


def test_picks_are_checked(table):
    for picks in (0, N_SITES + 1):
        with pytest.raises(UsageError, match="between 1 and the 6 heads"):
            ParallelEpisodes(table, 1, picks)


def rollout(env, seed):
    env.seed(seed)
    observations = [env.reset()]
    for step in range(7):
        observation, rewards, _, _ = env.step(np.full(3, step % N_SITES))
        observations += [observation, rewards]
    return np.concatenate([o.ravel() for o in observations])


def test_vec_env_honours_seeds(table):
    env = HeadVecEnv(ParallelEpisodes(table, 3, picks=4))
    first, again, other = rollout(env, 5), rollout(env, 5), rollout(env, 6)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


class SlowVecEnv:
    """The rules in plain Python: one episode at a time, every array made anew."""

    def __init__(self, table, n, picks, drop, seed):
        self.table, self.picks, self.drop = table, picks, drop
        self.rng = [self._mix(seed + i) for i in range(n)]

    @staticmethod
    def _mix(z):
        z = (z * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return (z ^ (z >> 31)) | 1

    def _below(self, i, n):
        x = self.rng[i]
        x ^= x >> 12
        x ^= x << 25 & (2**64 - 1)
        x ^= x >> 27
        self.rng[i] = x
        return ((x * 0x2545F4914F6CDD1D % 2**64) >> 33) % n

    def _start(self, i):
        task = self._below(i, len(self.table.tasks))
        row = int(self.table.first[task]) + self._below(i, int(self.table.count[task]))
        control = self._below(i, len(self.table.control))
        told = self._below(i, 2**20) >= self.drop * 2**20
        return {"task": task, "row": row, "control": control, "told": told, "tried": {}, "moves": 0, "return": 0.0}

    def reset(self):
        self.games = [self._start(i) for i in range(len(self.rng))]
        return self.observations()

    def observations(self):
        return np.stack([self._observation(game) for game in self.games])

    def _observation(self, game):
        tried, n_sites = game["tried"], self.table.n_sites
        signal = [float(game["told"] and game["task"] == t) for t in range(len(self.table.tasks))]
        scores = [np.float32(tried.get(s, 0)) / np.float32(5) for s in range(n_sites)]
        hints = [] if self.table.hints is None else self.table.hints[game["row"]]
        return np.array([*signal, *(float(s in tried) for s in range(n_sites)), *scores, *hints], np.float32)

    def step(self, actions):
        rewards, dones, infos = [], [], []
        for i, site in enumerate(actions.tolist()):
            game = self.games[i]
            score = self.table.scores(game["row"], game["control"])[site]
            reward = np.float32(-1) if site in game["tried"] else score
            game["tried"][site] = score
            game["moves"] += 1
            game["return"] += float(reward)
            rewards.append(reward)
            dones.append(game["moves"] == self.picks)
            infos.append({})
            if dones[-1]:
                infos[-1] = {
                    "terminal_observation": self._observation(game),
                    "TimeLimit.truncated": False,
                    "episode": {"r": game["return"], "l": self.picks},
                    "task": self.table.tasks[game["task"]],
                }
                self.games[i] = self._start(i)
        return self.observations(), np.array(rewards), np.array(dones), infos


@pytest.mark.parametrize("hinted", [False, True])
@pytest.mark.parametrize("picks", [1, 2, 3, 6])
def test_vec_env_equals_the_slow_reference_and_what_it_hands_out_stays_for_a_step(table, picks, hinted):
    if hinted:
        table = replace(table, hints=np.random.default_rng(5).normal(size=table.damage.shape).astype(np.float32))
    env = HeadVecEnv(ParallelEpisodes(table, 4, picks, drop_signal=0.25), seed=7)
    slow = SlowVecEnv(table, 4, picks, 0.25, 7)
    assert env.observation_space.shape == (2 + (3 if hinted else 2) * N_SITES,)
    rng = np.random.default_rng(2)
    handed_out, terminal = [], []

    def compare(observation, expected):
        np.testing.assert_array_equal(observation, expected)
        handed_out.append((observation, expected))
        for earlier, as_it_was in handed_out[-2:]:
            np.testing.assert_array_equal(earlier, as_it_was)

    compare(env.reset(), slow.reset())
    for step in range(300):
        actions = rng.integers(0, N_SITES, 4)  # repeats among them
        observation, rewards, dones, infos = env.step(actions)
        expected, expected_rewards, expected_dones, expected_infos = slow.step(actions)
        compare(observation, expected)
        np.testing.assert_array_equal(rewards, expected_rewards)
        np.testing.assert_array_equal(dones, expected_dones)
        np.testing.assert_array_equal(env.action_masks(), observation[:, 2 : 2 + N_SITES] == 0)
        for info, expected_info in zip(infos, expected_infos, strict=True):
            assert list(info) == list(expected_info)
            if info:
                last, expected_last = info.pop("terminal_observation"), expected_info.pop("terminal_observation")
                np.testing.assert_array_equal(last, expected_last)
                terminal.append((last, expected_last))
                assert info.pop("episode")["r"] == pytest.approx(expected_info.pop("episode")["r"])
                assert info == expected_info
        if step % 50 == 20:
            compare(env.reset(), slow.reset())
    assert len(terminal) >= 4 * 40
    for last, expected_last in terminal:
        np.testing.assert_array_equal(last, expected_last)


def test_a_step_with_an_action_that_is_no_head_changes_nothing(table):
    env = HeadVecEnv(ParallelEpisodes(table, 3, picks=4))
    start = env.reset()
    for wrong in (-1, N_SITES):
        with pytest.raises(UsageError, match="actions are sites, 0 to 5"):
            env.step(np.array([0, 1, wrong]))
    np.testing.assert_array_equal(env.episodes.observation, start)
    assert env.action_masks().all()


def test_vec_env_starts_anew_and_gives_terminal_observations(table):
    env = HeadVecEnv(ParallelEpisodes(table, 3, picks=2), seed=1)
    start = env.reset()
    assert env.has_attr("action_masks")
    kept = start.copy()
    first, rewards, dones, infos = env.step(np.array([0, 1, 2]))
    np.testing.assert_array_equal(start, kept)
    assert not dones.any()
    assert infos == [{}, {}, {}]
    masks = env.env_method("action_masks")
    assert [m.tolist().index(False) for m in masks] == [0, 1, 2]
    again, more_rewards, dones, infos = env.step(np.array([3, 4, 5]))
    assert dones.all()
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is False
        assert info["terminal_observation"][2 : 2 + N_SITES].sum() == 2
        assert info["episode"]["r"] == pytest.approx(rewards[i] + more_rewards[i])
    assert again[:, 2:].sum() == 0, "finished episodes start anew"
    assert np.array(env.env_method("action_masks", indices=[1])).all()
    assert first[:, 2 : 2 + N_SITES].sum() == 3


def test_gymnasium_env_passes_both_checkers(cache):
    env = gymnasium.make("mechrl/HeadDiscovery-v0", cache=cache)
    check_env(env.unwrapped)
    check_env_of_sb3(env.unwrapped)


def test_gymnasium_env_plays_the_chosen_episode(cache):
    env = HeadDiscoveryEnv(cache, split="evaluation", picks=3)
    _, info = env.reset(seed=0, options={"task": "b", "batch": 1, "control": 0})
    assert info == {"task": "b", "batch": 1, "control": 0}
    _, reward, terminated, truncated, _ = env.step(4)
    expected = cache.batch_damage("b")[1, 4] - cache.batch_control()[0, 4]
    assert reward == pytest.approx(expected, abs=1e-6)
    assert not env.action_masks()[4]
    assert env.step(4)[1] == -1
    terminated = env.step(0)[2]
    assert terminated
    assert not truncated
    for options in ({"task": "c"}, {"batch": 99}, {"tusk": "a"}):
        with pytest.raises(UsageError):
            env.reset(options=options)
    with pytest.raises(UsageError, match="split must be"):
        HeadDiscoveryEnv(cache, split="test")


def test_live_and_lookup_give_the_same_rewards_over_whole_episodes(mini, small_cache):
    tasks = ["induction", "ioi"]
    table = ScoreTable.from_cache(small_cache, tasks, control_weight=0.7)
    picks = default_picks(small_cache.n_sites)
    lookup = HeadVecEnv(ParallelEpisodes(table, 2, picks), seed=4)
    scores = LiveScores(mini, small_cache, tasks)
    live = HeadVecEnv(LiveEpisodes(scores, table, 2, picks), seed=4)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(lookup.reset(), live.reset())
    seen = []
    for _ in range(picks):
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in lookup.action_masks()])
        one, other = lookup.step(actions), live.step(actions)
        np.testing.assert_allclose(one[1], other[1], atol=1e-5)
        np.testing.assert_allclose(one[0], other[0], atol=1e-5)
        seen.append(one[1])
    assert np.abs(seen).max() > 0.1
    assert scores.passes >= 2 * 2 * picks, "the live game asks the model at every pick"


def test_the_live_game_puts_in_what_the_cache_says(mini, tmp_path):
    tasks = ("induction", "greater_than")  # whose prompts are of one length each, as resampling needs them
    settings = BuildSettings(tasks, batches=4, batch_size=2, control_batches=4, ablation="resample")
    cache = Cache.open(build(mini, settings, tmp_path / "resample.h5"))
    scores = LiveScores(mini, cache, tasks)
    damage = np.concatenate([cache.batch_damage(task, TRAIN) for task in tasks])
    control = cache.batch_control(TRAIN)
    for row in (0, 1, 2, 3):
        site = int(np.abs(damage[row]).argmax())
        assert scores.damage(row, site) == pytest.approx(damage[row, site], abs=1e-4)
        assert scores.control_damage(row % 2, site) == pytest.approx(control[row % 2, site], abs=1e-5)
    assert np.abs(damage).max() > 0.1
