"""Where heads of the intact model look: their attention on a task's prompts, prompt by prompt and on average.

It is measured when it is asked for, and no cache holds it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

import mechrl
from mechrl.errors import UsageError, check_range
from mechrl.intervals import LEAST_GROUPS, bootstrap_means, interval
from mechrl.results import Count, Estimate, Head, Result, ResultPart, Share, Text, safe_text
from mechrl.tasks import EVALUATION, Prompts, Task, TaskFile, Vocabulary, generate
from mechrl.tasks.base import tokenize
from mechrl.tasks.fitting import fit_files

if TYPE_CHECKING:  # it needs torch, and who reads a result does not
    from mechrl.models import Model

PROMPTS = 128  # that are drawn of a built-in task; of a file all are taken
MOST_HEADS, MOST_DRAWN, MOST_LENGTHS = 32, 10, 3
LONGEST_DRAWN = 128  # tokens; a larger picture cannot be read
HEAD = re.compile(r"(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})", re.ASCII)
DIGITS = 6


class HeadAttention(ResultPart):
    """Shares of one head's attention from the last position, means over prompts.

    :param first: to the first position, BOS or not.
    :param answers: to all positions that hold an answer, BOS apart, over the prompts with such; None where none has.
    :param wrongs: to all positions that hold a wrong, likewise.
    """

    head: Head
    first: Estimate
    answers: Estimate | None
    wrongs: Estimate | None


class Slot(ResultPart):
    """A position of prompts of one length.

    :param token: the one that most prompts have there; `share` of them have it.
    :param answer: the share of prompts that have an answer there, BOS apart; `wrong` likewise.
    """

    token: Text
    share: Share
    answer: Share
    wrong: Share


class Aligned(ResultPart):
    """Prompts of one length, position by position.

    :param prompts: how many have this length, in how many `groups`.
    :param slots: the positions, the last being the one that looks.
    :param attention: of each head from the last position to each, means over the prompts.
    """

    prompts: Count
    groups: Count
    slots: Annotated[list[Slot], Field(min_length=1)]
    attention: dict[Head, list[Estimate]]

    @model_validator(mode="after")
    def _agree(self) -> "Aligned":
        if any(len(of) != len(self.slots) for of in self.attention.values()):
            raise ValueError("not one number for each position")
        return self


class DrawnPrompt(ResultPart):
    """One prompt, with the whole attention pattern of each head.

    :param text: the prompt, without BOS; `tokens` the text of each token, BOS included.
    :param patterns: a row a query, of the keys up to it: what comes later is not attended to.
    """

    text: Text
    tokens: Annotated[list[Text], Field(min_length=1, max_length=LONGEST_DRAWN)]
    patterns: dict[Head, list[list[Share]]]

    @model_validator(mode="after")
    def _agree(self) -> "DrawnPrompt":
        lengths = list(range(1, len(self.tokens) + 1))
        if any([len(row) for row in rows] != lengths for rows in self.patterns.values()):
            raise ValueError("not one row for each token, of the tokens up to it")
        return self


class Attention(Result):
    """The attention of some heads of the intact model on prompts of a task.

    :param bos: the token before every prompt, "" if there is none.
    :param prompts: how many the means are over, in how many `groups`.
    :param with_answer: how many of them hold an answer as a token, BOS apart; `with_wrong` likewise.
    :param aligned: the most frequent lengths, the most frequent first.
    :param drawn: the first prompts that are not too long for a picture.
    """

    written_by: ClassVar[str] = "mechrl-cache attention"

    format: Literal["mechrl-attention"] = "mechrl-attention"
    format_version: Literal[1] = 1
    mechrl_version: Text
    model: Text
    model_sha256: Text
    task: Text
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    bos: Text
    prompts: Count
    groups: Count
    with_answer: Count
    with_wrong: Count
    heads: Annotated[list[HeadAttention], Field(min_length=1, max_length=MOST_HEADS)]
    aligned: Annotated[list[Aligned], Field(max_length=MOST_LENGTHS)]
    drawn: Annotated[list[DrawnPrompt], Field(max_length=MOST_DRAWN)]

    @model_validator(mode="after")
    def _agree(self) -> "Attention":
        names = {head.head for head in self.heads}
        given = [set(part.attention) for part in self.aligned] + [set(prompt.patterns) for prompt in self.drawn]
        if any(heads != names for heads in given):
            raise ValueError("not every part has the same heads")
        return self

    @property
    def notes(self) -> list[str]:
        """What the means do not cover, and where their intervals say little: a sentence each."""
        found = []
        if left := self.prompts - sum(part.prompts for part in self.aligned):
            found.append(f"{left} prompts of other lengths are in no mean by position")
        if self.groups < LEAST_GROUPS:
            found.append(f"{self.groups} groups of prompts are too few for error bars")
        found += [
            f"the prompts of {len(part.slots)} tokens are in {part.groups} groups: too few for error bars"
            for part in self.aligned
            if part.groups < LEAST_GROUPS <= self.groups
        ]
        if not self.drawn:
            found.append(f"every prompt has more than {LONGEST_DRAWN} tokens: no whole pattern is shown")
        return found


def most_attended(weights: Sequence[float], n: int = 5) -> list[int]:
    """The positions with the largest weights, the largest first, counted from the end: -1 is the last."""
    return [position - len(weights) for position in np.argsort(-np.array(weights), kind="stable")[:n].tolist()]


def parse_heads(heads: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Layer and index of heads, by their names, each once.

    :raises UsageError: there is none, there are too many, or one is not written `layer.head`.
    """
    check_range(heads=(len(set(heads)), 1, MOST_HEADS))
    parsed = {}
    for head in heads:
        if (found := HEAD.fullmatch(head)) is None:
            raise UsageError(f"{head!r} is no head: write layer.head, as in 9.6")
        parsed[head] = int(found[1]), int(found[2])
    return parsed


