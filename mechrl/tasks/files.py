"""Tasks from a user's file: one prompt a line, checked as a whole before any model is run."""

import contextlib
import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState

from mechrl.errors import UsageError
from mechrl.tasks.base import EVALUATION, TRAIN, Example, Prompts, tokenize
from mechrl.vocabulary import Vocabulary

REQUIRED, OPTIONAL = ("prompt", "answer", "wrong"), ("corrupted", "group", "split")
SPLITS = {"train": TRAIN, "evaluation": EVALUATION}
SHOWN = 20  # problems that a message lists
LARGEST_BATCH = 32


@dataclass(frozen=True)
class TaskFile:
    """A behaviour that somebody wrote down.

    :param name: the file's name without its ending; what the task is called.
    :param sha256: of the file.
    :param examples: its prompts, in the order of the file.
    :param lines: the line of each, for messages.
    :param split: int8 [prompt], 0 train and 1 evaluation, or -1 where the file does not say.
    """

    path: Path
    name: str
    sha256: str
    examples: Sequence[Example]
    lines: Sequence[int]
    split: np.ndarray

    def __len__(self) -> int:
        return len(self.examples)


def read_task_file(path: Path, taken: Sequence[str] = ()) -> TaskFile:
    """A task from a .jsonl file, one JSON object a line, or from a .csv file with a header.

    Each has `prompt`, `answer` and `wrong`, and may have `corrupted`, `group` and `split` (train or evaluation).
    `answer` and `wrong` are a text or a list of texts (in .csv a JSON list), each going on from the prompt letter by
    letter: " Paris", with its space.

    :param taken: names that are not free for it.
    :raises UsageError: no such file, or not of this form; the message names every line that is wrong.
    """
    if path.suffix not in (".jsonl", ".csv"):
        raise UsageError(f"{path}: a task file ends in .jsonl or .csv")
    name = path.stem
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or name == "control":
        raise UsageError(
            f"{path}: a task is called what its file is, in letters, digits, _ and -, and not 'control'; rename it"
        )
    if name in taken:
        raise UsageError(f"{path}: there is a task {name!r} already; rename the file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    problems: list[tuple[int, str]] = []
    records = list((_jsonl if path.suffix == ".jsonl" else _csv)(data, problems))
    examples, lines, splits = [], [], []
    seen: dict[str, int] = {}
    for line, record in records:
        found = _problems(record)
        if not found and seen.setdefault(record["prompt"], line) != line:
            found = [f"the prompt of line {seen[record['prompt']]} again"]
        problems += [(line, problem) for problem in found]
        if not found:
            examples.append(_example(record, line))
            lines.append(line)
            splits.append(SPLITS.get(record.get("split"), -1))
    for what, has in (
        ("corrupted prompt", [e.corrupted is not None for e in examples]),
        ("split", [split >= 0 for split in splits]),
    ):
        if any(has) and not all(has):
            problems += [
                (line, f"no {what}, which other lines have")
                for line, there in zip(lines, has, strict=True)
                if not there
            ]
    if not problems and not examples:
        problems.append((1, "there are no prompts"))
    _raise(path, problems)
    return TaskFile(path, name, hashlib.sha256(data).hexdigest(), examples, lines, np.array(splits, np.int8))


def check_file(file: TaskFile, vocabulary: Vocabulary, n_ctx: int) -> None:
    """Whether a tokenizer takes a task file's prompts and answers as intended.

    :param n_ctx: the longest sequence that the model takes, in tokens.
    :raises UsageError: an answer is not a single token, or the same token as another or as a wrong one; a prompt is too
        long, or a corrupted prompt has another length. The message names every line.
    """
    problems: list[tuple[int, str]] = []
    for line, example in zip(file.lines, file.examples, strict=True):
        row = vocabulary.encode(str(example.context))
        ids: dict[int, str] = {}
        if len(row) > n_ctx:
            problems.append((line, f"the prompt has {len(row)} tokens and the model takes {n_ctx}"))
        for kind, words in (("answer", example.answers), ("wrong", example.wrongs)):
            for word in map(str, words):
                if (split := _pieces(vocabulary, str(example.context), row, word)) is not None:
                    problems.append((line, f"the {kind} {word!r} is not a single token after the prompt: {split}"))
                elif ids.setdefault(token := vocabulary.encode(f"{example.context}{word}")[-1], word) != word:
                    problems.append((line, f"{ids[token]!r} and {word!r} are the same token"))
        if example.corrupted is not None:
            n = len(vocabulary.encode(str(example.corrupted)))
            if n != len(row):
                problems.append((line, f"the corrupted prompt has {n} tokens and the prompt {len(row)}"))
    _raise(file.path, problems)


def arrange(file: TaskFile, vocabulary: Vocabulary, batch_size: int) -> Prompts:
    """A task file's prompts in whole batches, training ones first; what does not fill a batch is left out.

    Without `split` in the file its groups are shuffled, and the last quarter of the batches, at least 2, is for
    evaluation; a group is on one side only, unless the groups are too few and too large.

    :raises UsageError: fewer than one training and two evaluation batches.
    """
    prompts = tokenize(file.name, file.examples, vocabulary, TRAIN)
    train, evaluation = _divide(prompts.group, file.split, batch_size)
    whole = [rows[: len(rows) // batch_size * batch_size] for rows in (train, evaluation)]
    if len(whole[0]) < batch_size or len(whole[1]) < 2 * batch_size:
        fitting = fitting_batch_size([file])
        raise UsageError(
            f"{file.path}: {len(train)} prompts for training and {len(evaluation)} for evaluation do not make one and "
            f"two batches of {batch_size}: write more prompts"
            + (f", or use --batch-size {fitting}" if fitting < batch_size else "")
        )
    rows = np.concatenate(whole)
    split = np.repeat(np.array([TRAIN, EVALUATION], np.uint8), [len(part) for part in whole])
    return Prompts(**{**vars(prompts[rows]), "split": split})


def fitting_batch_size(files: Sequence[TaskFile]) -> int:
    """The largest batch size up to 32, a power of two, that leaves every file at least two batches of each split."""
    size = LARGEST_BATCH
    for file in files:
        given = file.split >= 0
        fewest = (
            min((file.split == TRAIN).sum(), (file.split == EVALUATION).sum()) // 2 if given.all() else len(file) // 4
        )
        while size > max(1, fewest):
            size //= 2
    return size


def _divide(group: np.ndarray, split: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for evaluation."""
    if (split >= 0).all():
        return np.flatnonzero(split == TRAIN), np.flatnonzero(split == EVALUATION)
    n = len(group)
    wanted = max(2, n // batch_size // 4) * batch_size
    order = RandomState(0).permutation(int(group.max()) + 1)
    by_group = np.argsort(order[group], kind="stable")
    first = n - wanted
    while 0 < first < n and order[group[by_group[first]]] == order[group[by_group[first - 1]]]:
        first -= 1  # to the beginning of a group
    if first < batch_size:  # the groups are too large for that
        first = max(0, n - wanted)
    return np.sort(by_group[:first]), np.sort(by_group[first:])


def _jsonl(data: bytes, problems: list[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    for line, text in _lines(data, problems):
        if text.strip():
            try:
                yield line, json.loads(text, object_pairs_hook=_once_each)
            except (ValueError, RecursionError) as error:
                problems.append((line, f"not JSON ({error})"))


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise ValueError(f"the field {twice[0]!r} twice")
    return {name: value for name, value in pairs if value is not None or name in REQUIRED}


def _csv(data: bytes, problems: list[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    texts = [text for _, text in _lines(data, problems)]
    if problems:
        return
    blank = next((i for i, text in enumerate(texts) if text.strip()), 0)  # lines before the header
    reader = csv.DictReader(texts[blank:], strict=True)
    line = blank + 1  # where the row begins that is read next
    try:
        header = reader.fieldnames or ()
        if twice := sorted(name for name, n in Counter(header).items() if n > 1):
            problems.append((line, f"the column {twice[0]!r} twice"))
            return
        line = blank + reader.line_num + 1
        for row in reader:
            if None in row or None in row.values():
                problems.append((line, f"not as many cells as the header, which has {len(header)}"))
                line = blank + reader.line_num + 1
                continue
            record: dict[str, Any] = {key: cell for key, cell in row.items() if cell or key in REQUIRED}
            for key in {"answer", "wrong"} & record.keys():
                record[key] = _list_in_cell(record[key])
            yield line, record
            line = blank + reader.line_num + 1
    except csv.Error as error:
        problems.append((line, f"not CSV ({error})"))


def _list_in_cell(cell: Any) -> Any:
    """A cell that holds a JSON list of texts as that list; any other as it is."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(cell)
            if all(isinstance(word, str) for word in found):
                return found
    return cell


def _lines(data: bytes, problems: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        problems.append((1, "UTF-16 text; save the file as UTF-8"))
        return
    for line, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True), 1):
        try:
            yield line, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            problems.append((line, f"not UTF-8 text: byte 0x{raw[error.start]:02x} at {error.start + 1}"))


def _problems(record: Any) -> list[str]:
    """What is wrong with the form of a line."""
    if not isinstance(record, dict):
        return [f"not an object with {', '.join(REQUIRED)}"]
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return ["not Unicode text: half of a surrogate pair"]
    except RecursionError:
        return ["nested too deep"]
    found = [f"no {name!r}" for name in REQUIRED if name not in record]
    for name, value in record.items():
        if name not in REQUIRED + OPTIONAL:
            near = get_close_matches(str(name), REQUIRED + OPTIONAL, n=1)
            found.append(f"unknown field {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif name in ("answer", "wrong"):
            words = [value] if isinstance(value, str) else value
            if not isinstance(words, list) or not words or not all(isinstance(w, str) and w for w in words):
                found.append(f"{name!r} is neither a text nor a list of texts")
        elif name == "group":
            if not isinstance(value, str | int):
                found.append("'group' is neither a text nor a whole number")
        elif not isinstance(value, str) or not value:
            found.append(f"{name!r} is not a text")
        elif name == "split" and value not in SPLITS:
            found.append(f"'split' is {value!r}, neither train nor evaluation")
    if not found:
        if both := set(_texts(record["answer"])) & set(_texts(record["wrong"])):
            found.append(f"{min(both)!r} is an answer and a wrong one")
        for name in ("answer", "wrong"):
            twice = sorted(word for word, n in Counter(_texts(record[name])).items() if n > 1)
            found += [f"{word!r} is in {name!r} twice" for word in twice]
        if record.get("corrupted") == record["prompt"]:
            found.append("the corrupted prompt is the prompt itself")
    return found


def _texts(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _example(record: dict[str, Any], line: int) -> Example:
    group = record.get("group", f"line {line}")
    return Example(record["prompt"], _texts(record["answer"]), _texts(record["wrong"]), group, record.get("corrupted"))


def _pieces(vocabulary: Vocabulary, context: str, row: list[int], word: str) -> str | None:
    """How an answer splits, and what to do, or None if it is a single token."""
    longer = vocabulary.encode(context + word)
    if longer[:-1] == row:
        return None
    start = next((i for i, (a, b) in enumerate(zip(row, longer, strict=False)) if a != b), min(len(row), len(longer)))
    pieces = " ".join(repr(vocabulary.tokenizer.decode([token])) for token in longer[start:])
    spaced = f" {word}"
    if not word.startswith(" ") and vocabulary.encode(context + spaced)[:-1] == row:
        return f"{pieces}. With a space before it, {spaced!r}, it is"
    if start < len(row):
        return f"{pieces}. It melts into the prompt's end; does the prompt end in a space?"
    return pieces


def _raise(path: Path, problems: list[tuple[int, str]]) -> None:
    """:raises UsageError: there are problems; all of them, up to 20, in the order of the lines."""
    if not problems:
        return
    listed = [f"  line {line}: {problem}" for line, problem in sorted(problems, key=lambda p: p[0])[:SHOWN]]
    more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise UsageError(f"{path}: {count}\n" + "\n".join(listed) + more)
