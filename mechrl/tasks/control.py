"""Control text: spans of ordinary text, on which the ablation of a head that only serves a task does no damage."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState

from mechrl.errors import MachineError, UsageError
from mechrl.tasks.base import TRAIN
from mechrl.tasks.prose import prose
from mechrl.vocabulary import Vocabulary

SPAN = 60  # tokens of text in a span, as in arXiv 2605.26343, or what the context holds; BOS comes on top
HUB_SECONDS = 10
DEFAULTS = {"mini": "prose", "smollm2-135m": "model"}  # the control text of a model by name
WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1/train-00000-of-00001.parquet")


def read_control(wanted: str | Path | None, model: str) -> tuple[str, str | None]:
    """The name of the control text for the cache, and the text; None for `prose` and `model`, which are made.

    :param wanted: a text file of the user's, or "model" for what the intact model writes; None for the default.
    :param model: its name: the default is `DEFAULTS`, else WikiText-2 from the hub.
    :raises UsageError: no such file, or it is not UTF-8 text.
    :raises MachineError: the hub cannot be reached, and WikiText-2 is not on this machine.
    """
    wanted = DEFAULTS.get(model) if wanted is None else wanted
    if wanted is None:
        return "wikitext-2", _wikitext()
    if wanted in ("prose", "model"):
        return str(wanted), None
    path = Path(wanted)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"control text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"control text {path}: not UTF-8 text ({error})") from error
    return f"text:{hashlib.sha256(text.encode()).hexdigest()}", text


def _wikitext() -> str:
    """The training text of WikiText-2 (raw), out of the local hub cache, or else from the hub, which gets one try."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, hf_hub_download

    wanted: dict[str, Any] = {"repo_id": WIKITEXT[0], "filename": WIKITEXT[1], "repo_type": "dataset"}
    try:
        try:
            file = hf_hub_download(**wanted, local_files_only=True)
        except OSError:
            HfApi().dataset_info(WIKITEXT[0], timeout=HUB_SECONDS)
            file = hf_hub_download(**wanted)
    except Exception as error:  # what a failed connection raises depends on the hub library's version
        raise MachineError(
            f"the control text WikiText-2 is not on this machine and the hub cannot be reached "
            f"({type(error).__name__}). Offline: name a file as the control text, any ordinary text of some "
            "300 kB, or take `model`, which the model writes itself"
        ) from error
    from pyarrow import parquet

    return "".join(parquet.read_table(file, columns=["text"])["text"].to_pylist())


def fitting_span(vocabulary: Vocabulary, n_ctx: int) -> int:
    """How many tokens of text a span has, BOS not counted, in a model that takes `n_ctx` tokens."""
    return min(SPAN, n_ctx - len(vocabulary.with_bos([])))


def control_spans(
    vocabulary: Vocabulary, text: str | None, n: int, split: int, seed: int = 0, span: int = SPAN
) -> np.ndarray:
    """`n` spans of one split from a text, or of generated prose where `text` is None.

    :param span: tokens of text in a span.
    :raises UsageError: the text is too short, or has a token that the model does not know.
    """
    if text is None:
        spans = prose_spans(vocabulary, n, split, seed, span)
    else:
        spans = text_spans(vocabulary, text, n, split, seed, span)
    if (problem := vocabulary.beyond(np.unique(spans).tolist())) is not None:
        raise UsageError(f"control text: {problem}")
    return spans


def prose_spans(vocabulary: Vocabulary, n: int, split: int, seed: int = 0, span: int = SPAN) -> np.ndarray:
    """`n` spans of generated prose, tokens int32 [span, position]; each begins a story of its own."""
    rng = RandomState([seed, SPAN, split])
    rows: list[list[int]] = []
    while len(rows) < n:
        ids = vocabulary.encode(prose(rng, sentences=SPAN // 4))
        rows.append(ids[: len(vocabulary.with_bos([])) + span])
    return np.array(rows, np.int32)


def text_spans(vocabulary: Vocabulary, text: str, n: int, split: int, seed: int = 0, span: int = SPAN) -> np.ndarray:
    """`n` spans cut from a text, tokens int32 [span, position]; the last quarter of the text is for evaluation.

    BOS stands at the beginning of a span and nowhere else.

    :raises UsageError: the text is too short.
    """
    bos = vocabulary.tokenizer.bos_token_id
    ids = [token for token in vocabulary.tokenizer.encode(text, add_special_tokens=False) if token != bos]
    border = len(ids) * 3 // 4
    part = ids[:border] if split == TRAIN else ids[border:]
    places = len(part) // span
    if places < n:
        raise UsageError(
            f"the control text holds {places} spans of {span} tokens in the part for "
            f"{'training' if split == TRAIN else 'evaluation'}, and {n} are needed: give a longer text or fewer "
            "control batches"
        )
    starts = span * np.sort(RandomState([seed, split]).permutation(places)[:n])
    return np.array([vocabulary.with_bos(part[start : start + span]) for start in starts], np.int32)
