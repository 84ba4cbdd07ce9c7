"""Training an agent on the tasks of a cache, from the choice of tasks to the checkpoint."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sb3_contrib import MaskablePPO

from mechrl.cache.reader import Cache
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.kernel import REPEAT_REWARD, SCORE_SCALE
from mechrl.envs.table import ScoreTable, default_picks
from mechrl.errors import FileError, UsageError, check_range, unknown_name
from mechrl.search.ppo.checkpoint import Checkpoint, CheckpointNote, Training
from mechrl.search.ppo.heads_training import train_heads
from mechrl.search.ppo.training import PRESETS, PlanningPolicy, Preset, log_evaluation, train

if TYPE_CHECKING:
    from mechrl.envs.live import LiveEpisodes
    from mechrl.models import Model

POLICIES, POLICY_PRESETS = ("paper", "heads"), ("default", "paper")
LASTING_RATIO = 0.99  # of the oracle after 3 picks, on every training task
EVALUATIONS = 10  # during a training


def train_agent(
    cache: Cache,
    tasks: Sequence[str] | None = None,
    hold_out: Sequence[str] | None = None,
    *,
    policy: str = "paper",
    preset: str = "default",
    steps: int | None = None,
    picks: int | None = None,
    plan_k: int = 1,
    control_weight: float = 1.0,
    seed: int = 0,
    live_model: "Model | None" = None,
    tensorboard: Path | None = None,
    on_progress: Callable[[float, float], None] = lambda done, total: None,
) -> Checkpoint:
    """Train PPO to find the heads that matter, on the training batches of a cache.

    :param tasks: to train on; by default induction and ioi, and if one is missing all tasks that are not held out.
    :param hold_out: noted as tasks to evaluate on; by default docstring, if it is there and not trained on.
    :param policy: `paper`, one output per head, or `heads`, the same weights for every head.
    :param preset: `default` or `paper`, the settings of the policy `paper`; `heads` has its own.
    :param steps: picks in all, in whole rollouts; the preset's by default.
    :param picks: in an episode; 35 % of the heads by default.
    :param plan_k: heads to query before a pick.
    :param control_weight: score = damage − control weight × control damage.
    :param live_model: the cache's model, asked for every score; the cache then gives prompts and evaluation.
    :param tensorboard: a folder for TensorBoard logs.
    :param on_progress: called after every rollout with the picks done and those in all.
    :raises UsageError: an unknown name, a task named twice, or numbers or choices that do not go together.
    :raises FileError: the live model is not the one that the cache was built from.
    :raises MachineError: the cache is imported and has no prompts for a live model.
    """
    if policy not in POLICIES:
        raise unknown_name("policy", policy, list(POLICIES))
    if preset not in POLICY_PRESETS:
        raise unknown_name("preset", preset, list(POLICY_PRESETS))
    if policy == "heads" and (live_model is not None or preset == "paper"):
        raise UsageError("the policy 'heads' has settings of its own: it is trained neither live nor with a preset")
    settings = PRESETS["heads" if policy == "heads" else preset]
    trained, held_out = _chosen_tasks(cache, tasks, hold_out)
    picks = default_picks(cache.n_sites) if picks is None else picks
    steps = settings.steps if steps is None else steps
    check_range(
        steps=(steps, 1, inf),
        picks=(picks, 1, inf),
        heads_queried_before_a_pick=(plan_k, 1, cache.n_sites),
        control_weight=(control_weight, 0.0, 1e6),
        seed=(seed, 0, 2**32 - 1),
    )
    a = cache.attributes
    wanted = CheckpointNote(
        trained, held_out, int(picks), float(control_weight), SCORE_SCALE, REPEAT_REWARD, int(plan_k), preset,
        list(settings.layers), int(seed), int(steps), cache.n_layers, cache.n_heads, a["model"], a["model_sha256"],
        a["ablation"], a["weight_processing"], cache.sha256, policy=policy, task_signal=policy != "heads",
    )  # fmt: skip
    return _train(cache, wanted, settings, live_model, tensorboard, on_progress)


def _chosen_tasks(
    cache: Cache, tasks: Sequence[str] | None, hold_out: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    if tasks is None:
        usual = ["induction", "ioi"]
        tasks = usual if set(usual) <= set(cache.tasks) else [t for t in cache.tasks if t not in (hold_out or [])]
    if hold_out is None:
        hold_out = [task for task in ("docstring",) if task in cache.tasks and task not in tasks]
    named = [*tasks, *hold_out]
    for task in named:
        cache.check_task(task)
    if not tasks or len(set(named)) < len(named):
        raise UsageError("name at least one task to train on, and none twice, be it to train on or held out")
    return list(tasks), list(hold_out)


def _train(
    cache: Cache,
    wanted: CheckpointNote,
    settings: Preset,
    live_model: "Model | None",
    tensorboard: Path | None,
    on_progress: Callable[[float, float], None],
) -> Checkpoint:
    """Train as the note says, whose `steps` are those that are asked for."""
    watch = _Watch(cache, wanted, settings, on_progress)
    running: dict[str, Any] = {
        "steps": wanted.steps, "seed": wanted.seed, "plan_k": wanted.plan_k, "tensorboard": tensorboard,
        "on_rollout": watch,
    }  # fmt: skip
    live = None
    if wanted.policy == "heads":
        ppo = train_heads(cache, wanted.tasks, picks=wanted.picks, control_weight=wanted.control_weight, **running)
    else:
        table = ScoreTable.from_cache(cache, wanted.tasks, control_weight=wanted.control_weight)
        game = (table, settings.n_envs, wanted.picks)
        if live_model is not None:
            live = _live_episodes(live_model, cache, game, settings.drop_signal)
        ppo = train(live or ParallelEpisodes(*game, drop_signal=settings.drop_signal), settings, **running)
    passes = live.scores.passes if live else 0
    training = Training(ppo, time.monotonic() - watch.start, watch.lasting, passes)
    return Checkpoint(cast(PlanningPolicy, ppo.policy), replace(wanted, steps=ppo.num_timesteps), None, training)


def _live_episodes(
    model: "Model", cache: Cache, game: tuple[ScoreTable, int, int], drop_signal: float
) -> "LiveEpisodes":
    from mechrl.envs.live import LiveEpisodes, LiveScores  # transformers comes with it; training on a cache needs none

    cache.check_replayable()
    if model.sha256 != cache.attributes["model_sha256"]:
        raise FileError(f"{cache.path} was built from another model than {model.name!r}")
    return LiveEpisodes(LiveScores(model, cache, game[0].tasks), *game, drop_signal)


class _Watch:
    """Called after every rollout: tells the progress, and evaluates the policy ten times in a training."""

    def __init__(
        self, cache: Cache, note: CheckpointNote, settings: Preset, on_progress: Callable[[float, float], None]
    ):
        self.cache, self.note, self.on_progress = cache, note, on_progress
        self.rollout = settings.n_envs * note.picks
        self.every = max(1, note.steps // (EVALUATIONS * self.rollout))  # rollouts
        self.start = time.monotonic()
        self.lasting: float | None = None

    def __call__(self, ppo: MaskablePPO) -> None:
        note = self.note
        self.on_progress(ppo.num_timesteps, note.steps)
        if ppo.num_timesteps // self.rollout % self.every == 0:
            ratios = log_evaluation(
                ppo, self.cache, note.tasks, note.picks, note.control_weight, task_signal=note.task_signal
            )
            reached = min(ratios.values(), default=0) >= LASTING_RATIO
            self.lasting = (self.lasting or time.monotonic() - self.start) if reached else None
