"""The gymnasium environment: one episode at a time, `gymnasium.make("mechrl/HeadDiscovery-v0", cache=...)`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from mechrl.cache.reader import Cache
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable, default_picks
from mechrl.errors import UsageError
from mechrl.tasks import EVALUATION, TRAIN

SPLITS = {"train": TRAIN, "evaluation": EVALUATION}


class HeadDiscoveryEnv(gymnasium.Env):
    """Find the heads that a behaviour depends on.

    Action: the site of a head, `layer * n_heads + head`. Reward: its score, damage − control_weight × control damage,
    in nats; −1 for a head picked before. Observation, float32: one-hot of the task, tried mask, score ÷ 5 of the tried
    heads. `reset(options={"task": name, "batch": i, "control": j})` chooses the batches, counted within the split.

    :param cache: a cache or the path of one.
    :param tasks: which of its tasks; all by default.
    :param split: `train` or `evaluation`.
    :param picks: picks in an episode; 35 % of the heads by default.
    :param control_weight: weight of the control damage.
    :param signals: the tasks of the one-hot; `tasks` by default.
    :raises UsageError: an unknown task, split, or number of picks.
    """

    metadata = {"render_modes": []}  # noqa: RUF012, as gymnasium declares it

    def __init__(
        self,
        cache: Cache | str | Path,
        tasks: Sequence[str] | None = None,
        split: str = "train",
        picks: int | None = None,
        control_weight: float = 1.0,
        signals: Sequence[str] | None = None,
    ):
        if split not in SPLITS:
            raise UsageError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        cache = cache if isinstance(cache, Cache) else Cache.load(cache)
        table = ScoreTable.from_cache(cache, tasks or cache.tasks, SPLITS[split], control_weight)
        self.episodes = ParallelEpisodes(table, 1, default_picks(cache.n_sites) if picks is None else picks, signals)
        self.observation_space = spaces.Box(-np.inf, np.inf, self.episodes.observation.shape[1:], np.float32)
        self.action_space = spaces.Discrete(table.n_sites)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode, drawn at random but for what `options` says: task, batch and control (row numbers)."""
        super().reset(seed=seed)
        if seed is not None or not self.episodes.state.rng[0]:
            self.episodes.seed(0, int(self.np_random.integers(2**32)))
        self.episodes.draw(np.zeros(1, np.int64))
        if options:
            self._start(options)
        return self.episodes.observation[0].copy(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Pick a head, by its site: observation, reward, terminated, truncated (never) and info."""
        self.episodes.step(np.array([action], np.int64))
        episodes = self.episodes
        return episodes.observation[0].copy(), float(episodes.rewards[0]), bool(episodes.dones[0]), False, self._info()

    def action_masks(self) -> np.ndarray:
        """Which heads are left, bool [site]; `MaskablePPO` asks for it."""
        untried: np.ndarray = self.episodes.untried[0].copy()
        return untried

    def _start(self, options: dict[str, Any]) -> None:
        table, state = self.episodes.table, self.episodes.state
        unknown = set(options) - {"task", "batch", "control"}
        name = options.get("task", table.tasks[state.task[0]])
        if unknown or name not in table.tasks:
            raise UsageError(f"reset options are task, batch and control, the tasks {', '.join(table.tasks)}")
        task = table.tasks.index(name)
        drawn = int(state.row[0] - table.first[task]) if task == state.task[0] else 0
        batch, control = int(options.get("batch", drawn)), int(options.get("control", state.control[0]))
        if not 0 <= batch < table.count[task] or not 0 <= control < len(table.control):
            raise UsageError(f"{name} has batches 0 to {table.count[task] - 1}, control 0 to {len(table.control) - 1}")
        self.episodes.start(0, task, batch, control)

    def _info(self) -> dict[str, Any]:
        table, state = self.episodes.table, self.episodes.state
        task = int(state.task[0])
        return {
            "task": table.tasks[task],
            "batch": int(state.row[0] - table.first[task]),
            "control": int(state.control[0]),
        }
