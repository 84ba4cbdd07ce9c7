#!/usr/bin/env python
"""How fast training is: kernel, VecEnv, PPO against its floor, and the time to a lasting result, looked up and live.

All but the last part run on a table of 144 heads and two tasks that is made up here. The floor of PPO is the operations
that its networks cannot avoid (a forward pass of every pick, then per epoch a forward and a backward pass, which needs
no gradient of the observations) at the rate of matrix products of the same shapes, measured before and after each
round with as many threads. A result is lasting once the oracle ratio after 3 picks stays, in every later evaluation, at
what is asked on every training task; the clock starts with the process, so imports count.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from sb3_contrib import MaskablePPO

from mechrl.cache.reader import Cache
from mechrl.cli import app
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable, default_picks
from mechrl.envs.vec import HeadVecEnv
from mechrl.search.methods.orders import task_order
from mechrl.search.ppo.training import PRESETS, Preset, log_evaluation, train
from mechrl.search.problem import Problem
from mechrl.search.protocol import evaluate

N_SITES, TASKS, ASKED = 144, ["induction", "ioi"], 0.99
WIDE = (256, 256)  # the paper's layers


def made_up_table(seed: int = 0) -> ScoreTable:
    """Two tasks of 48 batches on 144 heads."""
    rng = np.random.default_rng(seed)
    damage, control = (rng.normal(size=(n, N_SITES)).astype(np.float32) for n in (96, 48))
    return ScoreTable(("a", "b"), damage, np.array([0, 48]), np.array([48, 48]), control)


def rates(work: Callable[[], None], amount: float, rounds: int) -> dict:
    """Amount per second of `work`, by the clock and by the processor time of this process: medians over rounds."""
    work()
    by_clock, by_processor = [], []
    for _ in range(rounds):
        clock, processor = time.perf_counter(), time.process_time()
        work()
        by_clock.append(amount / (time.perf_counter() - clock))
        by_processor.append(amount / (time.process_time() - processor))
    return {"per_s": statistics.median(by_clock), "per_cpu_s": statistics.median(by_processor)}


def bench_envs(n: int, rounds: int) -> dict:
    """Steps of the kernel alone and of the VecEnv; every episode picks each of its heads once."""
    picks = default_picks(N_SITES)
    rng = np.random.default_rng(0)
    actions = np.ascontiguousarray(np.argsort(rng.random((n, N_SITES)), 1)[:, :picks].T)
    episodes = ParallelEpisodes(made_up_table(), n, picks, drop_signal=0.25)
    env = HeadVecEnv(episodes)

    def kernel() -> None:
        for _ in range(4):
            episodes.draw_all()
            for row in actions:
                episodes.step(row)

    def vec_env() -> None:
        env.reset()
        for _ in range(4):
            for row in actions:
                env.step(row)

    return {
        "environments": n,
        "kernel": rates(kernel, 4 * n * picks, rounds),
        "vec_env": rates(vec_env, 4 * n * picks, rounds),
    }


def products(preset: Preset, n_observed: int, picks: int) -> list[tuple[int, int, int, float]]:
    """The matrix products of a rollout and its update: rows, in, out, and how often."""
    rows = preset.n_envs * picks
    policy = list(zip((n_observed, *preset.layers), (*preset.layers, N_SITES), strict=True))
    value = list(zip((n_observed, *preset.layers), (*preset.layers, 1), strict=True))
    small = rows // preset.minibatches
    result = []
    for layers in (policy, value):
        for i, (n_in, n_out) in enumerate(layers):
            updates = preset.epochs * preset.minibatches
            result.append((preset.n_envs, n_in, n_out, picks))
            result.append((small, n_in, n_out, updates))  # forward
            result.append((n_out, small, n_in, updates))  # gradient of the weights
            if i:
                result.append((small, n_out, n_in, updates))  # gradient of the layer's input
    return result


def floor_seconds(shapes: list[tuple[int, int, int, float]]) -> tuple[float, float]:
    """Seconds that these products take alone (the processor's likewise), one shape after the other."""
    clock = processor = 0.0
    with torch.no_grad():
        for rows, n_in, n_out, times in shapes:
            a, b, out = torch.randn(rows, n_in), torch.randn(n_in, n_out), torch.empty(rows, n_out)
            repeats = min(200, max(3, int(1e8 / (rows * n_in * n_out))))
            torch.mm(a, b, out=out)
            start, start_processor = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                torch.mm(a, b, out=out)
            clock += (time.perf_counter() - start) / repeats * times
            processor += (time.process_time() - start_processor) / repeats * times
    return clock, processor


def bench_floor(name: str, threads: int, rounds: int) -> dict:
    """PPO with the paper's networks at a preset's batch size, against the floor."""
    torch.set_num_threads(threads)
    preset = replace(PRESETS[name], layers=WIDE)
    picks = default_picks(N_SITES)
    table = made_up_table()
    shapes = products(preset, 2 + 2 * N_SITES, picks)
    marks: list[tuple[float, float]] = []
    floors = [floor_seconds(shapes)]

    def mark(ppo: MaskablePPO) -> None:
        marks.append((time.perf_counter(), time.process_time()))
        floors.append(floor_seconds(shapes))
        starts.append((time.perf_counter(), time.process_time()))

    starts: list[tuple[float, float]] = []
    episodes = ParallelEpisodes(table, preset.n_envs, picks, drop_signal=preset.drop_signal)
    train(episodes, preset, steps=(rounds + 2) * preset.n_envs * picks, on_rollout=mark)
    rollout = preset.n_envs * picks
    # From the end of one rollout to the end of the next: one update and one rollout. The first warms up.
    taken = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(starts[1:-1], marks[2:], strict=True)]
    seconds, processor = (statistics.median(t[i] for t in taken) for i in (0, 1))
    fractions = [
        statistics.median((floors[k + 2][i] + floors[k + 3][i]) / 2 / taken[k][i] for k in range(len(taken)))
        for i in (0, 1)
    ]
    operations = sum(2 * a * b * c * times for a, b, c, times in shapes)
    return {
        "preset": name,
        "layers": list(WIDE),
        "threads": threads,
        "environments": preset.n_envs,
        "minibatch": rollout // preset.minibatches,
        "epochs": preset.epochs,
        "steps_per_s": rollout / seconds,
        "steps_per_cpu_s": rollout / processor,
        "gflop_per_s_of_products": operations / statistics.median(f[0] for f in floors) / 1e9,
        "fraction_of_floor": fractions[0],
        "fraction_of_floor_by_cpu": fractions[1],
    }


