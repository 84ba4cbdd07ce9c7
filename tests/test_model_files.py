"""What lies in a model's folder: read as it is meant, or refused with a sentence of its own."""

import json
import os
import shutil

import pytest
import torch
from helpers import ARCHITECTURES, SIZES, randomize, save
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from mechrl.errors import UsageError
from mechrl.models import MINI, load_model, load_vocabulary
from mechrl.models.tokenizer import SAMPLES
from mechrl.tasks import TASKS, TRAIN, generate


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder that loads. Not to be changed."""
    return save(randomize(ARCHITECTURES["llama"]()), tmp_path_factory.mktemp("models") / "sound")


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "model")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("generation_config.json", '{"a": 1,\n', r"generation_config.json is damaged, it is not valid JSON \(line 2"),
        ("config.json", "", "config.json is empty"),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": 1000000000}', "num_hidden_layers 1000000000"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json is damaged, it holds no JSON object"),
        ("special_tokens_map.json", "[" * 100_000, "special_tokens_map.json is damaged.*nested too deep"),
        (
            "model.safetensors",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "model.safetensors is a pointer of Git LFS and not the file itself; `git lfs pull`",
        ),
        ("adapter_config.json", '{"peft_type": "LORA"}', r"an adapter \(adapter_config.json\) lies beside the weights"),
    ],
)
def test_a_file_that_cannot_be_what_it_is_called_has_a_sentence_of_its_own(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(UsageError, match=message):
        load_model(str(folder), device="cpu")


def test_a_pipe_in_a_folder_is_not_waited_for(folder):
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(UsageError, match=r"tokenizer.json is not a file, but a folder, a pipe"):
        load_model(str(folder), device="cpu")


def test_an_adapter_without_its_base_says_what_to_do(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"an adapter without its base model.*merge_and_unload"):
        load_model(str(tmp_path))


def test_no_code_of_a_folder_is_run_and_nobody_is_asked(folder, tmp_path, monkeypatch):
    """Of a kind that transformers does not know, and of one that it knows."""
    marker = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    mapped = {"auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (folder / "config.json").write_text(json.dumps({**config, **mapped, "model_type": "mine"}))
    with pytest.raises(UsageError, match=r"brings its own code \(auto_map in config.json\), and mechrl runs no code"):
        load_model(str(folder), device="cpu")
    (folder / "config.json").write_text(json.dumps({**config, **mapped}))
    load_model(str(folder), device="cpu")
    assert not marker.exists()


def test_quantised_weights_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(UsageError, match=r"has quantised weights \(awq\)"):
        load_model(str(folder), device="cpu")


def test_a_row_that_nobody_uses_may_hold_anything_and_one_that_is_predicted_may_not(tmp_path):
    for name, matrix in (("read", "model.embed_tokens"), ("predicted", "lm_head")):
        model = randomize(ARCHITECTURES["llama"]())
        with torch.no_grad():
            model.get_submodule(matrix).weight[700] = torch.nan
        save(model, tmp_path / name)
    assert load_model(str(tmp_path / "read"), device="cpu").n_heads == 4
    with pytest.raises(UsageError, match=r"lm_head.weight is not finite in row 700 \(1 such rows\)"):
        load_model(str(tmp_path / "predicted"), device="cpu")


def test_a_tokenizer_splits_text_as_its_file_says(tmp_path):
    """The class that transformers has for Qwen 2 brings its own rule for digits, one by one."""
    folder = save(randomize(Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **SIZES))), tmp_path)
    of_file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(folder)
    assert any(theirs.encode(t, add_special_tokens=False) != of_file.encode(t).ids for t in SAMPLES), "as it was meant"
    vocabulary = load_vocabulary(str(folder))
    for text in SAMPLES:
        assert vocabulary.tokenizer.encode(text, add_special_tokens=False) == of_file.encode(text).ids
    assert load_model(str(folder), device="cpu").vocabulary.encode(SAMPLES[0])[1:] == of_file.encode(SAMPLES[0]).ids


def test_a_tokenizer_that_no_class_reproduces_is_refused(folder, monkeypatch):
    other = AutoTokenizer.from_pretrained(folder)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda folder, **_: other)
    monkeypatch.setattr("mechrl.models.tokenizer._plain", lambda folder: other)
    with pytest.raises(UsageError, match=r"transformers splits ' 1742 .* tokens .* tokenizer.json gives"):
        load_vocabulary(str(folder))


def test_there_is_never_a_second_bos(mini):
    vocabulary = mini.vocabulary
    plain = vocabulary.encode("Mary had a ring")
    assert plain[0] == vocabulary.bos
    assert vocabulary.encode(vocabulary.bos_token + "Mary had a ring") == plain
    assert vocabulary.with_bos(plain) == plain
    assert vocabulary.said_of_bos == "BOS '<|endoftext|>' before every prompt"


def test_tokens_that_the_model_has_no_row_for_are_not_drawn_and_a_bos_is_refused(tmp_path):
    config = type(ARCHITECTURES["llama"]().config)(**{**SIZES, "vocab_size": 900})
    folder = save(randomize(type(ARCHITECTURES["llama"]())(config)), tmp_path)
    model = load_model(str(folder), device="cpu")
    assert model.vocabulary.rows == 900 < len(model.vocabulary.tokenizer)
    assert max(model.vocabulary.word_ids) < 900
    prompts = generate(TASKS["induction"], model.vocabulary, 64, TRAIN)
    assert max(prompts.tokens.max(), prompts.answers.max()) < 900
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    tokenizer.add_special_tokens({"bos_token": "<begin>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UsageError, match=r"BOS '<begin>' has id 1106, and the model's embedding has 900 rows"):
        load_model(str(folder), device="cpu")


def test_a_tokenizer_class_that_fails_gives_way_to_the_file(folder):
    """Its words are those of the file, whatever class the folder names."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "T5Tokenizer"}))
    of_file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = load_vocabulary(str(folder)).tokenizer
    for text in SAMPLES:
        assert found.encode(text, add_special_tokens=False) == of_file.encode(text).ids


def test_a_tokenizer_need_not_know_our_samples(folder):
    from tokenizers.models import WordLevel

    of_file = Tokenizer(WordLevel({"the": 1, "cat": 2}))
    of_file.pre_tokenizer = pre_tokenizers.Whitespace()
    of_file.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    assert load_vocabulary(str(folder)).encode("the cat the") == [1, 2, 1]


@pytest.mark.parametrize("n", [2, 4, 20])
def test_a_model_with_a_short_context_is_loaded(tmp_path, n):
    config = type(ARCHITECTURES["gpt2"]().config)(vocab_size=1106, n_positions=n, n_embd=32, n_layer=2, n_head=4)
    folder = save(randomize(type(ARCHITECTURES["gpt2"]())(config)), tmp_path)
    assert load_model(str(folder), device="cpu").n_ctx == n
