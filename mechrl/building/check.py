"""What a model does on a task's prompts, before anything is ablated."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from mechrl.ablation.forward import Forward
from mechrl.ablation.sweep import clean_measures
from mechrl.models import Model, check_length
from mechrl.results import Result, ResultPart, Share
from mechrl.tasks import Prompts, TaskFile, Vocabulary
from mechrl.tasks.base import tokenize
from mechrl.tasks.batches import arrange, fitting_batch_size
from mechrl.tasks.fitting import check_file
from mechrl.tasks.seam import line_end, other_spelling

FAR_MORE = 2.0  # nats


class WorstPrompt(ResultPart):
    """A prompt that the model does badly on, with what it says instead.

    :param line: of the file; `logit_diff` in nats.
    """

    line: int
    prompt: str
    logit_diff: float
    says: str


class TaskCheck(Result):
    """A task file on the intact model. Means over the prompts; `logit_diff` and `logprob` in nats.

    :param accuracy: share of prompts whose logit difference is above zero: the answers before the wrongs.
    :param top1: share of prompts whose most probable token of all is an answer.
    :param shortest: prompt in tokens, BOS included; `longest` likewise.
    :param twins: whether the file has counterfactual twins.
    :param bos: which token is put before every prompt, as a sentence.
    :param notes: what else a user should know, a sentence each.
    :param skipped: records that were left out because they do not fit.
    """

    written_by: ClassVar[str] = "mechrl-cache check"

    format: Literal["mechrl-check"] = "mechrl-check"
    format_version: Literal[1] = 1
    task: str
    prompts: int
    groups: int
    shortest: int
    longest: int
    twins: bool
    bos: str
    skipped: int
    logit_diff: float
    logprob: float
    prob_diff: float
    accuracy: Share
    top1: Share
    worst: list[WorstPrompt]
    notes: list[str]


def check_task(model: Model, file: TaskFile, n_worst: int = 5) -> TaskCheck:
    """Run the intact model once on every prompt of a file.

    :raises UsageError: the file does not fit the tokenizer or the model's context (the message names every line), or
        has too few prompts for a build.
    """
    file = check_file(file, model.vocabulary, model.n_ctx)
    arrange(file, model.vocabulary, fitting_batch_size([file]))  # whether a build would take it
    prompts = tokenize(file.name, file.examples, model.vocabulary, 0)
    check_length(model, int(prompts.length.max()))
    measures, said = clean_measures(Forward(model), prompts)
    logit_diff = measures["logit_diff"]
    worst = [
        WorstPrompt(
            line=file.lines[i],
            prompt=str(file.examples[i].context),
            logit_diff=float(logit_diff[i]),
            says=decode(model.vocabulary, int(said[i])),
        )
        for i in np.argsort(logit_diff, kind="stable")[:n_worst].tolist()
    ]
    return TaskCheck(
        task=file.name,
        prompts=len(prompts),
        groups=int(prompts.group.max()) + 1,
        shortest=int(prompts.length.min()),
        longest=int(prompts.length.max()),
        twins=prompts.corrupted is not None,
        bos=model.vocabulary.said_of_bos,
        skipped=file.skipped,
        logit_diff=float(logit_diff.mean()),
        logprob=float(measures["logprob"].mean()),
        prob_diff=float(measures["prob_diff"].mean()),
        accuracy=float((logit_diff > 0).mean()),
        top1=float(measures["top1"].mean()),
        worst=worst,
        notes=[*file_notes(model, file, prompts), *_model_notes(model, file, prompts, measures)],
    )


def file_notes(model: Model, file: TaskFile, prompts: Prompts) -> list[str]:
    """What is not wrong with a file, and should be known before a build: a sentence each."""
    found = []
    ends = Counter(filter(None, (line_end(str(example.context)) for example in file.examples)))
    for end, n in ends.items():
        found.append(f"{n} of {len(file)} prompts end in {end}, which nobody sees; is it meant?")
    bos = model.vocabulary.bos
    if again := sum(bos in row[1:n] for row, n in zip(prompts.tokens.tolist(), prompts.length, strict=True)):
        found.append(
            f"{again} of {len(file)} prompts hold {model.vocabulary.bos_token!r} once more after the BOS before them"
        )
    apart = model.regimes.split(prompts.length)
    if len(apart) > 1:
        ranges = (prompts.length[rows] for rows in apart)
        found.append(
            "this model computes short prompts differently beside long ones (its rotary embeddings go by the longest); "
            + " and ".join(f"{of.min()} to {of.max()} tokens" for of in ranges)
            + " run apart"
        )
    return found


def near_impossible(measures: Mapping[str, np.ndarray]) -> str | None:
    """A warning if the model puts answers before wrongs and expects neither, or None.

    :param measures: of the intact model, float32 [prompt] each.
    """
    answers = measures["logprob"].astype(float)
    both = np.logaddexp(answers, answers - measures["logit_diff"])
    accuracy, top1 = (measures["logit_diff"] > 0).mean(), measures["top1"].mean()
    if not (accuracy > 0.8 and top1 < 0.1 and both.mean() < np.log(0.02)):
        return None
    return (
        f"the model puts the answers before the wrongs (accuracy {accuracy:.2f}) and expects neither (top-1 "
        f"{top1:.2f}, mean log probability of both together {both.mean():.1f}): the prompts may end, or the answers "
        "begin, in a way that nobody would write"
    )


def _model_notes(model: Model, file: TaskFile, prompts: Prompts, measures: Mapping[str, np.ndarray]) -> list[str]:
    """What the model says of the answers: whether it expects them, and in this spelling."""
    found = [note] if (note := near_impossible(measures)) else []
    rows, others = [], []
    for row, example in enumerate(file.examples):
        word, context = example.answers[0], str(example.context)
        if isinstance(word, str):
            longer = model.vocabulary.encode(context + other_spelling(word))
            if longer[:-1] == model.vocabulary.encode(context) and longer[-1] < model.vocabulary.rows:
                rows.append(row)
                others.append([longer[-1]])
    if not rows:
        return found
    respelt = replace(prompts[np.array(rows)], answers=np.array(others, np.int32))
    ours, theirs = measures["logprob"][rows].mean(), clean_measures(Forward(model), respelt)[0]["logprob"].mean()
    if theirs > ours + FAR_MORE:
        word = str(file.examples[rows[0]].answers[0])
        found.append(
            f"the model expects the answers {'without' if word.startswith(' ') else 'with'} a space before them, "
            f"{other_spelling(word)!r} and not {word!r}: mean log probability {theirs:.1f} against {ours:.1f}"
        )
    return found


def decode(vocabulary: Vocabulary, token: int) -> str:
    """A token as text, with its space."""
    return str(vocabulary.tokenizer.decode([token]))
