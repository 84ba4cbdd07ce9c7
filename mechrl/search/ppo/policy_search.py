"""Searching an episode with a trained policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mechrl.envs.kernel import SCORE_SCALE
from mechrl.search.problem import Search, SearchEpisode, Start, z_scored


def policy_search(
    policy: Any, signals: Sequence[str] = (), task: str | None = None, k: int = 1, hints: bool = False
) -> Start:
    """Pick the most probable head that is left, or query the `k` most probable and pick the best of them.

    :param policy: a `PlanningPolicy`.
    :param signals: the tasks of its one-hot.
    :param task: which of them to show; None, or a task that is not among them, shows none.
    :param hints: whether its observation ends with hints: z-scored attribution, which is paid for.
    """

    @torch.inference_mode()
    def search(episode: SearchEpisode) -> Search:
        policy.set_training_mode(False)
        n = episode.n_sites
        signal = np.array([float(task == name) for name in signals], np.float32)
        tried, scores = np.zeros((2, n), np.float32)
        hint = z_scored(episode.attribution()) if hints else np.zeros(0, np.float32)
        for pick in range(n):
            observation = torch.from_numpy(np.concatenate([signal, tried, scores, hint])[None])
            log_probs, _ = policy.log_probs_and_values(observation, torch.from_numpy(tried == 0)[None])
            candidates = log_probs[0].topk(min(k, n - pick)).indices.numpy()
            seen = yield candidates
            best = int(seen.argmax())
            tried[candidates[best]] = 1
            scores[candidates[best]] = seen[best] / SCORE_SCALE

    return search
