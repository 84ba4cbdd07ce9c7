"""The tokenizer of a model folder, which must split text as the folder's own tokenizer.json does."""

import hashlib
from pathlib import Path
from typing import Any

from mechrl.errors import UsageError

FILES = ("tokenizer.*", "vocab*", "*.model", "tekken.json")
LARGEST = 2**28  # bytes of a tokenizer.json; the largest that are in use have 35 million
# What pre-tokenizers treat differently: spaces, digits, newlines, letters beyond ASCII, punctuation, other scripts.
SAMPLES = (
    " 1742 and 13,579 in year 2026", "When Mary and John went to the store, John gave a drink to",
    "  two  spaces\tand\n\n lines ", "naïve café, Ärger, señor", "don't say 'it's' (or \"so\")…",
    "def f(x_1, y=0x1F):\n    return x_1**2", "Привет 世界 สวัสดี مرحبا 안녕",
    "ＡＢＣ ½ ﬁ e\u0301 ①", " the", "the",
)  # fmt: skip


def load_tokenizer(name: str, folder: Path) -> Any:
    """The Hugging Face tokenizer of a model folder.

    Some tokenizer classes bring rules of their own and ignore those in tokenizer.json. The file decides: where the
    class that the folder names splits text in another way, a class without rules of its own is taken.

    :raises UsageError: there is none, or none that splits text as the file says.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any(any(folder.glob(pattern)) for pattern in FILES):  # else some classes begin empty
        raise UsageError(f"{name}: no tokenizer files there, such as tokenizer.json; save the tokenizer too")
    file = folder / "tokenizer.json"
    if file.is_file() and file.stat().st_size > LARGEST:
        raise UsageError(f"{name}: tokenizer.json has {file.stat().st_size / 2**20:.0f} MiB, far too much for one")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not file.is_file() or (differs := _differs(tokenizer, file)) is None:
        return tokenizer
    plain = PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
    if _differs(plain, file) is None:
        return plain
    text, ours, theirs = differs
    raise UsageError(
        f"{name}: transformers splits {text!r} into {ours} tokens with the tokenizer of this folder, where its file "
        f"tokenizer.json gives {theirs}. Save the tokenizer again with the transformers that is installed"
    )


def tokenizer_sha256(tokenizer: Any) -> str:
    """The hash of a tokenizer's whole definition, and of which token is BOS."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{text} bos={tokenizer.bos_token_id}".encode()).hexdigest()


def _differs(tokenizer: Any, file: Path) -> tuple[str, int, int] | None:
    """The first sample that the tokenizer splits in another way than its file, with both numbers of tokens."""
    from tokenizers import Tokenizer

    of_file = Tokenizer.from_file(str(file))
    of_file.no_truncation()
    of_file.no_padding()
    for text in SAMPLES:
        ours = tokenizer.encode(text, add_special_tokens=False)
        theirs = of_file.encode(text, add_special_tokens=False).ids
        if ours != theirs:
            return text, len(ours), len(theirs)
    return None
