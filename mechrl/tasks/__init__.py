"""Behaviours and the prompts that show them."""

from pathlib import Path

from mechrl.errors import unknown_name
from mechrl.tasks.base import EVALUATION, TRAIN, Prompts, Task, as_text, generate, join, usable_pools
from mechrl.tasks.bracket_closing import bracket_closing
from mechrl.tasks.copy_suppression import copy_suppression
from mechrl.tasks.country_capital import country_capital
from mechrl.tasks.docstring import docstring
from mechrl.tasks.gendered_pronoun import gendered_pronoun
from mechrl.tasks.greater_than import greater_than
from mechrl.tasks.induction import induction, induction_matched
from mechrl.tasks.ioi import ioi
from mechrl.tasks.records import ENDINGS
from mechrl.tasks.subject_verb_agreement import subject_verb_agreement
from mechrl.tasks.successor import successor
from mechrl.tasks.task_file import TaskFile, read_task_file, read_task_files
from mechrl.vocabulary import Vocabulary

TASKS = {
    task.name: task
    for task in (
        *(induction, induction_matched, copy_suppression),
        *(ioi, gendered_pronoun),
        *(greater_than, successor),
        *(subject_verb_agreement, bracket_closing),
        *(docstring, country_capital),
    )
}


def get_task(name: str) -> Task:
    """The built-in task of that name.

    :raises UsageError: there is none.
    """
    if name not in TASKS:
        raise unknown_name("task", name, sorted(TASKS))
    return TASKS[name]


def find_task(task: str | Path) -> Task | TaskFile:
    """A built-in task, or one from a file.

    :param task: a name, or the path of a task file.
    :raises UsageError: there is no such task, or the file is not what it should be.
    """
    if str(task).lower().endswith(ENDINGS):
        return read_task_files([Path(task)], TASKS)[0]
    return get_task(str(task))


__all__ = [
    "EVALUATION",
    "TASKS",
    "TRAIN",
    "Prompts",
    "Task",
    "TaskFile",
    "Vocabulary",
    "as_text",
    "find_task",
    "generate",
    "get_task",
    "join",
    "read_task_file",
    "usable_pools",
]
