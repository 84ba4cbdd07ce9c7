"""Loading models, and what `mini` can do."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

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
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_model(str(tmp_path))


def test_a_hub_model_without_a_network_names_the_offline_choice():
    with pytest.raises(MachineError, match=r"hub cannot be reached.*--model FOLDER.*--model mini"):
        find_folder("gpt2-that-nobody-has-cached")


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
