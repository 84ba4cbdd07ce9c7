"""Prompts that a cache does not hold: to replicate on, and with their answers permuted as a placebo."""

from dataclasses import replace

import numpy as np

from mechrl.cache.format import FROM_FILE
from mechrl.cache.reader import Cache
from mechrl.errors import FileError, UsageError
from mechrl.models import Model
from mechrl.tasks import EVALUATION, TASKS, TRAIN, Prompts, TaskFile, generate, usable_pools
from mechrl.tasks.base import tokenize
from mechrl.tasks.fitting import check_file
from mechrl.verification.result import EVALUATION_PROMPTS

FRESH_SEED = 20_000_000  # added to the cache's seed


def unseen_prompts(
    model: Model, cache: Cache, task: str, n: int, seed: int = 0, file: TaskFile | None = None
) -> tuple[Prompts, str]:
    """Prompts to replicate on, and where they come from.

    From the task's generator; from `file`, if given; else, for a task that was built from a file, the cache's own
    evaluation prompts stand in for them.

    :raises UsageError: there are none, or they do not fit the model.
    :raises FileError: the cache's prompts come from another version of the generator.
    """
    if file is not None:
        return file_prompts(model, cache, task, file), str(file.path)
    if cache.task_attributes(task)["generator"] == FROM_FILE:
        return cache.prompts(task)[cache.in_split(task, EVALUATION)], EVALUATION_PROMPTS
    return fresh_prompts(model, cache, task, n, seed), "generator"


def fresh_prompts(model: Model, cache: Cache, task: str, n: int, seed: int = 0) -> Prompts:
    """`n` prompts of the evaluation half of the pools that the cache does not hold.

    :raises UsageError: the task has no generator here, or its pools hold no more prompts.
    :raises FileError: the cache's prompts come from another version of the generator.
    """
    attributes = cache.task_attributes(task)
    generator = attributes["generator"]
    if generator not in TASKS:
        raise UsageError(f"no generator {generator!r} for fresh prompts of task {task!r}")
    version = usable_pools(TASKS[generator], model.vocabulary).form.version
    if attributes["generator_version"] != version:
        raise FileError(
            f"the prompts of {task!r} are of version {attributes['generator_version']} of their generator, "
            f"and for this model's tokenizer mechrl has version {version}: build the cache again"
        )
    seed = (FRESH_SEED + cache.attributes["seed"] + seed) % 2**32
    # Training prompts are of the other half of the pools, unless a pool is not split.
    for known in (int(cache.in_split(task, EVALUATION).sum()), len(cache.prompts(task))):
        drawn = generate(TASKS[generator], model.vocabulary, n + known, EVALUATION, seed)
        if len(new := _unknown(drawn, cache, task)) >= n:
            break
    return new[:n]


def file_prompts(model: Model, cache: Cache, task: str, file: TaskFile) -> Prompts:
    """The prompts of a file that the cache does not hold.

    :raises UsageError: there are none, or they do not fit the model.
    """
    file = check_file(file, model.vocabulary, model.n_ctx)
    new = _unknown(tokenize(file.name, file.examples, model.vocabulary, EVALUATION), cache, task)
    if not len(new):
        raise UsageError(f"{file.path}: all of its prompts are in {cache.path} already")
    return new


def _unknown(prompts: Prompts, cache: Cache, task: str) -> Prompts:
    old = cache.prompts(task)
    known = {tuple(row[:length]) for row, length in zip(old.tokens.tolist(), old.length, strict=True)}
    rows = zip(prompts.tokens.tolist(), prompts.length, strict=True)
    return prompts[np.array([i for i, (row, n) in enumerate(rows) if tuple(row[:n]) not in known], int)]


def known_answers(cache: Cache, task: str, fresh: Prompts, split: int = TRAIN) -> tuple[int, int]:
    """How many of the fresh prompts' answers are answers of a split's prompts too, and of how many."""
    prompts = cache.prompts(task)
    old = set(prompts.answers[prompts.split == split].ravel().tolist()) - {-1}
    new = set(fresh.answers.ravel().tolist()) - {-1}
    return len(old & new), len(new)


def placebo(prompts: Prompts, seed: int = 0) -> Prompts | None:
    """The same prompts, each with the answers and wrongs of a prompt of another group.

    None where nothing is to be permuted: one group, or the same answers and wrongs everywhere.
    """
    rng = np.random.default_rng(seed)
    names, group = np.unique(prompts.group, return_inverse=True)
    if len(names) == 1:
        return None
    order = rng.permutation(len(names))
    following = np.empty_like(order)
    following[order] = np.roll(order, 1)  # one large cycle: no group is its own successor
    members = [np.flatnonzero(group == i) for i in range(len(names))]
    source = np.array([rng.choice(members[following[i]]) for i in group])
    permuted = replace(prompts, answers=prompts.answers[source], wrongs=prompts.wrongs[source])
    same = np.array_equal(permuted.answers, prompts.answers) and np.array_equal(permuted.wrongs, prompts.wrongs)
    return None if same else permuted
