"""Model folders that mean harm or are damaged, each made by changing a sound one: `HOSTILE`, by name."""

import itertools
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers as hf
from model_folders import (
    ANY,
    DEEP,
    REFUSED,
    SOUND,
    Case,
    Change,
    both,
    config,
    cut,
    edited,
    evil_pickle,
    nothing,
    plain_pickle,
    renamed,
    text,
    tokenizer_config,
    with_entries,
    without,
)
from odd_parts import CONFIG, TOKENIZERS, WEIGHTS


def evil_module(folder: Path, name: str = "evil.py") -> None:
    """Python that writes the marker, with every class that an `auto_map` could ask for."""
    marker = folder.parent / "marker"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"open({str(marker)!r}, 'w')\n"
        "from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast\n"
        "class Config(GPT2Config):\n    model_type = 'evil'\n"
        "class Model(GPT2LMHeadModel):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
        "class Processor:\n    pass\n"
        "def generate(*args, **kwargs):\n    pass\n"
    )


def load_model_plainly(folder: Path) -> None:
    hf.AutoModelForCausalLM.from_pretrained(folder)


def load_model_trustingly(folder: Path) -> None:
    hf.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def load_tokenizer_plainly(folder: Path) -> None:
    hf.AutoTokenizer.from_pretrained(folder)


def load_tokenizer_distrustingly(folder: Path) -> None:
    """Which does not help: what `tokenizer_class` names is called without the flag."""
    hf.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_config_plainly(folder: Path) -> None:
    hf.AutoConfig.from_pretrained(folder)


def unpickle(name: str) -> Change:
    return lambda folder: torch.load(folder / name, weights_only=False)


def jinja(marker: Path) -> str:
    return "{{ cycler.__init__.__globals__['__builtins__']['open']('" + str(marker) + "', 'w') }}"


def jinja_in(*places: str) -> Change:
    """A chat template that writes the marker, in each of the places where one can be."""

    def change(folder: Path) -> None:
        code = jinja(folder.parent / "marker")
        for place in places:
            if place == "tokenizer_config.json":
                tokenizer_config(chat_template=code)(folder)
            elif place == "tokenizer_config.json, named":
                tokenizer_config(chat_template=[{"name": "default", "template": code}])(folder)
            else:
                text(place, code)(folder)

    return change


def render_plainly(folder: Path) -> None:
    import jinja2

    jinja2.Template((folder / "chat_template.jinja").read_text()).render(messages=[])


def read_metadata_plainly(folder: Path) -> None:
    """As torch.distributed.checkpoint does."""
    from torch.distributed.checkpoint import FileSystemReader

    FileSystemReader(str(folder)).read_metadata()


