"""A verification as JSON, for `mechrl-verify --json` and for the report."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

import mechrl
from mechrl.verification.verification import TaskResult, Verification

FORMAT, VERSION = "mechrl-verification", 1


def as_dict(result: Verification, command: str, checkpoint_sha256: str) -> dict[str, Any]:
    """Everything, for JSON.

    :param command: what was called.
    :param checkpoint_sha256: of the file.
    """
    cache, attributes = result.cache, result.cache.attributes

    def names(sites: Sequence[int]) -> list[str]:
        return [cache.head(site) for site in sites]

    def of_task(r: TaskResult) -> dict[str, Any]:
        return {
            "trained": r.trained,
            "confirmed": r.confirmed,
            "runs": float(r.evaluation.runs[:, -1].mean()),
            "search": r.evaluation.summary(),
            "faithful": {"answer": r.faithful, "difference": r.difference},
            "replicates": {
                "answer": r.replicates,
                "fresh_from": r.fresh_from,
                "prompts": len(r.fresh),
                "groups": len(np.unique(r.fresh.group)),
                "known_answers": list(r.known),
                "clean": r.clean,
                "swept": r.swept,
                "searched_answers": r.searched,
                "rank_limit": r.rank_limit,
            },
            "placebo": None
            if r.placebo is None
            else {"answer": not r.placebo_passed, "passed": names(r.placebo_passed), "clean": r.placebo_clean},
            "complete": None
            if r.complete is None
            else {
                "answer": r.complete.answer,
                "coverage": r.complete.coverage,
                "ratio": r.complete.ratio,
                "best": names(r.complete.best),
            },
            "heads": [
                {
                    "head": cache.head(h.site),
                    **{k: getattr(h, k) for k in ("cached", "live", "difference", "direct", "elsewhere")},
                    **vars(h.test),
                    "answer": not h.test.why,
                    "placebo": r.placebo and vars(r.placebo[i]),
                }
                for i, h in enumerate(r.heads)
            ],
            "joint": r.joint
            and [
                {
                    "heads": names(j.sites),
                    "joint": j.joint,
                    "summed": j.summed,
                    "interaction": j.interaction,
                }
                for j in r.joint
            ],
            "curves": r.curves
            and {
                "counts": r.curves.counts,
                "full": r.curves.full,
                "empty": r.curves.empty,
                "refused": r.curves.refused or None,
                "rankings": {
                    name: {**{k: v for k, v in vars(ranking).items() if k != "sites"}, "heads": names(ranking.sites)}
                    for name, ranking in r.curves.rankings.items()
                },
            },
        }

    return {
        "format": FORMAT,
        "format_version": VERSION,
        "command": command,
        "mechrl_version": mechrl.__version__,
        "library_versions": json.loads(attributes.get("library_versions", "{}")),
        "model": attributes["model"],
        "model_sha256": attributes["model_sha256"],
        "cache_sha256": cache.sha256,
        "checkpoint_sha256": checkpoint_sha256,
        "ablation": attributes["ablation"],
        "control_weight": result.note.control_weight,
        "seed": result.seed,
        "confirmed": result.confirmed,
        "faithful": {
            "answer": result.faithful,
            "tolerance": result.tolerance,
            "control_difference": result.control_difference,
        },
        "tasks": {r.task: of_task(r) for r in result.tasks},
    }
