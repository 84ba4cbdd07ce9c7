"""Episodes of a search as a Minari dataset, the format that libraries of offline reinforcement learning read."""

import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

import mechrl.envs  # makes the environment known to gymnasium
from mechrl.cache.export import header
from mechrl.cache.reader import Cache
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable, default_picks
from mechrl.errors import MachineError, UsageError, unknown_name
from mechrl.score import control_of_batch
from mechrl.search.methods.registry import all_methods
from mechrl.search.problem import Problem, family_of
from mechrl.search.protocol import evaluate
from mechrl.tasks import EVALUATION, TRAIN

SPLIT_NAMES = {TRAIN: "train", EVALUATION: "evaluation"}


def search(cache: Cache, task: str, name: str, picks: int | None = None, seed: int = 0) -> np.ndarray:
    """What a method picks on the evaluation episodes of a task, int64 [episode, pick], sites.

    :param name: of a registered method; it knows the cache's tasks of other families.
    :param picks: in an episode; 35 % of the heads by default.
    :raises UsageError: no such task or method, more picks than heads, a method that learns without a task of another
        family, or one whose queries are no picks.
    """
    cache.check_task(task)
    known = all_methods()
    if name not in known:
        raise unknown_name("method", name, list(known))
    method = known[name]
    train = tuple(other for other in cache.tasks if family_of(other) != family_of(task))
    if method.learns and not train:
        raise UsageError(f"{name!r} learns from tasks of other families than {task}, and {cache.path} holds none")
    start = method.prepare(Problem(cache, task, train, method.track, seed=seed))
    assert start is not None
    evaluation = evaluate(
        cache, task, start, default_picks(cache.n_sites) if picks is None else picks, track=method.track,
        prompts=method.prompts, seed=seed,
    )  # fmt: skip
    if not evaluation.whole:
        raise UsageError(f"{name!r} queries few prompts of a batch; such queries are no picks, and no trajectories")
    return evaluation.picked


def write_minari(
    cache: Cache,
    task: str,
    sites: np.ndarray,
    out: Path,
    *,
    name: str,
    split: int = EVALUATION,
    control_weight: float = 1.0,
) -> Path:
    """Play episodes with given picks and write them as a Minari dataset.

    Row i of the picks is played on the i-th batch of the split and the i-th control batch, modulo their number, with
    the task signal, in `mechrl/HeadDiscovery-v0` of this one task. Each episode keeps the `reset` options that start it
    again, and `batch` and `control` as infos. The metadata say which cache, model, ablation and task, under `mechrl`.

    :param sites: int [episode, pick], an episode for every batch of the split.
    :param out: the folder of the dataset, which must not exist. It is called what the folder is; in a folder
        `ioi-random-v0` under `MINARI_DATASETS_PATH`, `minari.load_dataset("ioi-random-v0")` finds it. No other folder
        is written to.
    :param name: of the method, as `algorithm_name`.
    :returns: the folder that `minari.MinariDataset` takes, `out/data`.
    :raises UsageError: Minari is not installed, `out` exists, no such task, picks that do not fit, or the cache is
        imported and the control weight not 1.
    :raises MachineError: the folder cannot be written to.
    """
    try:
        import minari
        from minari.data_collector.episode_buffer import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise UsageError("this needs Minari: pip install 'mechrl[minari]'") from error
    if out.exists() or not out.name:
        raise UsageError(f"{out} is there already: name a new folder")
    table = ScoreTable.from_cache(cache, [task], split, control_weight)
    if sites.ndim != 2 or len(sites) != len(table.damage):
        raise UsageError(f"picks are [episode, pick] for {len(table.damage)} episodes, not {list(sites.shape)}")
    made_with = {
        "cache": cache.path.name, "tasks": [task], "split": SPLIT_NAMES[split], "picks": sites.shape[1],
        "control_weight": control_weight,
    }  # fmt: skip
    spec = replace(gymnasium.spec("mechrl/HeadDiscovery-v0"), kwargs=made_with)
    spaces_of_env = spaces.Box(-np.inf, np.inf, (1 + 2 * table.n_sites,), np.float32), spaces.Discrete(table.n_sites)
    buffers = [EpisodeBuffer(**episode) for episode in play(table, sites)]
    metadata = _metadata(cache, task, out.name, name, split, control_weight)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".minari-") as folder:
            whole = Path(folder).resolve() / "dataset"  # Minari measures its files by absolute paths only
            whole.mkdir()
            storage = MinariStorage.new(whole / "data", *spaces_of_env, spec)
            storage.update_metadata({"minari_version": minari.__version__} | metadata)
            storage.update_episodes(buffers)
            os.rename(whole, out)
    except OSError as error:
        raise MachineError(f"cannot write {out}: {error.strerror or error}") from error
    return out / "data"


def _metadata(cache: Cache, task: str, folder: str, method: str, split: int, control_weight: float) -> dict[str, Any]:
    """What a Minari dataset says of itself, but for the version of Minari."""
    return {
        "dataset_id": folder if re.fullmatch(r"[-\w]+-v\d+", folder) else re.sub(r"[^-\w]", "-", folder) + "-v0",
        "algorithm_name": method,
        "description": f"Head discovery on {task}: episodes of {method}. The cache is not in the dataset: "
        "recover_environment(cache=PATH) takes it.",
        "requirements": ["mechrl"],
        "mechrl": {
            **header(cache), "task": task, "split": SPLIT_NAMES[split], "control_weight": control_weight,
            "mechrl_version": mechrl.__version__,
        },
    }  # fmt: skip


def play(table: ScoreTable, sites: np.ndarray) -> list[dict[str, Any]]:
    """Episodes with given picks, each as the fields of Minari's `EpisodeBuffer`.

    :param table: of one task; row i of the picks is played on its i-th batch.
    :param sites: int [episode, pick].
    :raises UsageError: a pick that is no head, or more picks than heads.
    """
    n, picks = sites.shape
    controls = control_of_batch(n, len(table.control))
    episodes = ParallelEpisodes(table, n, picks)
    for i in range(n):
        episodes.start(i, 0, i, int(controls[i]))
    observations, rewards, dones = [episodes.observation.copy()], [], []
    for chosen in sites.T:
        episodes.step(chosen.astype(np.int64))
        observations.append(episodes.observation.copy())
        rewards.append(episodes.rewards.copy())
        dones.append(episodes.dones.copy())
    return [
        {
            "id": i,
            "options": {"task": table.tasks[0], "batch": i, "control": int(controls[i])},
            "observations": [observation[i] for observation in observations],
            "actions": [int(site) for site in sites[i]],
            "rewards": [reward[i] for reward in rewards],
            "terminations": [bool(done[i]) for done in dones],
            "truncations": [False] * picks,
            "infos": {"batch": np.full(picks + 1, i), "control": np.full(picks + 1, controls[i])},
        }
        for i in range(n)
    ]
