"""What lies in a model's folder, looked at before a library believes it: settings, the kind of model, weights."""

import json
import pickletools
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mechrl.errors import MachineError, MechrlError, UsageError, refused

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHTS = (".safetensors", ".bin")
# Files that transformers opens, with the most bytes that are believed of them. The first must be JSON objects.
SETTINGS = {
    "config.json": 2**20, "generation_config.json": 2**20, "tokenizer_config.json": 2**24,
    "special_tokens_map.json": 2**24, "added_tokens.json": 2**24, **dict.fromkeys(INDEXES, 2**24),
}  # fmt: skip
OPENED = {
    **SETTINGS, "tokenizer.json": 2**26, "vocab.json": 2**26, "vocab.txt": 2**26, "merges.txt": 2**26,
    "tokenizer.model": 2**26, "spiece.model": 2**26, "sentencepiece.bpe.model": 2**26, "tekken.json": 2**26,
    "chat_template.jinja": 2**20, "chat_template.json": 2**20, "preprocessor_config.json": 2**20,
    "processor_config.json": 2**20,
}  # fmt: skip
# The greatest sizes that are believed of a config: far above any model, far below what would run for ever. Families
# have several names for each.
LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 2**10),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "n_heads", "num_key_value_heads"), 2**12),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner", "ffn_dim", "head_dim"), 2**20),
    **dict.fromkeys(("vocab_size", "num_labels"), 2**24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 2**31),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 2**14),
}  # fmt: skip
MAY_BE_NONE = {"num_experts", "num_local_experts", "n_routed_experts", "num_labels"}
LARGEST_HEADER = 2**24  # bytes; a thousand tensors take a hundred thousand
LARGEST_PICKLE = 2**26
MOST_SHARDS = 2**12
# What a state dict consists of, as pickles name it, beside torch's storages. Others that torch permits can be made to
# fill the memory.
STATE_DICT = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}


def check_files(folder: Path, name: str) -> None:
    """:raises UsageError: a file is no file, a pointer to one, too large, empty or no JSON; or there is an adapter."""
    for path in sorted(folder.iterdir()):
        if path.name not in OPENED and (path.suffix not in WEIGHTS or path.is_dir()):
            continue
        if not path.is_file():  # reading a pipe would wait forever
            raise UsageError(f"{name}: {path.name} is not a file, but a folder, a pipe, a device or a link to nothing")
        try:
            with open(path, "rb") as file:
                start = file.read(len(LFS_POINTER))
        except OSError as error:
            raise UsageError(f"{name}: {path.name} cannot be read: {error.strerror}") from error
        if start == LFS_POINTER:
            raise UsageError(
                f"{name}: {path.name} is a pointer of Git LFS and not the file itself; `git lfs pull` in that folder "
                "fetches it"
            )
        if not start:
            raise UsageError(f"{name}: {path.name} is empty")
        if (size := path.stat().st_size) > OPENED.get(path.name, size):
            raise UsageError(f"{name}: {path.name} has {size / 2**20:.0f} MiB, far too much for what it should hold")
        if path.name in SETTINGS:
            _check_settings(path, name)
    if (folder / "adapter_config.json").exists():
        raise UsageError(
            f"{name}: an adapter (adapter_config.json) lies beside the weights, and without it this is another model. "
            "Merge the two with peft (merge_and_unload) and save that, or take the adapter out of the folder"
        )


