"""The stable-baselines3 VecEnv on the kernel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from mechrl.envs.episodes import ParallelEpisodes


class HeadVecEnv(VecEnv):
    """Steps all episodes in one kernel call and starts finished ones anew on batches drawn at random.

    Offers `action_masks` for `MaskablePPO`. Observations are handed out without a copy: an array stays as it is during
    the next `step` or `reset`, as stable-baselines3 needs, and is then written anew; copy what you keep longer.
    Everything else is yours. While no episode ends, `infos` is the same list of empty dicts.

    :param episodes: the game; see `ParallelEpisodes` for its rules.
    :param seed: of the draws; `seed()` before a `reset()` overrides it.
    """

    render_mode = None

    def __init__(self, episodes: ParallelEpisodes, seed: int = 0):
        self.episodes = episodes
        n_observed = episodes.observation.shape[1]
        super().__init__(
            episodes.n,
            spaces.Box(-np.inf, np.inf, (n_observed,), np.float32),
            spaces.Discrete(episodes.table.n_sites),
        )
        self._actions = np.zeros(episodes.n, np.int64)
        self._returns = np.zeros(episodes.n)
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(episodes.n)]
        self.seed(seed)

    def reset(self) -> np.ndarray:
        for i, seed in enumerate(self._seeds):
            if seed is not None:
                self.episodes.seed(i, seed)
        self.episodes.draw_all()
        self._reset_seeds()
        self._reset_options()
        self._returns[:] = 0
        return self.episodes.observation

    def step_async(self, actions: np.ndarray) -> None:
        self._actions[:] = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        episodes = self.episodes
        episodes.step(self._actions)
        self._returns += episodes.rewards
        dones = episodes.dones.copy()
        finished = np.flatnonzero(dones)
        infos = self._no_infos if len(finished) == 0 else self._restart(finished)
        return episodes.observation, episodes.rewards.copy(), dones, infos

    def _restart(self, finished: np.ndarray) -> list[dict[str, Any]]:
        """Starts these rows anew; the infos of all rows, with how the finished episodes ended."""
        episodes = self.episodes
        names = episodes.table.tasks
        infos = self._no_infos.copy()
        for i, last, total, task in zip(
            finished.tolist(),
            episodes.observation[finished],
            self._returns[finished].tolist(),
            episodes.state.task[finished].tolist(),
            strict=True,
        ):
            infos[i] = {
                "terminal_observation": last,
                "TimeLimit.truncated": False,
                "episode": {"r": total, "l": episodes.picks},
                "task": names[task],
            }
        self._returns[finished] = 0
        episodes.draw(finished)
        return infos

    def action_masks(self) -> np.ndarray:
        """Which heads are left, bool [episode, site]."""
        return self.episodes.untried.copy()

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        if method_name != "action_masks":
            raise AttributeError(f"the environments have no method {method_name!r}")
        masks = self.action_masks()
        return [masks[i] for i in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        return attr_name in ("action_masks", "render_mode")

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"attribute {attr_name!r} of the environments cannot be set")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        return [None] * self.num_envs

    def close(self) -> None:
        pass
