#!/usr/bin/env python
"""What a cache costs, as a table: runs, operations, GPU-hours, bytes and dollars per 1,000 prompts."""

import click

from mechrl.ablation import MEASURES
from mechrl.building.cost import Shape
from mechrl.cli import app

MODELS = {
    "GPT-2 small": Shape(12, 12, 768, 64, 3072, 50257, 12),
    "GPT-2 XL": Shape(48, 25, 1600, 64, 6400, 50257, 25),
    "Pythia-6.9B": Shape(32, 32, 4096, 128, 16384, 50432, 32),
    "Llama-3-8B": Shape(32, 32, 4096, 128, 14336, 128256, 8, gated=True),
}


@click.command(help=__doc__)
@click.option("--tflops", required=True, type=float, help="Of matrix products on your device, as bench_sweep measures.")
@click.option("--fraction", required=True, type=float, help="Of the floor that the sweep reaches, likewise.")
@click.option("--dollars-per-hour", default=0.0, help="Price of the device.")
@click.option("--prompts", default=1000, show_default=True)
@click.option("--spans", default=333, show_default=True, help="Of control text; the paper has one for three prompts.")
@click.option("--positions", default=61, show_default=True, help="Tokens in a prompt and in a span.")
def main(tflops: float, fraction: float, dollars_per_hour: float, prompts: int, spans: int, positions: int) -> None:
    click.echo("| model | heads | runs, one hook per head | runs, sweep | PFLOP | hours | MB | dollars |")
    click.echo("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, s in MODELS.items():
        sites = s.n_layers * s.n_heads
        operations = s.sweep(prompts, positions) + s.sweep(spans, positions, task=False)
        hours = operations / (tflops * 1e12 * fraction) / 3600
        rows = prompts + spans
        runs = 1 + sites * (s.n_layers + 1) / (2 * s.n_layers)  # a forward from layer l of L costs (L - l) / L
        size = 4 * (prompts * len(MEASURES) * (sites + 1) + spans * (sites + 1) + rows * positions)
        click.echo(
            f"| {name} | {sites} | {rows * (1 + sites):,} | {rows * runs:,.0f} | {operations / 1e15:,.2f} | "
            f"{hours:.3g} | {size / 1e6:.1f} | {hours * dollars_per_hour:.2g} |"
        )


if __name__ == "__main__":
    app.run(main)
