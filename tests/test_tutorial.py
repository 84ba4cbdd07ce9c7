"""The tutorial's commands and its Python run as they stand, from the prompts to the verified heads."""

import json
import re
import shlex
import shutil
from pathlib import Path

from mechrl.cache.reader import Cache
from mechrl.cli.cache import cache as cache_command
from mechrl.cli.train import train as train_command
from mechrl.cli.verify import verify as verify_command

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = {"mechrl-cache": cache_command, "mechrl-train": train_command, "mechrl-verify": verify_command}


def test_the_tutorial_runs_from_check_to_verify(call, tmp_path, monkeypatch):
    shutil.copy(DOCS / "returning_thing.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "tutorial.md").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE)]
    assert [c[0] for c in commands] == ["mechrl-cache"] * 3 + ["mechrl-train", "mechrl-verify"]
    outputs = []
    for name, *arguments in commands:
        code, out, err = call(COMMANDS[name], *arguments)
        assert code == 0, f"{name} {arguments}: {err}"
        outputs.append(out)
    assert "sound; 64 prompts" in outputs[0]
    assert "CONFIRMED" in outputs[-1]
    built = Cache.open(tmp_path / "things.h5")
    assert built.tasks == ["ioi", "induction", "docstring", "returning_thing"]
    assert built.accuracy("returning_thing") > 0.95
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names: dict = {}
        exec(block, names)
        assert names["damage"].shape == (64, 48)
        assert len(names["best"]) == 3


def test_the_tutorials_prompts_are_balanced():
    lines = [json.loads(line) for line in (DOCS / "returning_thing.jsonl").read_text().splitlines()]
    assert len(lines) == 64
    assert sorted(line["answer"] for line in lines) == sorted(line["wrong"] for line in lines)
