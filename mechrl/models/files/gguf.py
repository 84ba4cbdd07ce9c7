"""Models in a GGUF file: looked at, then written once as a float32 folder, which is loaded like any other."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from mechrl.errors import MachineError, UsageError, refused
from mechrl.home import home
from mechrl.models.files.inspection import check_memory
from mechrl.models.quiet import quiet, silent
from mechrl.progress import say

NOTE = "gguf.json"  # in the folder: which file it was written from
# Types of values in the header, as struct has them: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# The most that is believed of a header: far above any model, far below what readers in Python make gigabytes of.
MOST_KEYS, MOST_TENSORS, MOST_ITEMS, LONGEST_TEXT = 2**12, 2**16, 2**21, 2**24


@dataclass
class Header:
    """What a GGUF file says of itself.

    :param keys: numbers and texts by their name; of an array how many items it has.
    :param tensors: by name: sizes, number of the quantisation, and where it begins in the data.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, tuple[tuple[int, ...], int, int]] = field(default_factory=dict)
    data_begins: int = 0

    @property
    def numbers(self) -> int:
        """How many the tensors have, all together."""
        return sum(math.prod(shape) for shape, _, _ in self.tensors.values())


def dequantised(path: Path) -> Path:
    """The folder of a GGUF file's model in float32, in `MECHRL_HOME`; it is written when it is first asked for.

    :raises UsageError: no such file, or it is damaged, lies, or holds no model that transformers can dequantise.
    :raises MachineError: neither memory nor disk suffice.
    """
    header = check_gguf(path)
    check_memory(str(path), header.numbers)
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    place = home() / "models" / f"{sha256[:16]}-transformers-{version('transformers')}"
    if not (place / NOTE).is_file():
        _write_folder(path, header, sha256, place)
    return place


def quantisation(folder: Path) -> str:
    """What the weights of a folder were dequantised from, such as "Q4_1"; "" if they were not."""
    note = folder / NOTE
    return str(json.loads(note.read_bytes())["quantisation"]) if note.is_file() else ""


