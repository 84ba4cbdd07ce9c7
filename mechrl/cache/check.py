"""What a model does on a task's prompts, before anything is ablated."""

from dataclasses import dataclass

import numpy as np

from mechrl.ablation.sweep import Sweep
from mechrl.models import Model
from mechrl.tasks import Prompts, TaskFile, Vocabulary
from mechrl.tasks.base import tokenize
from mechrl.tasks.files import arrange, check_file, fitting_batch_size

ROWS = 32  # at a time


@dataclass(frozen=True)
class WorstPrompt:
    """A prompt that the model does badly on, with what it says instead.

    :param line: of the file; `logit_diff` in nats.
    """

    line: int
    prompt: str
    logit_diff: float
    says: str


@dataclass(frozen=True)
class TaskCheck:
    """A task file on the intact model. Means over the prompts; `logit_diff` and `logprob` in nats.

    :param accuracy: share of prompts whose logit difference is above zero: the answers before the wrongs.
    :param top1: share of prompts whose most probable token of all is an answer.
    :param shortest: prompt in tokens, BOS included; `longest` likewise.
    :param twins: whether the file has counterfactual twins.
    """

    task: str
    prompts: int
    groups: int
    shortest: int
    longest: int
    twins: bool
    logit_diff: float
    logprob: float
    prob_diff: float
    accuracy: float
    top1: float
    worst: list[WorstPrompt]


def check_task(model: Model, file: TaskFile, n_worst: int = 5) -> TaskCheck:
    """Run the intact model once on every prompt of a file.

    :raises UsageError: the file does not fit the tokenizer or the model's context (the message names every line), or
        has too few prompts for a build.
    """
    check_file(file, model.vocabulary, model.n_ctx)
    arrange(file, model.vocabulary, fitting_batch_size([file]))  # whether a build would take it
    prompts = tokenize(file.name, file.examples, model.vocabulary, 0)
    measures, said = clean_measures(model, prompts)
    logit_diff = measures["logit_diff"]
    worst = [
        WorstPrompt(
            file.lines[i], str(file.examples[i].context), float(logit_diff[i]), decode(model.vocabulary, int(said[i]))
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
        logit_diff=float(logit_diff.mean()),
        logprob=float(measures["logprob"].mean()),
        prob_diff=float(measures["prob_diff"].mean()),
        accuracy=float((logit_diff > 0).mean()),
        top1=float(measures["top1"].mean()),
        worst=worst,
    )


def clean_measures(model: Model, prompts: Prompts) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """All measures of the intact model, float32 [prompt] each, and its most probable next token, int [prompt]."""
    sweep = Sweep(model)
    parts = [sweep.clean(prompts[first : first + ROWS]) for first in range(0, len(prompts), ROWS)]
    measures = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    return measures, np.concatenate([part[1] for part in parts])


def decode(vocabulary: Vocabulary, token: int) -> str:
    """A token as text, with its space."""
    return str(vocabulary.tokenizer.decode([token]))
