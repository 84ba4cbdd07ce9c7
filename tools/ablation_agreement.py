"""How far kinds of ablation agree on which heads matter: rank correlations between caches of one model.

    mechrl-cache build --tasks all --ablation zero,zero_raw,mean_task,mean_control,resample,counterfactual
    python tools/ablation_agreement.py cache/mini*.h5

Spearman's correlation of the heads' mean damage (over all prompts) between every two caches, and how many of the ten
heads with the highest damage two kinds share; means over the tasks.
"""

import itertools
from pathlib import Path

import click
import numpy as np
from scipy.stats import spearmanr

from mechrl.cache.reader import Cache
from mechrl.cli import app
from mechrl.display import print_table
from mechrl.errors import FileError

TOP = 10


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--leave-out", default="", help="Tasks that the model does not do, separated by commas.")
def main(paths, leave_out):
    """Print a table of every two caches."""
    caches = {cache.attributes["ablation"]: cache for cache in map(Cache.open, paths)}
    first = next(iter(caches.values()))
    if len({cache.attributes["model_sha256"] for cache in caches.values()}) > 1:
        raise FileError("these are caches of different models")
    tasks = [task for task in first.tasks if task not in leave_out.split(",")]
    damage = {kind: {task: cache.damage(task).mean(0) for task in tasks} for kind, cache in caches.items()}
    correlation, shared = {}, {}
    for one, other in itertools.product(caches, repeat=2):
        pairs = [(damage[one][task], damage[other][task]) for task in tasks]
        correlation[one, other] = np.mean([spearmanr(*pair).statistic for pair in pairs])
        shared[one, other] = np.mean([len(set.intersection(*(set(np.argsort(-d)[:TOP]) for d in p))) for p in pairs])
    for title, values in (("rank correlation", correlation), (f"of the best {TOP} heads, shared", shared)):
        rows = [[one, *(f"{values[one, other]:.2f}" for other in caches)] for one in caches]
        print_table(f"{title}, mean over {len(tasks)} tasks", ["", *caches], rows)


if __name__ == "__main__":
    app.run(main)
