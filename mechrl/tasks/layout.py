"""What the columns of a task file mean: mechrl's own, and those of files that other tools read.

EAP-IG has tables of `clean`, `corrupted` and token ids, AutoCircuit has JSON of `clean`, `corrupt`, `answers` and
`wrong_answers`, MIB has rows of `prompt`, `choices`, `answerKey` and counterfactual records.
"""

import ast
import contextlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from mechrl.tasks.records import Records, plain_names

PROMPTS, TWINS = ("prompt", "clean"), ("corrupted", "corrupt")
OPTIONAL = ("group", "split", "join")
# What the columns of answers hold: texts that go on from the prompt letter by letter; words without their space;
# token ids; choices and which of them is right; a number, the twin's being wrong; the last two digits of a year.
TEXTS, WORDS, IDS, CHOICES, OF_TWIN, YEARS = "texts", "words", "token ids", "choices", "of twin", "years"
PAIRS = (
    ("answer", "wrong", TEXTS, "mechrl"),
    ("answers", "wrong_answers", TEXTS, "AutoCircuit"),
    ("choices", "answerkey", CHOICES, "MIB"),
    ("correct_idx", "incorrect_idx", IDS, "EAP-IG"),
    ("answers_idx", "corrupted_answers_idx", IDS, "EAP-IG"),
    ("clean_answer_idx", "corrupted_answer_idx", IDS, "EAP-IG"),
    ("country_idx", "corrupted_country_idx", IDS, "EAP-IG"),
    ("label", "corrupted_label", WORDS, "EAP-IG"),
    ("answers", "corrupted_answers", WORDS, "EAP-IG"),
    ("clean_answer", "corrupted_answer", WORDS, "EAP-IG"),
    ("country", "corrupted_country", WORDS, "EAP-IG"),
)
LABELS = {ids: (ids.removesuffix("_idx"), wrong.removesuffix("_idx")) for ids, wrong, kind, _ in PAIRS if kind == IDS}
LABELS["correct_idx"] = ("label", "corrupted_label")
YEAR_COLUMNS = ("correct_idx", "label")  # alone, they hold years
COUNTERFACTUALS = ("s2_io_flip_counterfactual", "symbol_counterfactual", "random_counterfactual")  # what MIB takes
KNOWN = {*PROMPTS, *TWINS, *OPTIONAL, *COUNTERFACTUALS, *(name for pair in PAIRS for name in pair[:2])}
INDEX = re.compile(r"unnamed: \d+|__index_level_\d+__")  # of pandas
LONGEST_CELL = 131_072  # letters; as in a table
LOOKED_AT = 100  # unknown columns, for what was meant by them


