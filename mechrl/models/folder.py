"""Model folders: where the files of a model are, and what is looked at before a library opens them."""

import json
import os
import re
from pathlib import Path

from mechrl.errors import UsageError
from mechrl.models.hub import fetch

MINI = Path(__file__).parents[1] / "mini"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Endings of the files that transformers may read, and those of them that are read as JSON before it does.
READ = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")
SETTINGS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "model.safetensors.index.json", "pytorch_model.bin.index.json",
)  # fmt: skip
LARGEST_SETTINGS = 2**25  # bytes; the index of a model in a thousand parts has a few million

ADAPTER_ALONE = (
    "this is an adapter without its base model, and mechrl measures whole models: put it into the base model with "
    "peft (merge_and_unload), save that with save_pretrained, and name its folder"
)


def is_folder(name: str) -> bool:
    """Whether a model name means a folder: it exists, or it is written as a path."""
    return os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") > 1


def absolute_name(name: str) -> str:
    """A folder's name that means the same in every working directory; other names as they are."""
    return str(Path(name).expanduser().absolute()) if is_folder(name) and name != "mini" else name


def find_folder(name: str, revision: str = "") -> Path:
    """Where the model's files are on this machine, fetched from the hub if they have to be.

    :raises UsageError: no such folder, no weights in it, or a file that cannot be what its name says; no such model or
        revision on the hub, or no access to it.
    :raises MachineError: the hub cannot be reached.
    """
    if name != "mini" and not is_folder(name):
        folder = fetch(name, revision)
        _check_files(folder, name)
        return folder
    if revision:
        raise UsageError(f"--revision {revision} is for models on the hub, and {name} is none")
    if name == "mini":
        return MINI
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{name}: no such folder")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UsageError(f"{name}: {ADAPTER_ALONE}")
        raise UsageError(f"{name}: no config.json there; a model folder is what save_pretrained writes")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise UsageError(f"{name}: the folder has a config.json and no weights (*.safetensors)")
    _check_files(folder, name)
    return folder


def cache_name(name: str, sha256: str, ablation: str = "zero") -> str:
    """The default file name of a model's cache: the last part of its name, for a folder with its fingerprint."""
    stem = re.sub(r"[^a-z0-9.-]+", "-", name.rstrip("/").rpartition("/")[2].lower())
    if is_folder(name) and name != "mini":
        stem += f"-{sha256[:8]}"
    return stem + ("" if ablation == "zero" else f".{ablation}") + ".h5"


def _check_files(folder: Path, name: str) -> None:
    """:raises UsageError: a file is no file, a pointer to one, or no JSON; or an adapter lies beside the weights."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in READ or path.is_dir():
            continue
        if not path.is_file():  # reading a pipe would wait forever
            raise UsageError(f"{name}: {path.name} is not a file, but a pipe, a device or a link to nothing")
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
        if path.name in SETTINGS:
            _check_settings(path, name)
    if (folder / "adapter_config.json").exists():
        raise UsageError(
            f"{name}: an adapter (adapter_config.json) lies beside the weights, and without it this is another model. "
            "Merge the two with peft (merge_and_unload) and save that, or take the adapter out of the folder"
        )


def _check_settings(path: Path, name: str) -> None:
    """:raises UsageError: the file is too large, or holds no JSON object."""
    if (size := os.stat(path).st_size) > LARGEST_SETTINGS:
        raise UsageError(f"{name}: {path.name} has {size / 2**20:.0f} MiB, far too much for what it should hold")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        said = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "not Unicode text"
        said = "nested too deep" if isinstance(error, RecursionError) else said
        raise UsageError(f"{name}: {path.name} is damaged, it is not valid JSON ({said})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{name}: {path.name} is damaged, it holds no JSON object")
