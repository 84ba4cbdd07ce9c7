"""Searching an episode with a trained policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mechrl.agents.problem import Episode, Search, Start
from mechrl.envs.kernel import SCORE_SCALE


def policy_search(
    policy: Any,
    signals: Sequence[str] = (),
    task: str | None = None,
    k: int = 1,
    shuffled: bool = False,
) -> Start:
    """Pick the most probable head that is left, or look at the `k` most probable and pick the best of them.

    :param policy: a `PlanningPolicy`.
    :param signals: the tasks of its one-hot.
    :param task: which of them to show; None, or a task that is not among them, shows none.
    :param shuffled: show the scores seen so far in random order over the heads that were tried.
    """

    @torch.inference_mode()
    def search(episode: Episode) -> Search:
        policy.set_training_mode(False)
        n = episode.n_sites
        observation = np.zeros(len(signals) + 2 * n, np.float32)
        if task is not None and task in signals:
            observation[list(signals).index(task)] = 1
        tried, scores = observation[len(signals) :][:n], observation[len(signals) + n :][:n]
        for pick in range(n):
            shown = observation.copy()
            if shuffled:
                at = np.flatnonzero(tried)
                shown[len(signals) + n + at] = scores[episode.rng.permutation(at)]
            untried = tried == 0
            log_probs, _ = policy.log_probs_and_values(torch.from_numpy(shown)[None], torch.from_numpy(untried)[None])
            candidates = log_probs[0].topk(min(k, n - pick)).indices.numpy()
            seen = yield candidates
            best = int(seen.argmax())
            tried[candidates[best]] = 1
            scores[candidates[best]] = seen[best] / SCORE_SCALE

    return search
