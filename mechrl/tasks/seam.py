"""The seam between a prompt and its answer: the characters that meet there, before any tokenizer sees them.

An answer goes on from its prompt letter by letter. Where its space is missing, or there twice, a large vocabulary often
still has a token for it, and every number looks sound, but the model is asked for what nobody would write.
"""

import json
import unicodedata

# Scripts that put no space between words, by the beginning of their characters' Unicode names.
UNSPACED = (
    "CJK", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "YI ", "THAI", "LAO", "KHMER",
    "MYANMAR", "TIBETAN", "JAVANESE", "BALINESE", "TAI ", "NEW TAI",
)  # fmt: skip
LINE_ENDS = "\n\r\t"  # invisible, and what a prompt may well end in


def seam_problem(prompt: str, word: str) -> str | None:
    """What is wrong where a prompt ends and a word begins, and what to write instead; None if nothing is.

    Refused: a letter after a letter, in scripts that put spaces between words; a space after a space, or at the
    prompt's end; and characters that nobody sees.

    :param word: an answer or a wrong one; neither it nor the prompt is empty.
    """
    before, after = prompt[-1], word[0]
    for place, character in (("the prompt ends in", before), (f"{word!r} begins with", after)):
        if _hidden(character):
            return f'{place} {_named(character)}, which nobody sees: take it out, or add "join": true to the line'
    if before.isspace() and before not in LINE_ENDS:
        moved = word if after.isspace() else f" {word}"
        return (
            f"the prompt ends in {_named(before)}; the space belongs to the answer: write "
            f'"prompt": {_tail(prompt.rstrip())} and {json.dumps(moved, ensure_ascii=False)}'
        )
    if before.isspace() and after.isspace() and word.strip():
        return (
            f"the prompt ends in {_named(before)} and {word!r} begins with {_named(after)}: write "
            f"{json.dumps(word.lstrip(), ensure_ascii=False)}"
        )
    if _spaced_letter(before) and _spaced_letter(after):
        return (
            f"there is no space between the prompt's last letter {before!r} and {word!r}: write "
            f'{json.dumps(" " + word, ensure_ascii=False)}, or add "join": true to the line if it completes a word'
        )
    return None


def other_spelling(word: str) -> str:
    """The word with a space before it, or without the one that it has."""
    return word[1:] if word.startswith(" ") else f" {word}"


def line_end(prompt: str) -> str | None:
    """What a prompt invisibly ends in although it may: a newline or a tab, by name; None if in neither."""
    return _named(prompt[-1]) if prompt[-1] in LINE_ENDS else None


def _spaced_letter(character: str) -> bool:
    """Whether it is a letter, or a mark on one, of a script with spaces between words."""
    return unicodedata.category(character)[0] in "LM" and not unicodedata.name(character, "").startswith(UNSPACED)


def _hidden(character: str) -> bool:
    """Whether it is a control or format character, such as a zero-width space."""
    return unicodedata.category(character) in ("Cc", "Cf") and not character.isspace()


def _named(character: str) -> str:
    usual = {" ": "a space", "\n": "a newline", "\t": "a tab"}
    name = unicodedata.name(character, "control character").lower()
    return usual.get(character, f"a {name} (U+{ord(character):04X})")


def _tail(prompt: str, most: int = 40) -> str:
    """The end of a prompt, quoted."""
    return json.dumps(prompt if len(prompt) <= most else "…" + prompt[1 - most :], ensure_ascii=False)
