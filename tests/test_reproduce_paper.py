"""tools/reproduce_paper.sh end to end on `mini`, and its report by hand."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import table_cache

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import reproduce_paper

from mechrl.reporting import published
from mechrl.search.ppo.checkpoint import Checkpoint
from mechrl.search.ppo.training import make_policy

ROOT = Path(__file__).parents[1]


def test_the_report_sets_published_figures_beside_ours(tmp_path):
    rng = np.random.default_rng(0)
    damage = {task: rng.normal(size=(16, 144)).astype(np.float32) for task in ("induction", "ioi", "docstring")}
    control = np.zeros((16, 144), np.float32)
    cache = table_cache(tmp_path / "t.h5", damage, control, 12, 12)
    trained = ["induction", "ioi"]
    note = SimpleNamespace(tasks=trained, signals=trained, hold_out=["docstring"], picks=50, steps=1)
    agents = {k: Checkpoint(make_policy(2, 144, [8]), note) for k in (1, 5)}
    report = reproduce_paper.report(cache, agents)
    assert "ours are not" in report, "this is not GPT-2 small, and the report says so"
    cells = [[cell.strip() for cell in line.split("|")] for line in report.splitlines() if line.startswith("|")]
    rows = {tuple(row[1:3]): row for row in reversed(cells)}  # the first table of a method
    assert rows["docstring", "agent, best-of-5 training, no task signal"][4] == "2.103"
    assert rows["docstring", "agent, best-of-1 training, told induction"][4] == "2.178"
    assert rows["induction", "agent, best-of-1 training, told induction"][4] == "3.386"
    assert rows["docstring", "random picks"][4] == "1.395"
    assert rows["ioi", "random picks"][4] == "–", "nobody published it"
    mean = cache.damage("ioi").mean(0)
    rank = int((mean > mean[9 * 12 + 9]).sum()) + 1
    assert f"9.9:{rank} " in rows["ioi", "name mover"][3]


def test_the_published_facts_name_heads_of_gpt2_and_sources():
    heads = [head for order in published.TOP_HEADS.values() for head in order]
    for roles in published.ROLES.values():
        for of_role, source in roles.values():
            assert "arXiv" in source
            heads += of_role
    for head in heads:
        layer, index = map(int, head.split("."))
        assert 0 <= layer < 12
        assert 0 <= index < 12


@pytest.mark.slow
def test_it_runs_on_mini(tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "BATCHES": "4", "STEPS": "500", "PYTHON": sys.executable}
    subprocess.run(["bash", ROOT / "tools" / "reproduce_paper.sh", "mini"], check=True, env=environment, cwd=ROOT)
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.startswith("# arXiv 2605.26343v1 on mini")
    assert "## The picks on the live model: " in report
    assert "nan" not in report