def age() -> float:
    """Seconds since this process began."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def lasting(path: Path, seed: int) -> dict:
    """Train on a cache with the default preset; when what was asked began to hold for good. Runs in its own process."""
    torch.set_num_threads(1)
    cache = Cache.open(path)
    preset, picks = PRESETS["default"], default_picks(cache.n_sites)
    table = ScoreTable.from_cache(cache, TASKS)
    in_task_order = {
        task: float(evaluate(cache, task, task_order(Problem(cache, task, ())), 3).ratios(3).mean()) for task in TASKS
    }
    began = age()
    seen: list[tuple[float, float, int, dict[str, float]]] = []

    def evaluate_now(ppo: MaskablePPO) -> None:
        seen.append((age(), time.process_time(), ppo.num_timesteps, log_evaluation(ppo, cache, TASKS, picks, 1.0)))

    episodes = ParallelEpisodes(table, preset.n_envs, picks, drop_signal=preset.drop_signal)
    train(episodes, preset, steps=preset.steps, seed=seed, on_rollout=evaluate_now)

    def first_for_good(asked: dict[str, float]) -> dict | None:
        since = None
        for seconds, processor, steps, ratios in seen:
            holds = all(ratios[task] >= asked[task] for task in TASKS)
            since = (since or {"seconds": seconds, "cpu_seconds": processor, "steps": steps}) if holds else None
        return since

    return {
        "seed": seed,
        "imports_s": began,
        "whole_s": age(),
        "ratio_at_3": seen[-1][3],
        "ratio_at_3_of_own_order": in_task_order,
        "lasting": first_for_good(dict.fromkeys(TASKS, ASKED)),
        "lasting_as_own_order": first_for_good({task: min(ASKED, in_task_order[task] - 0.001) for task in TASKS}),
    }


def live_rate(path: Path, seconds: float) -> float:
    """Picks per second of the live game: the model is asked for every score."""
    from mechrl.envs.live import LiveEpisodes, LiveScores
    from mechrl.models import load_model

    cache = Cache.open(path)
    table = ScoreTable.from_cache(cache, TASKS)
    env = HeadVecEnv(LiveEpisodes(LiveScores(load_model("mini", device="cpu"), cache, TASKS), table, 4, 8))
    env.reset()
    env.step(np.arange(4))  # the clean passes, which are paid once
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        env.step(np.arange(4) + 4 * (1 + done // 4) % cache.n_sites)
        done += 4
    return done / (time.perf_counter() - start)


@click.command(help=__doc__.splitlines()[0])
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--cache", "path", default=app.MINI_CACHE, show_default=True, type=click.Path(path_type=Path))
@click.option("--live-seconds", default=10.0, show_default=True, help="How long to measure the live game.")
@click.option("--only-seed", type=int, hidden=True)
@app.as_json
def main(rounds: int, seeds: int, path: Path, live_seconds: float, only_seed: int | None, as_json: bool) -> None:
    if only_seed is not None:
        app.print_json(lasting(path, only_seed))
        return
    result: dict = {"torch": torch.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    result["envs"] = [bench_envs(n, rounds) for n in (64, 1024)]
    result["ppo"] = [bench_floor(name, threads, rounds) for name in ("default", "paper") for threads in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:
        if not path.is_file():
            path = Path(folder) / "mini.h5"
            build = [sys.executable, "-m", "mechrl.cli.main", "cache", "build", "--out", path]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        # The first run compiles what numba has not cached yet, and is not counted.
        command = [sys.executable, __file__, "--cache", str(path), "--only-seed"]
        runs = [json.loads(subprocess.check_output([*command, str(max(seed, 0))])) for seed in range(-1, seeds)][1:]
        result["lasting"] = runs
        rate = live_rate(path, live_seconds)
    ends = [run["lasting_as_own_order"] for run in runs]
    if all(ends):
        looked_up = statistics.median(end["seconds"] for end in ends)
        steps = statistics.median(end["steps"] for end in ends)
        result["live"] = {"steps_per_s": rate, "extrapolated_s": steps / rate, "times_lookup": steps / rate / looked_up}
    else:
        result["live"] = {"steps_per_s": rate}
    app.print_json(result) if as_json else show(result)


def show(result: dict) -> None:
    click.echo(f"{result['cores']} CPU cores, torch {result['torch']}, load {result['load']:.1f} at the start")
    for r in result["envs"]:
        click.echo(f"{r['environments']} environments, {N_SITES} heads, million steps a second (a processor second)")
        for kind in ("kernel", "vec_env"):
            click.echo(f"  {kind:8} {r[kind]['per_s'] / 1e6:6.2f} ({r[kind]['per_cpu_s'] / 1e6:.2f})")
    for r in result["ppo"]:
        click.echo(
            f"PPO {r['preset']:8} {r['threads']} threads, {r['environments']} environments, "
            f"minibatch {r['minibatch']}, {r['epochs']} epochs: {r['steps_per_s']:.0f} steps/s "
            f"({r['steps_per_cpu_s']:.0f}), {r['fraction_of_floor']:.0%} of the floor "
            f"({r['fraction_of_floor_by_cpu']:.0%} by processor time; products at "
            f"{r['gflop_per_s_of_products']:.0f} GFLOP/s)"
        )
    for r in result["lasting"]:
        ratios = ", ".join(
            f"{task} {ratio:.3f} (own training order {r['ratio_at_3_of_own_order'][task]:.3f})"
            for task, ratio in r["ratio_at_3"].items()
        )
        ends = [
            f"{end['seconds']:.1f} s ({end['cpu_seconds']:.1f} s processor, {end['steps']} picks)" if end else "never"
            for end in (r["lasting"], r["lasting_as_own_order"])
        ]
        click.echo(
            f"seed {r['seed']}: imports {r['imports_s']:.1f} s, whole run {r['whole_s']:.1f} s; ratio@3 at the end: "
            f"{ratios}; from where it stays ≥ {ASKED}: {ends[0]}; as the own order: {ends[1]}"
        )
    live = result["live"]
    click.echo(f"live: {live['steps_per_s']:.1f} picks/s (measured)")
    if "extrapolated_s" in live:
        click.echo(
            f"      as many picks as lookup needs would take {live['extrapolated_s']:.0f} s (extrapolated), "
            f"{live['times_lookup']:.0f} × the lookup's time with imports"
        )


if __name__ == "__main__":
    app.run(main)