def measure_attention(
    model: "Model", task: Task | TaskFile, heads: Sequence[str], drawn: int = 3, seed: int = 0
) -> Attention:
    """Measure the attention of some heads on a task's prompts.

    Of a built-in task 128 prompts of the evaluation split are drawn, the first that a build with this seed holds there.
    Means are over prompts, with 95 % intervals by bootstrap over their groups. Prompts of one length are aligned
    position by position: in the built-in tasks these are the slots of the templates.

    :param heads: written `layer.head`, at most 32.
    :param drawn: prompts whose whole patterns are kept, 1 to 10.
    :raises UsageError: a head that the model does not have, a task that does not fit its tokenizer or context, or a
        model whose patterns cannot be read.
    :raises MachineError: a number is not finite, or one prompt alone does not fit in memory.
    """
    from mechrl.ablation.forward import Forward
    from mechrl.ablation.intact.roles import attention_patterns

    check_range(prompts=(drawn, 1, MOST_DRAWN), seed=(seed, 0, 2**32 - 1))
    parsed = parse_heads(heads)
    for head, (layer, index) in parsed.items():
        if layer >= model.n_layers or index >= model.n_heads:
            raise UsageError(
                f"{model.name!r} has no head {head}: its heads are 0.0 to {model.n_layers - 1}.{model.n_heads - 1}"
            )
    prompts, forward = _prompts(model, task, seed), Forward(model)
    sites = [layer * model.n_heads + index for layer, index in parsed.values()]
    last = attention_patterns(forward, prompts, sites, last=True).astype(np.float64)
    chosen = prompts[np.flatnonzero(prompts.length <= LONGEST_DRAWN)[:drawn]]
    whole = attention_patterns(forward, chosen, sites) if len(chosen) else ()
    vocabulary = model.vocabulary
    answers, wrongs = (_holds(prompts, words, vocabulary) for words in (prompts.answers, prompts.wrongs))
    return Attention(
        mechrl_version=mechrl.__version__,
        model=safe_text(model.name),
        model_sha256=model.sha256,
        task=task.name,
        seed=seed,
        bos=safe_text(vocabulary.bos_token),
        prompts=len(prompts),
        groups=len(np.unique(prompts.group)),
        with_answer=int(answers.any(1).sum()),
        with_wrong=int(wrongs.any(1).sum()),
        heads=[
            HeadAttention(
                head=head,
                first=_estimates(last[:, i, :1], prompts.group)[0],
                answers=_on(last[:, i], answers, prompts.group),
                wrongs=_on(last[:, i], wrongs, prompts.group),
            )
            for i, head in enumerate(parsed)
        ],
        aligned=[
            _aligned(prompts[rows], last[rows], list(parsed), vocabulary, answers[rows], wrongs[rows])
            for length, _ in Counter(prompts.length.tolist()).most_common(MOST_LENGTHS)
            for rows in [np.flatnonzero(prompts.length == length)]
        ],
        drawn=[
            DrawnPrompt(
                text=_text(vocabulary, tokens[int(vocabulary.bos is not None) :]),
                tokens=[_text(vocabulary, [token]) for token in tokens],
                patterns={head: _triangle(whole[row][i], length) for i, head in enumerate(parsed)},
            )
            for row, length in enumerate(chosen.length.tolist())
            for tokens in [chosen.tokens[row, :length].tolist()]
        ],
    )