EVIL = evil_module
MODEL_MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoModel": "evil.Model"}
TOKENIZER_MAP = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
ELSEWHERE = {key: f"someone/evil--{value}" for key, value in MODEL_MAP.items()}
CODE = {
    "auto_map of an unknown type": Case(
        "gpt2", both(EVIL, config(model_type="evil", auto_map=MODEL_MAP)), says="code|evil", harm=load_config_plainly
    ),
    "auto_map of an unknown type, and trust_remote_code written in it": Case(
        "gpt2",
        both(EVIL, config(model_type="evil", auto_map=MODEL_MAP, trust_remote_code=True)),
        says="code|evil",
        harm=load_config_plainly,
    ),
    "auto_map without a type": Case(
        "gpt2",
        both(
            EVIL,
            edited(
                "config.json", lambda c: {**{k: v for k, v in c.items() if k != "model_type"}, "auto_map": MODEL_MAP}
            ),
        ),
        harm=load_config_plainly,
    ),
    "auto_map of the model alone, of a type that has none": Case(
        "gpt2",
        both(EVIL, config(model_type="vit", auto_map={"AutoModelForCausalLM": "evil.Model"})),
        harm=load_model_plainly,
    ),
    "auto_map of a known type": Case("gpt2", both(EVIL, config(auto_map=MODEL_MAP)), ANY),
    "auto_map that names a repository": Case("gpt2", config(model_type="evil", auto_map=ELSEWHERE)),
    "auto_map that names a repository, of a known type": Case("gpt2", config(auto_map=ELSEWHERE), ANY),
    "auto_map that climbs out of the folder": Case(
        "gpt2",
        both(lambda f: EVIL(f, "../evil.py"), config(model_type="evil", auto_map={"AutoConfig": "../evil.Config"})),
    ),
    "auto_map that is a list": Case("gpt2", config(auto_map=["evil.Config"]), ANY),
    "auto_map that is a number": Case("gpt2", config(auto_map=5), ANY),
    "auto_map of no class": Case("gpt2", both(EVIL, config(model_type="evil", auto_map={"AutoConfig": "evil"}))),
    "auto_map of a number": Case("gpt2", config(model_type="evil", auto_map={"AutoConfig": 5})),
    "auto_map in an unknown tokenizer": Case(
        "gpt2",
        both(EVIL, tokenizer_config(tokenizer_class="Evil", auto_map=TOKENIZER_MAP), config(model_type="evil")),
        harm=load_tokenizer_plainly,
    ),
    "auto_map in the tokenizer of a known model": Case(
        "gpt2", both(EVIL, tokenizer_config(tokenizer_class="Evil", auto_map=TOKENIZER_MAP)), ANY
    ),
    "auto_map in a tokenizer, as a list": Case(
        "llama", both(EVIL, tokenizer_config(tokenizer_class="Evil", auto_map=TOKENIZER_MAP["AutoTokenizer"])), ANY
    ),
    "auto_map in a tokenizer that names a repository": Case(
        "gpt2",
        tokenizer_config(tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "someone/evil--evil.T"]}),
        ANY,
    ),
    "auto_map in a tokenizer, of nothing": Case("gpt2", tokenizer_config(auto_map={"AutoTokenizer": []}), ANY),
    "auto_map in a tokenizer, and of the model": Case(
        "gpt2",
        both(
            EVIL,
            tokenizer_config(tokenizer_class="Evil", auto_map=TOKENIZER_MAP),
            config(model_type="evil", auto_map=MODEL_MAP),
        ),
        harm=load_tokenizer_plainly,
    ),
    # tokenizer_class may be any name that transformers has, and what it names is called without trust_remote_code
    **{
        f"tokenizer_class {name}, with an auto_map": Case(
            "gpt2",
            both(EVIL, tokenizer_config(tokenizer_class=name), config(model_type=kind, auto_map=MODEL_MAP)),
            harm=load_tokenizer_distrustingly if harm else None,
        )
        for name, kind, harm in (
            ("AutoConfig", "evil", True),
            ("AutoModelForCausalLM", "evil", True),
            ("AutoModel", "evil", True),
            ("AutoModelForCausalLM", "vit", False),
        )
    },
    # and so even a model that transformers knows has code of its own
    "tokenizer_class AutoModelForImageClassification, with an auto_map for it": Case(
        "gpt2",
        both(
            EVIL,
            tokenizer_config(tokenizer_class="AutoModelForImageClassification"),
            config(auto_map={"AutoModelForImageClassification": "evil.Model"}),
        ),
        harm=load_tokenizer_distrustingly,
    ),
    **{
        f"tokenizer_class {name}, with an auto_map in {file}": Case(
            "gpt2",
            both(
                EVIL,
                tokenizer_config(tokenizer_class=name),
                text(file, json.dumps({"auto_map": {name: "evil.Processor"}})),
            ),
            harm=None if name == "AutoVideoProcessor" else load_tokenizer_distrustingly,
        )
        for name, file in (
            ("AutoProcessor", "processor_config.json"),
            ("AutoFeatureExtractor", "preprocessor_config.json"),
            ("AutoImageProcessor", "preprocessor_config.json"),
            ("AutoVideoProcessor", "video_preprocessor_config.json"),
        )
    },
    "tokenizer_class in config.json AutoModelForCausalLM, with an auto_map": Case(
        "gpt2",
        both(
            EVIL,
            edited("tokenizer_config.json", lambda t: {k: v for k, v in t.items() if k != "tokenizer_class"}),
            config(tokenizer_class="AutoModelForCausalLM", auto_map=MODEL_MAP),
        ),
        ANY,
    ),
    "custom_generate": Case(
        "gpt2", lambda folder: EVIL(folder, "custom_generate/generate.py"), ANY, harm=load_model_trustingly
    ),
    "custom_generate with requirements": Case(
        "gpt2",
        both(
            lambda folder: EVIL(folder, "custom_generate/generate.py"),
            text("custom_generate/requirements.txt", "a-package-that-nobody-has\n"),
        ),
        ANY,
    ),
    "auto_map in generation_config.json": Case(
        "gpt2",
        both(
            EVIL,
            with_entries(
                "generation_config.json", auto_map=MODEL_MAP, custom_generate="someone/evil", trust_remote_code=True
            ),
        ),
        ANY,
    ),
    "auto_map in the processor": Case(
        "gemma3 with images",
        both(
            EVIL,
            with_entries("processor_config.json", auto_map={"AutoProcessor": "evil.Processor"}),
            with_entries("preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Processor"}),
        ),
        ANY,
    ),
    "a model with images, for which a package would be installed": Case("gemma3 with images", nothing, ANY),
    "architectures of a model with images": Case("llama", config(architectures=["LlavaForConditionalGeneration"]), ANY),
    "original_architecture of a model with images": Case(
        "llama", config(original_architecture="Gemma3ForConditionalGeneration"), ANY
    ),
    "custom_pipelines": Case(
        "gpt2", both(EVIL, config(custom_pipelines={"text-generation": {"impl": "evil.Model", "pt": ["Model"]}})), (0,)
    ),
    "python files that have the names of modules": Case(
        "gpt2", both(*(lambda f, n=n: EVIL(f, n) for n in ("torch.py", "json.py", "conftest.py", "__init__.py"))), (0,)
    ),
    "a pickle for weights": Case(
        "pickled", evil_pickle("pytorch_model.bin"), harm=unpickle("pytorch_model.bin"), says=r"\.bin"
    ),
    "a pickle for weights, of the old format": Case(
        "pickled",
        evil_pickle("pytorch_model.bin", _use_new_zipfile_serialization=False),
        harm=unpickle("pytorch_model.bin"),
        says=r"\.bin",
    ),
    "a bare pickle for weights": Case(
        "pickled", plain_pickle("pytorch_model.bin"), harm=unpickle("pytorch_model.bin"), says=r"\.bin"
    ),
    "a pickle that says it is safetensors": Case("gpt2", plain_pickle("model.safetensors"), says=r"model\.safetensors"),
    "a pickle as adapter_model.bin, which the config names": Case(
        "gpt2", both(evil_pickle("adapter_model.bin"), config(transformers_weights="adapter_model.bin")), ANY
    ),
    "a pickle as a shard": Case(
        "sharded", both(evil_pickle("evil.bin"), lambda folder: every_shard(folder, "evil.bin"))
    ),
    "a pickle beside the model, as a shard": Case(
        "sharded",
        both(evil_pickle("../evil.bin"), lambda folder: every_shard(folder, "../evil.bin")),
    ),
    "a pickle as the metadata of torch.distributed": Case(
        "gpt2",
        both(
            plain_pickle(".metadata"),
            lambda f: [(f / "model.safetensors").rename(f / "shard-00000-model-00001-of-00001.safetensors")],
        ),
        ANY,
        harm=read_metadata_plainly,
    ),
    "pickles that nobody needs": Case(
        "gpt2",
        both(*map(plain_pickle, ("training_args.bin", "optimizer.pt", "pytorch_model.bin", "tokenizer.pkl"))),
        (0,),
    ),
    "a pickle that makes gigabytes of few bytes": Case(
        "pickled",
        text("pytorch_model.bin", b"\x80\x02" + b"cbuiltins\nbytearray\n(J" + struct.pack("<i", 2**31 - 1) + b"tR."),
    ),
    "chat templates that run code": Case(
        "gpt2", jinja_in("chat_template.jinja", "additional_chat_templates/tool.jinja"), (0,), harm=render_plainly
    ),
    "a chat template that runs code, in the tokenizer's config": Case("gpt2", jinja_in("tokenizer_config.json"), (0,)),
    "named chat templates that run code": Case("gpt2", jinja_in("tokenizer_config.json, named"), (0,)),
}


