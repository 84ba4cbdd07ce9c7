"""What a cache holds, and of which model."""

from typing import ClassVar, Literal

from pydantic import ConfigDict

from mechrl.cache.reader import Cache
from mechrl.results import Count, Number, Result, ResultPart, Share


class TaskInformation(ResultPart):
    """A task of a cache, over all its prompts.

    :param clean_logit_diff: mean of the intact model, in nats.
    :param accuracy: share of prompts with the answers before the wrongs; `top1_accuracy`: before every other token.
    :param does_task: whether the logit difference is above zero.
    :param answers_in_both_splits: how many answers of evaluation prompts are answers of training prompts, `0 of 13`.
    """

    prompts: Count
    clean_logit_diff: Number
    accuracy: Share
    top1_accuracy: Share
    does_task: bool
    answers_in_both_splits: str


class ImportedTask(ResultPart):
    """A task whose scores others measured."""

    episodes: Count
    evaluation_episodes: Count
    mean_best_score: Number


class _Information(Result):
    """What all caches have. The attributes of the file that are not named here are fields, too.

    :param cache_format_version: the version of the file's own format.
    """

    model_config = ConfigDict(extra="allow")
    written_by: ClassVar[str] = "mechrl-cache info"

    format: Literal["mechrl-information"] = "mechrl-information"
    format_version: Literal[1] = 1
    path: str
    cache_format_version: int
    model: str
    model_sha256: str
    content_sha256: str
    n_layers: Count
    n_heads: Count
    ablation: str
    weight_processing: str
    batch_size: Count


class CacheInformation(_Information):
    """A cache that was swept.

    :param control_loss: mean next-token loss of the intact model on the control text, in nats.
    """

    tasks: dict[str, TaskInformation]
    control_loss: Number


class ImportedInformation(_Information):
    """A cache that holds imported scores.

    :param imported: the name of the table.
    """

    imported: str
    imported_sha256: str
    tasks: dict[str, ImportedTask]


def cache_information(cache: Cache) -> CacheInformation | ImportedInformation:
    """What a cache holds."""
    fields = {**cache.attributes, "path": str(cache.path), "cache_format_version": cache.attributes["format_version"]}
    del fields["format"], fields["format_version"]
    if cache.imported:
        fields["tasks"] = {task: _imported(cache, task) for task in cache.tasks}
        return ImportedInformation.model_validate(fields)
    fields["tasks"] = {task: _swept(cache, task) for task in cache.tasks}
    fields["control_loss"] = float(cache.content.arrays["/control/clean"].mean())
    return CacheInformation.model_validate(fields)


def _swept(cache: Cache, task: str) -> TaskInformation:
    return TaskInformation(
        prompts=len(cache.clean(task)),
        clean_logit_diff=float(cache.clean(task).mean()),
        accuracy=cache.accuracy(task),
        top1_accuracy=float(cache.clean(task, "top1").mean()),
        does_task=cache.task_attributes(task)["does_task"],
        answers_in_both_splits=" of ".join(map(str, cache.answer_overlap(task))),
    )


def _imported(cache: Cache, task: str) -> ImportedTask:
    scores = cache.episode_scores(task)
    return ImportedTask(
        episodes=len(scores),
        evaluation_episodes=len(cache.batch_damage(task)),
        mean_best_score=float(scores.max(1).mean()),
    )
