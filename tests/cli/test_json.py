"""`--json` of every command and tool: one object on stdout, and nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mechrl.cli.main import mechrl as umbrella

TOOLS = Path(__file__).parents[2] / "tools"
BUILD = "cache build --device cpu --tasks ioi --batches 3 --batch-size 1 --out x.h5"
CHEAP = [
    "cache tasks",
    "cache tables",
    "cache kept",
    "cache info CACHE",
    "cache top CACHE --task ioi",
    "cache attribution CACHE",
    "cache import scores.csv --task ioi --n-layers 1 --n-heads 2 --out x.h5",
    "bench --list",
]
SLOW = [
    "cache tasks ioi --show 1",
    BUILD,
    f"{BUILD} --dry-run",
    f"{BUILD} --shard 1/2",
    f"{BUILD} --workers 1",
    f"{BUILD} --sets pairs; cache pairs x.h5",
    f"{BUILD} --shard 1/2; {BUILD.replace('x.h5', 'y.h5')} --shard 2/2; cache merge z.h5 x.h5 y.h5",
    f"{BUILD}; cache add x.h5 --tasks successor --device cpu",
    "cache check own.jsonl --device cpu",
    "cache roles --device cpu",
    "cache attention --head 4.4 --task ioi --device cpu",
    "circuit successor --device cpu",
    "audit claim.json --device cpu --ablation counterfactual",
    "train --from-cache CACHE --steps 200",
    "train --from-cache CACHE --steps 200; verify --cache CACHE --fresh-batches 1 --top 1 --device cpu --joint",
    "bench --cache CACHE --seeds 1 --method random",
    "bench_sweep.py --model mini --rounds 1 --batch-size 2 --device cpu",
    "bench_train.py --rounds 1 --seeds 1 --live-seconds 0.1",  # which builds its own cache
]
FORMATS = {
    "cache info": "mechrl-information",
    "cache import": "mechrl-information",
    "cache merge": "mechrl-information",
    f"{BUILD} --shard": None,
    f"{BUILD} --dry-run": None,
    "cache build": "mechrl-information",
    "cache add": "mechrl-information",
    "cache check": "mechrl-check",
    "cache attention": "mechrl-attention",
    "circuit": "mechrl-circuit",
    "audit": "mechrl-audit",
    "verify": "mechrl-verification",
    "bench --cache": "mechrl-benchmark",
}


def with_json(command: click.Command, path: str = ""):
    """The commands that have the flag, as they are called."""
    if any("--json" in parameter.opts for parameter in command.params):
        yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from with_json(below, f"{path} {name}".strip())


def tools_with_json():
    for path in TOOLS.glob("*.py"):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from with_json(module.main, path.name)


def test_every_json_flag_is_tried_here():
    tried = [line.rpartition("; ")[2] for line in [*CHEAP, *SLOW]]
    for path in [*with_json(umbrella), *tools_with_json()]:
        assert any(line.startswith(path) for line in tried), path


def files(folder: Path) -> None:
    """What the commands read."""
    (folder / "scores.csv").write_text("0.0,0.1\n" + "1,2\n" * 8)
    (folder / "claim.json").write_text(json.dumps({"task": "successor", "heads": ["0.4", "0.5", "1.1"]}))
    line = '{{"prompt": "Mary saw the {} and the", "answer": " dog", "wrong": " cat"}}\n'
    (folder / "own.jsonl").write_text("".join(map(line.format, "ring bone book ball hat key".split())))


@pytest.mark.parametrize("lines", [*CHEAP, *(pytest.param(line, marks=pytest.mark.slow) for line in SLOW)])
def test_json_is_one_object_and_nothing_else(lines, small_cache, tmp_path):
    files(tmp_path)
    *before, last = lines.replace("CACHE", str(small_cache.path)).split("; ")
    for line in before:
        assert ended(line, tmp_path).returncode == 0
    result = ended(f"{last} --json", tmp_path)
    assert result.returncode in ((0, 3) if last.startswith(("verify", "audit")) else (0,)), result.stderr
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert isinstance(found, dict)
    assert found.get("format") == next((FORMATS[start] for start in FORMATS if last.startswith(start)), None)


def ended(line: str, cwd: Path) -> subprocess.CompletedProcess:
    first, *rest = line.split()
    start = [TOOLS / first, *rest] if first.endswith(".py") else ["-m", "mechrl.cli.main", first, *rest]
    return subprocess.run([sys.executable, *start], check=False, cwd=cwd, capture_output=True, text=True)


def test_an_export_of_heads_is_one_object_too(small_cache, tmp_path):
    result = ended(f"cache export {small_cache.path} --format heads-json --task ioi", tmp_path)
    assert isinstance(json.loads(result.stdout, parse_constant=pytest.fail), dict)
