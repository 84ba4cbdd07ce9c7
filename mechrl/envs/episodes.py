"""Many episodes side by side on one score table: what the VecEnv, the gymnasium Env and the evaluation run on."""

from collections.abc import Sequence

import numpy as np

from mechrl.envs import kernel
from mechrl.envs.table import ScoreTable
from mechrl.errors import UsageError
from mechrl.score import score


class ParallelEpisodes:
    """`n` episodes of the head discovery game.

    An episode is `picks` picks on one task batch and one control batch. A pick's reward is the head's score. Picking a
    head again is legal, costs 1, uses up the pick and shows nothing new; `untried` says which heads are left.

    :param table: what to look up.
    :param n: how many episodes run side by side.
    :param picks: picks in an episode.
    :param signals: the tasks of the one-hot, in order; a task that is not among them gets no signal.
    :param drop_signal: the share of drawn episodes that get no task signal.
    :raises UsageError: `picks` is not between 1 and the number of heads.
    """

    def __init__(
        self, table: ScoreTable, n: int, picks: int, signals: Sequence[str] | None = None, drop_signal: float = 0.0
    ):
        if not 1 <= picks <= table.n_sites:
            raise UsageError(f"picks must be between 1 and the {table.n_sites} heads, not {picks}")
        self.table = table
        self.n = n
        self.picks = picks
        self.signals = tuple(table.tasks if signals is None else signals)
        self.drop_signal = drop_signal
        self._signal_of_task = np.array([self.signals.index(t) if t in self.signals else -1 for t in table.tasks])
        self._weight = np.float32(table.control_weight)
        self._hints = np.zeros((len(table.damage), 0), np.float32) if table.hints is None else table.hints
        self.state = kernel.new_state(n, len(self.signals), table.n_sites, self._hints.shape[1])
        self._at = 0  # which of the arrays of observations is the current one
        self.rewards = np.zeros(n, np.float32)
        self.dones = np.zeros(n, np.bool_)

    @property
    def observation(self) -> np.ndarray:
        """float32 [episode, signals + 2 × site (+ site)]: task one-hot, tried mask, score ÷ 5, hints if there are any.

        Steps write into `kernel.RING` arrays in turn: this one does not change during the next step. `start` and `draw`
        write into it.
        """
        observation: np.ndarray = self.state.observations[self._at]
        return observation

    @property
    def untried(self) -> np.ndarray:
        """bool [episode, site]; changes with the next step."""
        return self.state.untried

    def seed(self, i: int, seed: int) -> None:
        """Seeds the draws of one row."""
        kernel.seed(self.state, i, seed)

    def draw(self, rows: np.ndarray) -> None:
        """Starts episodes of these rows, int64, on batches drawn at random."""
        table = self.table
        kernel.start_drawn(
            self.state, rows, self._at, table.first, table.count, len(table.control), self._signal_of_task,
            self.drop_signal, self._hints,
        )  # fmt: skip

    def draw_all(self) -> None:
        """Starts every row anew; like a step, it leaves the last observation as it is."""
        self._at = (self._at + 1) % kernel.RING
        self.draw(np.arange(self.n))

    def start(self, i: int, task: int, batch: int, control: int, signalled: bool = True) -> None:
        """Starts an episode of row `i` on chosen batches: the task's and the control's, counted within the split."""
        signal = int(self._signal_of_task[task]) if signalled else -1
        row = int(self.table.first[task]) + batch
        kernel.start(self.state, i, self._at, task, row, control, signal, self._hints)

    def step(self, actions: np.ndarray) -> None:
        """One pick in every episode; `rewards`, `dones`, `observation` and `untried` are brought up to date.

        :param actions: int64 [episode], sites.
        :raises UsageError: there is no such head.
        """
        table = self.table
        at = (self._at + 1) % kernel.RING
        if not kernel.step(
            self.state, at, actions, table.damage, table.control, self._weight, self._hints, self.picks,
            self.rewards, self.dones,
        ):  # fmt: skip
            raise UsageError(f"actions are sites, 0 to {table.n_sites - 1}, not {actions.min()} to {actions.max()}")
        self._at = at

    def query(self, sites: np.ndarray) -> np.ndarray:
        """The scores of one head in each episode, float32 [episode], without picking it."""
        state, table = self.state, self.table
        return score(table.damage[state.row, sites], table.control[state.control, sites], table.control_weight)
