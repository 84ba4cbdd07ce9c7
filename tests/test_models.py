"""Loading models, and what `mini` can do."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ARCHITECTURES, SIZES, hub_cache, randomize, save
from transformers import AutoModelForCausalLM, Olmo2Config, Olmo2ForCausalLM

from mechrl.errors import MachineError, UsageError
from mechrl.models import MINI, cache_name, find_folder, load_model, pick_device
from mechrl.tasks import EVALUATION, TASKS, generate
from mechrl.tasks.control import prose_spans


@pytest.mark.parametrize(("task", "least"), [("ioi", 0.95), ("docstring", 0.95), ("induction", 0.90)])
def test_mini_does_its_tasks_on_unseen_prompts(mini, task, least):
    """Seed 10,000,000 is the one that training leaves out."""
    prompts = generate(TASKS[task], mini.vocabulary, 1024, EVALUATION, 10_000_000)
    model = AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(prompts.tokens).long()).logits
    best = logits[torch.arange(1024), torch.from_numpy(prompts.length).long() - 1].argmax(-1)
    assert (best.numpy() == prompts.answers[:, 0]).mean() >= least


def test_mini_models_its_control_text(mini):
    spans = torch.from_numpy(prose_spans(mini.vocabulary, 200, EVALUATION, 10_000_000)).long()
    with torch.inference_mode():
        loss = mini.bridge(spans, return_type="loss").item()
    assert loss < 2, "uniform guessing over the vocabulary would be 6.6 nats"


def test_mini_is_small_and_its_tokenizer_has_gpt2s_convention(mini):
    assert sum(file.stat().st_size for file in MINI.iterdir() if file.is_file()) <= 4_000_000
    assert mini.vocabulary.tokenizer.convert_ids_to_tokens(mini.vocabulary.single(" Mary")) == "ĠMary"
    text = "Unknown wörds\tfall apart into bytes, 3 of them!"
    assert mini.vocabulary.tokenizer.decode(mini.vocabulary.encode(text)[1:]) == text
    assert json.loads((MINI / "config.json").read_text())["model_type"] == "gpt2"


def test_loading_twice_gives_the_same_fingerprint(mini):
    assert load_model("mini", device="cpu").sha256 == mini.sha256


def test_a_folder_without_weights_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text((MINI / "config.json").read_text())
    with pytest.raises(UsageError, match="no weights"):
        load_model(str(tmp_path))


def test_a_folder_that_does_not_exist_is_an_error():
    with pytest.raises(UsageError, match="no such folder"):
        load_model("./no-such-folder")


def test_a_folder_with_a_damaged_config_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0")
    with pytest.raises(UsageError, match=r"its config.json has model_type None"):
        load_model(str(tmp_path))


def test_a_hub_model_without_a_network_names_the_offline_choice():
    with pytest.raises(MachineError, match=r"hub cannot be reached.*the folder of a model.*the model mini"):
        find_folder("gpt2-that-nobody-has-cached")


@pytest.mark.parametrize("arguments", [["--model", "gpt2"], ["--model", str(MINI)]], ids=["model", "control text"])
def test_a_refused_connection_names_the_offline_choice(tmp_path, arguments):
    """A process of its own, that may use the hub and finds nobody there."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "mechrl.cli.main", "cache", "build", *arguments]
    ended = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert "the hub cannot be reached" in ended.stderr
    assert "file as the control text" in ended.stderr
    assert "Traceback" not in ended.stderr


def edited(tmp_path, **config):
    """A copy of `mini` with another config."""
    shutil.copytree(MINI, tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return str(tmp_path / "copy")


def test_missing_weights_are_an_error_and_not_random_numbers(tmp_path):
    with pytest.raises(
        UsageError, match=r"lacks weights of the model of type gpt2 that its config.json describes: transformer\.h\.6\."
    ):
        load_model(edited(tmp_path, n_layer=7), device="cpu")


def test_the_config_is_part_of_the_fingerprint(mini, tmp_path):
    assert load_model(edited(tmp_path / "1"), device="cpu").sha256 == mini.sha256
    for i, change in enumerate(({"n_head": 16}, {"activation_function": "relu"}, {"layer_norm_epsilon": 1e-3})):
        assert load_model(edited(tmp_path / f"x{i}", **change), device="cpu").sha256 != mini.sha256


def test_a_hub_name_and_a_revision_mean_what_was_downloaded_of_them(tmp_path, monkeypatch):
    for seed, revision in enumerate(("main", "step1000")):
        save(
            randomize(ARCHITECTURES["neox"](), seed),
            hub_cache(tmp_path, "EleutherAI/pythia-160m", revision, monkeypatch),
        )
    folder = save(randomize(ARCHITECTURES["neox"](), 1), tmp_path / "folder")
    latest = load_model("EleutherAI/pythia-160m", device="cpu")
    model = load_model("EleutherAI/pythia-160m", device="cpu", revision="step1000")
    assert (model.name, model.revision) == ("EleutherAI/pythia-160m", "step1000")
    assert model.sha256 == load_model(str(folder), device="cpu").sha256 != latest.sha256


def test_a_tokenizer_without_bos_gets_none(tmp_path):
    """TransformerLens gives its own copy one: EOS."""
    model = load_model(str(save(ARCHITECTURES["gpt2"](), tmp_path, bos=False)), device="cpu")
    assert model.vocabulary.bos is None
    assert model.vocabulary.tokenizer.eos_token_id == model.bridge.tokenizer.bos_token_id == 0
    assert model.vocabulary.encode(" Mary") == [model.vocabulary.single(" Mary")]


def test_what_was_folded_is_recorded_as_it_is(mini, tmp_path, recwarn):
    """The norms of OLMo 2 come after what they would be folded into."""
    assert mini.weight_processing.endswith("LayerNorm and value biases folded")
    folder = save(randomize(Olmo2ForCausalLM(Olmo2Config(**SIZES))), tmp_path)
    model = load_model(str(folder), device="cpu")
    assert model.weight_processing.endswith("mode: value biases folded")
    assert model.bridge.original_model.model.layers[0].post_attention_layernorm.weight.std() > 0.1, "it was not folded"
    assert not [warning for warning in recwarn if "fold" in str(warning.message)], "it is in the file, not on stderr"


def test_devices_are_checked():
    assert pick_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no cuda device"):
            pick_device("cuda")


def test_default_cache_names():
    assert cache_name("mini", "ab" * 32) == "mini.h5"
    assert cache_name("EleutherAI/Pythia-160M", "ab" * 32) == "pythia-160m.h5"
    assert cache_name("./My Model/", "ab" * 32) == "my-model-abababab.h5"
    assert cache_name("gpt2", "ab" * 32, "mean_task") == "gpt2.mean_task.h5"
