"""The numba kernel: starts and steps all episodes at once, looking every score up in a table."""

from typing import NamedTuple

import numpy as np

from mechrl.envs.compiling import compiled

SCORE_SCALE = 5.0  # scores are divided by this in the observation
REPEAT_REWARD = -1.0  # of picking a head again: it uses up a pick and shows nothing new
RING = 2  # observations are written in turn into so many arrays; the last RING picks bring an old one up to date


class State(NamedTuple):
    """The episodes in progress, one row each.

    rng uint64; task, row (of damage), control (row of control damage), moves and signal (place in the one-hot, -1 for
    none) int64; observations float32 [RING, episode, signals + 2 × site (+ site)]: task one-hot, tried mask, score ÷ 5
    of tried heads, hints if there are any; untried bool [episode, site]; the last picks, recent int64 [episode, RING]
    (-1 for a repeat) and what they showed, shown float32 [episode, RING].
    """

    rng: np.ndarray
    task: np.ndarray
    row: np.ndarray
    control: np.ndarray
    moves: np.ndarray
    signal: np.ndarray
    observations: np.ndarray
    untried: np.ndarray
    recent: np.ndarray
    shown: np.ndarray


def new_state(n: int, n_signals: int, n_sites: int, n_hints: int = 0) -> State:
    """`n` episodes that have not started."""
    task, row, control, moves, signal = (np.zeros(n, np.int64) for _ in range(5))
    return State(
        np.zeros(n, np.uint64),
        task,
        row,
        control,
        moves,
        signal,
        np.zeros((RING, n, n_signals + 2 * n_sites + n_hints), np.float32),
        np.ones((n, n_sites), np.bool_),
        np.full((n, RING), -1, np.int64),
        np.zeros((n, RING), np.float32),
    )


@compiled
def seed(state: State, i: int, value: int) -> None:
    """Seeds the draws of one row (splitmix64, so that neighbouring seeds draw unrelated numbers)."""
    z = np.uint64(value) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state.rng[i] = (z ^ (z >> np.uint64(31))) | np.uint64(1)


@compiled
def below(state: State, i: int, n: int) -> np.int64:
    """The next random number of a row, in [0, n) (xorshift64*)."""
    x = state.rng[i]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state.rng[i] = x
    return np.int64(((x * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(33)) % np.uint64(n))


@compiled
def blank(state: State, i: int, at: int, hints: np.ndarray) -> None:
    """Writes the observation of a row before its first pick into array `at`."""
    observation = state.observations[at, i]
    n_hints = hints.shape[1]
    known = len(observation) - n_hints
    observation[:known] = 0.0
    observation[known:] = hints[state.row[i]]
    if state.signal[i] >= 0:
        observation[state.signal[i]] = 1.0


@compiled
def start(state: State, i: int, at: int, task: int, row: int, control: int, signal: int, hints: np.ndarray) -> None:
    """Starts an episode on these batches; `signal` is the task's place in the one-hot, -1 for no task signal."""
    state.task[i] = task
    state.row[i] = row
    state.control[i] = control
    state.moves[i] = 0
    state.signal[i] = signal
    state.untried[i] = True
    blank(state, i, at, hints)


@compiled
def start_drawn(
    state: State,
    rows: np.ndarray,
    at: int,
    first: np.ndarray,
    count: np.ndarray,
    n_control: int,
    signals: np.ndarray,
    drop: float,
    hints: np.ndarray,
) -> None:
    """Starts episodes of these rows, each on a task, a batch of it and a control batch drawn at random.

    :param signals: int64 [task], each task's place in the one-hot, -1 for none.
    :param drop: the share of episodes that get no task signal.
    """
    for i in rows:
        task = below(state, i, len(first))
        row = first[task] + below(state, i, count[task])
        control = below(state, i, n_control)
        dropped = below(state, i, 1 << 20) < drop * (1 << 20)
        start(state, i, at, task, row, control, -1 if dropped else signals[task], hints)  # type: ignore[arg-type]


@compiled
def step(
    state: State,
    at: int,
    actions: np.ndarray,
    damage: np.ndarray,
    control: np.ndarray,
    weight: np.float32,
    hints: np.ndarray,
    picks: int,
    rewards: np.ndarray,
    dones: np.ndarray,
) -> bool:
    """One pick in every episode; rewards float32 and dones bool are filled in, the observations into array `at`.

    That array was written RING steps ago, or belongs to an earlier episode. False, and nothing done, if an action is no
    site.
    """
    n_sites = state.untried.shape[1]
    n_signals = state.observations.shape[2] - 2 * n_sites - hints.shape[1]
    for site in actions:
        if site < 0 or site >= n_sites:
            return False
    for i in range(len(actions)):
        site = actions[i]
        move = state.moves[i]
        if state.untried[i, site]:
            score = damage[state.row[i], site] - weight * control[state.control[i], site]
            state.untried[i, site] = False
            state.recent[i, move % RING] = site
            state.shown[i, move % RING] = score / np.float32(SCORE_SCALE)
            rewards[i] = score
        else:
            state.recent[i, move % RING] = -1
            rewards[i] = REPEAT_REWARD
        move += 1
        state.moves[i] = move
        dones[i] = move >= picks
        if move < RING:
            blank(state, i, at, hints)
        for k in range(min(move, RING)):
            pick = state.recent[i, k]
            if pick >= 0:
                state.observations[at, i, n_signals + pick] = 1.0
                state.observations[at, i, n_signals + n_sites + pick] = state.shown[i, k]
    return True
