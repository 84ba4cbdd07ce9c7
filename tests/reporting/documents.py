"""What `mechrl-verify --json` and `mechrl bench --json` print, written by hand."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.cache.top import top_heads


def around(mean: float, by: float = 0.25) -> list[float]:
    return [mean, mean - by, mean + by]


def verification(cache: Cache, checkpoint: Path | None = None) -> dict[str, Any]:
    """A verification of a cache: the two best heads of each task hold, the third does not.

    On the first task the heads stand in for one another, on the others their damages add up.
    """
    tasks = {}
    for i, task in enumerate(cache.tasks):
        top = top_heads(cache, task, 3)
        clean = float(cache.clean(task).mean())
        damage = [head.damage[0] for head in top]
        joint = [{"heads": [top[0].head], "joint": around(damage[0]), "summed": around(damage[0]),
                  "interaction": around(0.0)}]  # fmt: skip
        for n in (2, 3):
            summed = sum(damage[:n])
            together = summed + 2.5 if i == 0 else summed
            joint.append(
                {"heads": [head.head for head in top[:n]], "joint": around(together), "summed": around(summed),
                 "interaction": around(together - summed)}
            )  # fmt: skip
        counts = [0, 1, 2, 4, 8, cache.n_sites]
        kept = np.linspace(0.2, clean, len(counts)).tolist()
        tasks[task] = {
            "trained": i < 2, "runs": 13.7, "search": {"ratio@3": 0.97},
            "faithful": {"answer": True, "difference": 2e-6},
            "replicates": {"answer": True, "fresh_from": "generator", "prompts": 128, "groups": 64, "clean": clean,
                           "known_answers": [0, 13], "swept": True, "rank_limit": 3},
            "placebo": {"answer": True, "passed": [], "clean": 0.01},
            "complete": {"answer": i != 1, "coverage": around(0.9, 0.05), "ratio": around(0.97, 0.02),
                         "best": [head.head for head in top]},
            "heads": [
                {"head": head.head, "cached": head.score[0], "live": head.score[0], "difference": 1e-6,
                 "damage": list(head.damage), "share": head.damage[0] / clean, "score": list(head.score),
                 "p": 0.001, "p_adjusted": 0.003, "stands": 0.99, "rank": [n + 1, 1, n + 2],
                 "direct": around(0.1, 0.02), "elsewhere": around(0.3, 0.1), "answer": n < 2,
                 "why": "score above zero, in the top 3" if n < 2 else "its interval reaches zero"}
                for n, head in enumerate(top)
            ],
            "joint": joint,
            "curves": {
                "counts": counts, "full": clean, "empty": 0.2,
                "rankings": {
                    "the cache's scores": {"heads": [head.head for head in top], "kept": kept, "ablated": kept[::-1],
                                           "cpr": 0.61, "cmd": 0.42, "necessity": 0.7},
                    "random": {"heads": [], "kept": [v**2 / clean for v in kept], "ablated": kept[::-1],
                               "cpr": 0.31, "cmd": 0.72, "necessity": 0.4},
                },
                "refused": None,
            },
        }  # fmt: skip
    a = cache.attributes
    return {
        "format": "mechrl-verification", "format_version": 1, "command": "mechrl-verify checkpoint.zip --json",
        "mechrl_version": "0.1.0", "library_versions": {"torch": "2.13.0"}, "model": a["model"],
        "model_sha256": a["model_sha256"], "cache_sha256": cache.sha256,
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest() if checkpoint else None,
        "ablation": a["ablation"], "control_weight": 1.0, "seed": 0, "confirmed": False,
        "faithful": {"answer": True, "tolerance": 0.001, "control_difference": 6e-7}, "tasks": tasks,
    }  # fmt: skip


def bench(caches: dict[str, Cache], fingerprints: bool = True, agent: str = "agent") -> dict[str, Any]:
    """A benchmark of two methods on two tasks of each cache; the agent is twice as cheap."""
    grid = [1.0, 2.0, 4.0, 8.0]
    methods = {agent: ("scores", [0.0, 0.5, 0.95, 1.0], 4.0), "random": ("reference", [0.0, 0.2, 0.5, 0.95], 8.0)}
    printed: dict[str, Any] = {
        "by_protocol": False,
        "methods": {name: {"track": track, "exploratory": False} for name, (track, _, _) in methods.items()},
        "tasks": [
            {"cache": path, "family": family, "task": task, "method": name, "seed": 0, "cost": cost,
             "censored": name == "random", "coverage": curve}
            for path in caches
            for family, task in (("copying", "induction"), ("names", "ioi"))
            for name, (_, curve, cost) in methods.items()
        ],
        "cost_grid": grid,
        "verdicts": [{"track": "scores", "agent": agent, "sentence": "undecided", "cost_ratio": 0.5, "low": 0.3,
                      "high": 1.1, "p_adjusted": 0.25}],
    }  # fmt: skip
    if fingerprints:
        printed["caches"] = {
            path: {"model": cache.attributes["model"], "model_sha256": cache.attributes["model_sha256"],
                   "cache_sha256": cache.sha256}
            for path, cache in caches.items()
        }  # fmt: skip
    return printed
