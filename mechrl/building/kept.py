"""Control sweeps that are kept in `MECHRL_HOME`: control does not depend on the task, and is most of a build."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mechrl
from mechrl.ablation import Ablation
from mechrl.building.merge import Piece
from mechrl.building.settings import BuildSettings
from mechrl.building.workers.worker import Swept
from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import read_content, write_content
from mechrl.errors import MechrlError
from mechrl.home import home, kept_files
from mechrl.models import Model
from mechrl.progress import warn
from mechrl.tables import table_names

MOST_BYTES = 2**30  # of all that is kept; what was written first goes first
MEASURED = ("clean", "ablated", "attribution", "attribution_integrated", "sets/pairs")  # of what control is made


@dataclass(frozen=True)
class ControlSweep:
    """What a sweep of all control spans gave, and how it was made.

    :param arrays: by the last part of their path, such as `ablated` float32 [span, site].
    """

    arrays: dict[str, np.ndarray]
    device: str
    pass_tokens: int
    self_check_error: float

    @classmethod
    def of(cls, content: Content) -> "ControlSweep":
        """That of a finished cache, or of a file that is kept here."""
        arrays = {name: content.arrays.get(f"/control/{name}") for name in MEASURED}
        root = content.root
        return cls(
            {name: np.asarray(array) for name, array in arrays.items() if array is not None},
            root.get("device", "cpu"), root.get("effective_batch", 1), root["self_check_error"],
        )  # fmt: skip

    def piece(self, piece: Piece) -> Swept:
        """Some rows of it, as a worker would have given them."""
        rows = slice(piece.first_row, piece.first_row + piece.rows)
        arrays = {name: array[rows] for name, array in self.arrays.items()}
        return Swept(piece, arrays, self.device, self.pass_tokens, self.self_check_error)


def control_key(
    model: Model, settings: BuildSettings, device: str, tokens: np.ndarray, split: np.ndarray, replacement_sha256: str
) -> dict[str, Any]:
    """All that a control sweep depends on.

    :param tokens: of the spans, int32 [span, position]; BOS is among them.
    :param replacement_sha256: of what the ablation puts in; "" where it comes from no text.
    """
    return {
        "mechrl_version": mechrl.__version__,
        "model_sha256": model.sha256,
        "weight_processing": model.weight_processing,
        "ablation": settings.ablation,
        "dtype": settings.dtype,
        "tf32": settings.tf32,
        "sets": settings.sets,
        "batch_size": settings.batch_size,
        "device": device,
        "spans": hashlib.sha256(f"{tokens.shape}".encode() + np.ascontiguousarray(tokens).tobytes()).hexdigest(),
        "split": hashlib.sha256(np.ascontiguousarray(split).tobytes()).hexdigest(),
        "replacement": replacement_sha256,
    }


def control_path(key: dict[str, Any]) -> Path:
    """Where the control sweep of that key is kept."""
    return home() / "control" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.h5"


def find_control(key: dict[str, Any]) -> ControlSweep | None:
    """The control sweep of that key, if one is kept; a file that is not sound is not used, and that is said."""
    path = control_path(key)
    if not path.is_file():
        return None
    try:
        content = read_content(path)
        if json.loads(content.root["control_key"]) != key:
            raise ValueError("it is of another model or text")
        with contextlib.suppress(OSError):
            path.touch()  # so that what is used stays longest
        return ControlSweep.of(content)
    except (MechrlError, KeyError, TypeError, ValueError, RecursionError) as error:
        warn(f"the control sweep in {path} is not used: {error}")
        return None


def table_with_control(model: Model, settings: BuildSettings) -> Cache | None:
    """The table of this model that comes with mechrl, if a build with these settings would have its control.

    A text that the model writes may differ in a word on another machine, so its spans are taken from there, too.
    """
    name = model.name + ("" if settings.ablation == Ablation.ZERO.value else f".{settings.ablation}")
    if name not in table_names():
        return None
    table = Cache.load(name)
    a = table.attributes
    wanted = {
        "model_sha256": model.sha256,
        "tokenizer_sha256": model.tokenizer_sha256,
        "weight_processing": model.weight_processing,
        "prepend_bos": model.vocabulary.bos is not None,
        **{key: getattr(settings, key) for key in ("control_source", "seed", "batch_size", "dtype", "tf32")},
        **({"sets": settings.sets} if settings.sets else {}),
    }
    spans = settings.control_batches * settings.batch_size
    same = all(a.get(key) == value for key, value in wanted.items())
    return table if same and len(table.content.arrays["/control/tokens"]) == spans else None


def keep_control(key: dict[str, Any], content: Content) -> None:
    """Keeps the control sweep of a finished cache, and lets the oldest go where they take too much room.

    Who cannot write there has to sweep again, and is told so.
    """
    path = control_path(key)
    columns = {name: content.arrays[name] for name in (f"/control/{of}" for of in MEASURED) if name in content.arrays}
    of_machine = {name: content.root[name] for name in ("device", "effective_batch", "self_check_error")}
    root = {"model": content.root["model"], "ablation": content.root["ablation"], **of_machine}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_content(path, Content(columns, {"/": {**root, "control_key": json.dumps(key)}}), manifest=False)
        files = sorted(kept_files("control"), key=lambda file: file.stat().st_mtime)
        excess = sum(file.stat().st_size for file in files) - MOST_BYTES
        for file in files[:-1]:
            if excess > 0:
                excess -= file.stat().st_size
                file.unlink(missing_ok=True)
    except (OSError, MechrlError) as error:
        warn(f"the control sweep is not kept for the next build: {error}")
