"""What a task needs to know of a tokenizer: which words are one token, and how text becomes ids."""

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

WORD_START = re.compile(r"[Ġ▁]([A-Za-z]{2,})")


def said_of_bos(prepended: bool, token: str) -> str:
    """Which token is put before every prompt, as a sentence; `token` is the tokenizer's BOS, "" where not known."""
    if prepended:
        return f"BOS{f' {token!r}' if token else ''} before every prompt"
    return f"no BOS before a prompt: {token!r} is left out" if token else "no BOS: the tokenizer has none"


class Vocabulary:
    """A Hugging Face tokenizer as the tasks see it.

    Text is encoded without special tokens; `bos`, where the tokenizer has one, is put first by `encode`, once.

    :param tokenizer: any Hugging Face tokenizer, fast or slow.
    :param rows: how many tokens the model's embedding has; by default as many as the tokenizer.
    :param bos: whether BOS is put first, where the tokenizer has one.
    """

    def __init__(self, tokenizer: Any, rows: int | None = None, bos: bool = True):
        self.tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id if bos else None
        self.rows = self.size if rows is None else rows

    @cached_property
    def size(self) -> int:
        """One more than the greatest id; some vocabularies have gaps."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    @cached_property
    def unknown(self) -> int | None:
        """The token that stands for what the tokenizer does not know, if it has one."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        token = getattr(backend and backend.model, "unk_token", None)
        unknown: int | None = self.tokenizer.convert_tokens_to_ids(token) if token else self.tokenizer.unk_token_id
        return unknown

    def unknown_in(self, text: str, ids: Sequence[int]) -> bool:
        """Whether the tokenizer does not know a part of a text, `ids` being what it makes of it."""
        own = ids[1:] if list(ids[:1]) == [self.bos] else ids
        if self.unknown is None or self.unknown not in own:
            return False
        return str(self.tokenizer.convert_ids_to_tokens(self.unknown)) not in text  # GPT-2's is its EOS

    @property
    def bos_token(self) -> str:
        """The tokenizer's BOS as text, whether or not it is put first; "" where there is none."""
        token = self.tokenizer.bos_token_id
        return "" if token is None else str(self.tokenizer.decode([token]))

    @property
    def said_of_bos(self) -> str:
        """Which token is put before every prompt, as a sentence."""
        return said_of_bos(self.bos is not None, self.bos_token)

    def encode(self, text: str) -> list[int]:
        """The ids of `text` at the start of a sequence, BOS included; if the text begins with it, no second one."""
        return self.with_bos(self.tokenizer.encode(text, add_special_tokens=False))

    def with_bos(self, ids: Sequence[int]) -> list[int]:
        """`ids` with BOS put first where the tokenizer has one and they do not begin with it."""
        return list(ids) if self.bos is None or list(ids[:1]) == [self.bos] else [self.bos, *ids]

    def beyond(self, ids: Iterable[int]) -> str | None:
        """What is wrong with the first id that the model's embedding has no row for, or None."""
        for token in ids:
            if not 0 <= token < self.rows:
                return (
                    f"the token {self.tokenizer.decode([token])!r} has id {token}, and the model's embedding has "
                    f"{self.rows} rows (the tokenizer has ids up to {self.size - 1})"
                )
        return None

    def single(self, text: str) -> int | None:
        """The id of `text` where it continues a sentence, or None if it is not a single token there.

        Asked in context, because some tokenizers treat the first word of a text in a way of their own.
        """
        before, after = self.encode("a"), self.encode("a" + text)
        if after[:-1] != before or after[-1] >= self.rows or self.unknown_in(text, after[-1:]):
            return None
        return after[-1]

    @cached_property
    def word_ids(self) -> list[int]:
        """Every token that is a space and then a word of ASCII letters, in the order of the ids."""
        special = set(self.tokenizer.all_special_ids)
        vocab = self.tokenizer.get_vocab()
        return sorted(
            i for token, i in vocab.items() if i < self.rows and i not in special and WORD_START.fullmatch(token)
        )
