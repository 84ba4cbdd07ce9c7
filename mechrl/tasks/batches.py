"""A task file's prompts in whole batches, divided between training and evaluation."""

from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState

from mechrl.errors import UsageError
from mechrl.tasks.base import EVALUATION, TRAIN, Prompts, tokenize
from mechrl.tasks.task_file import TaskFile
from mechrl.vocabulary import Vocabulary

LARGEST_BATCH = 32


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
            + (f", or make batches of {fitting}" if fitting < batch_size else "")
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