def every_shard(folder: Path, name: str) -> None:
    edited(
        "model.safetensors.index.json", lambda index: {**index, "weight_map": dict.fromkeys(index["weight_map"], name)}
    )(folder)


KERNEL = "kernels-community/flash-attn"
FETCHED = {
    "an attention that is a kernel on the hub": Case("llama", config(_attn_implementation=KERNEL), ANY),
    "an attention that is somebody's kernel": Case("llama", config(attn_implementation="someone/evil@main:run"), ANY),
    "a paged attention": Case("llama", config(_attn_implementation="paged|" + KERNEL), ANY),
    "flash attention": Case("llama", config(_attn_implementation="flash_attention_2"), ANY),
    "an attention that is a list": Case("llama", config(_attn_implementation=[KERNEL]), ANY),
    "experts that are a kernel on the hub": Case("llama", config(_experts_implementation=KERNEL), ANY),
    "use_kernels": Case("llama", config(use_kernels=True, kernel_config={"RMSNorm": "someone/evil:RMSNorm"}), ANY),
    "fusion_config": Case("llama", config(fusion_config={"someone/evil": True}), ANY),
    "fusion_config of patches": Case("llama", config(fusion_config={"patch_embeddings": True}), ANY),
    "an adapter beside the weights": Case(
        "gpt2",
        text("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "someone/evil", "r": 8}'),
        says="adapter",
    ),
    "an adapter alone": Case(
        "gpt2",
        both(
            without("config.json", "model.safetensors"),
            text("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "someone/evil"}'),
            text("adapter_model.safetensors", ""),
        ),
        says="adapter|config",
    ),
    "an adapter that names a module": Case(
        "gpt2",
        both(
            EVIL,
            text(
                "adapter_config.json",
                json.dumps(
                    {"peft_type": "LORA", "auto_mapping": {"base_model_class": "Model", "parent_library": "evil"}}
                ),
            ),
        ),
        says="adapter",
    ),
    "an adapter's config that is a pipe": Case("gpt2", lambda folder: os.mkfifo(folder / "adapter_config.json"), ANY),
    "a name that is an address": Case("gpt2", config(_name_or_path="https://example.com/evil"), (0,)),
    "a name that is another model": Case(
        "gpt2", config(_name_or_path="someone/evil", name_or_path="someone/evil"), (0,)
    ),
    "a tokenizer's name that is another model": Case("gpt2", tokenizer_config(name_or_path="someone/evil"), (0,)),
    "a tokenizer that is elsewhere": Case("gpt2", config(tokenizer_name="someone/evil"), (0,)),
    "weights that are elsewhere": Case("gpt2", config(transformers_weights="../model.safetensors"), ANY),
    "weights at an absolute path": Case("gpt2", config(transformers_weights="/etc/passwd"), ANY),
    "weights of no name": Case("gpt2", config(transformers_weights=5), ANY),
    "a config of another transformers": Case("gpt2", config(transformers_version="99.0.0"), ANY),
    "a tokenizer of another transformers": Case(
        "gpt2", tokenizer_config(fast_tokenizer_files=["tokenizer.99.0.0.json", "tokenizer.4.0.0.json"]), ANY
    ),
    "tekken.json of a mistral": Case("gpt2", both(config(model_type="mistral"), text("tekken.json", "{}"))),
    "a GGUF file alone": Case(
        "gpt2", both(without("model.safetensors"), text("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 0)))
    ),
    "base_model_tp_plan": Case("llama", config(base_model_tp_plan={"layers.*.self_attn.q_proj": "os.system"}), ANY),
    "distributed_config": Case("llama", config(distributed_config={"tp_size": 2}), ANY),
    "device_map": Case("llama", config(device_map="auto", hf_device_map={"": "disk"}), ANY),
}
QUANTIZED = {
    "awq": {"bits": 4},
    "bitsandbytes": {"load_in_4bit": True},
    "bitsandbytes_8bit": {"load_in_8bit": True},
    "gptq": {"bits": 4},
    "aqlm": {},
    "quanto": {"weights": "int8"},
    "quark": {},
    "fouroversix": {},
    "fp_quant": {},
    "eetq": {"weights": "int8"},
    "higgs": {},
    "hqq": {},
    "compressed-tensors": {},
    "fbgemm_fp8": {},
    "torchao": {"quant_type": "int4_weight_only"},
    "bitnet": {},
    "vptq": {},
    "spqr": {},
    "fp8": {},
    "gguf": {},
    "nvfp4": {},
    "mxfp8": {},
    "mxfp4": {},
    "auto-round": {"bits": 4},
    "metal": {},
    "sinq": {},
    "gemma": {},
    "os.system": {},
    "": {},
}
FETCHED |= {
    f"quantization_config of {method or 'no method'}": Case(
        "llama", config(quantization_config={"quant_method": method, **how}), ANY, "quant"
    )
    for method, how in QUANTIZED.items()
}
FETCHED |= {
    "quantization_config that is a text": Case("llama", config(quantization_config="awq"), says="quant"),
    "quantization_config that is a list": Case("llama", config(quantization_config=[1]), says="quant"),
    "compression_config": Case("llama", config(compression_config={"quant_method": "sparseml"}), ANY),
}


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0123456789abcdef" * 4 + "\nsize 548105171\n"


def replaced(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def sparse(path: Path) -> None:
    os.truncate(path, 50 * 10**9)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "emptied": cut(lambda data: b""),
    "cut after one byte": cut(lambda data: data[:1]),
    "cut in the middle": cut(lambda data: data[: len(data) // 2]),
    "cut before its last byte": cut(lambda data: data[:-1]),
    "that is a pointer of Git LFS": lambda path: path.write_text(POINTER),
    "that is a folder": replaced(lambda path: path.mkdir()),
    "that is a pipe": replaced(os.mkfifo),
    "that is a link to itself": replaced(lambda path: path.symlink_to(path.name)),
    "that is a link to nothing": replaced(lambda path: path.symlink_to("../blobs/0123")),
    "that is endless": replaced(lambda path: path.symlink_to("/dev/zero")),
    "that is a link to /etc/passwd": replaced(lambda path: path.symlink_to("/etc/passwd")),
    "of 50 GB": sparse,
    "of random bytes": lambda path: path.write_bytes(bytes(range(256)) * 16),
}
JSON_DAMAGE: dict[str, Callable[[Path], object]] = {
    "nested deep": lambda path: path.write_text("[" * DEEP + "]" * DEEP),
    "nested deep in an entry": lambda path: path.write_text(
        path.read_text().rstrip()[:-1] + ', "x": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}"
    ),
    "that is null": lambda path: path.write_text("null"),
    "that is a list": lambda path: path.write_text("[]"),
    "that is a number": lambda path: path.write_text("5"),
    "that is an empty object": lambda path: path.write_text("{}"),
    "in UTF-16": lambda path: path.write_bytes(path.read_text().encode("utf-16")),
}
BELIEVED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def damaged(
    base: str, name: str, damage: dict[str, Callable[[Path], object]], codes=REFUSED, says=None
) -> dict[str, Case]:
    """A case for each kind of damage to one file, which the message must name."""

    def case(change: Callable[[Path], object]) -> Case:
        return Case(base, lambda folder: change(folder / name), codes, says or re.escape(name))

    return {f"{base}: {name} {how}": case(change) for how, change in damage.items()}


def some(damage: dict[str, Callable[[Path], object]], *names: str) -> dict[str, Callable[[Path], object]]:
    return {name: damage[name] for name in names}


def swapped(one: str, other: str) -> Change:
    def change(folder: Path) -> None:
        (folder / one).rename(folder / "swap")
        (folder / other).rename(folder / one)
        (folder / "swap").rename(folder / other)

    return change


MUCH = some(
    DAMAGE,
    "cut in the middle",
    "that is a pointer of Git LFS",
    "that is a pipe",
    "that is endless",
    "of 50 GB",
    "of random bytes",
)
FILES = {
    **damaged("gpt2", "config.json", {**DAMAGE, **JSON_DAMAGE}),
    **damaged("gpt2", "model.safetensors", DAMAGE),
    **damaged("gpt2", "tokenizer.json", {**DAMAGE, **JSON_DAMAGE}),
    **damaged("gpt2", "tokenizer_config.json", {**DAMAGE, **JSON_DAMAGE}),
    # nothing of it is used; who refuses it says so
    **damaged("gpt2", "generation_config.json", {**DAMAGE, **JSON_DAMAGE}, ANY),
    **damaged("sharded", "model.safetensors.index.json", {**DAMAGE, **JSON_DAMAGE}),
    **damaged("pickled", "pytorch_model.bin", DAMAGE),
    **damaged("word files", "vocab.json", {**DAMAGE, **JSON_DAMAGE}),
    **damaged(
        "word files",
        "merges.txt",
        some(
            DAMAGE,
            "that is a pointer of Git LFS",
            "that is a folder",
            "that is a pipe",
            "that is a link to itself",
            "that is a link to nothing",
            "that is endless",
            "of 50 GB",
            "of random bytes",
        ),
    ),
    **damaged("sentences", "tokenizer.model", DAMAGE),
    **damaged(
        "old files", "special_tokens_map.json", {**MUCH, **some(JSON_DAMAGE, "nested deep", "that is a list")}, ANY
    ),
    **damaged("old files", "added_tokens.json", {**MUCH, **some(JSON_DAMAGE, "nested deep", "that is null")}, ANY),
    **damaged("old files", "chat_template.jinja", MUCH, ANY),
    **damaged(
        "old files",
        "preprocessor_config.json",
        some(DAMAGE, "emptied", "that is a pipe", "that is endless", "of 50 GB"),
        ANY,
    ),
}
FILES |= {
    f"sharded: a shard {how}": Case(
        "sharded", lambda f, damage=damage: damage(max(f.glob("model-*"))), REFUSED, r"model-\d+-of-\d+\.safetensors"
    )
    for how, damage in DAMAGE.items()
}
PARTS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
FILES |= {
    f"{base}: {one} and {other} swapped": Case(base, swapped(one, other), codes, f"{re.escape(one)}|{re.escape(other)}")
    for base, codes, pairs in (
        ("gpt2", REFUSED, itertools.combinations(PARTS, 2)),
        ("old files", REFUSED, itertools.product(("special_tokens_map.json", "chat_template.jinja"), PARTS[:4])),
        ("old files", ANY, [("special_tokens_map.json", "chat_template.jinja")]),
    )
    for one, other in pairs
}

# What is no damage at all: a tokenizer may do without its config.
for name in (
    "gpt2: tokenizer_config.json that is a link to nothing",
    "gpt2: tokenizer_config.json that is an empty object",
    "gpt2: tokenizer_config.json and generation_config.json swapped",
    "old files: special_tokens_map.json and tokenizer_config.json swapped",
):
    FILES[name] = replace(FILES[name], codes=ANY)

FOLDERS = {
    "a folder that is not there": Case("gpt2", lambda f: f / "nowhere", says="no such folder"),
    "a folder that is a file": Case("gpt2", lambda f: f / "config.json", says="folder"),
    "a folder that is a pipe": Case("gpt2", lambda f: os.mkfifo(f / "pipe") or f / "pipe", says="folder"),
    "a folder that is a link to itself": Case(
        "gpt2", lambda f: (f / "loop").symlink_to("loop") or f / "loop", says="folder"
    ),
    "a folder that is empty": Case("gpt2", lambda f: (f / "empty").mkdir() or f / "empty", says=r"config\.json"),
    "a folder named to steer the terminal": Case(
        "gpt2", both(without("config.json"), renamed("\x1b[2J")), says="printed"
    ),
    "a folder of two lines": Case("gpt2", both(without("config.json"), renamed("a\nerror: b")), ANY),
    "a folder that is the root": Case("gpt2", lambda f: Path("/"), says=r"config\.json"),
    "a folder of devices": Case("gpt2", lambda f: Path("/dev"), says=r"config\.json"),
}

HOSTILE: dict[str, Case] = {**CODE, **FETCHED, **CONFIG, **WEIGHTS, **TOKENIZERS, **FILES, **FOLDERS}
PICKLED_SOUND = Case("pickled", nothing, ANY, says=r"pytorch_model\.bin")
HOSTILE["sound weights in a pickle"] = PICKLED_SOUND
SOUND = {name: replace(case, codes=(0,)) for name, case in SOUND.items()}
