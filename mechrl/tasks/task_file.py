"""Tasks from a user's file: its prompts checked as a whole, line by line, before any model is run."""

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mechrl.errors import UsageError
from mechrl.progress import say, warn
from mechrl.tasks.base import EVALUATION, TRAIN, Example
from mechrl.tasks.layout import IDS, KNOWN, LOOKED_AT, Layout, as_list, ignored, missing_field, recognise, short
from mechrl.tasks.records import ENDINGS, Problem, Records, read_records

SPLITS = {"train": TRAIN, "evaluation": EVALUATION}
SHOWN = 20  # problems that a message lists
LARGEST = 256 * 2**20  # bytes of a file
LONGEST = 1_000_000  # letters of a text


@dataclass(frozen=True)
class TaskFile:
    """A behaviour that somebody wrote down.

    :param name: what the task is called.
    :param sha256: of the file.
    :param examples: its prompts, in the order of the file; their answers may be token ids.
    :param lines: the line of each, for messages.
    :param split: int8 [prompt], 0 train and 1 evaluation, or -1 where the file does not say.
    :param unit: what `lines` counts: "line", or "record" where a line holds several.
    :param read_as: whose columns were recognised, and how they are read; nothing for mechrl's own.
    :param ignored: the columns that are not read.
    :param ids: the columns of token ids, if answers are such.
    :param labels: the words that the token ids of each prompt must be, if the file has them.
    :param skip_bad_lines: whether records that do not fit are left out; `skipped` of them are.
    :param dropped: answers and wrongs that are left out of records that fit, see `mechrl.tasks.fitting.check_file`.
    """

    path: Path
    name: str
    sha256: str
    examples: Sequence[Example]
    lines: Sequence[int]
    split: np.ndarray
    unit: str = "line"
    read_as: str = ""
    ignored: tuple[str, ...] = ()
    ids: tuple[str, str] | None = None
    labels: Sequence[Sequence[str]] | None = None
    skip_bad_lines: bool = False
    skipped: int = 0
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.examples)


