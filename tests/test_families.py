"""Six families of models, each from its files to the verdict by the commands a user types."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ARCHITECTURES, WINDOW, hub_cache, randomize, save
from numpy.random import RandomState
from transformers import AutoModelForCausalLM

from mechrl.cache.reader import Cache
from mechrl.cli.cache import cache as cache_command
from mechrl.cli.train import train as train_command
from mechrl.cli.verify import verify as verify_command
from mechrl.tasks.prose import prose

SIZES = ("--batches", 4, "--batch-size", 4, "--device", "cpu", "--threads", 1)
FEW = ("--fresh-batches", 2, "--top", 2, "--device", "cpu", "--threads", 1, "--json")


def slow(name: str, bos: bool):
    return pytest.param(name, bos, marks=pytest.mark.slow)


def pipeline(call, tmp_path: Path, *model) -> tuple[Cache, int, dict]:
    """build, train and verify of one model; the cache, verify's exit code and what it found."""
    text, cache, checkpoint = (tmp_path / name for name in ("text.txt", "cache.h5", "checkpoint.zip"))
    text.write_text(prose(RandomState(0), sentences=600))
    code, _, err = call(cache_command, "build", *model, *SIZES, "--control-text", text, "--out", cache)
    assert code == 0, err
    assert "Warning" not in err, "what the libraries warn of is not for the user"
    code, out, err = call(train_command, "--from-cache", cache, "--steps", 200, "--out", checkpoint, "--json")
    assert code == 0, err
    assert set(json.loads(out)) == {"induction", "ioi", "docstring"}
    code, out, err = call(verify_command, checkpoint, "--cache", cache, *model, *FEW)
    assert code in (0, 3), err
    return Cache.open(cache), code, json.loads(out)


def plain_logit_diff(folder: Path, cache: Cache, task: str) -> np.ndarray:
    """The clean logit difference of each prompt, alone and unpadded, by transformers."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = cache.prompts(task)
    rows = zip(prompts.tokens, prompts.length, prompts.answers[:, 0], prompts.wrongs[:, 0], strict=True)
    with torch.inference_mode():
        logits = ((hf(torch.tensor(row[None, :n]).long()).logits[0, -1], a, w) for row, n, a, w in rows)
        return np.array([(of[a] - of[w]).item() for of, a, w in logits])


@pytest.mark.parametrize(
    ("name", "bos"),
    [
        ("gpt2", False),
        ("gemma2", True),
        *(slow(name, True) for name in ("gpt2", "neox", "llama", "mistral")),
        *(slow(name, False) for name in ("qwen3", "gemma2")),
    ],
)
def test_a_family_from_its_folder_to_the_verdict(call, tmp_path, name, bos):
    folder = save(randomize(ARCHITECTURES[name]()), tmp_path / name, bos=bos)
    cache, code, found = pipeline(call, tmp_path, "--model", folder)
    assert cache.attributes["self_check_error"] <= 1e-5
    assert cache.attributes["prepend_bos"] is bos
    for task in cache.tasks:
        prompts = cache.prompts(task)
        assert prompts.length.min() > WINDOW
        assert (prompts.tokens[:, 0] == 0).all() if bos else (prompts.tokens[:, 0] != 0).all()  # 0 is BOS
        np.testing.assert_allclose(cache.clean(task), plain_logit_diff(folder, cache, task), atol=1e-4)
        assert np.abs(cache.damage(task)).max(0).min() > 1e-3, "every head does something"
    assert found["faithful"]["answer"]
    assert code == (0 if found["confirmed"] else 3)
    assert max(task["faithful"]["difference"] for task in found["tasks"].values()) <= 1e-4
    assert found["faithful"]["control_difference"] <= 1e-4


@pytest.mark.slow
def test_a_revision_on_the_hub_is_another_model(call, tmp_path, monkeypatch):
    """What was downloaded earlier is enough: nothing here can reach the hub."""
    for seed, revision in enumerate(("main", "step1000")):
        snapshot = hub_cache(tmp_path, "EleutherAI/pythia-160m", revision, monkeypatch)
        save(randomize(ARCHITECTURES["neox"](), seed), snapshot)
    model = ("--model", "EleutherAI/pythia-160m", "--revision", "step1000")
    cache, _, found = pipeline(call, tmp_path, *model)
    assert found["faithful"]["answer"]
    assert (cache.attributes["model"], cache.attributes["model_revision"]) == (model[1], model[3])
    np.testing.assert_allclose(cache.clean("ioi"), plain_logit_diff(snapshot, cache, "ioi"), atol=1e-4)
    code, _, err = call(verify_command, tmp_path / "checkpoint.zip", "--cache", cache.path, *model[:2], *FEW)
    assert code == 4
    assert "built from 'EleutherAI/pythia-160m' of revision 'step1000'" in err
    assert "another model" in err
