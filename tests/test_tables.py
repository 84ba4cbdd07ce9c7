"""The tables that come with mechrl: opened by a bare name, sound, and what their page says they are."""

import hashlib
import json
import re

import numpy as np
import pytest

from mechrl.cache.reader import Cache
from mechrl.cli.cache import cache as cache_command
from mechrl.cli.train import train
from mechrl.errors import UsageError
from mechrl.models import MINI, load_model
from mechrl.tables import FOLDER, cache_file, table_names

PAGE = FOLDER / "TABLES.md"


def test_a_bare_name_is_a_table_and_a_path_is_a_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cache_file("mini") == FOLDER / "mini.h5"
    assert capsys.readouterr().err == ""
    (tmp_path / "mini").mkdir()
    assert cache_file("mini") == FOLDER / "mini.h5"
    assert capsys.readouterr().err.startswith("mini is the table that comes with mechrl, and not what lies here")
    for path in ("mini.h5", "./mini", "cache/mini", "~/mini", "results.v2"):
        assert str(cache_file(path)) == path.removeprefix("./")
    with pytest.raises(UsageError, match=r"there is no table 'minni'\. Did you mean 'mini'\? Known: .*mini"):
        cache_file("minni")


def test_a_table_is_opened_by_every_command_that_takes_a_cache(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    assert "ioi" in call(cache_command, "info", "mini")[1]
    assert call(cache_command, "top", "mini", "-n", "1")[0] == 0
    assert call(cache_command, "info", "minni")[0] == 2
    assert call(train, "--from-cache", "mini", "--steps", "800")[0] == 0
    assert (tmp_path / "checkpoint.zip").is_file()
    assert Cache.load("mini").sha256 == Cache.open(FOLDER / "mini.h5").sha256


def test_the_page_names_every_table_with_its_hash():
    listed = dict(re.findall(r"`([a-z0-9.-]+)`.*?`([0-9a-f]{64})`", PAGE.read_text()))
    assert listed == {name: hashlib.sha256((FOLDER / f"{name}.h5").read_bytes()).hexdigest() for name in table_names()}
    assert "mini" in listed
    assert sum(path.stat().st_size for path in FOLDER.glob("*.h5")) < 25e6


@pytest.mark.parametrize("name", table_names())
def test_a_table_holds_what_a_search_needs(name):
    cache = Cache.load(name)
    for task in cache.tasks:
        assert len(cache.prompts(task)) >= 96
        assert cache.task_attributes(task)["does_task"]
        assert np.isfinite(cache.scores(task)).all()
    assert cache.attributes["dtype"] == "float32"


def test_tables_are_listed(call):
    listed = json.loads(call(cache_command, "tables", "--json")[1])
    assert sorted(listed) == table_names()
    assert listed["mini"]["heads"] == 48
    code, out, _ = call(cache_command, "tables")
    assert code == 0
    assert "6 × 8" in out


def test_the_table_of_mini_is_of_the_mini_that_comes_with_it():
    cache = Cache.load("mini")
    assert cache.attributes["model_sha256"] == load_model(str(MINI), device="cpu").sha256


# Of each task the mean clean logit difference, and by ablation the best head and its damage, in nats.
SMOLLM2 = {
    "ioi": (4.86, {"zero": ("23.3", 2.56), "counterfactual": ("23.3", 4.48)}),
    "docstring": (7.30, {"zero": ("16.0", 2.46), "counterfactual": ("29.1", 1.01)}),
    "country_capital": (7.98, {"zero": ("23.4", 4.74), "counterfactual": ("23.4", 11.91)}),
    "gendered_pronoun": (4.97, {"zero": ("25.2", 3.33), "counterfactual": ("26.2", 7.46)}),
    "successor": (4.15, {"zero": ("23.3", 1.91), "counterfactual": ("23.3", 4.47)}),
    "subject_verb_agreement": (1.95, {"zero": ("26.0", 1.40), "counterfactual": ("26.0", 3.12)}),
    "bracket_closing": (6.29, {"zero": ("26.6", 4.02), "counterfactual": ("26.6", 9.13)}),
}


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m.counterfactual"])
def test_the_tables_of_smollm2_say_what_was_measured(name):
    """Best head of each task by damage, as the build printed and `mechrl-cache top` showed them."""
    cache = Cache.load(name)
    assert (cache.n_layers, cache.n_heads, cache.attributes["prepend_bos"]) == (30, 9, False)
    assert cache.attributes["weight_processing"].startswith("dequantised from Q4_1")
    best = {}
    for task in cache.tasks:
        damage = cache.damage(task).mean(0)
        layer, head = divmod(int(damage.argmax()), 9)
        found = f"{layer}.{head}", round(float(damage.max()), 2)
        best[task] = round(float(cache.clean(task).mean()), 2), found
    kind = cache.attributes["ablation"]
    assert best == {task: (clean, heads[kind]) for task, (clean, heads) in SMOLLM2.items()}
    assert cache.content.arrays["/control/clean"].mean() == pytest.approx(3.489, abs=1e-3)
