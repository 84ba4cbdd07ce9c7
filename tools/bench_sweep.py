#!/usr/bin/env python
"""How fast the sweep is: against one hook per head, and against the floor that the arithmetic sets.

Every round times, one after the other, matrix products alone, the sweep of a whole batch, as many pairs of heads, and
the loop that everybody writes (`run_with_hooks` once per head) on one head of each layer. The floor is the operations
that a sweep cannot avoid (`mechrl.building.cost`) at the rate of products of the model's own sizes, measured before
and after everything else of a round. Speed does not depend on the weights, so GPT-2 small's are random here.
"""

import resource
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

from mechrl.ablation import reference
from mechrl.ablation.forward import Forward
from mechrl.ablation.sweep import sweep_control, sweep_task
from mechrl.building.cost import Shape
from mechrl.cli import app
from mechrl.models import MINI, Model, cast, load_model, pick_device
from mechrl.tasks import Prompts

POSITIONS = {"task": 61, "control": 61}


def random_gpt2(folder: Path) -> Path:
    """GPT-2 small's sizes, random weights, and the tokenizer of `mini`, which is never asked."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINI).save_pretrained(folder)
    return folder


def timed(device: torch.device, work) -> tuple[float, object]:
    """Seconds that `work` took, and its result."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    return time.perf_counter() - start, result


def product_rate(model: Model, tokens: int) -> float:
    """Floating-point operations per second of products as large as an MLP's, over a second or so."""
    shape = Shape.of(model)
    dtype = next(model.bridge.parameters()).dtype
    a = torch.randn(tokens, shape.d_model, device=model.device, dtype=dtype)
    b = torch.randn(shape.d_mlp, shape.d_model, device=model.device, dtype=dtype)
    torch.nn.functional.linear(a, b)
    done, spent = 0, 0.0
    while spent < 1:
        spent += timed(model.device, lambda: torch.nn.functional.linear(a, b))[0]
        done += 2 * tokens * shape.d_model * shape.d_mlp
    return done / spent


def bench(model: Model, kind: str, batch_size: int, rounds: int) -> dict:
    """One row of the table: the sweep of a batch of `kind` ("task" or "control")."""
    rng = np.random.default_rng(0)
    positions = POSITIONS[kind]
    tokens = rng.integers(1, 700, (batch_size, positions)).astype(np.int32)
    prompts = Prompts(
        tokens=tokens,
        length=np.full(batch_size, positions, np.int32),
        answers=tokens[:, :1],
        wrongs=rng.integers(700, 737, (batch_size, 1)).astype(np.int32),
        group=np.arange(batch_size, dtype=np.int32),
        split=np.zeros(batch_size, np.uint8),
    )
    n_sites = model.n_layers * model.n_heads
    sites = [layer * model.n_heads + layer % model.n_heads for layer in range(model.n_layers)]
    forward = Forward(model)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def swept(sets: np.ndarray | None = None) -> np.ndarray:
        if kind == "control":
            return sweep_control(forward, tokens, sets=sets)[1]
        return sweep_task(forward, prompts, sets=sets)[1]["logit_diff"]

    pairs = forward.singles()  # each head with one that comes after it: as many passes from the same layers
    for site in range(n_sites - 1):
        pairs[site, rng.integers(site + 1, n_sites)] = True

    def one_hook(site: int) -> np.ndarray:
        return (
            reference.logit_diff(model, prompts, site)
            if kind == "task"
            else reference.control_loss(model, tokens, site)
        )

    sweep_s, pairs_s, loop_s, rates, difference, peak = [], [], [], [], 0.0, 0
    for _ in range(rounds):
        rates.append(product_rate(model, batch_size * positions))
        seconds, fast = timed(model.device, swept)
        sweep_s.append(seconds)
        pairs_s.append(timed(model.device, lambda: swept(pairs))[0])
        cuda = model.device.type == "cuda"
        peak = peak or (
            torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        if not loop_s:
            one_hook(0)  # warms up
        seconds, slow = timed(model.device, lambda: [one_hook(site) for site in sites])
        loop_s.append(seconds * n_sites / len(sites))
        rates.append(product_rate(model, batch_size * positions))
        difference = max(difference, float(np.abs(np.stack(slow, 1) - fast[:, sites]).max()))
    floor = Shape.of(model).sweep(batch_size, positions, kind == "task") / statistics.median(rates)
    return {
        "kind": kind,
        "prompts": batch_size,
        "positions": positions,
        "sweep_s": statistics.median(sweep_s),
        "head_ablations_per_s": batch_size * n_sites / statistics.median(sweep_s),
        "pairs_times_singles": statistics.median(a / b for a, b in zip(sweep_s, pairs_s, strict=True)),
        "hook_loop_s": statistics.median(loop_s),
        "times_hook_loop": statistics.median(b / a for a, b in zip(sweep_s, loop_s, strict=True)),
        "floor_s": floor,
        "fraction_of_floor": floor / statistics.median(sweep_s),
        "gflop_per_s_of_products": statistics.median(rates) / 1e9,
        "peak_memory_gb": peak / 1e9,
        "largest_difference_nats": difference,
    }


@click.command(help=__doc__.splitlines()[0])
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("gpt2-random", "mini"),
    show_default=True,
    help="Any that the commands take, or gpt2-random: GPT-2 small's sizes.",
)
@click.option("--device", default="auto", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--tf32", is_flag=True)
@click.option("--batch-size", default=32, show_default=True, help="Prompts, or control spans.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@app.as_json
def main(
    models: tuple[str, ...], device: str, dtype: str, tf32: bool, batch_size: int, rounds: int, as_json: bool
) -> None:
    device = pick_device(device)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in models:
            model = load_model(str(random_gpt2(Path(folder))) if name == "gpt2-random" else name, device=device)
            cast(model, dtype)
            results[name] = [bench(model, kind, batch_size, rounds) for kind in ("task", "control")]
            del model
    machine = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    if as_json:
        return app.print_json({"machine": machine, "dtype": dtype, "tf32": tf32, "results": results})
    click.echo(f"{machine}, torch {torch.__version__}, {dtype}{', TF32' if tf32 else ''}, batches of {batch_size}")
    for name, rows in results.items():
        for r in rows:
            click.echo(
                f"{name:11} {r['kind']:8} {r['head_ablations_per_s']:8.0f} head-ablations/s, "
                f"{r['times_hook_loop']:.2f} × the hook loop, {r['fraction_of_floor']:.0%} of the floor "
                f"({r['floor_s']:.2f} of {r['sweep_s']:.2f} s at {r['gflop_per_s_of_products']:.0f} GFLOP/s), "
                f"pairs at {r['pairs_times_singles']:.2f} × their speed, "
                f"peak {r['peak_memory_gb']:.2f} GB, differs by {r['largest_difference_nats']:.1g} nats"
            )


if __name__ == "__main__":
    app.run(main)
