"""Things made by hand for tests: caches with chosen numbers, models with random or planted weights."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mechrl.ablation import FEATURES, MEASURES
from mechrl.building.settings import BuildSettings
from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_content
from mechrl.home import home
from mechrl.models import MINI
from mechrl.search.bench.run import run_benchmark
from mechrl.search.ppo.checkpoint import Checkpoint

SIZES = {
    "vocab_size": 1106, "max_position_embeddings": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "hidden_size": 32, "intermediate_size": 64,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
USERS_HOME = home()  # conftest.py gives tests another
SMALL = BuildSettings(batches=4, batch_size=8, control_batches=4)  # of the session's cache of `mini`
WINDOW = 8  # shorter than the shortest prompt
# Small models of the six families, by name; `randomize` gives them weights that matter.
ARCHITECTURES = {
    # one matrix for queries, keys and values; learned positions; the embedding is the unembedding
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=1106, n_positions=64, n_embd=32, n_layer=3, n_head=4)),
    # attention and MLP read the same residual stream; untied
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(use_parallel_residual=True, **SIZES)),
    # two query heads to a key head; RMS norms; biases in the attention; untied
    "llama": lambda: LlamaForCausalLM(LlamaConfig(attention_bias=True, **GROUPED)),
    # norms of queries and keys
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **GROUPED)),
    # every other layer with a window; caps on scores and logits; norms after attention and MLP too; tied
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            head_dim=8, sliding_window=WINDOW, attn_logit_softcapping=5.0, final_logit_softcapping=3.0, **GROUPED
        )
    ),
    # a window in every layer
    "mistral": lambda: MistralForCausalLM(MistralConfig(sliding_window=WINDOW, **GROUPED)),
}


def table_cache(
    path: Path, damage: dict[str, np.ndarray], control: np.ndarray, n_layers: int, n_heads: int, batch_size: int = 1
) -> Cache:
    """A cache with these damages [prompt, site] and control damages [span, site]; the last quarter is evaluation."""

    def split(n: int) -> np.ndarray:
        batches = n // batch_size
        return (np.arange(n) >= (batches - max(2, batches // 4)) * batch_size).astype(np.uint8)

    arrays: dict[str, np.ndarray] = {
        "/sites/kind": np.zeros(n_layers * n_heads, np.uint8),
        "/sites/layer": np.repeat(np.arange(n_layers), n_heads).astype(np.int16),
        "/sites/index": np.tile(np.arange(n_heads), n_layers).astype(np.int16),
        "/control/tokens": np.ones((len(control), 5), np.int32),
        "/control/split": split(len(control)),
        "/control/clean": np.full(len(control), 2, np.float32),
        "/control/ablated": (2 + control).astype(np.float32),
    }
    attributes = {
        "/": {
            "model": "by hand", "model_sha256": "0" * 64, "tokenizer_sha256": "0" * 64, "n_layers": n_layers,
            "n_heads": n_heads, "ablation": "zero", "weight_processing": "none", "prepend_bos": True,
            "d_model": 16, "parallel_attn_mlp": False,
            "dtype": "float32", "batch_size": batch_size, "seed": 0, "complete": True, "self_check_error": 0.0,
            "control_source": "prose",
            "task_order": json.dumps(list(damage)),
        }
    }  # fmt: skip
    for task, values in damage.items():
        n = len(values)
        arrays |= {
            f"/tasks/{task}/tokens": np.ones((n, 4), np.int32),
            f"/tasks/{task}/length": np.full(n, 4, np.int32),
            f"/tasks/{task}/answers": np.ones((n, 1), np.int32),
            f"/tasks/{task}/wrongs": np.full((n, 1), 2, np.int32),
            f"/tasks/{task}/group": np.arange(n, dtype=np.int32),
            f"/tasks/{task}/split": split(n),
        }
        for measure in MEASURES:
            arrays[f"/tasks/{task}/clean/{measure}"] = np.full(n, 4, np.float32)
            arrays[f"/tasks/{task}/ablated/{measure}"] = (4 - values).astype(np.float32)
        attributes[f"/tasks/{task}"] = {
            "generator": task, "generator_version": 1, "generator_params": "{}", "does_task": True, "source": "by hand",
        }  # fmt: skip
    write_content(path, Content(arrays, attributes))
    return Cache.open(path)


def with_attribution(cache: Cache, path: Path, seed: int = 0) -> Cache:
    """The same cache with attributions, noisy versions of its damages, and with head features."""
    rng = np.random.default_rng(seed)

    def noisy(values: np.ndarray, noise: float) -> np.ndarray:
        return (values + noise * rng.normal(size=values.shape)).astype(np.float32)

    arrays = dict(cache.content.arrays)
    for name, noise in (("attribution", 0.5), ("attribution_integrated", 0.1)):
        arrays[f"/control/{name}"] = noisy(cache.control_damage, noise)
        for task in cache.tasks:
            arrays[f"/tasks/{task}/{name}"] = noisy(cache.damage(task), noise)
    for task in cache.tasks:
        for feature in FEATURES:
            arrays[f"/tasks/{task}/{feature}"] = noisy(np.zeros_like(cache.damage(task)), 1.0)
    write_content(path, Content(arrays, cache.content.attributes))
    return Cache.open(path)


def rewritten_note(good: Path, bad: Path, change: dict) -> Path:
    """A copy of a checkpoint with another note."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for item in source.namelist():
            content = source.read(item)
            target.writestr(item, json.dumps({**json.loads(content), **change}) if item == "mechrl.json" else content)
    return bad


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Gives every parameter, biases and norms included, values that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_weight = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm_weight else (0.3 if parameter.ndim == 1 else 0.15) * noise)
    return model


