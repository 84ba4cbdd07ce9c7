"""Models on the hub: their files out of the local hub cache, or fetched once."""

import contextlib
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from mechrl.errors import MachineError, UsageError

HUB_SECONDS = 10


def fetch(name: str, revision: str) -> Path:
    """The folder of a model's files: out of the local hub cache, or else from the hub, which gets one try.

    :raises UsageError: no such model or revision on the hub, or no access to it.
    :raises MachineError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted: dict[str, Any] = {
        "revision": revision or None,
        "allow_patterns": ["*.json", "*.safetensors", "*.txt", "*.model"],
    }
    with contextlib.suppress(OSError, ValueError):
        folder = Path(snapshot_download(name, local_files_only=True, **wanted))
        if any(folder.glob("*.safetensors")):
            return folder
    try:
        HfApi().model_info(name, revision=revision or None, timeout=HUB_SECONDS)
        return Path(snapshot_download(name, **wanted))
    except GatedRepoError as error:  # before RepositoryNotFoundError, of which it is a kind
        raise UsageError(
            f"{name!r} is gated on the hub: accept its terms at https://huggingface.co/{name}, then `hf auth login` or "
            "set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UsageError(f"the hub has no model {name!r}, or it is private{_did_you_mean(name)}") from error
    except RevisionNotFoundError as error:
        raise UsageError(f"{name!r} has no revision {revision!r} on the hub") from error
    except HFValidationError as error:
        raise UsageError(f"{name!r} is neither a folder nor a name on the hub: {first_sentence(error)}") from error
    except Exception as error:  # what a failed connection raises depends on the hub library's version
        raise MachineError(
            f"model {name!r} is not on this machine and the hub cannot be reached ({type(error).__name__}). Offline: "
            "name the folder of a model saved with save_pretrained, and a text file as the control text; or take the "
            "model mini, which comes with mechrl"
        ) from error


def first_sentence(error: Exception) -> str:
    """What a library says of an error, without the hundreds of classes that it may go on to list."""
    return re.split(r"(?<=[.!?])\s|\n", str(error).strip())[0].rstrip(".:") or type(error).__name__


def _did_you_mean(name: str) -> str:
    """The model on the hub whose name is nearest, as the end of a message; "" if the hub finds none."""
    from huggingface_hub import HfApi

    stem = name.rpartition("/")[2].lower()
    beginning = stem[: max(3, 2 * len(stem) // 3)]  # the hub finds parts of names, and the typo may come later
    try:
        found = [m.id for m in HfApi().list_models(search=beginning, sort="downloads", limit=100)]
    except Exception:  # the suggestion is a courtesy
        return ""
    names = {model.rpartition("/")[2].lower(): model for model in reversed(found)}  # of equal ones the most downloaded
    near = get_close_matches(stem, names, n=1)
    return f"; did you mean {names[near[0]]}?" if near else ""
