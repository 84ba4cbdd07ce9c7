"""The numba kernel: starts and steps all episodes at once, looking every score up in a table."""

from typing import NamedTuple

import numpy as np
from numba import njit

SCORE_SCALE = 5.0  # scores are divided by this in the observation
REPEAT_REWARD = -1.0  # of picking a head again: it uses up a pick and shows nothing new


class State(NamedTuple):
    """The episodes in progress, one row each.

    rng uint64; task, row (of damage), control (row of control damage) and moves int64; observation float32 [episode,
    signals + 2 × site]: task one-hot, tried mask, score ÷ 5 of tried heads; untried bool [episode, site].
    """

    rng: np.ndarray
    task: np.ndarray
    row: np.ndarray
    control: np.ndarray
    moves: np.ndarray
    observation: np.ndarray
    untried: np.ndarray


def new_state(n: int, n_signals: int, n_sites: int) -> State:
    """`n` episodes that have not started."""
    task, row, control, moves = (np.zeros(n, np.int64) for _ in range(4))
    return State(
        np.zeros(n, np.uint64),
        task,
        row,
        control,
        moves,
        np.zeros((n, n_signals + 2 * n_sites), np.float32),
        np.ones((n, n_sites), np.bool_),
    )


@njit(cache=True)
def seed(state: State, i: int, value: int) -> None:
    """Seeds the draws of one row (splitmix64, so that neighbouring seeds draw unrelated numbers)."""
    z = np.uint64(value) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state.rng[i] = (z ^ (z >> np.uint64(31))) | np.uint64(1)


@njit(cache=True)
def below(state: State, i: int, n: int) -> np.int64:
    """The next random number of a row, in [0, n) (xorshift64*)."""
    x = state.rng[i]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state.rng[i] = x
    return np.int64(((x * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(33)) % np.uint64(n))


@njit(cache=True)
def start(state: State, i: int, task: int, row: int, control: int, signal: int) -> None:
    """Starts an episode on these batches; `signal` is the task's place in the one-hot, -1 for no task signal."""
    state.task[i] = task
    state.row[i] = row
    state.control[i] = control
    state.moves[i] = 0
    state.observation[i] = 0.0
    state.untried[i] = True
    if signal >= 0:
        state.observation[i, signal] = 1.0


@njit(cache=True)
def start_drawn(
    state: State, i: int, first: np.ndarray, count: np.ndarray, n_control: int, signals: np.ndarray, drop: float
) -> None:
    """Starts an episode on a task, a batch of it and a control batch drawn at random.

    :param signals: int64 [task], each task's place in the one-hot, -1 for none.
    :param drop: the share of episodes that get no task signal.
    """
    task = below(state, i, len(first))
    row = first[task] + below(state, i, count[task])
    control = below(state, i, n_control)
    dropped = below(state, i, 1 << 20) < drop * (1 << 20)
    start(state, i, task, row, control, -1 if dropped else signals[task])  # type: ignore[arg-type]


@njit(cache=True)
def step(
    state: State,
    actions: np.ndarray,
    damage: np.ndarray,
    control: np.ndarray,
    weight: np.float32,
    picks: int,
    rewards: np.ndarray,
    dones: np.ndarray,
) -> None:
    """One pick in every episode; rewards float32 and dones bool are filled in."""
    n_sites = state.untried.shape[1]
    n_signals = state.observation.shape[1] - 2 * n_sites
    for i in range(len(actions)):
        site = actions[i]
        if state.untried[i, site]:
            score = damage[state.row[i], site] - weight * control[state.control[i], site]
            state.untried[i, site] = False
            state.observation[i, n_signals + site] = 1.0
            state.observation[i, n_signals + n_sites + site] = score / np.float32(SCORE_SCALE)
            rewards[i] = score
        else:
            rewards[i] = REPEAT_REWARD
        state.moves[i] += 1
        dones[i] = state.moves[i] >= picks
