"""The tokenizer of a model folder, which must split text as the folder's own tokenizer.json does."""

import hashlib
import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mechrl.errors import UsageError, refused
from mechrl.models.quiet import silent

BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
FILES = ("tokenizer.*", "vocab*", "merges.txt", "*.model", "tekken.json")
MOST_IDS = 2**24
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
SECONDS = 5  # for all samples, which take milliseconds
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
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    if not any(any(folder.glob(pattern)) for pattern in FILES):  # else some classes begin empty
        raise UsageError(f"{name}: no tokenizer files there, such as tokenizer.json; save the tokenizer too")
    _check_class(name, folder)
    file = folder / "tokenizer.json"
    expected = None
    if file.is_file():
        with silent(), refused(f"{name}: tokenizer.json is damaged, or not one that tokenizers reads"):
            backend = Tokenizer.from_file(str(file))
            _check_ids(name, backend.get_vocab())
            backend.no_truncation()
            backend.no_padding()
            expected = _split(name, lambda text: backend.encode_batch([text], add_special_tokens=False)[0].ids)
    failed: UsageError | None = None
    for make in (partial(AutoTokenizer.from_pretrained, trust_remote_code=False), _plain):
        try:
            with silent(), refused(f"{name}: transformers cannot make a tokenizer of the folder's {_named(folder)}"):
                tokenizer = make(folder)
                found = _split(name, partial(_ids, tokenizer))
                _split(name, partial(_ids, tokenizer, special=True))  # which TransformerLens asks for
        except UsageError as error:
            if expected is None:
                raise
            failed = failed or error
            continue
        if expected is None:
            _check_known(name, tokenizer, found)
        if expected in (None, found):
            return tokenizer
    if failed is not None:
        raise failed
    text, ours, theirs = next((text, a, b) for text, a, b in zip(SAMPLES, found, expected or [], strict=True) if a != b)
    raise UsageError(
        f"{name}: transformers splits {text!r} into {len(ours or [])} tokens with the tokenizer of this folder, where "
        f"its tokenizer.json gives {len(theirs or [])}. Save it again with the transformers that is installed"
    )


def tokenizer_sha256(tokenizer: Any) -> str:
    """The hash of a tokenizer's whole definition, and of which token is BOS."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(f"{text} bos={tokenizer.bos_token_id}".encode()).hexdigest()


def _check_ids(name: str, vocabulary: dict[str, int]) -> None:
    """:raises UsageError: two words have one id, or one has an id that no model has a row for."""
    if len(set(vocabulary.values())) < len(vocabulary):
        raise UsageError(f"{name}: tokenizer.json is damaged: it gives one id to several tokens")
    if (greatest := max(vocabulary.values(), default=0)) > MOST_IDS:
        raise UsageError(f"{name}: tokenizer.json is damaged: it gives a token the id {greatest}")


def _check_class(name: str, folder: Path) -> None:
    """:raises UsageError: the tokenizer class that the folder names is another class; transformers would call it."""
    import transformers

    for settings in ("tokenizer_config.json", "config.json"):
        if not (folder / settings).is_file():
            continue
        wanted = json.loads((folder / settings).read_bytes()).get("tokenizer_class")
        found = getattr(transformers, wanted, None) if isinstance(wanted, str) else wanted
        if found is not None and not (
            isinstance(found, type) and issubclass(found, transformers.PreTrainedTokenizerBase)
        ):
            raise UsageError(f"{name}: {settings} names {wanted!r:.60} as its tokenizer class, which is none")


def _plain(folder: Path) -> Any:
    """A tokenizer of tokenizer.json and of which tokens are special, and nothing else of the folder.

    Not by its `from_pretrained`, which runs what an `auto_map` names.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    file = str(folder / "tokenizer.json")
    known = {token.content for token in Tokenizer.from_file(file).get_added_tokens_decoder().values() if token.special}
    special = {}
    for settings in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / settings).is_file():
            found = json.loads((folder / settings).read_bytes())
            for kind in SPECIAL:
                token = found.get(kind)
                token = token.get("content") if isinstance(token, dict) else token
                if isinstance(token, str) and token in known:
                    special[kind] = token
    make: Any = PreTrainedTokenizerFast  # without annotations
    return make(tokenizer_file=file, **special)


def _ids(tokenizer: Any, text: str, special: bool = False) -> list[int]:
    return list(tokenizer([text], add_special_tokens=special)["input_ids"][0])


def _split(name: str, encode: Callable[[str], list[int]]) -> list[list[int] | None]:
    """The ids of every sample, None for those that the tokenizer cannot write.

    :param encode: as a batch of one text, which lets other threads run meanwhile.
    :raises UsageError: it takes too long, as some patterns do, or gives one text different ids.
    """
    found: list[Any] = []

    def once() -> list[Any]:
        return [_tried(encode, text) for text in SAMPLES]

    def run() -> None:
        try:
            found.extend([once(), once()])
        except BaseException as error:
            found[:] = [error]

    thread = threading.Thread(target=run, daemon=True)  # nobody can end it, and nobody has to wait for it
    thread.start()
    thread.join(SECONDS)
    if not found:
        raise UsageError(f"{name}: its tokenizer takes more than {SECONDS} seconds for ten short texts")
    if isinstance(found[0], BaseException):
        raise found[0]
    if all(ids is None for ids in found[0]):
        raise UsageError(f"{name}: its tokenizer can write none of ten short texts")
    if found[0] != found[1]:
        raise UsageError(f"{name}: its tokenizer splits the same text differently each time; has it a dropout?")
    return list(found[0])


def _tried(encode: Callable[[str], list[int]], text: str) -> list[int] | None:
    """The ids of a text; None if the tokenizer has no token for a part of it, nor one for what it does not know."""
    try:
        return list(encode(text))
    except Exception:
        return None


def _check_known(name: str, tokenizer: Any, found: list[list[int] | None]) -> None:
    """:raises UsageError: where nothing says what the tokenizer should do, it knows hardly a word."""
    ids = [token for of in found if of for token in of]
    if tokenizer.unk_token_id is not None and ids.count(tokenizer.unk_token_id) > len(ids) / 2:
        raise UsageError(
            f"{name}: transformers makes a tokenizer of the folder's files that knows hardly a word; save it again "
            "with a tokenizer.json"
        )


def _named(folder: Path) -> str:
    names = [
        path.name for pattern in (*BESIDE, *FILES)
        for path in sorted(folder.glob(pattern))
    ]  # fmt: skip
    return ", ".join(dict.fromkeys(names))
