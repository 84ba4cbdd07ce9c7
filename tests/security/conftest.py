"""Small files that mean no harm: a cache, and a checkpoint of each policy."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import table_cache

from mechrl.cache.format import Content
from mechrl.cache.imported import import_table
from mechrl.cache.storage import manifest_path, write_content
from mechrl.envs.episodes import ParallelEpisodes
from mechrl.envs.table import ScoreTable
from mechrl.search.ppo.checkpoint import CheckpointNote, save_checkpoint
from mechrl.search.ppo.heads_training import train_heads
from mechrl.search.ppo.training import PRESETS, train

N_LAYERS, N_HEADS, PICKS = 2, 3, 2


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `good.h5`, `good.zip` (policy `paper`) and `heads.zip` (policy `heads`), an
    `imported.h5` and a `part.h5` of a build. Not to be changed."""
    folder = tmp_path_factory.mktemp("honest")
    rng = np.random.default_rng(0)
    damage = {task: rng.normal(size=(8, 6)).astype(np.float32) for task in ("a", "b", "c")}
    control = rng.normal(size=(8, 6)).astype(np.float32)
    cache = table_cache(folder / "good.h5", damage, control, N_LAYERS, N_HEADS, batch_size=2)
    manifest_path(cache.path).unlink()
    a = cache.attributes
    common = [a["model"], a["model_sha256"], a["ablation"], a["weight_processing"], cache.sha256]
    sizes = [N_LAYERS, N_HEADS, *common]
    preset = PRESETS["default"]
    ppo = train(ParallelEpisodes(ScoreTable.from_cache(cache, ["a", "b"]), preset.n_envs, PICKS), preset, steps=128)
    note = CheckpointNote(["a", "b"], ["c"], PICKS, 1.0, 5.0, -1.0, 1, "default", list(preset.layers), 0, 128, *sizes)
    save_checkpoint(ppo, note, folder / "good.zip")
    ppo = train_heads(cache, ["a", "b"], picks=PICKS, steps=128)
    note = CheckpointNote(
        ["a", "b"], ["c"], PICKS, 1.0, 5.0, -1.0, 1, "default", [ppo.policy.width], 0, 128, *sizes,
        policy="heads", task_signal=False,
    )  # fmt: skip
    save_checkpoint(ppo, note, folder / "heads.zip")
    root = {
        **cache.content.root, "complete": False, "device": "cpu", "effective_batch": 1,
        "shard": json.dumps({"pieces": [*([t, 0, 8] for t in cache.tasks), ["control", 0, 8]],
                             "rows": dict.fromkeys(["control", *cache.tasks], 8)}),
    }  # fmt: skip
    arrays = {path: array for path, array in cache.content.arrays.items() if not path.startswith("/sites/")}
    write_content(folder / "part.h5", Content(arrays, {**cache.content.attributes, "/": root}), manifest=False)
    heads = ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    table = "\n".join(",".join(map(str, row)) for row in [heads, *rng.normal(size=(8, 6)).tolist()])
    (folder / "table.csv").write_text(table)
    import_table(folder / "table.csv", "a", N_LAYERS, N_HEADS, folder / "imported.h5")
    manifest_path(folder / "imported.h5").unlink()
    return folder