@dataclass(frozen=True)
class Layout:
    """Which columns hold what.

    :param kind: what `answer` and `wrong` hold; of years and of twins' answers there is no column `wrong`.
    :param origin: the tool whose files look like this.
    :param twin: the column of counterfactual twins, which may hold whole records.
    :param labels: columns of words which the token ids must be.
    :param in_cells: whether a list of texts is written into a cell.
    """

    prompt: str
    answer: str
    wrong: str
    kind: str
    origin: str
    twin: str = ""
    labels: tuple[str, str] | None = None
    in_cells: bool = False

    @property
    def columns(self) -> set[str]:
        """All that are read."""
        return {self.prompt, self.answer, self.wrong, self.twin, *(self.labels or ()), *OPTIONAL}

    def described(self, names: dict[str, str]) -> str:
        """For people: what was recognised, and how it is read; nothing for mechrl's own form.

        :param names: of the columns, as the file writes them.
        """
        if self.origin == "mechrl" and {self.prompt, self.twin} <= {"prompt", "corrupted", ""}:
            return ""
        arrows = [f"{names[self.prompt]} → prompt"]
        if self.twin:
            arrows.append(f"{names[self.twin]} → corrupted")
        answer, wrong = names.get(self.answer, self.answer), names.get(self.wrong, self.wrong)
        arrows += {
            TEXTS: [f"{answer} → answer", f"{wrong} → wrong"],
            WORDS: [f"{answer} → answer", f"{wrong} → wrong (with a space before them)"],
            IDS: [f"{answer} → answer", f"{wrong} → wrong (token ids)"],
            CHOICES: [f"that of {answer} which {wrong} names → answer, the others → wrong (with a space before them)"],
            OF_TWIN: [f"{answer} → answer, the twin's {answer} → wrong (with a space before them)"],
            YEARS: [f"years: the two digits above {answer} → answer, the others → wrong"],
        }[self.kind]
        return f"read as a file of {self.origin}: {', '.join(arrows)}"

    def native(self, record: dict[str, Any]) -> dict[str, Any]:
        """A record in mechrl's own form; `answer` and `wrong` may be token ids, `labels` what these should say.

        :raises ValueError: it does not fit the form.
        """
        found = {name: record[name] for name in OPTIONAL if name in record}
        if self.prompt in record:
            found["prompt"] = record[self.prompt]
        twin = self._twin(record)
        if isinstance(twin, dict) and twin.get("prompt"):
            found["corrupted"] = twin["prompt"]
        elif twin is not None and not isinstance(twin, dict):
            found["corrupted"] = twin
        prompt = found.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            return found
        found |= self._answers(record, prompt, twin)
        if isinstance(join := found.get("join"), str):
            found["join"] = {"true": True, "false": False}.get(join.strip().lower(), join)
        numbers = [str(word).isdigit() for name in ("answer", "wrong") for word in as_list(found.get(name))]
        if self.origin != "mechrl" and self.kind != IDS and prompt[-1].isdigit() and all(numbers):
            found.setdefault("join", True)
        return found

    def _twin(self, record: dict[str, Any]) -> Any:
        twin = record.get(self.twin)
        if self.twin in TWINS:
            return twin
        twin = read_cell(twin, dict)
        return plain_names(twin) if isinstance(twin, dict) else twin

    def _answers(self, record: dict[str, Any], prompt: str, twin: Any) -> dict[str, Any]:
        if self.kind == YEARS:
            return _years(record, self.answer, prompt)
        if self.kind == CHOICES:
            return _choices(record, self.answer, self.wrong, prompt)
        if self.kind == OF_TWIN:
            values = {"answer": record.get(self.answer)}
            values["wrong"] = twin.get(self.answer) if isinstance(twin, dict) else None
            return {name: [_spaced(str(value), prompt)] for name, value in values.items() if value is not None}
        found = {}
        for name, column in (("answer", self.answer), ("wrong", self.wrong)):
            if column in record:
                found[name] = record[column]
                if self.in_cells or self.kind == IDS:
                    found[name] = read_cell(record[column], list, str if self.kind == TEXTS else (str, int))
                if self.kind == IDS:
                    found[name] = [_id(value, column) for value in as_list(found[name])]
                elif self.kind == WORDS:
                    found[name] = [_spaced(str(value), prompt) for value in as_list(found[name])]
        if self.labels:
            words = [as_list(read_cell(record.get(column), list)) for column in self.labels]
            for column, labels, ids in zip(self.labels, words, (found.get("answer"), found.get("wrong")), strict=True):
                if len(labels) != len(ids or []):
                    raise ValueError(f"{len(ids or [])} token ids and {len(labels)} words in {column!r}")
            found["labels"] = [str(word) for column_words in words for word in column_words]
        return found


def recognise(records: Records) -> tuple[Layout | None, list[str]]:
    """The form of a file's columns, or None, and what is wrong with them, once for the whole file."""
    names = records.names
    prompt = next((name for name in PROMPTS if name in names), "")
    pair = next((pair for pair in PAIRS if {*pair[:2]} <= names.keys()), None)
    twin = next((name for name in (*TWINS, *COUNTERFACTUALS) if name in names), "")
    twin = twin or next((name for name in names if name.endswith("counterfactual")), "")
    layout, in_cells = None, bool(records.separated)
    if prompt and pair:
        labels = LABELS.get(pair[0])
        has_labels = pair[2] == IDS and labels is not None and set(labels) <= names.keys()
        layout = Layout(prompt, *pair, twin, labels if has_labels else None, in_cells)
    elif prompt and "label" in names and twin and twin not in TWINS:
        layout = Layout(prompt, "label", "", OF_TWIN, "MIB", twin)
    elif prompt and (year := next((name for name in YEAR_COLUMNS if name in names), "")):
        first = next((record[year] for _, record in records.rows if year in record), "")
        if re.fullmatch(r"\d\d?", str(first)):
            layout = Layout(prompt, year, "", YEARS, "EAP-IG", twin)
    read = layout.columns if layout else KNOWN
    unread = [name for name in names if name not in read and not INDEX.fullmatch(name)]
    if layout is None:
        return None, _missing(names, prompt, unread)
    absent = [
        name for name in ("corrupted", *OPTIONAL) if name not in names and (name != "corrupted" or not layout.twin)
    ]
    misspelt = [(name, near[0]) for name in unread[:LOOKED_AT] if (near := get_close_matches(name, absent, 1, 0.8))]
    return layout, [f"unknown field {names[name]!r}; did you mean {near!r}?" for name, near in misspelt]


