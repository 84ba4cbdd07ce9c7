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


def seam_problem(prompt: str, word: str, column: str = "prompt") -> str | None:
    """What is wrong where a prompt ends and a word begins, and what to write instead; None if nothing is.

    Refused: a letter after a letter, in scripts that put spaces between words; a space after a space, or at the
    prompt's end; and characters that nobody sees.

    :param word: an answer or a wrong one; neither it nor the prompt is empty.
    :param column: where the prompt stands, "corrupted" for a twin.
    """
    before, after = prompt[-1], word[0]
    what = "prompt" if column == "prompt" else f"{column} prompt"
    for place, character in ((f"the {what} ends in", before), (f"{word!r} begins with", after)):
        if _hidden(character):
            return f'{place} {_named(character)}, which nobody sees: take it out, or add "join": true to the line'
    indented = prompt.rstrip(" ")[-1:] in ("\n", "")  # code: the last space belongs to the word, the others do not
    if before.isspace() and before not in LINE_ENDS and not (indented and after == " "):
        moved = word if after.isspace() else before + word
        return (
            f"the {what} ends in {_named(before)}; the space belongs to the answer: write "
            f'"{column}": {_tail(prompt[:-1])} and {json.dumps(moved, ensure_ascii=False)}'
        )
    if before in LINE_ENDS and after.isspace() and word.strip():
        return (
            f"the {what} ends in {_named(before)} and {word!r} begins with {_named(after)}: write "
            f"{json.dumps(word.lstrip(), ensure_ascii=False)}"
        )
    last = _base(prompt)
    if _spaced_letter(last) and _spaced_letter(after):
        return (
            f"there is no space between the {what}'s last letter {last!r} and {word!r}: write "
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
    """Whether it is a letter of a script with spaces between words."""
    return unicodedata.category(character)[0] == "L" and not unicodedata.name(character, "").startswith(UNSPACED)


def _base(prompt: str) -> str:
    """The last character that is no mark on another, such as an accent, or what makes a picture of a sign."""
    return next((c for c in reversed(prompt) if unicodedata.category(c)[0] != "M"), prompt[-1])


def _hidden(character: str) -> bool:
    """Whether it is a control or format character, such as a zero-width space."""
    seen = unicodedata.name(character, "").startswith(("ARABIC ", "SYRIAC ", "KAITHI ", "TAG ", "CANCEL TAG"))
    return unicodedata.category(character) in ("Cc", "Cf") and not character.isspace() and not seen


def _named(character: str) -> str:
    usual = {" ": "a space", "\n": "a newline", "\t": "a tab"}
    name = unicodedata.name(character, "control character").lower()
    return usual.get(character, f"{'an' if name[0] in 'aeiou' else 'a'} {name} (U+{ord(character):04X})")


def _tail(prompt: str, most: int = 40) -> str:
    """The end of a prompt, quoted."""
    return json.dumps(prompt if len(prompt) <= most else "…" + prompt[1 - most :], ensure_ascii=False)