def read_task_file(
    path: Path, taken: Collection[str] = (), *, name: str | None = None, skip_bad_lines: bool = False
) -> TaskFile:
    """A task from a file of JSON (.jsonl, .json) or from a table with a header (.csv, .tsv, .txt).

    Each record has `prompt`, `answer` and `wrong`, and may have `corrupted`, `group`, `split` (train or evaluation)
    and `join` (true: the answer goes on inside the prompt's last word). `answer` and `wrong` are a text or a list of
    texts, each going on from the prompt letter by letter: " Paris", with its space. Columns of EAP-IG, AutoCircuit and
    MIB are read, too; `TaskFile.read_as` says how.

    :param taken: names that are not free for it.
    :param name: what to call the task; by default as the file is called.
    :param skip_bad_lines: leave out records that do not fit.
    :raises UsageError: no such file, or not of this form; the message names every line that is wrong. With
        `skip_bad_lines` only if fewer than three quarters would be left.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"{path}: a task file ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    name = _task_name(path, name, taken)
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise UsageError(f"{path} has {size / 2**20:.0f} MiB, and a task file at most {LARGEST / 2**20:.0f}")
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    records = read_records(data, path.suffix.lower(), KNOWN)
    file = TaskFile(path, name, hashlib.sha256(data).hexdigest(), (), (), np.array([]), records.unit)
    if records.fatal or not records.rows:
        _raise(file, records.fatal + records.faults)
    layout, header_problems = recognise(records)
    _raise(file, [(records.header, problem) for problem in header_problems])
    assert layout is not None  # or the header would be at fault
    rows, problems = _rows(records, layout)
    separated = f"separated by {records.separated}" if records.separated not in ("", "commas") else ""
    file = replace(
        file,
        examples=[row.example for row in rows],
        lines=[row.place for row in rows],
        split=np.array([row.split for row in rows], np.int8),
        read_as="; ".join(filter(None, (layout.described(records.names), separated))),
        ignored=tuple(ignored(records, layout)),
        ids=(layout.answer, layout.wrong) if layout.kind == IDS else None,
        labels=[row.labels for row in rows] if layout.labels else None,
        skip_bad_lines=skip_bad_lines,
    )
    return without(file, problems, len(problems))


def read_task_files(
    paths: Sequence[Path], taken: Collection[str] = (), *, names: Sequence[str] = (), skip_bad_lines: bool = False
) -> tuple[TaskFile, ...]:
    """Several task files; what was recognised in them, and what is ignored, is said.

    :param names: what to call their tasks, one for each file, or nothing.
    """
    files = []
    for path, name in itertools.zip_longest(paths, names):
        files.append(file := read_task_file(path, taken, name=name, skip_bad_lines=skip_bad_lines))
        if file.read_as:
            say(f"{path}: {file.read_as}")
        if file.ignored:
            shown = ", ".join(column[:40] for column in file.ignored[:5])
            more = f" and {len(file.ignored) - 5} more" if len(file.ignored) > 5 else ""
            warn(f"{path}: columns that are not read: {shown}{more}")
    return tuple(files)


class _Row(NamedTuple):
    """A record that is of the right form."""

    place: int
    example: Example
    split: int
    labels: Sequence[str]


def _rows(records: Records, layout: Layout) -> tuple[list[_Row], dict[int, list[str]]]:
    """The records of the right form, and by place what is wrong: with others, or with these for lack of a field."""
    problems: dict[int, list[str]] = {}
    for place, problem in records.faults:
        problems.setdefault(place, []).append(problem)
    rows = []
    seen: dict[str, int] = {}
    for place, given in records.rows:
        try:
            record = layout.native(given)
            found = _problems(record, layout, given)
        except RecursionError:
            found = ["nested too deep"]
        except ValueError as error:
            found = [str(error)]
        if not found and seen.setdefault(record["prompt"], place) != place:
            found = [f"the prompt of {records.unit} {seen[record['prompt']]} again"]
        if found:
            problems[place] = found
            continue
        split = SPLITS.get(record.get("split", ""), -1)
        rows.append(_Row(place, _example(record, f"line {place}"), split, record.get("labels", ())))
    for what, has in (
        ("corrupted prompt", [row.example.corrupted is not None for row in rows]),
        ("split", [row.split >= 0 for row in rows]),
    ):
        if any(has) and not all(has):
            for row, there in zip(rows, has, strict=True):
                if not there:
                    problems.setdefault(row.place, []).append(f"no {what}, which other lines have")
    return rows, problems


def _task_name(path: Path, name: str | None, taken: Collection[str]) -> str:
    """What a task is called.

    :raises UsageError: it is no name, or not free.
    """
    called = path.stem if name is None else name
    remedy = "rename the file, or give its task another name" if name is None else "give another name"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", called) or called == "control":
        raise UsageError(
            f"{path}: a task is called what its file is, in letters, digits, _ and -, and not 'control'; {remedy}"
        )
    if called in taken:
        raise UsageError(f"{path}: there is a task {called!r} already; {remedy}")
    return called


def without(file: TaskFile, problems: dict[int, list[str]], n: int) -> TaskFile:
    """A file without its records that have problems.

    :param n: how many records that is, the unreadable ones included.
    :raises UsageError: there are some, and they are not to be left out, or are more than a quarter of all.
    """
    if not problems:
        return file
    listed = [(place, problem) for place, found in problems.items() for problem in found]
    kept = [i for i, place in enumerate(file.lines) if place not in problems]
    skipped = file.skipped + n
    if not file.skip_bad_lines:
        few = len(kept) >= 3 * skipped
        _raise(file, listed, hint="\nSkipping bad lines would leave out what does not fit" if few else "")
    if len(kept) < 3 * skipped:
        _raise(file, listed, f"{skipped} of {skipped + len(kept)} {file.unit}s do not fit, and a quarter may;")
    return replace(
        file,
        examples=[file.examples[i] for i in kept],
        lines=[file.lines[i] for i in kept],
        split=file.split[kept],
        labels=None if file.labels is None else [file.labels[i] for i in kept],
        skipped=skipped,
    )


def _problems(record: dict[str, Any], layout: Layout, given: dict[str, Any]) -> list[str]:
    """What is wrong with a record in mechrl's own form.

    :param given: the same as the file has it.
    """
    others = given.keys() - layout.columns if len(given) <= LOOKED_AT else set()
    found = [
        missing_field(column, others) if column else f"no {layout.answer!r} in {layout.twin!r}"
        for name, column in (("prompt", layout.prompt), ("answer", layout.answer), ("wrong", layout.wrong))
        if name not in record and (name == "prompt" or (isinstance(record.get("prompt"), str) and record["prompt"]))
    ]
    kind = int if layout.kind == IDS else str
    for name, value in record.items():
        if name in ("answer", "wrong"):
            words = as_list(value)
            if not words or not all(isinstance(w, kind) and (w or w == 0) for w in words):
                found.append(f"{name!r} is neither a text nor a list of texts")
        elif name == "group":
            if not isinstance(value, str | int):
                found.append("'group' is neither a text nor a whole number")
        elif name == "join":
            if not isinstance(value, bool):
                found.append(f"'join' is {short(value)}, neither true nor false")
        elif name == "labels":
            continue
        elif not isinstance(value, str) or not value:
            found.append(f"{name!r} is not a text")
        elif len(value) > LONGEST:
            found.append(f"{name!r} has {len(value)} letters, and no text may have more than {LONGEST}")
        elif name == "split" and value not in SPLITS:
            found.append(f"'split' is {short(value)}, neither train nor evaluation")
    if not found:
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return ["not Unicode text: half of a surrogate pair"]
        answers, wrongs = as_list(record["answer"]), as_list(record["wrong"])
        if both := set(answers) & set(wrongs):
            found.append(f"{min(both)!r} is an answer and a wrong one")
        for name, words in (("answer", answers), ("wrong", wrongs)):
            twice = sorted(word for word, n in Counter(words).items() if n > 1)
            found += [f"{word!r} is in {name!r} twice" for word in twice]
        if record.get("corrupted") == record["prompt"]:
            found.append("the corrupted prompt is the prompt itself")
    return found


def _example(record: dict[str, Any], group: str) -> Example:
    return Example(
        record["prompt"],
        as_list(record["answer"]),
        as_list(record["wrong"]),
        record.get("group", group),
        record.get("corrupted"),
        record.get("join", False),
    )


def _raise(file: TaskFile, problems: Sequence[Problem], count: str = "", hint: str = "") -> None:
    """:raises UsageError: there are problems; all of them, up to 20, in the order of the lines."""
    if not problems:
        return
    listed = [f"  {file.unit} {place}: {problem}" for place, problem in sorted(problems, key=lambda p: p[0])[:SHOWN]]
    more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    number = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise UsageError(f"{file.path}: {f'{count} {number}'.strip()}\n" + "\n".join(listed) + more + hint)
