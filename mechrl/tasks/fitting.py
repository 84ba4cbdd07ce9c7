"""Whether a tokenizer takes a task file as it is meant: one token an answer, twins of one length, ids of its own."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from mechrl.progress import say, warn
from mechrl.tasks.base import Example
from mechrl.tasks.seam import seam_problem
from mechrl.tasks.task_file import TaskFile, without
from mechrl.vocabulary import Vocabulary


def check_file(file: TaskFile, vocabulary: Vocabulary, n_ctx: int) -> TaskFile:
    """Whether a tokenizer takes a task file's prompts and answers as intended.

    Where all answers and wrongs are digits that go on with a number (`join`), those that the tokenizer writes in other
    tokens are left out: GPT-2's makes 17 and 52 of 1752, but 1700 is one token.

    :param n_ctx: the longest sequence that the model takes, in tokens.
    :returns: the file, without such digits, and without the records that do not fit if these are to be left out.
    :raises UsageError: an answer is not a single token, or the same token as another or as a wrong one; a token id is
        not one that this tokenizer would put there; a prompt is too long, or a corrupted prompt has another length.
        The message names every line.
    """
    examples = [_with_fitting_digits(vocabulary, example) for example in file.examples]
    dropped = sum(map(_n_words, file.examples)) - sum(map(_n_words, examples))
    file = replace(file, examples=examples, dropped=file.dropped + dropped)
    problems: dict[int, list[str]] = {}
    seen: dict[tuple[int, ...], int] = {}
    for i, (place, example) in enumerate(zip(file.lines, file.examples, strict=True)):
        found = line_problems(vocabulary, example)
        row = vocabulary.encode(str(example.context))
        if len(row) > n_ctx:
            found.insert(0, f"the prompt has {len(row)} tokens and the model takes {n_ctx}")
        if not found and (first := seen.setdefault(tuple(row), place)) != place:
            found = [f"the prompt of {file.unit} {first} again, token for token"]
        if file.labels is not None and not found:
            found = _unlike_labels(vocabulary, example, file.labels[i])
        if found:
            problems[place] = found
    return without(file, problems, len(problems))


def fit_files(files: Iterable[TaskFile], vocabulary: Vocabulary, n_ctx: int) -> tuple[TaskFile, ...]:
    """Files as a tokenizer takes them, see `check_file`; what their token ids mean, and how many lines go, is said."""
    fit = []
    for file in files:
        if said := ids_say(file, vocabulary):
            say(f"{file.path}: {said}")
        fit.append(checked := check_file(file, vocabulary, n_ctx))
        if checked.skipped:
            of = f"{checked.skipped} of {checked.skipped + len(checked)} {file.unit}s"
            warn(f"{file.path}: {of} do not fit and are left out")
        if checked.dropped:
            n = checked.dropped
            say(f"{file.path}: {n} answers and wrongs, digits that this tokenizer joins, are left out")
    return tuple(fit)


def _n_words(example: Example) -> int:
    return len(example.answers) + len(example.wrongs)


def _with_fitting_digits(vocabulary: Vocabulary, example: Example) -> Example:
    """An example whose number goes on only with digits that are a token of their own; as it is, if none are."""
    words = [*example.answers, *example.wrongs]
    if not example.join or not all(isinstance(word, str) and word.isdigit() for word in words):
        return example
    row = vocabulary.encode(str(example.context))
    fit = {word for word in words if vocabulary.encode(f"{example.context}{word}")[:-1] == row}
    answers, wrongs = ([str(word) for word in of if word in fit] for of in (example.answers, example.wrongs))
    return replace(example, answers=answers, wrongs=wrongs) if answers and wrongs else example


def line_problems(vocabulary: Vocabulary, example: Example) -> list[str]:
    """What is wrong with one line of a task file, for a tokenizer."""
    context = str(example.context)
    row = vocabulary.encode(context)
    if not row:
        return ["the prompt has no tokens"]
    if problems := _seam_problems(vocabulary, example, row):
        return problems  # what the tokenizer makes of it may well be the opposite of what helps
    if vocabulary.unknown_in(context, row):
        problems.append("the tokenizer does not know a part of the prompt")
    if problem := vocabulary.beyond(row):
        problems.append(problem)
    ids: dict[int, str] = {}
    for kind, words in (("answer", example.answers), ("wrong", example.wrongs)):
        for word in words:
            if isinstance(word, int):
                if problem := _not_next(vocabulary, str(example.context), row, word):
                    problems.append(f"the {kind} token {word} {problem}")
                continue
            longer = vocabulary.encode(f"{example.context}{word}")
            if longer[:-1] != row:
                split = _pieces(vocabulary, str(example.context), row, word, longer)
                problems.append(f"the {kind} {word!r} is not a single token after the prompt: {split}")
            elif vocabulary.unknown_in(word, longer[-1:]):
                problems.append(f"the tokenizer does not know the {kind} {word!r}")
            elif problem := vocabulary.beyond(longer[-1:]):
                problems.append(f"the {kind}: {problem}")
            elif ids.setdefault(longer[-1], word) != word:
                problems.append(f"{ids[longer[-1]]!r} and {word!r} are the same token")
    if example.corrupted is not None:
        twin = vocabulary.encode(str(example.corrupted))
        if len(twin) != len(row):
            problems.append(f"the corrupted prompt has {len(twin)} tokens and the prompt {len(row)}")
        elif twin == row:
            problems.append("the corrupted prompt is the prompt itself, token for token")
        elif problem := vocabulary.beyond(twin):
            problems.append(f"the corrupted prompt: {problem}")
    return problems


def _seam_problems(vocabulary: Vocabulary, example: Example, row: Sequence[int]) -> list[str]:
    """The first thing that nobody would write where the prompt, or its twin, meets an answer or a wrong one."""
    if example.join:
        return []
    texts = [
        word if isinstance(word, str) else text_of(vocabulary, row, word)
        for word in (*example.answers, *example.wrongs)
        if isinstance(word, str) or not _not_next(vocabulary, str(example.context), list(row), word)
    ]
    contexts = {"prompt": str(example.context)}
    if example.corrupted is not None:
        contexts["corrupted"] = str(example.corrupted)
    for column, context in contexts.items():
        for text in filter(None, texts):
            problem = seam_problem(context, text, column)
            if problem and not _written_so(vocabulary, context, text):
                return [problem]
    return []


def _written_so(vocabulary: Vocabulary, context: str, word: str) -> bool:
    """Whether a tokenizer writes the space between a prompt and a word as a token of its own, as some before digits."""
    if context[-1] != " " or word[0].isspace():
        return False
    return vocabulary.encode(context + word)[:-1] == vocabulary.encode(context)


def text_of(vocabulary: Vocabulary, row: Sequence[int], token: int) -> str:
    """A token as the text that it adds to a prompt; some tokenizers drop its space when it stands alone."""
    decode = partial(vocabulary.tokenizer.decode, clean_up_tokenization_spaces=False)
    before, after = decode(list(row)), decode([*row, token])
    return str(after[len(before) :]) if after.startswith(before) else str(decode([token]))


def ids_say(file: TaskFile, vocabulary: Vocabulary) -> str:
    """What the token ids of a file's first line say in a tokenizer, for people; nothing for a file of texts."""
    if file.ids is None or not file.examples:
        return ""
    example, size = file.examples[0], min(vocabulary.size, vocabulary.rows)
    row = vocabulary.encode(str(example.context))
    said = []
    for column, words in zip(file.ids, (example.answers, example.wrongs), strict=True):
        token = int(words[0])
        what = f"is {text_of(vocabulary, row, token)!r}" if token < size else f"is none of this tokenizer's {size}"
        said.append(f"{column} {token} {what}")
    return ", ".join(said)


