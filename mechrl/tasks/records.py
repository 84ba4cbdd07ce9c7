"""Records from a file that somebody has: JSON, however it is spread over lines, or a table; each with its place."""

import csv
import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}

Problem = tuple[int, str]  # a place in a file, and what is wrong there


@dataclass
class Records:
    """What a file holds. The names of fields are in lower case, without the blanks around them.

    :param rows: the records, each with its place.
    :param faults: single records that cannot be read.
    :param fatal: what makes the whole file unreadable.
    :param names: of all fields, and how the file writes them, in the order in which they come.
    :param header: the place where a missing field is missed.
    :param unit: what a place counts: "line", or "record" where a line holds several of them.
    :param separated: by what the cells of a table are; nothing for JSON.
    """

    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    faults: list[Problem] = field(default_factory=list)
    fatal: list[Problem] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    header: int = 1
    unit: str = "line"
    separated: str = ""


def read_records(data: bytes, ending: str, known: Collection[str]) -> Records:
    """The records of a file, and all that is wrong with its form.

    :param ending: of the file's name, in lower case. Whatever the ending, what begins with a bracket is JSON.
    :param known: names of fields, by which the separator of a table is told.
    """
    found = Records()
    lines = _lines(data, found.fatal)
    if found.fatal:
        return found
    begin = "".join(lines[:100]).lstrip()[:1]
    if not begin:
        found.fatal.append((1, "the file is empty"))
    elif ending in (".json", ".jsonl") or begin in "{[":
        _read_json("".join(lines), found)
    else:
        _read_table(lines, known, found)
    return found


def plain_names(record: dict[Any, Any]) -> dict[str, Any]:
    """A record with its names in lower case and without blanks around them; what is null is left out.

    :raises ValueError: two names become one.
    """
    names = [str(name).strip().lower() for name in record]
    _once_each(names)
    return {name: value for name, value in zip(names, record.values(), strict=True) if value is not None}


def _once_each(names: Sequence[str], what: str = "field") -> None:
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise ValueError(f"the {what} {twice[0]!r} twice")


def _lines(data: bytes, problems: list[Problem]) -> list[str]:
    """The lines of a text with their ends, be these of Unix, Windows or an old Mac."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        problems.append((1, "UTF-16 text; save the file as UTF-8"))
        return []
    lines = []
    for line, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True), 1):
        try:
            lines.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            problems.append((line, f"not UTF-8 text: byte 0x{raw[error.start]:02x} at {error.start + 1}"))
        else:
            if "\0" in lines[-1]:
                problems.append((line, "a null byte; save the file as UTF-8 text"))
    return lines


def _read_json(text: str, found: Records) -> None:
    """One record after another, or a list of them, or an object with a list under "prompts"."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    starts = [0, *(end.end() for end in re.finditer("\n", text))]
    values = [(begin, bisect_right(starts, begin), value) for begin, value in _values(text, starts, found)]
    if len(values) == 1 and isinstance(values[0][2], dict) and isinstance(values[0][2].get("prompts"), list):
        begin, line, value = values[0]
        found.names |= {str(name).strip().lower(): str(name) for name in value if name != "prompts"}
        lines = _lines_of_list(text, begin, starts)
        if len(lines) != len(value["prompts"]):  # another "prompts" came first
            lines = [line] * len(value["prompts"])
        values = [(begin, line, value) for line, value in zip(lines, value["prompts"], strict=True)]
    places = [line for _, line, _ in values]
    if len(set(places)) < len(places) and not found.fatal:
        found.unit, places = "record", list(range(1, len(places) + 1))
    for place, (_, _, value) in zip(places, values, strict=True):
        if not isinstance(value, dict):
            broken = (
                f"not JSON ({value})" if isinstance(value, ValueError) else "not an object with prompt, answer, wrong"
            )
            found.faults.append((place, broken))
            continue
        try:
            record = plain_names(value)
        except ValueError as error:
            found.faults.append((place, str(error)))
            continue
        for name in value:
            found.names.setdefault(str(name).strip().lower(), str(name))
        found.rows.append((place, record))
    if found.rows:
        found.header = found.rows[0][0]
    elif not found.faults and not found.fatal:
        found.fatal.append((1, "there are no prompts"))