def ignored(records: Records, layout: Layout) -> list[str]:
    """The columns of a file that are ignored, as it writes them; pandas' index is none."""
    return [
        written for name, written in records.names.items() if name not in layout.columns and not INDEX.fullmatch(name)
    ]


def _missing(names: dict[str, str], prompt: str, unread: Sequence[str]) -> list[str]:
    """What a file lacks that has the columns of no form."""
    halves = [pair for pair in PAIRS if pair[0] in names or pair[1] in names]
    answers = halves[0][:2] if halves else ("answer", "wrong")
    missing = [name for name in answers if name not in names]
    problems = []
    for name in (*(() if prompt else ("prompt",)), *missing):
        problems.append(missing_field(name, {names[other] for other in unread[:LOOKED_AT]}))
    if not halves:
        shown = ", ".join(map(repr, list(names.values())[:10])) + (", …" if len(names) > 10 else "")
        problems[-1] += f"; the file has {shown or 'no fields'}"
    return problems


def missing_field(name: str, others: Collection[str]) -> str:
    """That a field is not there, and which of others may be a slip for it."""
    near = get_close_matches(name, sorted(others), 1)
    return f"no {name!r}" + (f", but {near[0]!r}; did you mean {name!r}?" if near else "")


def as_list(value: Any) -> list[Any]:
    """Several things as they are, one as a list of one, nothing as an empty list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def read_cell(cell: Any, kind: type, of: Any = (str, int)) -> Any:
    """A cell that holds a list, of some types, or a record, as JSON or as Python writes it; any other as it is."""
    if isinstance(cell, str) and len(cell) <= LONGEST_CELL and cell.lstrip()[:1] == ("[" if kind is list else "{"):
        if re.search(r"""['"]\s+['"][^,\]]""", cell):  # as numpy prints a list, which Python would read as one text
            return cell
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = read(cell.strip())
                if kind is dict or (found and all(isinstance(word, of) for word in found)):
                    return found
    return cell


def _spaced(word: str, prompt: str) -> str:
    """A word as it goes on from a prompt: with a space before it, unless it goes on with a number or a quotation."""
    before = prompt[-1]
    goes_on = before.isspace() or before in "“‘([{" or _opens(prompt) or (before.isdigit() and word.isdigit())
    return word if goes_on or word[:1].isspace() else f" {word}"


def _opens(prompt: str) -> bool:
    """Whether a prompt ends in a quotation mark that begins a quotation."""
    return prompt[-1] in "\"'" and prompt.count(prompt[-1]) % 2 == 1


def _id(value: Any, column: str) -> int:
    if not isinstance(value, bool) and (found := re.fullmatch(r"\s*(\d{1,9})(\.0)?\s*", str(value))):
        return int(found[1])
    raise ValueError(f"{column!r} is {short(value)}, not a token id")


def _years(record: dict[str, Any], column: str, prompt: str) -> dict[str, Any]:
    value: Any = record.get(column)
    if not re.fullmatch(r"\d\d?", str(value)):
        raise ValueError(f"{column!r} is {short(value)}, not the last two digits of a year")
    if not re.search(r"\d\d$", prompt):
        raise ValueError("the prompt does not end in the first two digits of a year")
    if int(value) > 98:
        raise ValueError(f"{column!r} is {value}, and no two digits are above it")
    years = [f"{year:02}" for year in range(100)]
    return {"answer": years[int(value) + 1 :], "wrong": years[: int(value) + 1]}


def _choices(record: dict[str, Any], column: str, key_column: str, prompt: str) -> dict[str, Any]:
    choices = read_cell(read_cell(record.get(column), list), dict)
    labels = None
    if isinstance(choices, dict):
        choices = labels = plain_names(choices).get("label")
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"{column!r} is no list of two or more")
    words = [str(choice) for choice in choices]
    key: Any = record.get(key_column)
    letters = [str(label) for label in labels] if labels else [chr(ord("A") + i) for i in range(len(words))]
    if isinstance(key, str) and key.strip() in letters:
        right = letters.index(key.strip())
    elif not isinstance(key, bool) and re.fullmatch(r"\d{1,3}", str(key).strip()) and int(key) < len(words):
        right = int(key)
    else:
        raise ValueError(f"{key_column!r} is {short(key)}, none of the {len(words)} choices")
    return {
        "answer": [_spaced(words[right], prompt)],
        "wrong": [_spaced(word, prompt) for i, word in enumerate(words) if i != right],
    }


def short(value: Any) -> str:
    """A value for a message."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:59] + "…"