def _prompts(model: "Model", task: Task | TaskFile, seed: int) -> Prompts:
    """:raises UsageError: the task does not fit the model's tokenizer or context."""
    from mechrl.models import check_context, check_length

    if isinstance(task, Task):
        prompts = generate(task, model.vocabulary, PROMPTS, EVALUATION, seed)
    else:
        (file,) = fit_files([task], model.vocabulary, model.n_ctx)
        prompts = tokenize(file.name, file.examples, model.vocabulary, EVALUATION)
    longest = int(prompts.length.max())
    check_context(model, task.name, longest)
    check_length(model, longest)
    return prompts


def _holds(prompts: Prompts, words: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Which positions hold one of a prompt's words, bool [prompt, position], BOS apart.

    :param words: int32 [prompt, k], padded with -1.
    """
    found: np.ndarray = (prompts.tokens[:, :, None] == words[:, None, :]).any(2)
    found &= np.arange(found.shape[1]) < prompts.length[:, None]
    found[:, : int(vocabulary.bos is not None)] = False
    return found[:, : prompts.length.max()]


def _on(attention: np.ndarray, positions: np.ndarray, groups: np.ndarray) -> Estimate | None:
    """The share on some positions, over the prompts that have such.

    :param attention: [prompt, position]; `positions` bool, of the same shape.
    """
    rows = positions.any(1)
    shares = (attention * positions).sum(1, keepdims=True)
    return _estimates(shares[rows], groups[rows])[0] if rows.any() else None


def _estimates(values: np.ndarray, groups: np.ndarray) -> list[Estimate]:
    """The mean of each column of [prompt, column], with its interval."""
    ends = interval(bootstrap_means(values, groups))
    return [Estimate(*map(_rounded, of)) for of in zip(values.mean(0), *ends, strict=True)]


def _aligned(
    prompts: Prompts,
    last: np.ndarray,
    heads: Sequence[str],
    vocabulary: Vocabulary,
    answers: np.ndarray,
    wrongs: np.ndarray,
) -> Aligned:
    """Some prompts of one length.

    :param last: their attention from the last position, [prompt, head, position].
    :param answers: which positions hold an answer, bool [prompt, position]; `wrongs` likewise.
    """
    length = int(prompts.length[0])
    common = [Counter(column).most_common(1)[0] for column in prompts.tokens[:, :length].T.tolist()]
    return Aligned(
        prompts=len(prompts),
        groups=len(np.unique(prompts.group)),
        slots=[
            Slot(
                token=_text(vocabulary, [token]),
                share=n / len(prompts),
                answer=float(answers[:, at].mean()),
                wrong=float(wrongs[:, at].mean()),
            )
            for at, (token, n) in enumerate(common)
        ],
        attention={head: _estimates(last[:, i, :length], prompts.group) for i, head in enumerate(heads)},
    )


def _triangle(pattern: np.ndarray, length: int) -> list[list[float]]:
    return [[_rounded(weight) for weight in row[: query + 1]] for query, row in enumerate(pattern[:length])]


def _rounded(share: float) -> float:
    return min(1.0, round(float(share), DIGITS))


def _text(vocabulary: Vocabulary, tokens: Sequence[int]) -> str:
    return safe_text(vocabulary.tokenizer.decode(tokens))