def _values(text: str, starts: Sequence[int], found: Records) -> Iterator[tuple[int, Any]]:
    """The values of a JSON text, one after another or in one list, and where each begins.

    In a list nothing can be read after what is broken. Elsewhere a broken value comes as its error; from there on every
    line that begins with a brace begins a record.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_number)
    at = _after_blanks(text, 0)
    listed = text.startswith("[", at)
    at = _after_blanks(text, at + listed)
    if listed and text.startswith("]", at):
        return
    line_by_line = False
    while at < len(text):
        begin, line, part, offset = at, bisect_right(starts, at), text, 0
        if line_by_line:
            later = (starts[i] for i in range(line, len(starts)))
            following = next((start for start in later if text.startswith("{", start)), len(text))
            part, offset = text[begin:following], begin
        try:
            value, at = decoder.raw_decode(part, begin - offset)
        except RecursionError:
            found.fatal.append((line, "nested too deep"))
            return
        except ValueError as error:
            if listed:
                found.fatal.append((line, f"not JSON ({_of_json(error, offset, starts)})"))
                return
            if line_by_line:
                yield begin, ValueError(_of_json(error, offset, starts))
                at = following
            line_by_line = True  # this one first, for what is wrong with it alone
            continue
        yield begin, value
        at = _after_blanks(text, at + offset)
        if not listed:
            continue
        if text.startswith("]", at):
            if (at := _after_blanks(text, at + 1)) < len(text):
                found.fatal.append((bisect_right(starts, at), "not JSON (more after the end of the list)"))
            return
        if at < len(text) and not text.startswith(",", at):
            found.fatal.append((bisect_right(starts, at), "not JSON (neither a comma nor the end of the list)"))
            return
        at = _after_blanks(text, at + 1)
    if listed:
        found.fatal.append((bisect_right(starts, len(text.rstrip()) - 1), "not JSON (the list does not end)"))


def _lines_of_list(text: str, begin: int, starts: Sequence[int]) -> list[int]:
    """The lines on which the records of the list under "prompts" begin."""
    key = re.compile(r'"prompts"\s*:\s*(?=\[)').search(text, begin)
    if key is None:
        return []
    rest = text[key.end() :]
    return [bisect_right(starts, key.end() + at) for at, _ in _values(rest, [0], Records())]


def _after_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n":
        at += 1
    return at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _once_each([name for name, _ in pairs])
    return dict(pairs)


def _of_json(error: ValueError, offset: int, starts: Sequence[int]) -> str:
    """What is wrong with JSON, and where."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    at = offset + error.pos
    line = bisect_right(starts, at)
    return f"{error.msg.removesuffix(' at')} at line {line}, letter {at - starts[line - 1] + 1}"


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _read_table(lines: Sequence[str], known: Collection[str], found: Records) -> None:
    blank = next(i for i, text in enumerate(lines) if text.strip())  # lines before the header
    found.header = blank + 1
    best: tuple[tuple[int, int], str, list[str]] | None = None
    failed = ""
    for separator in SEPARATORS:
        try:
            header = next(csv.reader(lines[blank:], delimiter=separator, strict=True))
        except csv.Error as error:
            failed = failed or _of_table(error)
            continue
        rank = sum(name.strip().lower() in known for name in header), len(header)
        if best is None or rank > best[0]:
            best = rank, separator, header
    if best is None:
        found.fatal.append((found.header, failed))
        return
    _, separator, header = best
    names = [name.strip().lower() for name in header]
    try:
        _once_each([name for name in names if name], "column")
    except ValueError as error:
        found.fatal.append((found.header, str(error)))
        return
    found.names = {name: written.strip() for name, written in zip(names, header, strict=True) if name}
    found.separated = SEPARATORS[separator]
    rows = csv.reader(lines[blank:], delimiter=separator, strict=True)
    line = found.header  # where the row begins that is read next
    try:
        for i, cells in enumerate(rows):
            if i and any(cell.strip() for cell in cells):
                if len(cells) == len(names):
                    filled = zip(names, cells, strict=True)
                    found.rows.append((line, {name: cell for name, cell in filled if name and cell}))
                else:
                    other = next((SEPARATORS[s] for s in SEPARATORS if s != separator and s in "".join(cells)), "")
                    found.faults.append(
                        (line, f"not as many cells as the header, which has {len(names)}, but {len(cells)}")
                        if len(cells) > 1 or not other
                        else (line, f"separated by {other} and the header by {SEPARATORS[separator]}")
                    )
            line = blank + rows.line_num + 1
    except csv.Error as error:
        found.fatal.append((line, _of_table(error)))
    if not found.rows and not found.faults and not found.fatal:
        found.fatal.append((found.header, "a header and no rows: there are no prompts"))


def _of_table(error: csv.Error) -> str:
    """What the csv module found, in words that say what to look for."""
    if "field larger than field limit" in str(error):
        return f"a cell of more than {csv.field_size_limit()} letters; is a quote not closed?"
    if "unexpected end of data" in str(error):
        return "not CSV: a quote that is opened in this row is never closed"
    return f"not CSV ({error})"
