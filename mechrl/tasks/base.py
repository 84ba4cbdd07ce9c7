"""What a task is, and how its prompts are drawn: seeded, single-token slots, one half of each pool a split."""

import inspect
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.random import RandomState

from mechrl.errors import UsageError
from mechrl.vocabulary import Vocabulary

TRAIN, EVALUATION = 0, 1


Filler = str | tuple[str, ...]  # of a slot; several words that belong together are one filler


def words_fit(vocabulary: Vocabulary, filler: Filler) -> bool:
    """Whether each word of a filler is a single token where it continues a sentence."""
    words = (filler,) if isinstance(filler, str) else filler
    return all(vocabulary.single(f" {word}") is not None for word in words)


@dataclass(frozen=True)
class Pool:
    """The fillers of one slot.

    :param words: the fillers, without the leading space; None for every word-like token of the tokenizer.
    :param least: how many must be left, over both splits, once fillers that do not fit the tokenizer are dropped.
    :param shared: both splits use all of it; else each has a half of its own.
    :param fits: whether a filler can be used with a tokenizer.
    :param must: what a filler that fits is, for the message where too few are.
    """

    words: tuple[Filler, ...] | None
    least: int
    shared: bool = False
    fits: Callable[[Vocabulary, Any], bool] = words_fit
    must: str = "single tokens"


@dataclass(frozen=True)
class Example:
    """One prompt before it is tokenized.

    :param context: the text, or the token ids of a task over random tokens; BOS not included.
    :param answers: right next tokens, as text that goes on from the context letter by letter, or as ids.
    :param wrongs: wrong next tokens, likewise.
    :param group: what the prompt shares with others of its group: the slot fillers that matter.
    :param corrupted: the counterfactual twin: a context of as many tokens in which the answers are not right, or None.
    :param join: the answer goes on inside the prompt's last word.
    """

    context: str | Sequence[int]
    answers: Sequence[str] | Sequence[int]
    wrongs: Sequence[str] | Sequence[int]
    group: Hashable
    corrupted: str | Sequence[int] | None = None
    join: bool = False


@dataclass(frozen=True)
class Task:
    """A behaviour: a generator of prompts with answers and wrongs.

    :param name: what it is called in flags and files.
    :param family: the kind of behaviour; what is learned on one task may well fit others of its family.
    :param source: the paper it comes from.
    :param pools: slot name to `Pool`.
    :param draw: makes one example from a random state and the pools of one split.
    :param version: raised whenever the prompts of a seed change; no two forms of a task ever have the same one.
    :param other_form: the same behaviour, asked in another way, for tokenizers that this form does not fit.
    """

    name: str
    family: str
    source: str
    pools: Mapping[str, Pool]
    draw: Callable[[RandomState, Mapping[str, Sequence[Any]]], Example]
    version: int = 1
    other_form: "Task | None" = None

    @property
    def forms(self) -> tuple["Task", ...]:
        """This form and the others, in the order in which a tokenizer tries them."""
        return (self, *(self.other_form.forms if self.other_form else ()))

    @property
    def about(self) -> str:
        """What is asked, what is wrong, what the twin is, and which models are known to do it, of every form."""
        return "\n\n".join(inspect.cleandoc(form.draw.__doc__ or "") for form in self.forms)


@dataclass(frozen=True)
class Prompts:
    """Tokenized prompts, each read at position `length - 1`.

    tokens int32 [prompt, position], right-padded with 0; length int32 [prompt]; answers and wrongs int32
    [prompt, k], padded with -1; group int32 [prompt]; split uint8 [prompt], 0 train and 1 evaluation; corrupted
    int32 [prompt, position], the counterfactual twins, each as long as its prompt, or None where there are none.
    """

    tokens: np.ndarray
    length: np.ndarray
    answers: np.ndarray
    wrongs: np.ndarray
    group: np.ndarray
    split: np.ndarray
    corrupted: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | np.ndarray) -> "Prompts":
        columns: dict[str, Any] = {
            name: None if column is None else column[rows] for name, column in vars(self).items()
        }
        return Prompts(**columns)


class Usable(NamedTuple):
    """What a tokenizer can use of a task.

    :param pools: slot name to the fillers that fit the tokenizer.
    :param dropped: slot name to how many do not.
    :param form: the form of the task whose pools these are.
    """

    pools: dict[str, list[Any]]
    dropped: dict[str, int]
    form: Task


def usable_pools(task: Task, vocabulary: Vocabulary) -> Usable:
    """The first form of a task that fits a tokenizer, and which of its fillers do.

    :raises UsageError: in every form a pool is left with fewer than its `least` fillers.
    """
    too_few = []
    for form in task.forms:
        pools: dict[str, list[Any]] = {}
        dropped = {}
        for slot, pool in form.pools.items():
            if pool.words is None:
                pools[slot], dropped[slot] = vocabulary.word_ids, 0
            else:
                pools[slot] = [filler for filler in pool.words if pool.fits(vocabulary, filler)]
                dropped[slot] = len(pool.words) - len(pools[slot])
            if len(pools[slot]) < pool.least:
                too_few.append(
                    f"only {len(pools[slot])} of its {slot} fillers are {pool.must} in this tokenizer, and it needs "
                    f"{pool.least}"
                )
                break
        else:
            return Usable(pools, dropped, form)
    raise UsageError(f"task {task.name!r}: {'; in its other form '.join(too_few)}. Leave the task out.")


