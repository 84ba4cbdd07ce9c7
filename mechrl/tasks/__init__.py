"""Behaviours and the prompts that show them."""

from mechrl.errors import unknown_name
from mechrl.tasks.base import EVALUATION, TRAIN, Prompts, Task, generate, join, usable_pools
from mechrl.tasks.docstring import docstring
from mechrl.tasks.induction import induction, induction_matched
from mechrl.tasks.ioi import ioi
from mechrl.vocabulary import Vocabulary

TASKS = {task.name: task for task in (induction, induction_matched, ioi, docstring)}


def get_task(name: str) -> Task:
    """The built-in task of that name.

    :raises UsageError: there is none.
    """
    if name not in TASKS:
        raise unknown_name("task", name, sorted(TASKS))
    return TASKS[name]


__all__ = [
    "EVALUATION",
    "TASKS",
    "TRAIN",
    "Prompts",
    "Task",
    "Vocabulary",
    "generate",
    "get_task",
    "join",
    "usable_pools",
]
