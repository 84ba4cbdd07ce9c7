"""Families of models: each against plain modules or refused, and six from their files to the verdict by commands."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from families import BATCH, FAMILIES, LENGTHS, ORIGINAL, Plain, make, mixed_task
from families import WINDOW as SHARED_WINDOW
from helpers import ARCHITECTURES, WINDOW, hub_cache, randomize, save
from numpy.random import RandomState
from transformers import AutoModelForCausalLM

from mechrl.ablation import MEASURES
from mechrl.building.build import build
from mechrl.building.settings import BuildSettings
from mechrl.cache.reader import Cache
from mechrl.cli.cache import cache as cache_command
from mechrl.cli.train import train as train_command
from mechrl.cli.verify import verify as verify_command
from mechrl.errors import UsageError
from mechrl.models import Model, load_model
from mechrl.tasks.prose import prose
from mechrl.tasks.task_file import read_task_file

SIZES = ("--batches", 4, "--batch-size", 4, "--device", "cpu", "--threads", 1)
SWEPT = [name for name, family in FAMILIES.items() if not family.refused]
QUICK = ("olmo3", "phi3 longrope")  # in the default run
# What a library says to its authors: its classes and attributes, and its operations on tensors.
INTERNAL = r"\w(Error|Adapter|Bridge|Attention|Layer)\b|attribute|object|component|tensor|dimension|split_|_norm"
DOCS = Path(__file__).parents[1] / "docs" / "models.md"
FEW = ("--fresh-batches", 2, "--top", 2, "--device", "cpu", "--threads", 1, "--json")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


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


def swept(model: Model, tmp_path: Path, batch_size: int = BATCH, ablation: str = "zero") -> Cache:
    """The cache of a task with prompts of many lengths."""
    task = read_task_file(mixed_task(tmp_path / "mixed.jsonl", model.vocabulary))
    settings = BuildSettings((), batch_size=batch_size, control_batches=3, files=(task,), ablation=ablation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what the libraries warn of is not for the user
        return Cache.open(build(model, settings, tmp_path / f"{ablation}-{batch_size}.h5"))


def check_against_plain(cache: Cache, plain: Plain, put_in: np.ndarray) -> None:
    """Every measure of every prompt, and the losses of a span of each split, within 1e-5 × the largest logit."""
    prompts, arrays = cache.prompts("mixed"), cache.content.arrays
    np.testing.assert_array_equal(prompts.length, LENGTHS)
    expected, largest = plain.measures(prompts, put_in)
    bound = 1e-5 * max(1.0, largest)
    for measured, values in ((name, expected[name]) for name in MEASURES):
        np.testing.assert_allclose(cache.clean("mixed", measured), values[:, 0], atol=bound, err_msg=measured)
        damage = values[:, :1] - values[:, 1:]
        np.testing.assert_allclose(cache.damage("mixed", measured), damage, atol=bound, err_msg=measured)
    assert np.abs(cache.damage("mixed")).max(0).min() > 100 * bound, "every head does something"
    for row in (0, -1):
        losses = plain.losses(arrays["/control/tokens"][row], put_in)
        np.testing.assert_allclose(arrays["/control/clean"][row], losses[0], atol=bound)
        np.testing.assert_allclose(arrays["/control/ablated"][row], losses[1:], atol=bound)


@pytest.mark.parametrize("name", [n if n in QUICK else slow(n) for n in SWEPT])
def test_numbers_of_a_family_are_those_of_plain_modules_that_run_each_prompt_alone(tmp_path, name):
    folder = make(name, tmp_path / "model")
    plain = Plain(name, folder)
    model = load_model(str(folder), device="cpu")
    assert model.constants is not None
    if np.abs(model.constants).max() > 1e-5:
        check_against_plain(swept(model, tmp_path, ablation="zero_raw"), plain, np.zeros_like(model.constants))
    else:  # zero and zero_raw are the same
        check_against_plain(swept(model, tmp_path), plain, model.constants)


@pytest.mark.parametrize("name", ["gpt2", *(slow(name) for name in ("gpt_neox", "starcoder2", "qwen2 longrope"))])
def test_zero_leaves_a_head_its_constant(tmp_path, name):
    folder = make(name, tmp_path / "model")
    model = load_model(str(folder), device="cpu")
    assert np.abs(model.constants).max() > 0.1
    check_against_plain(swept(model, tmp_path), Plain(name, folder), model.constants)


def test_some_prompts_of_every_batch_exceed_the_window_and_the_original_context_and_some_do_not():
    for first in range(0, len(LENGTHS), BATCH):
        batch = LENGTHS[first : first + BATCH]
        assert min(batch) < SHARED_WINDOW < ORIGINAL < max(batch)
    assert {SHARED_WINDOW - 1, SHARED_WINDOW, ORIGINAL, ORIGINAL + 1} < set(LENGTHS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama longrope", "gemma3_text longrope in full layers", "gpt2"])
def test_no_number_of_a_prompt_depends_on_its_neighbours(tmp_path, name):
    """Estimates and features included."""
    folder = make(name, tmp_path / "model")
    alone, together = (
        swept(load_model(str(folder), device="cpu"), tmp_path, size).content.arrays for size in (1, BATCH)
    )
    of_task = [key for key in together if key.startswith("/tasks/")]
    assert len(of_task) > 15
    for key in of_task:
        bound = 1e-5 * max(5.0, np.abs(together[key]).max())
        np.testing.assert_allclose(alone[key], together[key], atol=bound, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama longrope", "gpt2"])
def test_a_mean_over_prompts_of_many_lengths_is_that_of_plain_modules(tmp_path, name):
    """There are fewer training prompts than a mean by position takes, so it is one over all positions."""
    folder = make(name, tmp_path / "model")
    cache = swept(load_model(str(folder), device="cpu"), tmp_path, ablation="mean_task")
    plain, prompts = Plain(name, folder), cache.prompts("mixed")
    expected, largest = plain.measures(prompts, plain.mean_outputs(prompts[:BATCH]))
    values = expected["logit_diff"]
    np.testing.assert_allclose(cache.damage("mixed"), values[:, :1] - values[:, 1:], atol=1e-5 * max(1.0, largest))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.refused])
def test_a_family_that_cannot_be_swept_is_refused_when_it_is_loaded(tmp_path, name):
    folder = make(name, tmp_path / "model")
    with pytest.raises(UsageError) as refusal:
        load_model(str(folder), device="cpu")
    said = str(refusal.value).replace(str(folder), "model")
    assert FAMILIES[name].refused in said
    assert "\n" not in said
    assert len(said) < 250
    assert not re.search(INTERNAL, said)


def test_the_page_of_models_lists_every_family_by_its_outcome():
    swept, refused = DOCS.read_text().split("\n## Swept\n")[1].split("\n## Refused\n")
    columns = (" ".join(re.findall(r"^\|([^|]+)\|", part, re.MULTILINE)) for part in (swept, refused))
    types, names = (set(re.findall(r"`([^`]+)`", column)) for column in columns)
    assert types == {FAMILIES[name].settings["model_type"] for name in SWEPT}
    assert names == FAMILIES.keys() - SWEPT
