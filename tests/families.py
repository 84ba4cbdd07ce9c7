"""Families of models: a small random one of each, its outcome, and what plain transformers modules measure on it.

A family is swept, or refused when it is loaded, with a reason that its user understands. `docs/models.md` has the list.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import randomize, save
from transformers import AutoConfig, AutoModelForCausalLM

from mechrl.ablation.measures import measure
from mechrl.models import load_vocabulary
from mechrl.tasks import Prompts
from mechrl.vocabulary import Vocabulary

LAYERS, HEADS, WINDOW, ORIGINAL = 3, 4, 64, 96  # a window, and a context before scaling, that some prompts exceed
# Of the prompts, in batches of four: in each some exceed the window or the original context, and some do not.
LENGTHS = (15, 130, 40, 97, 120, 20, 63, 96, 64, 128, 31, 80)
BATCH = 4

# Why a model is refused, in the words of the message.
TAKEN_APART = "cannot take apart models of type"
NO_HEADS = "TransformerLens has no blocks.0.attn.hook_z for this kind of model"
NO_FINAL_NORM = "TransformerLens has no ln_final.hook_in for this kind of model"
OTHER_LOGITS = "folded by TransformerLens, its logits differ from those of transformers by"
OTHER_HEADS = "TransformerLens shows 8 heads in layer 0, where the model has 4"
MORE_THAN_HEADS = "the attention of layer 0 writes more than its heads, projected"
PASSED_BY = "Something in it passes the blocks by"
LOOKS_AHEAD = "is not a causal model: tokens change the logits before them"


@dataclass(frozen=True)
class Family:
    """One kind of model.

    :param settings: of its config, `model_type` among them.
    :param projection: the name of a layer's output projection, of which each head has a slice.
    :param refused: what the refusal says; "" where the family is swept.
    :param precision: what the plain modules compute in.
    """

    settings: dict[str, Any]
    projection: str = "model.layers.{}.self_attn.o_proj"
    refused: str = ""
    precision: torch.dtype = torch.float64


SIZES = {
    "vocab_size": 1106, "max_position_embeddings": 192, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "hidden_size": 32, "intermediate_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2}
SIZED = {**GROUPED, "head_dim": 8}
GPT2 = {"vocab_size": 1106, "n_positions": 192, "n_embd": 32, "n_layer": LAYERS, "n_head": HEADS}
MPT = {"vocab_size": 1106, "d_model": 32, "n_heads": HEADS, "n_layers": LAYERS, "max_seq_len": 192}
OPT = {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 1}
DECODER = {**SIZES, "is_decoder": True, "pad_token_id": 1}
MAMBA = {"vocab_size": 1106, "hidden_size": 32, "num_hidden_layers": LAYERS, "state_size": 8}
LATENT = {
    **SIZES, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": HEADS,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
ROUTED = {**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "full_attention"], "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
CONVOLVED = {"layer_types": ["conv", "full_attention", "full_attention"]}
SCALE = {"rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": ORIGINAL}
LONG = {**SCALE, "rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [2.0, 4.0, 6.0, 8.0]}
WINDOWS = {
    "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
}  # fmt: skip


def gpt2(settings: dict, module: str = "attn.c_proj", refused: str = "") -> Family:
    return Family(settings, f"transformer.h.{{}}.{module}", refused)


def neox(settings: dict, refused: str = "") -> Family:
    return Family(settings, "gpt_neox.layers.{}.attention.dense", refused)


def falcon(settings: dict, refused: str = "") -> Family:
    return Family({"model_type": "falcon", **SIZES, **settings}, "transformer.h.{}.self_attention.dense", refused)


def llama(**settings: Any) -> Family:
    return Family({"model_type": "llama", **GROUPED, **settings})


def refused(model_type: str, reason: str, settings: dict) -> Family:
    return Family({"model_type": model_type, **settings}, refused=reason)


def unknown(model_type: str, settings: dict) -> Family:
    """A type, or a setting of one, that TransformerLens does not take apart."""
    return refused(model_type, f"{TAKEN_APART} {model_type}", settings)


def after_llama(model_type: str, settings: dict, **more: Any) -> Family:
    """A type whose layers are named as those of Llama."""
    return Family({"model_type": model_type, **settings, **more})


FAMILIES = {
    # GPT-2 and its time
    "gpt2": gpt2({"model_type": "gpt2", **GPT2}),
    "gpt2 scaled by layer": gpt2({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True, **GPT2}),
    "gpt2 with padding and dropout": gpt2(
        {"model_type": "gpt2", "pad_token_id": 0, "attn_pdrop": 0.5, "resid_pdrop": 0.5, "use_cache": False, **GPT2}
    ),
    "gpt2 untied": gpt2({"model_type": "gpt2", "tie_word_embeddings": False, **GPT2}),
    "gpt_neo": gpt2(
        {
            "model_type": "gpt_neo",
            "vocab_size": 1106,
            "max_position_embeddings": 192,
            "hidden_size": 32,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local", "local"], 1]],
            "window_size": WINDOW,
        },
        "attn.attention.out_proj",
    ),
    "gptj": gpt2({"model_type": "gptj", "rotary_dim": 4, **GPT2}, "attn.out_proj"),
    "codegen": gpt2({"model_type": "codegen", "n_ctx": 192, "rotary_dim": 4, **GPT2}, "attn.out_proj"),
    "gpt_bigcode": gpt2({"model_type": "gpt_bigcode", **GPT2}),
    "gpt_neox": neox({"model_type": "gpt_neox", **SIZES}),
    "gpt_neox one after the other": neox({"model_type": "gpt_neox", "use_parallel_residual": False, **SIZES}),
    "opt": Family({"model_type": "opt", **OPT}, "model.decoder.layers.{}.self_attn.out_proj"),
    "xglm": Family(
        {
            "model_type": "xglm",
            "vocab_size": 1106,
            "max_position_embeddings": 192,
            "d_model": 32,
            "ffn_dim": 64,
            "num_layers": LAYERS,
            "attention_heads": HEADS,
        },
        "model.layers.{}.self_attn.out_proj",
        precision=torch.float32,  # its mask overflows in float64
    ),
    "falcon": falcon({"multi_query": True, "parallel_attn": True}),
    "falcon with alibi": falcon({"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "mpt": Family({"model_type": "mpt", **MPT}, "transformer.blocks.{}.attn.out_proj"),
    # Llama and its rotary embeddings
    "llama": llama(),
    "llama with biases, tied": llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama with one key head": llama(num_key_value_heads=1, head_dim=16),
    "llama with more rows than tokens": llama(vocab_size=1200),
    "llama with padding and dropout": llama(pad_token_id=0, attention_dropout=0.5, use_cache=False),
    "llama linear": llama(rope_parameters={**SCALE, "rope_type": "linear"}),
    "llama dynamic": llama(rope_parameters={**SCALE, "rope_type": "dynamic"}),
    "llama yarn": llama(rope_parameters={**SCALE, "rope_type": "yarn"}),
    "llama llama3": llama(
        rope_parameters={**SCALE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    ),
    "llama longrope": llama(rope_parameters=LONG),
    # after Llama
    "mistral": after_llama("mistral", GROUPED, sliding_window=WINDOW),
    "ministral3": after_llama("ministral3", SIZED, sliding_window=WINDOW),
    "mixtral": after_llama("mixtral", GROUPED, sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2),
    "qwen2": after_llama("qwen2", GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen2 longrope": after_llama("qwen2", GROUPED, rope_parameters=LONG),
    "qwen3": after_llama("qwen3", GROUPED, head_dim=16, attention_bias=True),
    "qwen3_moe": after_llama("qwen3_moe", SIZED, num_experts=4, **EXPERTS),
    "gemma": after_llama("gemma", SIZED),
    "gemma2": after_llama(
        "gemma2", SIZED, sliding_window=WINDOW, attn_logit_softcapping=5.0, final_logit_softcapping=3.0
    ),
    "gemma2 longrope": after_llama("gemma2", SIZED, sliding_window=WINDOW, rope_parameters=LONG),
    "gemma3_text": after_llama("gemma3_text", SIZED, **WINDOWS),
    "gemma3_text longrope in full layers": after_llama(
        "gemma3_text",
        SIZED,
        **WINDOWS,
        rope_parameters={"full_attention": LONG, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "phi": Family({"model_type": "phi", **SIZES}, "model.layers.{}.self_attn.dense"),
    "phi3": after_llama("phi3", GROUPED, sliding_window=WINDOW),
    "phi3 longrope": after_llama("phi3", GROUPED, original_max_position_embeddings=ORIGINAL, rope_parameters=LONG),
    "stablelm": after_llama("stablelm", GROUPED),
    "starcoder2": after_llama("starcoder2", GROUPED, sliding_window=WINDOW),
    "cohere": after_llama("cohere", GROUPED, use_qk_norm=True),
    "cohere2": after_llama("cohere2", GROUPED, **WINDOWS),
    "olmo": after_llama("olmo", GROUPED, clip_qkv=4.0),
    "olmo2": after_llama("olmo2", GROUPED),
    "olmo3": after_llama("olmo3", GROUPED, **WINDOWS),
    "olmoe": after_llama("olmoe", GROUPED, num_experts=4, num_experts_per_tok=2),
    "flex_olmo": after_llama("flex_olmo", GROUPED, num_experts=4, num_experts_per_tok=2),
    "granite": after_llama(
        "granite",
        GROUPED,
        attention_multiplier=0.3,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "granitemoe": after_llama("granitemoe", GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "glm": after_llama("glm", SIZED),
    "glm4": after_llama("glm4", SIZED),
    "nemotron": after_llama("nemotron", SIZED),
    "exaone4": after_llama("exaone4", GROUPED, **WINDOWS),
    "smollm3": after_llama("smollm3", GROUPED, no_rope_layers=[1, 0, 1]),
    "ernie4_5": after_llama("ernie4_5", SIZED, use_bias=True),
    "ernie4_5_moe": after_llama(
        "ernie4_5_moe", GROUPED, moe_intermediate_size=32, moe_num_experts=4, moe_k=2, moe_layer_start_index=1
    ),
    "seed_oss": after_llama("seed_oss", SIZED),
    "apertus": after_llama("apertus", GROUPED),
    "arcee": after_llama("arcee", GROUPED),
    "hunyuan_v1_dense": after_llama("hunyuan_v1_dense", SIZED),
    "minimax_m2": after_llama("minimax_m2", SIZED, num_local_experts=4, num_experts_per_tok=2),
    "jais2": after_llama("jais2", SIZED),
    "internlm3": after_llama("internlm3", SIZED),
    "afmoe": after_llama("afmoe", SIZED, **WINDOWS, **EXPERTS, num_experts=4, num_shared_experts=1, num_dense_layers=1),
    "modernbert-decoder": Family(
        {
            "model_type": "modernbert-decoder",
            **SIZES,
            "pad_token_id": 1,
            "cls_token_id": 0,
            "sep_token_id": 0,
            "local_attention": WINDOW,
            "global_attn_every_n_layers": 2,
        },
        "model.layers.{}.attn.Wo",
    ),
    # Refused: no attention in some layer
    "mamba": refused("mamba", NO_HEADS, MAMBA),
    "falcon_mamba": refused("falcon_mamba", NO_HEADS, MAMBA),
    "rwkv": refused("rwkv", NO_HEADS, {"vocab_size": 1106, "hidden_size": 32, "num_hidden_layers": LAYERS}),
    "jamba": refused(
        "jamba",
        NO_HEADS,
        {
            **GROUPED,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
    ),
    "recurrent_gemma": refused(
        "recurrent_gemma", NO_HEADS, {**GROUPED, "lru_width": 32, "attention_window_size": WINDOW}
    ),
    "qwen3_next": refused(
        "qwen3_next",
        NO_HEADS,
        {**SIZED, **EXPERTS, **LINEAR, "num_experts": 4, "shared_expert_intermediate_size": 32},
    ),
    "qwen3_5_text": refused("qwen3_5_text", NO_HEADS, {**SIZED, **LINEAR}),
    "lfm2": refused("lfm2", NO_HEADS, {**GROUPED, **CONVOLVED}),
    "jetmoe": refused(
        "jetmoe",
        NO_HEADS,
        {
            "vocab_size": 1106,
            "max_position_embeddings": 192,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": 2,
            "kv_channels": 8,
            "num_local_experts": 4,
        },
    ),
    # Refused: the heads are not what the attention writes, or not what is shown
    "bloom": refused("bloom", MORE_THAN_HEADS, {"vocab_size": 1106, "n_layer": 3, "n_head": HEADS, "hidden_size": 32}),
    "bert as a decoder": refused("bert", MORE_THAN_HEADS, DECODER),
    "deepseek_v2": refused("deepseek_v2", OTHER_HEADS, {**LATENT, **ROUTED, "first_k_dense_replace": 1}),
    "deepseek_v3": refused("deepseek_v3", OTHER_HEADS, {**LATENT, **ROUTED, "first_k_dense_replace": 1}),
    "youtu": refused("youtu", OTHER_HEADS, LATENT),
    # Refused: the folded model is another one
    "qwen2_moe": refused(
        "qwen2_moe", OTHER_LOGITS, {**GROUPED, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32}
    ),
    "gpt_oss": refused(
        "gpt_oss", OTHER_LOGITS, {**SIZED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}
    ),
    "glm4_moe": refused("glm4_moe", OTHER_LOGITS, {**SIZED, **ROUTED, "first_k_dense_replace": 1}),
    "bitnet": refused("bitnet", OTHER_LOGITS, GROUPED),
    "gemma3_text with soft caps": refused(
        "gemma3_text",
        OTHER_LOGITS,
        {**SIZED, **WINDOWS, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    ),
    # Refused: a sweep could not start at a later layer
    "nanochat": refused("nanochat", PASSED_BY, SIZED),
    # Refused: no final norm
    "openai-gpt": refused("openai-gpt", NO_FINAL_NORM, GPT2),
    "opt with another embedding width": refused("opt", NO_FINAL_NORM, {**OPT, "word_embed_proj_dim": 16}),
    # Refused: not causal
    "xlnet": refused(
        "xlnet", LOOKS_AHEAD, {"vocab_size": 1106, "d_model": 32, "n_layer": LAYERS, "n_head": HEADS, "d_inner": 64}
    ),
    # Refused: TransformerLens does not know the type, or fails on it
    "gpt_neox without biases": unknown("gpt_neox", {**SIZES, "attention_bias": False}),
    "gpt_bigcode with all key heads": unknown("gpt_bigcode", {**GPT2, "multi_query": False}),
    "opt with norms after": unknown("opt", {**OPT, "do_layer_norm_before": False}),
    "falcon of 40 billion": falcon(
        {"new_decoder_architecture": True, "num_kv_heads": 2}, refused=f"{TAKEN_APART} falcon"
    ),
    "phi with norms of queries": unknown("phi", {**SIZES, "qk_layernorm": True}),
    "llama4_text": unknown(
        "llama4_text",
        {
            **SIZED,
            "intermediate_size_mlp": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_chunk_size": WINDOW,
        },
    ),
    "gemma4_text": unknown(
        "gemma4_text",
        {
            **SIZED,
            "global_head_dim": 8,
            "sliding_window": WINDOW,
            "vocab_size_per_layer_input": 1106,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "granitemoehybrid": unknown(
        "granitemoehybrid",
        {
            **GROUPED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention", "attention"],
            "mamba_n_heads": 4,
            "mamba_d_state": 8,
            "mamba_d_head": 16,
        },
    ),
    "vaultgemma": unknown("vaultgemma", {**SIZED, "sliding_window": WINDOW}),
    "biogpt": unknown("biogpt", {**SIZES, "pad_token_id": 1}),
    "ctrl": unknown(
        "ctrl", {"vocab_size": 1106, "n_positions": 192, "n_embd": 32, "dff": 64, "n_layer": LAYERS, "n_head": HEADS}
    ),
    "cwm": unknown("cwm", {**SIZED, **WINDOWS}),
    "dbrx": unknown(
        "dbrx",
        {
            **MPT,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        },
    ),
    "diffllama": unknown("diffllama", GROUPED),
    "gpt_neox_japanese": unknown("gpt_neox_japanese", SIZES),
    "granitemoeshared": unknown(
        "granitemoeshared",
        {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32},
    ),
    "helium": unknown("helium", SIZED),
    "ministral": unknown("ministral", {**SIZED, "sliding_window": WINDOW}),
    "minimax": unknown(
        "minimax", {**SIZED, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 32, **LINEAR}
    ),
    "persimmon": unknown("persimmon", SIZES),
    "phimoe": unknown("phimoe", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "roberta as a decoder": unknown("roberta", DECODER),
}


def make(name: str, folder: Path) -> Path:
    """The folder of a small random model of a family."""
    settings = dict(FAMILIES[name].settings)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    return save(randomize(AutoModelForCausalLM.from_config(config)), folder)


def mixed_task(path: Path, vocabulary: Vocabulary) -> Path:
    """A task file of random words, whose prompts have LENGTHS; the first batch is for training."""
    rng = np.random.default_rng(0)
    mini = load_vocabulary()
    words = [mini.tokenizer.decode([token]) for token in mini.word_ids]
    if vocabulary.single(words[0]) is None:
        # transformers reads every tokenizer of a Qwen 2 as that of Qwen 2, and of `mini` letters are left.
        words = list("abcdefghijklm")
    lines = []
    for length in LENGTHS:
        ids = vocabulary.encode("".join(rng.choice(words, length)))[:length]
        prompt = vocabulary.tokenizer.decode(ids[vocabulary.bos is not None :])
        assert vocabulary.encode(prompt) == ids
        assert len(ids) == length
        answer, wrong = rng.choice(words, 2, replace=False)
        split = "train" if len(lines) < BATCH else "evaluation"
        lines.append(json.dumps({"prompt": prompt, "answer": answer, "wrong": wrong, "split": split}))
    path.write_text("\n".join(lines))
    return path


class Plain:
    """A family's model as transformers has it, whose sequences are run alone and unpadded.

    Each has a copy of the model to itself: some rotary embeddings remember how long the earlier ones were.
    """

    def __init__(self, name: str, folder: Path):
        self.family = FAMILIES[name]
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=self.family.precision, attn_implementation="eager", experts_implementation="eager"
        ).eval()

    def projections(self, model: torch.nn.Module) -> list[torch.nn.Module]:
        return [model.get_submodule(self.family.projection.format(layer)) for layer in range(LAYERS)]

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray, put_in: np.ndarray) -> torch.Tensor:
        """[1 + site, position, vocabulary]: the intact model's, and with each head's slice replaced.

        :param tokens: of one sequence, [position].
        :param put_in: what replaces each, [layer, head, head width].
        """
        model = copy.deepcopy(self.model)
        ids = torch.from_numpy(tokens).long()[None]
        found = [model(ids).logits[0]]
        for layer, projection in enumerate(self.projections(model)):
            for head in range(HEADS):

                def replace(module, inputs, new=put_in[layer, head], head=head):
                    z = inputs[0].unflatten(-1, (HEADS, -1)).clone()
                    z[..., head, :] = torch.from_numpy(new).to(z)
                    return (z.flatten(-2), *inputs[1:])

                handle = projection.register_forward_pre_hook(replace)
                found.append(model(ids).logits[0])
                handle.remove()
        return torch.stack(found)

    @torch.inference_mode()
    def mean_outputs(self, prompts: Prompts) -> np.ndarray:
        """The mean of each head's output over all positions of some prompts, [layer, head, head width]."""
        seen: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
        for row, length in zip(prompts.tokens, prompts.length, strict=True):
            model = copy.deepcopy(self.model)
            for of_layer, projection in zip(seen, self.projections(model), strict=True):
                projection.register_forward_pre_hook(
                    lambda module, inputs, of_layer=of_layer: of_layer.append(inputs[0][0].unflatten(-1, (HEADS, -1)))
                )
            model(torch.from_numpy(row[:length]).long()[None])
        return torch.stack([torch.cat(of_layer).mean(0) for of_layer in seen]).numpy()

    def measures(self, prompts: Prompts, put_in: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
        """All measures of the intact model and of each ablated head, [prompt, 1 + site], and the largest |logit|."""
        found: dict[str, list[np.ndarray]] = {}
        largest = 0.0
        for i, (row, length) in enumerate(zip(prompts.tokens, prompts.length, strict=True)):
            logits = self.logits(row[:length], put_in)[:, -1]
            answers, wrongs = (torch.from_numpy(of[i : i + 1]).long() for of in (prompts.answers, prompts.wrongs))
            for measured, values in measure(logits, logits[:1].log_softmax(-1), answers, wrongs).items():
                found.setdefault(measured, []).append(values.numpy())
            largest = max(largest, logits.abs().max().item())
        return {measured: np.stack(values) for measured, values in found.items()}, largest

    def losses(self, span: np.ndarray, put_in: np.ndarray) -> np.ndarray:
        """Mean next-token loss of one span, intact and with each head ablated, [1 + site]."""
        logprobs = self.logits(span, put_in)[:, :-1].log_softmax(-1)
        return -logprobs[:, np.arange(len(span) - 1), span[1:]].mean(1).numpy()
