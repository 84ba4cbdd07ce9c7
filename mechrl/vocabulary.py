"""What a task needs to know of a tokenizer: which words are one token, and how text becomes ids."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

WORD_START = re.compile(r"[Ġ▁]([A-Za-z]{2,})")


class Vocabulary:
    """A Hugging Face tokenizer as the tasks see it.

    Text is encoded without special tokens; `bos`, where the tokenizer has one, is put first by `encode`.

    :param tokenizer: any Hugging Face tokenizer, fast or slow.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.bos: int | None = tokenizer.bos_token_id

    def encode(self, text: str) -> list[int]:
        """The ids of `text` at the start of a sequence, BOS included."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return ids if self.bos is None else [self.bos, *ids]

    def with_bos(self, ids: Sequence[int]) -> list[int]:
        """`ids` with BOS put first where the tokenizer has one."""
        return list(ids) if self.bos is None else [self.bos, *ids]

    def single(self, text: str) -> int | None:
        """The id of `text` where it continues a sentence, or None if it is not a single token there.

        Asked in context, because some tokenizers treat the first word of a text in a way of their own.
        """
        before, after = self.encode("a"), self.encode("a" + text)
        return after[-1] if after[:-1] == before else None

    @cached_property
    def word_ids(self) -> list[int]:
        """Every token that is a space and then a word of ASCII letters, in the order of the ids."""
        special = set(self.tokenizer.all_special_ids)
        vocab = self.tokenizer.get_vocab()
        return sorted(i for token, i in vocab.items() if i not in special and WORD_START.fullmatch(token))
