"""`mechrl-train`: train an agent on a cache."""

import time
from pathlib import Path

import click

from mechrl.cli import app


@click.command()
@click.option("--from-cache", "path", type=click.Path(path_type=Path), is_flag=False, flag_value=app.MINI_CACHE,
              default=app.MINI_CACHE, show_default=True, help="The cache to look scores up in.")  # fmt: skip
@click.option("--live", is_flag=True, help="Ask the model for every score; the cache gives prompts and evaluation.")
@app.model
@app.revision
@app.device
@click.option("--tasks", callback=app.names, help="To train on.  [default: induction,ioi; else all that are there]")
@click.option("--hold-out", callback=app.names, help="Only to evaluate on.  [default: docstring, if it is there]")
@click.option(
    "--policy",
    type=click.Choice(["paper", "heads"]),
    default="paper",
    show_default=True,
    help="paper: one output per head. heads: the same weights for every head; it infers the task and fits any model.",
)
@click.option("--preset", type=click.Choice(["default", "paper"]), default="default", show_default=True)
@click.option("--steps", type=click.IntRange(1), help="Picks in all, in whole rollouts.  [default: the preset's]")
@click.option("--picks", type=click.IntRange(1), help="In an episode.  [default: 35 % of the heads]")
@click.option("--plan-k", default=1, show_default=True, type=click.IntRange(1), help="Heads to look at before a pick.")
@click.option(
    "--control-weight",
    default=1.0,
    show_default=True,
    callback=app.not_negative,
    help="Score = damage − this × control damage.",
)
@app.seed
@app.threads(1)
@click.option("--tensorboard", type=click.Path(path_type=Path), help="A folder for TensorBoard logs.")
@click.option("--out", type=click.Path(path_type=Path), default="checkpoint.zip", show_default=True)
@app.as_json
def train(
    path, live, model, revision, device, tasks, hold_out, policy, preset, steps, picks, plan_k, control_weight, seed,
    threads, tensorboard, out, as_json,
):  # fmt: skip
    """Train PPO to find the heads that matter, and evaluate it on unseen prompts."""
    start = time.monotonic()
    if path == app.MINI_CACHE:
        app.say(app.FIRST_LINE)
    if not path.is_file() and not app.unfinished(path):
        option = "" if path == app.MINI_CACHE else " --model NAME"
        raise click.UsageError(f"there is no cache at {path}; mechrl-cache build{option} makes one")
    app.use_threads(threads)
    from mechrl.cache.reader import Cache
    from mechrl.cache.storage import check_writable
    from mechrl.errors import UsageError

    check_writable(out)
    if out.resolve() == path.resolve():
        raise UsageError(f"--out {out} would overwrite the cache")
    if tensorboard:
        tensorboard.mkdir(parents=True, exist_ok=True)
    cache = Cache.open(path)
    if tasks is None:
        usual = ["induction", "ioi"]
        tasks = usual if set(usual) <= set(cache.tasks) else [t for t in cache.tasks if t not in (hold_out or [])]
    if hold_out is None:
        hold_out = [task for task in ("docstring",) if task in cache.tasks and task not in tasks]
    for task in [*tasks, *hold_out]:
        cache.check_task(task)
    if not tasks or len({*tasks, *hold_out}) < len(tasks + hold_out):
        raise UsageError("--tasks needs at least one task, and no task may be named twice, in --hold-out neither")

    from mechrl.envs.episodes import Episodes
    from mechrl.envs.kernel import REPEAT_REWARD, SCORE_SCALE
    from mechrl.envs.table import ScoreTable, default_picks
    from mechrl.search.ppo.checkpoint import CheckpointNote, save_checkpoint
    from mechrl.search.ppo.heads_training import train_heads
    from mechrl.search.ppo.training import PRESETS, log_evaluation
    from mechrl.search.ppo.training import train as train_ppo

    heads = policy == "heads"
    if heads and (live or preset == "paper"):
        raise UsageError("--policy heads is trained on a cache, with settings of its own: no --live, no --preset paper")
    settings = PRESETS["heads" if heads else preset]
    steps, picks = steps or settings.steps, picks or default_picks(cache.n_sites)
    table = ScoreTable.from_cache(cache, tasks, control_weight=control_weight)
    if live:
        episodes, scores = _live_episodes(model, revision, device, cache, table, settings, picks)
    else:
        episodes = Episodes(table, settings.n_envs, picks, drop_signal=settings.drop_signal)
    with app.progress("training") as progress:
        evaluate_every = max(1, steps // (10 * settings.n_envs * picks))
        lasting: list[float | None] = [None]

        def on_rollout(ppo) -> None:
            progress(ppo.num_timesteps, steps)
            if ppo.num_timesteps // (settings.n_envs * picks) % evaluate_every == 0:
                ratios = log_evaluation(ppo, cache, tasks, picks, control_weight, told=not heads)
                reached = min(ratios.values(), default=0) >= 0.99
                lasting[0] = (lasting[0] or time.monotonic() - start) if reached else None

        before = time.monotonic()
        running = {"steps": steps, "seed": seed, "plan_k": plan_k, "tensorboard": tensorboard, "on_rollout": on_rollout}
        if heads:
            ppo = train_heads(cache, tasks, picks=picks, control_weight=control_weight, **running)
        else:
            ppo = train_ppo(episodes, settings, **running)
        seconds = time.monotonic() - before
    a = cache.attributes
    note = CheckpointNote(
        tasks, hold_out, picks, control_weight, SCORE_SCALE, REPEAT_REWARD, plan_k, preset, list(settings.layers), seed,
        ppo.num_timesteps, cache.n_layers, cache.n_heads, a["model"], a["model_sha256"], a["ablation"],
        a["weight_processing"], cache.sha256, policy=policy, told=not heads,
    )  # fmt: skip
    save_checkpoint(ppo, note, out)
    app.say(f"{ppo.num_timesteps} picks in {seconds:.1f} s, {ppo.num_timesteps / seconds:.0f} a second; {out} written")
    if live:
        app.say(f"{scores.passes} passes of the model")
    if lasting[0]:
        app.say(f"ratio@3 of all training tasks stays at 0.99 or above from {lasting[0]:.1f} s after the start")
    _print_results(cache, ppo.policy, note, as_json)


def _live_episodes(model, revision, device, cache, table, settings, picks):
    from mechrl.envs.live import LiveEpisodes, LiveScores
    from mechrl.errors import FileError
    from mechrl.models import load_model

    cache.check_replayable()
    loaded = load_model(model, device=device, revision=revision)
    if loaded.sha256 != cache.attributes["model_sha256"]:
        raise FileError(f"{cache.path} was built from another model than {model!r}; name its model with --model")
    scores = LiveScores(loaded, cache, table.tasks)
    return LiveEpisodes(scores, table, settings.n_envs, picks, settings.drop_signal), scores


def _print_results(cache, policy, note, as_json: bool) -> None:
    """The agent beside random search and the static order: on each task, told and not told which one it is."""
    from mechrl.search.comparison import compare

    results = compare(cache, policy, note)
    if as_json:
        return app.print_json(
            {task: {name: evaluation.summary() for name, evaluation in rows} for task, rows in results.items()}
        )
    from mechrl.reporting.terminal import search_rows
    from mechrl.tables import print_table

    for task, rows in results.items():
        role = "held out" if task in note.hold_out else "trained"
        columns, cells = search_rows(rows)
        left_out = rows[0][1].left_out()
        caption = f"means over {len(rows[0][1].picked)} evaluation episodes" + (
            f"; {left_out} without a ratio (oracle ≤ 0.05)" if left_out else ""
        )
        secondary = [column for column in columns[:0:-1] if column != "ratio\nafter 3"]
        print_table(f"{task} ({role})", columns, cells, caption, secondary)


def main() -> None:
    """Entry point of `mechrl-train`."""
    app.run(train)