def check_gguf(path: Path) -> Header:
    """The header of a GGUF file, read without any library.

    :raises UsageError: no such file, no GGUF, cut off, or what it says of itself cannot be.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _Reader(file, size).header()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (ValueError, struct.error) as error:
        raise UsageError(f"{path} is damaged, or no GGUF file: {error}") from error
    _check_tensors(path, header, size)
    _check_tokens(path, header)
    return header


class _Reader:
    """:raises ValueError: the header ends too early, or says what cannot be."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size

    def header(self) -> Header:
        if self.file.read(4) != b"GGUF":
            raise ValueError("it does not begin as one does")
        if (edition := self.number("I")) not in (2, 3):
            raise ValueError(f"it is of version {edition}, and 2 and 3 are known")
        n_tensors = self.number("Q", MOST_TENSORS, "tensors")
        found = Header()
        for _ in range(self.number("Q", MOST_KEYS, "keys")):
            key = self.text()
            found.keys[key] = self.value(self.number("I"))
        for _ in range(n_tensors):
            name = self.text()
            shape = tuple(self.number("Q") for _ in range(self.number("I", 4, f"dimensions of {name!r:.80}")))
            if name in found.tensors:
                raise ValueError(f"it has the tensor {name!r:.80} twice")
            found.tensors[name] = shape, self.number("I"), self.number("Q")
        alignment = found.keys.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**16:
            raise ValueError(f"its general.alignment is {alignment!r:.40}")
        found.data_begins = -(-self.file.tell() // alignment) * alignment
        return found

    def number(self, kind: str, most: float = math.inf, what: str = "") -> Any:
        """A number; `kind` as in struct."""
        (value,) = struct.unpack(f"<{kind}", self.file.read(struct.calcsize(f"<{kind}")))
        if value > most:
            raise ValueError(f"it speaks of {value} {what}, and {int(most)} are believed at most")
        return value

    def text(self) -> str:
        n = self.number("Q", LONGEST_TEXT, "bytes in one text")
        read = self.file.read(n)
        if len(read) < n:
            raise ValueError("it ends in the middle of its header")
        return read.decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        """A number or a text; of an array how many items it has."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"it has a value of type {kind}, which does not exist")
        of, n = self.number("I"), self.number("Q", MOST_ITEMS, "items in one array")
        if of == STRING:
            for _ in range(n):
                self.file.seek(self.number("Q", LONGEST_TEXT, "bytes in one text"), os.SEEK_CUR)
        elif of in NUMBERS:
            self.file.seek(n * struct.calcsize(f"<{NUMBERS[of]}"), os.SEEK_CUR)
        else:
            raise ValueError(f"it has an array of type {of}, which is not known")
        if self.file.tell() > self.size:
            raise ValueError("it ends in the middle of its header")
        return n


def _check_tensors(path: Path, header: Header, size: int) -> None:
    """:raises UsageError: the `gguf` package is not there; a tensor is not in the file, or of an unknown kind."""
    gguf = _gguf()
    kinds = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    if not header.tensors:
        raise UsageError(f"{path} holds no weights")
    for name, (shape, kind, begins) in header.tensors.items():
        if kind not in kinds:
            raise UsageError(
                f"{path}: the tensor {name!r:.80} has quantisation number {kind}, which gguf {version('gguf')} does "
                "not know"
            )
        _, block, n_bytes = kinds[kind]
        amount = math.prod(shape)
        if not shape or amount < 1 or shape[0] % block:
            raise UsageError(f"{path} is damaged: the tensor {name!r:.80} has sizes {list(shape)}")
        if (end := header.data_begins + begins + amount // block * n_bytes) > size:
            raise UsageError(
                f"{path} is cut off, or damaged: it has {size:,} bytes, and its tensor {name!r:.80} ends at {end:,}"
            )


def _check_tokens(path: Path, header: Header) -> None:
    """:raises UsageError: there is no tokenizer in the file, or it has another size than the embedding."""
    if not isinstance(header.keys.get("general.architecture"), str):
        raise UsageError(f"{path} does not say what architecture it holds (general.architecture)")
    tokens = header.keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, int):
        raise UsageError(f"{path} has no tokenizer (tokenizer.ggml.tokens)")
    rows = header.tensors.get("token_embd.weight", ((0, tokens), 0, 0))[0][-1]
    if rows != tokens:
        raise UsageError(f"{path}: its tokenizer has {tokens} tokens and its embedding {rows} rows")


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise UsageError("reading a GGUF file needs the package gguf: pip install 'mechrl[gguf]'") from error
    return gguf


def _write_folder(path: Path, header: Header, sha256: str, place: Path) -> None:
    """Writes a GGUF's model as transformers dequantises it, in float32, with its tokenizer, in one step.

    :raises UsageError: transformers cannot dequantise it, or it is no causal language model.
    :raises MachineError: the disk is too small, or not writable.
    """
    needed = 4 * header.numbers + 2**26
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place.parent).free
        if free < needed:
            raise MachineError(
                f"{path} dequantised takes {needed / 1e9:.1f} GB, and {place.parent} has {free / 1e9:.1f} GB free; "
                "MECHRL_HOME names another folder"
            )
        say(f"dequantising {path.name} to float32, once ({needed / 1e9:.1f} GB in {place})")
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=place.parent) as made:
            folder = Path(made) / "model"
            with quiet():
                _convert(path, folder)
            note = {"file": path.name, "sha256": sha256, "quantisation": _named(header)}
            (folder / NOTE).write_text(json.dumps(note, indent=1))
            with contextlib.suppress(FileExistsError):  # another process was faster
                if not place.is_dir():
                    folder.rename(place)
    except OSError as error:
        raise MachineError(f"{place.parent}: {error.strerror or error}; MECHRL_HOME names another folder") from error


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with _alone(path) as place:
        where: dict[str, Any] = {"gguf_file": "model.gguf", "trust_remote_code": False}
        with silent(), refused(f"{path}: transformers {version('transformers')} does not know its architecture"):
            config = AutoConfig.from_pretrained(place, **where)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UsageError(f"{path} holds a model of type {config.model_type}, which is not a causal language model")
        with silent(), refused(f"{path}: transformers cannot make a tokenizer of what it holds"):
            AutoTokenizer.from_pretrained(place, **where).save_pretrained(folder)
        with silent(), refused(f"{path}: transformers cannot dequantise it, or its weights do not fit its sizes"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True, **where
            )
            hf, loading = loaded
            missing = sorted(loading["missing_keys"])
            if missing:
                raise UsageError(f"{path} lacks weights: {', '.join(missing[:3])} … ({len(missing)} in all)")
            hf.hf_quantizer, hf.is_quantized = None, False  # else it would be saved as quantised
            hf.config.__dict__.pop("quantization_config", None)
            hf.save_pretrained(folder)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """A folder with nothing but a link to the file, beside which transformers would read whatever lies there."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "model.gguf").symlink_to(path.absolute())
        yield Path(place)


def _named(header: Header) -> str:
    """The quantisation that most numbers of a file have."""
    gguf = _gguf()
    amounts: dict[int, int] = {}
    for shape, kind, _ in header.tensors.values():
        amounts[kind] = amounts.get(kind, 0) + math.prod(shape)
    return str(gguf.GGMLQuantizationType(max(amounts, key=lambda kind: amounts[kind])).name)