def _not_next(vocabulary: Vocabulary, context: str, row: list[int], token: int) -> str | None:
    """Why a token id cannot be what the tokenizer writes after a prompt, or None if it can."""
    size = vocabulary.size
    if token >= min(size, vocabulary.rows):
        return (
            f"is none of this model's: its tokenizer has {size} tokens and its embedding {vocabulary.rows} rows; are "
            "the ids of another tokenizer?"
        )
    if token in vocabulary.tokenizer.all_special_ids:
        return f"is {vocabulary.tokenizer.decode([token])!r}, which is no text"
    text = text_of(vocabulary, row, token)
    if not text or "\ufffd" in text:
        return "is a part of a letter, and no text"
    if vocabulary.encode(context + text) != [*row, token]:
        return f"is {text!r}, and the tokenizer writes that in other tokens here; are the ids of another tokenizer?"
    return None


def _unlike_labels(vocabulary: Vocabulary, example: Example, labels: Sequence[str]) -> list[str]:
    """Token ids that are other words than the file says they are."""
    row = vocabulary.encode(str(example.context))
    said = [text_of(vocabulary, row, int(token)) for token in (*example.answers, *example.wrongs)]
    return [
        f"the token {token} is {text!r}, and the file calls it {label!r}"
        for token, text, label in zip((*example.answers, *example.wrongs), said, labels, strict=True)
        if text.strip() != label.strip()
    ]


def _pieces(vocabulary: Vocabulary, context: str, row: list[int], word: str, longer: list[int]) -> str:
    """How an answer splits into the tokens of `longer`, and what to do."""
    number = word.strip()
    start = next((i for i, (a, b) in enumerate(zip(row, longer, strict=False)) if a != b), min(len(row), len(longer)))
    parts = [text_of(vocabulary, longer[:i], longer[i]) for i in range(start, len(longer))]
    pieces = " ".join(map(repr, parts))
    if number.isdecimal() and parts[-len(number) :] == list(number) and start == len(row):
        return (
            f"{pieces}. The tokenizer writes numbers digit by digit: ask for one digit, after a prompt that goes right "
            "up to it, space included"
        )
    spaced = f" {word}"
    sensible = not word[0].isspace() and not context[-1].isspace() and context[-1] not in "'’"
    if sensible and vocabulary.encode(context + spaced)[:-1] == row:
        return f"{pieces}. With a space before it, {spaced!r}, it is"
    if start < len(row):
        return f"{pieces}. The tokenizer joins it with the prompt's end"
    return pieces