def split_pools(task: Task, pools: Mapping[str, list[Any]], split: int) -> dict[str, list[Any]]:
    """The half of every pool that belongs to `split`; the same halves for every seed. Shared pools stay whole."""
    halves = {}
    for slot, fillers in pools.items():
        if task.pools[slot].shared:
            halves[slot] = fillers
            continue
        order = RandomState(zlib.crc32(f"{task.name}/{slot}".encode())).permutation(len(fillers))
        middle = (len(fillers) + 1) // 2
        chosen = order[:middle] if split == TRAIN else order[middle:]
        halves[slot] = [fillers[i] for i in sorted(chosen)]
    return halves


def generate(task: Task, vocabulary: Vocabulary, n: int, split: int, seed: int = 0) -> Prompts:
    """`n` different prompts of one split, the same for a seed on every machine; of the form that the tokenizer fits.

    Drawn from numpy's `RandomState`, whose stream is frozen for good; more prompts of the same seed begin with the
    same ones.

    :raises UsageError: a pool is too small, or the pools do not hold `n` different prompts.
    """
    usable = usable_pools(task, vocabulary)
    pools = split_pools(usable.form, usable.pools, split)
    rng = RandomState([seed, zlib.crc32(task.name.encode()), split])
    examples: dict[Hashable, Example] = {}
    for _ in range(20 * n + 100):
        if len(examples) == n:
            break
        example = usable.form.draw(rng, pools)
        examples.setdefault(example.context if isinstance(example.context, str) else tuple(example.context), example)
    else:
        raise UsageError(f"task {task.name!r}: its pools hold only {len(examples)} different prompts, not {n}")
    return tokenize(task.name, list(examples.values()), vocabulary, split)


def tokenize(name: str, examples: Sequence[Example], vocabulary: Vocabulary, split: int) -> Prompts:
    """Examples as arrays; groups are numbered in the order of their first prompt.

    :raises UsageError: an answer or a wrong is not a single token after its prompt, a counterfactual twin is longer or
        shorter than its prompt, or the model has no row for a token.
    """

    def encoded(context: str | Sequence[int]) -> list[int]:
        return vocabulary.encode(context) if isinstance(context, str) else vocabulary.with_bos(context)

    rows = [encoded(example.context) for example in examples]
    twins = [encoded(example.corrupted) for example in examples if example.corrupted is not None]
    for example, row, twin in zip(examples, rows, twins, strict=False):
        if len(row) != len(twin):
            raise UsageError(
                f"task {name!r}: {example.corrupted!r} has {len(twin)} tokens and {example.context!r} has {len(row)}"
            )
    groups: dict[Hashable, int] = {}

    def ids(example: Example, words: Sequence[str] | Sequence[int], row: list[int]) -> list[int]:
        found = []
        for word in words:
            if isinstance(word, str):
                longer = vocabulary.encode(f"{example.context}{word}")
                if longer[:-1] != row:
                    raise UsageError(f"task {name!r}: {word!r} is not a single token after {example.context!r}")
                found.append(longer[-1])
            else:
                found.append(int(word))
        return found

    answers = [ids(example, example.answers, row) for example, row in zip(examples, rows, strict=True)]
    wrongs = [ids(example, example.wrongs, row) for example, row in zip(examples, rows, strict=True)]
    for example, row in zip(examples, rows, strict=True):
        if isinstance(example.context, str) and vocabulary.unknown_in(example.context, row):
            raise UsageError(f"task {name!r}: the tokenizer does not know a part of {example.context!r}")
    if problem := vocabulary.beyond({token for of in (*rows, *twins, *answers, *wrongs) for token in of}):
        raise UsageError(f"task {name!r}: {problem}")
    return Prompts(
        tokens=padded(rows, 0),
        length=np.array([len(row) for row in rows], np.int32),
        answers=padded(answers, -1),
        wrongs=padded(wrongs, -1),
        group=np.array([groups.setdefault(e.group, len(groups)) for e in examples], np.int32),
        split=np.full(len(rows), split, np.uint8),
        corrupted=padded(twins, 0) if len(twins) == len(rows) else None,
    )


def as_text(prompts: Prompts, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Prompts for people: text of the prompt, its answers, its wrongs and its twin, without BOS."""
    decode, begin = vocabulary.tokenizer.decode, int(vocabulary.bos is not None)
    texts = []
    for i, n in enumerate(prompts.length.tolist()):
        text = {"prompt": decode(prompts.tokens[i, begin:n])}
        for name, ids in (("answer", prompts.answers[i]), ("wrong", prompts.wrongs[i])):
            text[name] = [decode([token]) for token in ids.tolist() if token >= 0]
        if prompts.corrupted is not None:
            text["corrupted"] = decode(prompts.corrupted[i, begin:n])
        texts.append(text)
    return texts


def padded(rows: Sequence[Sequence[int]], fill: int, width: int = 0) -> np.ndarray:
    """Rows of unequal length as one int32 array, filled up on the right."""
    array = np.full((len(rows), max([width, *map(len, rows)])), fill, np.int32)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def join(parts: Sequence[Prompts]) -> Prompts:
    """Prompts one after the other, brought to one width; groups of different parts stay apart.

    Counterfactual twins are kept if all parts have them.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in vars(parts[0])}
    first_group = 0
    for part in parts:
        for name, column in vars(part).items():
            columns[name].append(column + first_group if name == "group" else column)
        first_group += int(part.group.max()) + 1
    width = {"tokens": 0, "corrupted": 0, "answers": -1, "wrongs": -1}

    def stacked(name: str, arrays: list[np.ndarray]) -> Any:
        if any(a is None for a in arrays):
            return None
        if name not in width:
            return np.concatenate(arrays)
        widest = max(a.shape[1] for a in arrays)
        return np.concatenate(
            [np.pad(a, ((0, 0), (0, widest - a.shape[1])), constant_values=width[name]) for a in arrays]
        )

    return Prompts(**{name: stacked(name, arrays) for name, arrays in columns.items()})