def _check_settings(path: Path, name: str) -> None:
    """:raises UsageError: the file holds no JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        said = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "not UTF-8 text"
        said = "nested too deep" if isinstance(error, RecursionError) else said
        raise UsageError(f"{name}: {path.name} is damaged, it is not valid JSON ({said})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{name}: {path.name} is damaged, it holds no JSON object")


def check_memory(name: str, numbers: int) -> None:
    """Whether the machine has memory for so many numbers in float32, twice: loading folds a copy of a part of them.

    :raises MachineError: it has not.
    """
    import psutil

    needed, there = 8 * numbers, psutil.virtual_memory().total
    if needed > there:
        raise MachineError(
            f"{name} has {numbers:,} numbers: loading it takes {needed / 1e9:.1f} GB of memory, and this machine has "
            f"{there / 1e9:.1f} GB"
        )


def check_kind(name: str, folder: Path) -> str:
    """The type of a model, as its config names it.

    :raises UsageError: the folder's config is not that of a causal language model that can be loaded.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    raw = json.loads((folder / "config.json").read_bytes())
    kind = raw.get("model_type")
    if raw.get("auto_map") and kind not in CONFIG_MAPPING:
        raise UsageError(
            f"{name!r} brings its own code (auto_map in config.json), and mechrl runs no code from a model's folder. "
            "Only architectures that transformers itself has can be swept"
        )
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UsageError(
            f"{name!r} cannot be loaded: its config.json has model_type {kind!r:.80}, which transformers "
            f"{version('transformers')} does not know"
        )
    if quantised := raw.get("quantization_config"):
        method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
        raise UsageError(
            f"{name!r} has quantised weights ({str(method)[:40] or 'quantization_config in config.json'}), and mechrl "
            "folds whole ones: save the model dequantised, in float32 or bfloat16"
        )
    _check_sizes(name, raw)
    with refused(f"{name!r}: its config.json does not describe a model of type {kind}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.is_encoder_decoder:
        raise UsageError(f"{name!r} is an encoder-decoder model ({kind}), not a causal language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UsageError(f"{name!r} is a model of type {kind}, which is not a causal language model")
    return kind


def _check_sizes(name: str, config: dict[str, Any]) -> None:
    """:raises UsageError: a size is none, in the config or in one that it contains."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_sizes(name, value)
        if key not in LARGEST or value is None:
            continue
        sizes = value if isinstance(value, list) else [value]  # some families have one for each layer
        if not all(type(size) is int and (key not in MAY_BE_NONE) <= size <= LARGEST[key] for size in sizes):
            raise UsageError(f"{name!r}: its config.json says {key} {value!r:.40}, which no model has")


def check_weights(name: str, folder: Path) -> None:
    """Whether the files with a folder's weights are such files, before a library believes them.

    :raises UsageError: one is missing, damaged, outside the folder, or a pickle of something else than tensors.
    """
    for path in weight_files(name, folder):
        if not path.is_file():  # reading a pipe would wait forever
            raise UsageError(f"{name}: {path.name}, which holds weights, is not there, or is no file")
        (_check_safetensors if path.suffix == ".safetensors" else _check_pickle)(name, path)


def weight_files(name: str, folder: Path) -> list[Path]:
    """Those that transformers would read, by its order of preference."""
    whole = folder / "model.safetensors"
    if whole.exists() or whole.is_symlink():
        return [whole]
    for index in INDEXES:
        if (folder / index).is_file():
            return _shards(name, folder / index)
        if index == INDEXES[0] and (pickle := folder / "pytorch_model.bin").exists():
            return [pickle]
    raise UsageError(
        f"{name}: none of its files has the name of weights: model.safetensors, {INDEXES[0]} or pytorch_model.bin"
    )


def _shards(name: str, index: Path) -> list[Path]:
    weight_map = json.loads(index.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise UsageError(f"{name}: {index.name} is damaged, it has no weight_map from names to files")
    shards = sorted(set(weight_map.values()))
    if not 0 < len(shards) <= MOST_SHARDS:
        raise UsageError(f"{name}: {index.name} names {len(shards)} files of weights")
    for shard in shards:
        if Path(shard).name != shard or Path(shard).suffix not in (".safetensors", ".bin"):
            raise UsageError(f"{name}: {index.name} names {shard!r:.80}, which is no file of weights in the folder")
    return [index.parent / shard for shard in shards]


def _check_safetensors(name: str, path: Path) -> None:
    from safetensors import safe_open

    with open(path, "rb") as file, refused(f"{name}: {path.name} is damaged, or no safetensors file"):
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise UsageError(f"{name}: {path.name} is damaged: its header would have {size} bytes")
        header = json.loads(file.read(size))
        ends = [tensor["data_offsets"][1] for key, tensor in header.items() if key != "__metadata__"]
        if not ends:
            raise UsageError(f"{name}: {path.name} holds no weights")
        if (whole := path.stat().st_size) != 8 + size + max(ends):
            raise UsageError(
                f"{name}: {path.name} is damaged: it has {whole} bytes, and its header speaks of {8 + size + max(ends)}"
            )
        with safe_open(path, framework="pt"):  # which looks at the rest of the header
            pass


def _check_pickle(name: str, path: Path) -> None:
    """:raises UsageError: it is no zip of torch's, or its pickle names something else than a state dict does."""
    fault = f"{name}: {path.name} is damaged, or no file of weights that torch saved"
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".pkl")]
            if len(members) != 1 or members[0].file_size > LARGEST_PICKLE:
                raise UsageError(fault)
            operations = pickletools.genops(archive.read(members[0]))
            named = {str(argument) for operation, argument, _ in operations if "GLOBAL" in operation.name}
    except MechrlError:
        raise
    except Exception as error:  # zips and pickles fail in many ways
        raise UsageError(fault) from error
    if foreign := {n for n in named - STATE_DICT if not (n.startswith("torch ") and n.endswith("Storage"))}:
        raise UsageError(
            f"{name}: {path.name} is a pickle that asks for {min(foreign)!r:.80}, which is no part of weights; it was "
            "not opened. Save the model as safetensors"
        )
