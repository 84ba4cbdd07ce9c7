"""Configs, weights and tokenizers that no honest program writes: `CONFIG`, `WEIGHTS`, `TOKENIZERS`, by name."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from model_folders import (
    ANY,
    DEEP,
    LONG,
    REFUSED,
    ROWS,
    Case,
    Change,
    both,
    bpe,
    config,
    cut,
    edited,
    header,
    header_length,
    post,
    text,
    tokenizer,
    tokenizer_config,
    weights,
    with_entries,
    without,
)
from safetensors.torch import save_file

HUGE = 10**9
KIND, NAN = "model.type|of type|encoder|causal", "finite|NaN|nan"
SIZES_OF = {  # what each family calls the size, and the values that no model has
    "gpt2": "n_embd n_layer n_head vocab_size n_positions".split(),
    "llama": (
        "hidden_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size intermediate_size "
        "max_position_embeddings head_dim"
    ).split(),
}
NO_SIZE = {
    "a billion": HUGE,
    "2**63": 2**63,
    "negative": -1,
    "zero": 0,
    "a text": "x",
    "null": None,
    "half": 1.5,
    "NaN": float("nan"),
    "a list": [4],
}
# A head's width and the number of its keys may be left out, and a longer context than the weights show is only a claim.
MAY_BE = {("llama", "num_key_value_heads", "null"), ("llama", "head_dim", "null")} | {
    ("llama", "max_position_embeddings", how) for how in NO_SIZE
}


def says_of(key: str) -> str:
    """What a message about an entry of config.json names: the entry, the file, or what follows from it."""
    return re.escape(key) + r"|config\.json"


CONFIG = {
    f"{base}: {key} {how}": Case(
        base, config(**{key: value}), ANY if (base, key, how) in MAY_BE else REFUSED, says_of(key)
    )
    for base, keys in SIZES_OF.items()
    for key in keys
    for how, value in NO_SIZE.items()
    if base == "gpt2" or how in ("a billion", "negative", "zero", "null")
}


def entry(key: str, value: Any, codes: tuple[int, ...] = ANY, base: str = "gpt2", says: str = "") -> dict[str, Case]:
    says = "|".join(filter(None, (says_of(key), says)))
    return {f"{base}: {key} {json.dumps(value)[:40]}": Case(base, config(**{key: value}), codes, says)}


# Entries with the names of what the libraries pass about; nobody may take them for that.
ARGUMENTS = (
    "cls config config_dict return_unused_kwargs pretrained_model_name_or_path trust_remote_code "
    "cache_dir token revision subfolder gguf_file _configuration_file state_dict device __init__ "
    "__setattr__ __post_init__ _auto_class keys_to_ignore_at_inference validate name_or_path"
).split()
for case in (
    entry("model_type", "nobody's", REFUSED, says=KIND),
    entry("model_type", "/etc/passwd", REFUSED, says=KIND),
    entry("model_type", None, REFUSED, says=KIND),
    entry("model_type", 5, REFUSED, says=KIND),
    entry("model_type", ["gpt2"], REFUSED, says=KIND),
    entry("model_type", "", REFUSED, says=KIND),
    entry("model_type", "llama", REFUSED, says=KIND),
    entry("model_type", "t5", REFUSED, says=KIND),
    entry("model_type", "bert", REFUSED, says=KIND),
    entry("model_type", "rag", REFUSED, says=KIND),
    entry("model_type", "encoder-decoder", REFUSED, says=KIND),
    entry("model_type", "timm_wrapper", REFUSED, says=KIND),
    entry("architectures", []),
    entry("architectures", None),
    entry("architectures", "GPT2LMHeadModel"),
    entry("architectures", [5]),
    entry("architectures", ["BertForMaskedLM"]),
    entry("architectures", ["os.system"]),
    entry("architectures", ["T5ForConditionalGeneration"]),
    entry("architectures", {"a": 1}),
    *(
        entry("dtype", x)
        for x in ("float8_e4m3fn", "int64", "complex64", "os", "float32x", 5, ["float32"], None, "auto")
    ),
    entry("torch_dtype", "evil"),
    entry("is_encoder_decoder", True, says=KIND),
    entry("is_decoder", False),
    entry("add_cross_attention", True, says="crossattention"),
    entry("activation_function", "os.system", REFUSED),
    entry("activation_function", None, REFUSED),
    entry("activation_function", 5, REFUSED),
    entry("hidden_act", "evil", REFUSED, "llama"),
    entry("layer_norm_epsilon", "x", REFUSED),
    entry("layer_norm_epsilon", float("nan"), (1, 2, 4), says=NAN),
    entry("layer_norm_epsilon", -1, (1, 2, 4), says=NAN),
    entry("layer_norm_epsilon", 1e400),
    entry("rms_norm_eps", None, REFUSED, "llama"),
    entry("tie_word_embeddings", "x"),
    entry("tie_word_embeddings", False, REFUSED, says="lm_head"),
    entry("tie_word_embeddings", None),
    entry("num_labels", HUGE),
    entry("num_labels", -5),
    entry("num_labels", "x"),
    entry("id2label", [1]),
    entry("id2label", {"x": 5}),
    entry("label2id", "x"),
    entry("output_attentions", True),
    entry("output_hidden_states", True),
    entry("return_dict", False),
    entry("use_cache", "x"),
    entry("use_cache", False),
    entry("torchscript", True),
    entry("chunk_size_feed_forward", 3),
    entry("pad_token_id", HUGE),
    entry("pad_token_id", -5),
    entry("pad_token_id", "x"),
    entry("bos_token_id", HUGE),
    entry("bos_token_id", "x"),
    entry("eos_token_id", [0, HUGE]),
    entry("eos_token_id", {}),
    entry("pad_token_id", ROWS, base="llama"),
    entry("attn_pdrop", "x"),
    entry("attn_pdrop", 7),
    entry("resid_pdrop", -1),
    entry("rope_theta", "x", base="llama"),
    entry("rope_theta", 0, base="llama"),
    entry("rope_parameters", 5, base="llama"),
    entry("rope_parameters", {"rope_type": "evil"}, base="llama"),
    entry("rope_scaling", {"type": "yarn"}, base="llama"),
    entry("rope_parameters", {"rope_type": "longrope", "factor": HUGE}, base="llama"),
    entry("sliding_window", -1, base="qwen2"),
    entry("layer_types", ["evil", "evil"], base="qwen2"),
    entry("layer_types", ["full_attention"] * 10**6, base="qwen2"),
    entry("max_window_layers", "x", base="qwen2"),
    # entries that take the place of a method or of a machinery of the config
    *(
        entry(key, "x")
        for key in (
            "to_dict to_diff_dict get_text_config __class__ __dict__ attribute_map sub_configs self "
            "output_loading_info text_config"
        ).split()
    ),
    entry("attribute_map", {"a": "b", "b": "a"}),
    entry("text_config", {"model_type": "evil"}),
    entry("text_config", {"text_config": {}}),
    entry("", 5),
    entry("\ud800", 5),
    entry("a\x1b[2Jb", "\x1b[2J"),
    entry("model_type", "\x1b[2J\x1b]0;evil\x07", REFUSED, says=KIND),
    entry("architectures", ["\x1b[2J"]),
):
    CONFIG |= case
CONFIG["gpt2: config.json with a name twice"] = Case(
    "gpt2", lambda f: (f / "config.json").write_text((f / "config.json").read_text().rstrip()[:-1] + ', "n_head": 0}')
)
CONFIG["gpt2: entries named as arguments"] = Case("gpt2", config(**dict.fromkeys(ARGUMENTS, "x")), ANY, r"config\.json")
CONFIG["gpt2: n_head that divides nothing"] = Case(
    "gpt2", config(n_head=5), says=says_of("n_head") + "|num_heads|heads"
)
CONFIG["gpt2: n_layer less than there is"] = Case("gpt2", config(n_layer=1), ANY)
CONFIG["gpt2: n_layer more than there is"] = Case("gpt2", config(n_layer=3), says="lacks weights")
CONFIG["gpt2: vocab_size less than there is"] = Case("gpt2", config(vocab_size=ROWS - 1))
CONFIG["gpt2: a number of 100,000 digits"] = Case(
    "gpt2",
    lambda f: (f / "config.json").write_text(
        (f / "config.json").read_text().replace('"n_layer": 2', '"n_layer": ' + "9" * 10**5)
    ),
)
CONFIG["gpt2: config.json of 200 MB"] = Case("gpt2", config(x="x" * LONG), ANY)
CONFIG["gpt2: config.json of a million entries"] = Case("gpt2", config(**{f"x{i}": i for i in range(10**6)}), ANY)


def one(edit: Callable[[dict[str, Any]], Any], name: str = "transformer.h.0.attn.c_attn.weight") -> Change:
    """What the header says of one tensor, edited."""
    return header(lambda h: h.__setitem__(name, {**h[name], **edit(h[name])}))


MLP = "transformer.h.1.mlp.c_fc.weight"


def with_a_row_of_nan(tensors: dict[str, torch.Tensor]) -> None:
    name = "transformer.wte.weight"
    tensors[name] = torch.cat([tensors[name], torch.full((1, 32), torch.nan)])


WEIGHTS = {
    **{
        f"a header of {n} bytes": Case("gpt2", header_length(n), says=r"model\.safetensors")
        for n in (0, 1, 10**8, 2**40, 2**63, 2**64 - 1)
    },
    "a header nested deep": Case("gpt2", header(lambda h: b"[" * DEEP)),
    "a header of half a million tensors": Case(
        "gpt2",
        header(
            lambda h: {**h, **{f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(500_000)}}
        ),
        ANY,
    ),
    "a header that is a list": Case("gpt2", header(lambda h: [1])),
    "a header that is empty": Case("gpt2", header(lambda h: b"{}")),
    "a header that is not UTF-8": Case("gpt2", header(lambda h: b"\xff" * 100)),
    "a header with a tensor twice": Case(
        "gpt2",
        header(
            lambda h: (
                json.dumps(h)[:-1] + ', "transformer.wte.weight": ' + json.dumps(h["transformer.ln_f.bias"]) + "}"
            ).encode()
        ),
    ),
    "a tensor beyond the file": Case("gpt2", one(lambda t: {"data_offsets": [t["data_offsets"][0], 10**15]})),
    "a tensor that ends before it begins": Case("gpt2", one(lambda t: {"data_offsets": t["data_offsets"][::-1]})),
    "a tensor with a negative place": Case("gpt2", one(lambda t: {"data_offsets": [-1, 5]})),
    "two tensors in one place": Case(
        "gpt2",
        header(
            lambda h: h.__setitem__(
                MLP, {**h[MLP], "data_offsets": h["transformer.h.0.mlp.c_fc.weight"]["data_offsets"]}
            )
        ),
    ),
    "a tensor of an impossible shape": Case("gpt2", one(lambda t: {"shape": [2**40, 2**40]})),
    "a tensor of a shape that overflows": Case("gpt2", one(lambda t: {"shape": [2**32, 2**32, 2**32]})),
    "a tensor of a negative shape": Case("gpt2", one(lambda t: {"shape": [-32, -96]})),
    "a tensor of a thousand axes": Case("gpt2", one(lambda t: {"shape": [1] * 1000 + t["shape"]})),
    "a tensor of another shape": Case("gpt2", one(lambda t: {"shape": t["shape"][::-1]})),
    "a tensor of no type": Case("gpt2", one(lambda t: {"dtype": "F7"})),
    **{
        f"a tensor of type {kind}": Case("gpt2", one(lambda t, kind=kind: {"dtype": kind}), ANY)
        for kind in ("I32", "U32")
    },
    "metadata that are no texts": Case("gpt2", header(lambda h: {**h, "__metadata__": {"format": 5}})),
    "metadata of tensorflow": Case("gpt2", header(lambda h: {**h, "__metadata__": {"format": "tf"}}), ANY),
    "metadata of nobody": Case("gpt2", header(lambda h: {**h, "__metadata__": {"format": "\x1b[2J"}}), ANY),
    "bytes after the last tensor": Case(
        "gpt2", lambda f: (f / "model.safetensors").open("ab").write(b"x"), says=r"model\.safetensors"
    ),
    "no tensors": Case("gpt2", weights(lambda w: {"x": torch.zeros(1)}), says="another model"),
    "a tensor too few": Case(
        "gpt2", weights(lambda w: {k: t for k, t in w.items() if k != MLP}), says=MLP.replace(".", r"\.")
    ),
    "a tensor of another size": Case(
        "gpt2", weights(lambda w: {**w, MLP: torch.zeros(3, 3)}), says=MLP.replace(".", r"\.")
    ),
    "a tensor without numbers": Case("gpt2", weights(lambda w: {**w, MLP: torch.zeros(0)})),
    "a tensor of whole numbers": Case("gpt2", weights(lambda w: {**w, MLP: w[MLP].long()}), ANY),
    "a tensor of complex numbers": Case("gpt2", weights(lambda w: {**w, MLP: w[MLP].to(torch.complex64)}), ANY),
    "a tensor of float8": Case("gpt2", weights(lambda w: {**w, MLP: w[MLP].to(torch.float8_e4m3fn)}), ANY),
    "a tensor named to steer the terminal": Case(
        "gpt2", weights(lambda w: {**{k: t for k, t in w.items() if k != MLP}, "\x1b[2J": w[MLP]})
    ),
    "numbers that are not": Case(
        "gpt2", weights(lambda w: w[MLP].fill_(float("nan")) is None), (1, 2, 4), "finite|NaN|nan"
    ),
    "numbers without end": Case(
        "gpt2", weights(lambda w: w[MLP].fill_(float("inf")) is None), (1, 2, 4), "finite|NaN|nan|inf"
    ),
    "a NaN in a row that is predicted and that no token has": Case(
        "gpt2", both(weights(with_a_row_of_nan), config(vocab_size=ROWS + 1)), (2,), f"not finite in row {ROWS}"
    ),
    "a NaN in a row that is used": Case(
        "gpt2",
        weights(lambda w: w["transformer.wte.weight"][5:300].fill_(float("nan")) is None),
        (1, 2, 4),
        "finite|NaN|nan",
    ),
    "all weights zero": Case("gpt2", weights(lambda w: {k: 0 * t for k, t in w.items()}), (0, 1, 2)),
    "a file of weights that is a folder of them": Case(
        "gpt2",
        lambda f: [
            (f / "model.safetensors").rename(f / "x"),
            (f / "model.safetensors").mkdir(),
            (f / "x").rename(f / "model.safetensors" / "model.safetensors"),
        ],
    ),
    "weights in a folder below": Case(
        "gpt2",
        lambda f: [(f / "weights").mkdir(), (f / "model.safetensors").rename(f / "weights/model.safetensors")],
        says="weights",
    ),
    "no weights": Case("gpt2", without("model.safetensors"), says="weights"),
    "no config": Case("gpt2", without("config.json"), says=r"config\.json"),
    "no tokenizer": Case("gpt2", without("tokenizer.json", "tokenizer_config.json"), says="tokenizer"),
    "no tokenizer but its config": Case("gpt2", without("tokenizer.json"), says="tokenizer"),
    "pickled weights, cut": Case(
        "pickled", lambda f: cut(lambda d: d[:-9])(f / "pytorch_model.bin"), says=r"pytorch_model\.bin"
    ),
    "pickled weights of one tensor": Case(
        "pickled", lambda f: torch.save({"x": torch.ones(1)}, f / "pytorch_model.bin")
    ),
    "pickled weights that are a list": Case("pickled", lambda f: torch.save([1], f / "pytorch_model.bin")),
    "one pickled number seen as huge": Case(
        "pickled", lambda f: torch.save({"x": torch.ones(1).expand(2**40)}, f / "pytorch_model.bin")
    ),
}


def index(edit: Callable[[dict[str, Any]], Any]) -> Change:
    return edited("model.safetensors.index.json", edit)


def shard_named(name: Any) -> Change:
    return index(lambda i: i["weight_map"].__setitem__("model.norm.weight", name))


WEIGHTS |= {
    "a shard that is missing": Case("sharded", lambda f: min(f.glob("model-*")).unlink(), says=r"model-00001"),
    "a shard that nobody made": Case("sharded", shard_named("model-99999.safetensors"), says="99999"),
    "a shard outside the folder": Case(
        "sharded",
        both(
            lambda f: shutil.copy(min(f.glob("model-*")), f.parent / "x.safetensors"), shard_named("../x.safetensors")
        ),
    ),
    "a shard at an absolute path": Case("sharded", shard_named("/etc/passwd"), says="passwd"),
    "a shard that is endless": Case("sharded", shard_named("/dev/zero")),
    "a shard that is a pipe": Case(
        "sharded", both(lambda f: os.mkfifo(f / "pipe.safetensors"), shard_named("pipe.safetensors"))
    ),
    "a shard that is a number": Case("sharded", shard_named(5)),
    "a shard that is a list": Case("sharded", shard_named([5])),
    "a shard that is null": Case("sharded", shard_named(None)),
    "a shard with a null byte": Case("sharded", shard_named("a\0b.safetensors")),
    "a shard of another name for the terminal": Case("sharded", shard_named("\x1b[2J.safetensors")),
    "a shard that is the index": Case("sharded", shard_named("model.safetensors.index.json")),
    "shards without metadata": Case("sharded", index(lambda i: {"weight_map": i["weight_map"]}), ANY),
    "shards with metadata of null": Case("sharded", index(lambda i: {**i, "metadata": None}), ANY),
    "shards with a total that lies": Case("sharded", index(lambda i: {**i, "metadata": {"total_size": 10**30}}), ANY),
    "a weight_map that is a list": Case("sharded", index(lambda i: {**i, "weight_map": []})),
    "a weight_map that is empty": Case("sharded", index(lambda i: {**i, "weight_map": {}})),
    "a weight_map of a million shards": Case(
        "sharded", index(lambda i: {**i, "weight_map": {f"x{n}": f"{n}.safetensors" for n in range(10**6)}})
    ),
    "a tensor in two shards": Case(
        "sharded",
        lambda f: [
            shutil.copy(min(f.glob("model-*")), f / "x.safetensors"),
            index(lambda i: i["weight_map"].__setitem__("more", "x.safetensors"))(f),
        ],
        ANY,
    ),
    "an index and one whole file that disagree": Case(
        "sharded", lambda f: save_file({"x": torch.zeros(1)}, f / "model.safetensors", {"format": "pt"}), ANY
    ),
    "a shard's number changed": Case(
        "sharded",
        lambda f: cut(lambda d: d[:-4] + b"\xff\xff\xff\xff")(max(f.glob("model-*"))),
        (0, 1, 2, 4),
        "finite|NaN|nan",
    ),
}


def split_by(pattern: Any, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def split_then_bytes(pattern: Any, behavior: str = "Isolated") -> dict[str, Any]:
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [split_by(pattern, behavior), level]}


def replacing(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def vocabulary(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """The ids of the words, edited."""
    return edited(
        "tokenizer.json",
        lambda t: {**t, "model": {**t["model"], "vocab": edit(t["model"]["vocab"]) or t["model"]["vocab"]}},
    )


def moved(word: str, to: int) -> Change:
    return vocabulary(lambda v: v.__setitem__(word, to))


def added(token: str, number: int, **how: bool) -> Change:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **how}
    return edited("tokenizer.json", lambda t: t["added_tokens"].append({"id": number, "content": token, **flags}))


OUTSIDE = f"{ROWS}|rows|embedding|outside"
TOKENIZERS = {
    # ids that the model has no row for
    "a BOS added without resizing": Case("gpt2", tokenizer_config(bos_token="<new>"), (2,), OUTSIDE),
    "a BOS beyond the embedding": Case(
        "gpt2", both(added("<bos>", ROWS + 7), tokenizer_config(bos_token="<bos>")), (2,), OUTSIDE
    ),
    "a BOS far beyond the embedding": Case(
        "gpt2", both(added("<bos>", 2**31), tokenizer_config(bos_token="<bos>")), REFUSED
    ),
    "an answer beyond the embedding": Case("gpt2", moved("Ġbox", ROWS + 1), (2,), OUTSIDE),
    "a word of the prompts beyond the embedding": Case("gpt2", moved("Ġnear", ROWS), (2,), OUTSIDE),
    "a word at 2**32 - 1": Case("gpt2", moved("Ġnear", 2**32 - 1), (2,)),
    "a word at 2**32": Case("gpt2", moved("Ġnear", 2**32)),
    "a word at -1": Case("gpt2", moved("Ġnear", -1)),
    "a word at a text": Case("gpt2", vocabulary(lambda v: {**v, "Ġnear": "x"})),
    "two words of one id": Case("gpt2", vocabulary(lambda v: v.__setitem__("Ġbox", v["Ġlamp"]))),
    "all words of one id": Case("gpt2", vocabulary(lambda v: dict.fromkeys(v, 5))),
    "an empty vocabulary": Case("gpt2", bpe(vocab={}, merges=[])),
    "a vocabulary of one": Case("gpt2", bpe(vocab={"a": 0}, merges=[])),
    "a vocabulary that is a list": Case("gpt2", bpe(vocab=["a"])),
    "an embedding smaller than the tokenizer": Case(
        "gpt2",
        both(
            weights(lambda w: w.__setitem__("transformer.wte.weight", w["transformer.wte.weight"][:300])),
            config(vocab_size=300),
        ),
        (2,),
    ),
    "merges of words that are not there": Case("gpt2", bpe(merges=[["nobody", "knows"]])),
    "merges that are texts of one word": Case("gpt2", bpe(merges=["one"])),
    "merges that are numbers": Case("gpt2", bpe(merges=[5])),
    "a model of no type": Case("gpt2", bpe(type="Evil")),
    "a model of another type": Case("gpt2", bpe(type="Unigram")),
    "a model that is null": Case("gpt2", tokenizer(model=None)),
    "dropout of the merges": Case("gpt2", bpe(dropout=0.9), says=r"dropout|tokenizer\.json"),
    "dropout that is none": Case("gpt2", bpe(dropout=7)),
    "an unknown token that is not there": Case("gpt2", bpe(unk_token="<nobody>"), ANY),
    "a prefix of continuing words": Case("gpt2", bpe(continuing_subword_prefix="##"), ANY),
    "a suffix of words": Case("gpt2", bpe(end_of_word_suffix="</w>"), ANY),
    "WordPiece without an unknown token": Case(
        "gpt2",
        tokenizer(
            model={
                "type": "WordPiece",
                "vocab": {"a": 0},
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
            }
        ),
    ),
    "WordLevel without an unknown token": Case(
        "gpt2", tokenizer(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"})
    ),
    "Unigram without words": Case("gpt2", tokenizer(model={"type": "Unigram", "vocab": [], "unk_id": None})),
    "Unigram with an unknown word out of range": Case(
        "gpt2", tokenizer(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7})
    ),
    "Unigram with scores that are not": Case(
        "gpt2", tokenizer(model={"type": "Unigram", "vocab": [["a", float("nan")]], "unk_id": 0})
    ),
    # what text goes through
    "a pattern that takes forever": Case(
        "gpt2", tokenizer(pre_tokenizer=split_then_bytes({"Regex": r"([A-Za-z ]+)+\d$"})), ANY
    ),
    "another pattern that takes forever": Case(
        "gpt2", tokenizer(pre_tokenizer=split_then_bytes({"Regex": r"(.*a){25}"})), ANY
    ),
    "a pattern that takes forever to change text": Case(
        "gpt2", tokenizer(normalizer=replacing({"Regex": r"(\w|\s|\S)*\d\d\d\d\d$"}, "")), ANY
    ),
    "a pattern that does not compile": Case("gpt2", tokenizer(pre_tokenizer=split_then_bytes({"Regex": "("}))),
    "a pattern of a megabyte": Case(
        "gpt2", tokenizer(pre_tokenizer=split_then_bytes({"Regex": "(a|" * 100_000 + "b" + ")" * 100_000}))
    ),
    "a pattern that repeats a billion times": Case(
        "gpt2", tokenizer(pre_tokenizer=split_then_bytes({"Regex": "(((a{1000}){1000}){1000}){1000}"})), ANY
    ),
    "a pattern that is empty": Case("gpt2", tokenizer(pre_tokenizer=split_then_bytes({"Regex": ""})), ANY),
    "a pre-tokenizer that makes nothing": Case(
        "gpt2", tokenizer(pre_tokenizer=split_then_bytes({"Regex": r"[\s\S]+"}, "Removed"))
    ),
    "a pre-tokenizer of no type": Case("gpt2", tokenizer(pre_tokenizer={"type": "Evil"})),
    "pre-tokenizers nested deep": Case(
        "gpt2",
        lambda f: (f / "tokenizer.json").write_text(
            (f / "tokenizer.json")
            .read_text()
            .replace(
                '"normalizer": null', '"normalizer": ' + '{"type": "Sequence", "normalizers": [' * DEEP + "]}" * DEEP
            )
        ),
    ),
    "a normalizer that makes nothing": Case("gpt2", tokenizer(normalizer=replacing({"Regex": r"[\s\S]+"}, ""))),
    "a normalizer that grows without end": Case(
        "gpt2", tokenizer(normalizer={"type": "Sequence", "normalizers": [replacing({"String": "a"}, "aa")] * 60})
    ),
    "a normalizer that makes megabytes": Case("gpt2", tokenizer(normalizer=replacing({"String": " "}, " " * 10**6))),
    "a normalizer that makes all text alike": Case("gpt2", tokenizer(normalizer=replacing({"Regex": r"\w+"}, "box"))),
    "a normalizer that makes capitals small": Case("gpt2", tokenizer(normalizer={"type": "Lowercase"}), ANY),
    "a normalizer that puts a text first": Case(
        "gpt2", tokenizer(normalizer={"type": "Prepend", "prepend": "Mary "}), ANY
    ),
    "a normalizer of a damaged table": Case(
        "gpt2", tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    ),
    "a decoder of no type": Case("gpt2", tokenizer(decoder={"type": "Evil"})),
    "a decoder that says nothing": Case("gpt2", tokenizer(decoder=replacing({"Regex": r"[\s\S]+"}, "")), ANY),
    "a decoder that steers the terminal": Case(
        "gpt2",
        tokenizer(
            decoder={
                "type": "Sequence",
                "decoders": [
                    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                    replacing({"Regex": "[a-z]"}, "\x1b[2J"),
                ],
            }
        ),
        ANY,
    ),
    "a post-processor of no type": Case("gpt2", tokenizer(post_processor={"type": "Evil"})),
    "a post-processor of ids that are not": Case("gpt2", tokenizer(post_processor=post(ROWS + 9)), ANY),
    "a post-processor of a token that is not listed": Case(
        "gpt2", tokenizer(post_processor={**post(0), "special_tokens": {}}), ANY
    ),
    "added tokens without content": Case("gpt2", added("", 7), ANY),
    "an added token that is a space": Case("gpt2", added(" ", 7), ANY),
    "an added token that is part of the words": Case("gpt2", added("a", ROWS + 3), (2,)),
    "an added token that swallows the text": Case("gpt2", added("I", 7, lstrip=True, rstrip=True), ANY),
    "an added token of two ids": Case("gpt2", both(added("<x>", 7), added("<x>", 8)), ANY),
    "added tokens that are a number": Case("gpt2", tokenizer(added_tokens=5)),
    "an added token of half a surrogate": Case(
        "gpt2",
        lambda f: text("tokenizer.json", (f / "tokenizer.json").read_text().replace("<|endoftext|>", "\\ud800"))(f),
        ANY,
    ),
    "words that are not UTF-8": Case(
        "gpt2",
        lambda f: text("tokenizer.json", (f / "tokenizer.json").read_bytes().replace("Ġnear".encode(), b"\xff\xfe"))(f),
    ),
    "a word of half a surrogate": Case(
        "gpt2", lambda f: text("tokenizer.json", (f / "tokenizer.json").read_text().replace("Ġnear", "\\ud800"))(f)
    ),
    "tokenizer.json of another version": Case("gpt2", tokenizer(version="99")),
    "tokenizer.json of 200 MB": Case("gpt2", tokenizer(x="x" * LONG), ANY),
    "tokenizer.json of 300,000 words": Case(
        "gpt2", vocabulary(lambda v: v.update({f"x{i}": ROWS + i for i in range(300_000)})), ANY
    ),
    # what the config makes of it
    **{
        f"tokenizer_class {json.dumps(name)}": Case("gpt2", tokenizer_config(tokenizer_class=name), codes)
        for name, codes in (
            ("AutoConfig", REFUSED),
            ("AutoModelForCausalLM", REFUSED),
            ("GPT2LMHeadModel", REFUSED),
            ("AutoProcessor", REFUSED),
            ("AutoTokenizer", ANY),
            ("RagTokenizer", REFUSED),
            ("RagRetriever", REFUSED),
            ("PreTrainedModel", REFUSED),
            ("pipeline", REFUSED),
            ("Trainer", REFUSED),
            ("os.system", ANY),
            ("__doc__", ANY),
            ("__builtins__", ANY),
            ("utils", REFUSED),
            ("MistralCommonBackend", REFUSED),
            ("BertJapaneseTokenizer", ANY),
            ("CanineTokenizer", ANY),
            ("ByT5Tokenizer", ANY),
            ("GPT2Tokenizer", ANY),
            ("LlamaTokenizer", ANY),
            ("BertTokenizer", ANY),
            ("T5Tokenizer", ANY),
            ("Qwen2Tokenizer", ANY),
            ("Nobody", ANY),
            ("", ANY),
            (None, ANY),
            (5, ANY),
            (["GPT2Tokenizer"], ANY),
            ({}, ANY),
            ("PreTrainedTokenizer", ANY),
            ("PreTrainedTokenizerFast", ANY),
            ("WhisperTokenizer", ANY),
            ("EsmTokenizer", ANY),
        )
    },
    "entries named as arguments": Case(
        "gpt2",
        tokenizer_config(
            is_local=False,
            processor_class="os.system",
            gguf_file="/etc/passwd",
            from_slow=True,
            fix_mistral_regex=True,
            special_tokens_map_file="/etc/passwd",
            use_fast=False,
            legacy=True,
            local_files_only=False,
            cache_dir="/etc",
            tokenizer_type="evil",
            trust_remote_code=True,
            custom_pipelines={"x": 5},
            slow_tokenizer_class="x",
        ),
        ANY,
    ),
    "a tokenizer class of its own that ignores the file": Case(
        "qwen2",
        edited(
            "tokenizer_config.json", lambda t: {k: v for k, v in t.items() if k not in ("tokenizer_class", "backend")}
        ),
        ANY,
    ),
    "a tokenizer class of its own that ignores the file, named": Case(
        "qwen2", tokenizer_config(tokenizer_class="Qwen2Tokenizer"), ANY
    ),
    "a llama tokenizer for a file that is none": Case("llama", tokenizer_config(tokenizer_class="LlamaTokenizer"), ANY),
    "a llama without its tokenizer's config": Case("llama", without("tokenizer_config.json"), ANY),
    **{
        f"{key} {json.dumps(value)[:40]}": Case("gpt2", tokenizer_config(**{key: value}), ANY)
        for key, value in (
            ("bos_token", None),
            ("bos_token", 5),
            ("bos_token", []),
            ("bos_token", {"content": "<|endoftext|>"}),
            ("bos_token", {"__type": "AddedToken", "content": "<|endoftext|>"}),
            ("bos_token", {"__type": "os.system", "content": "x"}),
            ("bos_token", ""),
            ("bos_token", "9"),
            ("bos_token", "\x1b[2J"),
            ("bos_token", "\ud800"),
            ("bos_token", "x" * 10**6),
            ("eos_token", "<nobody>"),
            ("pad_token", "<nobody>"),
            ("unk_token", 5),
            ("model_max_length", "x"),
            ("model_max_length", -1),
            ("model_max_length", 0),
            ("model_max_length", 3),
            ("model_max_length", None),
            ("padding_side", "up"),
            ("truncation_side", 5),
            ("model_input_names", 5),
            ("model_input_names", ["x"]),
            ("added_tokens_decoder", {"99999": {"content": "<far>"}}),
            ("added_tokens_decoder", {"-1": {"content": "<far>"}}),
            ("added_tokens_decoder", {"x": {"content": "<far>"}}),
            ("added_tokens_decoder", [5]),
            ("added_tokens_decoder", {"7": 5}),
            ("additional_special_tokens", 5),
            ("additional_special_tokens", ["<zoo>"]),
            ("extra_special_tokens", {"encode": "<zoo>"}),
            ("extra_special_tokens", {"convert_tokens_to_ids": "<zoo>"}),
            ("extra_special_tokens", {"__class__": "<zoo>"}),
            ("add_bos_token", True),
            ("add_bos_token", "x"),
            ("add_eos_token", True),
            ("add_prefix_space", True),
            ("clean_up_tokenization_spaces", True),
            ("chat_template", 5),
            ("chat_template", [5]),
            ("chat_template", "{% for %}"),
            ("errors", "evil"),
            ("split_special_tokens", True),
            ("backend", "evil"),
            ("backend", 5),
            ("init_inputs", ["a", "b"]),
            ("tokenizer_file", "/etc/passwd"),
            ("tokenizer_object", "x"),
            ("vocab_file", "/etc/passwd"),
            ("fast_tokenizer_files", 5),
            ("fast_tokenizer_files", ["../../x"]),
            ("name_or_path", 5),
            ("__class__", "x"),
            ("encode", "x"),
            ("_tokenizer", "x"),
            ("self", "x"),
            ("auto_map", 5),
            ("verbose", {"a": 1}),
        )
    },
    "a tokenizer without a config": Case("gpt2", without("tokenizer_config.json"), ANY),
    # other files
    "vocab.json of other ids": Case("word files", lambda f: (f / "vocab.json").write_text('{"a": 0}')),
    "vocab.json of texts": Case("word files", lambda f: (f / "vocab.json").write_text('{"a": "b"}')),
    "merges.txt of three words a line": Case(
        "word files", lambda f: (f / "merges.txt").write_text("#version: 0.2\na b c")
    ),
    "merges.txt of a million lines": Case("word files", lambda f: (f / "merges.txt").write_text("a b\n" * 10**6), ANY),
    "special_tokens_map.json that names a new BOS": Case(
        "old files", with_entries("special_tokens_map.json", bos_token="<new>"), ANY
    ),
    "special_tokens_map.json that is odd": Case(
        "old files", with_entries("special_tokens_map.json", bos_token={"x": 5}), ANY
    ),
    "added_tokens.json beyond the embedding": Case(
        "old files", with_entries("added_tokens.json", **{"<far>": ROWS + 5}), ANY
    ),
    "added_tokens.json of no number": Case("old files", with_entries("added_tokens.json", **{"<far>": "x"}), ANY),
    "chat_template.jinja that is no template": Case("old files", text("chat_template.jinja", "{% for"), ANY),
    "chat_template.jinja that never ends": Case(
        "old files", text("chat_template.jinja", "{% for i in range(10**12) %}{% endfor %}"), (0,)
    ),
    "a folder of chat templates with a pipe": Case(
        "gpt2",
        lambda f: [(f / "additional_chat_templates").mkdir(), os.mkfifo(f / "additional_chat_templates/x.jinja")],
        ANY,
    ),
    **{
        f"generation_config.json with {key} {json.dumps(value)[:30]}": Case(
            "gpt2", with_entries("generation_config.json", **{key: value}), ANY
        )
        for key, value in (
            ("temperature", -1),
            ("temperature", "x"),
            ("max_new_tokens", -5),
            ("num_beams", HUGE),
            ("eos_token_id", HUGE),
            ("cache_implementation", "evil"),
            ("watermarking_config", 5),
            ("compile_config", {"x": 5}),
            ("__class__", "x"),
            ("to_dict", 5),
            ("transformers_version", 5),
            ("assistant_model", "someone/evil"),
            ("stop_strings", 5),
        )
    },
    "generation_config.json that samples and does not": Case(
        "gpt2", with_entries("generation_config.json", do_sample=False, temperature=0.1, top_p=2.0), ANY
    ),
}


def naming(cases: dict[str, Case], says: str) -> dict[str, Case]:
    """The cases, of which each must say what part of the folder is at fault, if it says nothing more exact."""
    return {name: case if case.says else replace(case, says=says) for name, case in cases.items()}


WEIGHTS = naming(WEIGHTS, r"safetensors|weights|pytorch_model|config\.json")
TOKENIZERS = naming(TOKENIZERS, r"tokenizer|vocab|merges|added_tokens|special_tokens|chat_template|generation_config")
