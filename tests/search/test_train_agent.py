"""Training as one function, and the checkpoint that it gives."""

import json
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import table_cache

import mechrl
from mechrl.errors import FileError, MechrlError, UsageError
from mechrl.search.ppo.agent import train_agent
from mechrl.search.ppo.checkpoint import Checkpoint
from mechrl.search.ppo.policy_search import policy_search
from mechrl.search.protocol import evaluate

PICKS = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """12 heads of normal noise, three tasks, each with one head that counts."""
    rng = np.random.default_rng(0)
    damage = {task: 0.1 * rng.normal(size=(16, 12)).astype(np.float32) for task in ("induction", "ioi", "docstring")}
    for best, numbers in zip((2, 7, 9), damage.values(), strict=True):
        numbers[:, best] += 5
    control = 0.1 * rng.normal(size=(16, 12)).astype(np.float32)
    return table_cache(tmp_path_factory.mktemp("table") / "t.h5", damage, control, 3, 4, batch_size=2)


def picked(cache, checkpoint):
    search = policy_search(checkpoint.policy, checkpoint.note.signals, "ioi")
    return evaluate(cache, "ioi", search, PICKS).picked


@pytest.mark.parametrize("policy", ["paper", "heads"])
def test_what_was_trained_comes_back_from_its_file(cache, tmp_path, policy):
    told = []
    trained = train_agent(
        cache, policy=policy, steps=300, picks=PICKS, seed=3, on_progress=lambda *now: told.append(now)
    )
    assert trained.path is None
    assert trained.training.passes == 0
    assert told == [(256, 300), (512, 300)], "whole rollouts of 64 episodes"
    note = trained.note
    assert (note.tasks, note.hold_out, note.steps, note.seed) == (["induction", "ioi"], ["docstring"], 512, 3)
    assert (note.policy, note.task_signal, note.cache_sha256) == (policy, policy == "paper", cache.sha256)
    saved = trained.save(tmp_path / "c.zip")
    loaded = Checkpoint.load(str(tmp_path / "c.zip"))
    assert saved.path == loaded.path == tmp_path / "c.zip"
    assert loaded.note == note
    np.testing.assert_array_equal(picked(cache, loaded), picked(cache, trained))
    with pytest.raises(UsageError, match=r"was loaded: copy its file, .*c\.zip"):
        loaded.save(tmp_path / "d.zip")


def test_the_file_has_the_members_and_names_of_its_format(cache, tmp_path):
    train_agent(cache, steps=1, picks=PICKS).save(tmp_path / "c.zip")
    with zipfile.ZipFile(tmp_path / "c.zip") as archive:
        assert archive.namelist() == [
            "data", "pytorch_variables.pth", "policy.pth", "policy.optimizer.pth", "_stable_baselines3_version",
            "system_info.txt", "mechrl.json",
        ]  # fmt: skip
        note = json.loads(archive.read("mechrl.json"))
    assert (note["format_version"], note["told"]) == (2, True)
    assert "task_signal" not in note


def test_a_checkpoint_says_what_it_was_trained_on(cache):
    checkpoint = train_agent(cache, ["ioi"], ["docstring"], steps=1, picks=PICKS)
    shown = replace(checkpoint, note=replace(checkpoint.note, model="<b>"))
    assert repr(shown) == "Checkpoint(policy 'paper', trained on ioi of <b>, seed 0)"
    html = shown._repr_html_()
    assert "<td>held out</td><td>docstring</td>" in html
    assert "&lt;b&gt;, 3 × 4 heads, zero ablation" in html
    assert "256 picks, 4 in an episode" in html


def test_without_the_usual_tasks_all_are_trained_on_that_are_not_held_out(cache, tmp_path):
    damage = {task: np.ones((16, 4), np.float32) for task in ("a", "b", "ioi")}
    other = table_cache(tmp_path / "o.h5", damage, damage["a"], 2, 2)
    assert train_agent(other, hold_out=["b"], steps=1).note.tasks == ["a", "ioi"]
    assert train_agent(cache, ["docstring"], steps=1).note.hold_out == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["iou"]}, "Did you mean 'ioi'"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": ["ioi", "ioi"]}, "none twice"),
        ({"hold_out": ["ioi"]}, "none twice"),
        ({"policy": "head"}, "Did you mean 'heads'"),
        ({"preset": "heads"}, "unknown preset"),
        ({"policy": "heads", "preset": "paper"}, "settings of its own"),
        ({"picks": 13}, "between 1 and the 12 heads, not 13"),
        ({"picks": 0}, "must be at least 1, not 0|must be between 1 and 12, not 0"),
        ({"steps": 0}, "must be at least 1, not 0|must be between 1 and 12, not 0"),
        ({"plan_k": 0}, "must be at least 1, not 0|must be between 1 and 12, not 0"),
        ({"control_weight": -1}, "between 0 and .*, not -1"),
        ({"control_weight": float("nan")}, "between 0 and .*, not nan"),
        ({"plan_k": 13}, "heads queried before a pick must be between 1 and 12, not 13"),
        ({"steps": 1.5}, "steps must be a whole number, not 1.5"),
        ({"seed": 2**32}, "seed must be between"),
        ({"live_model": SimpleNamespace(name="other", sha256="0")}, "built from another model than 'other'"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words_and_not_in_flags(cache, arguments, message):
    with pytest.raises(MechrlError, match=message) as raised:
        train_agent(cache, **arguments)
    assert "--" not in str(raised.value)
    assert isinstance(raised.value, FileError if "live_model" in arguments else UsageError)


def test_a_checkpoint_whose_file_was_written_again_is_not_taken_for_it(cache, tmp_path):
    first = train_agent(cache, ["ioi"], [], steps=1, picks=PICKS)
    with pytest.raises(UsageError, match="save the checkpoint first"):
        mechrl.verify(first)
    first = first.save(tmp_path / "c.zip")
    assert first.check_saved() == tmp_path / "c.zip"
    train_agent(cache, ["induction"], [], steps=1, picks=PICKS).save(tmp_path / "c.zip")
    with pytest.raises(FileError, match=r"c\.zip does not hold this checkpoint any more"):
        mechrl.verify(first)
    (tmp_path / "c.zip").unlink()
    with pytest.raises(FileError, match="any more"):
        first.check_saved()