def save(model: PreTrainedModel, folder: Path, bos: bool = True) -> Path:
    """A model folder with the tokenizer of `mini`, with or without its BOS."""
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(MINI)
    if not bos:
        tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    return folder


def tiny_model(folder: Path) -> Path:
    """A random model of 2 layers × 2 heads: what a build does is seen on it as on a larger one, in a second."""
    config = GPT2Config(vocab_size=1106, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return save(randomize(GPT2LMHeadModel(config)), folder)


def hub_cache(folder: Path, name: str, revision: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one revision in a local cache of the hub, which from now on is the one that is used."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    repository = folder / "hub" / f"models--{name.replace('/', '--')}"
    commit = hashlib.sha1(revision.encode()).hexdigest()
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return repository / "snapshots" / commit


def planted_model(planted: dict[tuple[int, int], float], n_layers: int = 3, n_heads: int = 4) -> GPT2LMHeadModel:
    """A model in which only the planted heads do anything: each adds its strength × how often a token has occurred.

    Tokens 1 to 15 count. The embedding writes token t on axis t; a planted head attends to all positions alike, reads
    the first 16 axes and writes them to axes 16 to 31, which the unembedding reads. So the model prefers a token of the
    prompt to one that is not in it by what the planted heads add. Large constants on the last 16 axes keep the norms'
    scale the same whatever the heads do; no other weight is different from zero.
    """
    width = 16 * n_heads
    config = GPT2Config(
        vocab_size=1106, n_positions=64, n_embd=width, n_layer=n_layers, n_head=n_heads, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    for name in state:
        if "ln_" in name and name.endswith("weight"):
            state[name] += 1
    eye = torch.eye(16)
    state["transformer.wte.weight"][:16, :16] = eye
    state["transformer.wte.weight"][:, -16:] = 50 * torch.tensor([1.0, -1.0]).repeat(8)
    state["lm_head.weight"][:16, 16:32] = 1000 * eye
    for (layer, head), strength in planted.items():
        block = f"transformer.h.{layer}.attn"
        of_head = slice(16 * head, 16 * head + 16)
        state[f"{block}.c_attn.weight"][:16, 2 * width + 16 * head : 2 * width + 16 * head + 16] = eye
        state[f"{block}.c_proj.weight"][of_head, 16:32] = strength * eye
    model.load_state_dict(state)
    return model


def load_checkpoint(path):
    """The policy and the note of a checkpoint."""
    checkpoint = Checkpoint.load(path)
    return checkpoint.policy, checkpoint.note


def bench(*arguments, **named):
    """The result of a benchmark, without its resamples."""
    return run_benchmark(*arguments, **named).result
