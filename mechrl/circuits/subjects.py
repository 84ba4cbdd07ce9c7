"""A task on a model, and from it what is searched and judged: some of its prompts under one ablation."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from mechrl.ablation import Ablation, Replacement
from mechrl.ablation.forward import Forward
from mechrl.ablation.replacement import ReplacementMaker
from mechrl.circuits.behaviour import Behaviour
from mechrl.errors import UsageError
from mechrl.models import Model, check_length
from mechrl.tasks import EVALUATION, TRAIN, Prompts, Task, TaskFile, generate, join
from mechrl.tasks.batches import arrange, fitting_batch_size
from mechrl.tasks.fitting import fit_files

TRAIN_PROMPTS, JUDGED_PROMPTS = 64, 96  # of a built-in task; means are taken over the former
SEARCHED = 32  # training prompts that a search runs on; the others check what it finds
# Those that need no control text; `zero_raw` differs from `zero` by constants alone, and only whoever asks gets it.
USUAL = (Ablation.COUNTERFACTUAL, Ablation.MEAN_TASK, Ablation.RESAMPLE, Ablation.ZERO)


class Subjects:
    """Prompts of a task on a live model, whose fillers differ between training and evaluation where the task allows.

    :raises UsageError: the task does not fit the model's tokenizer or context.
    """

    def __init__(self, model: Model, task: Task | TaskFile, seed: int):
        self.model, self.task, self.seed = model, task.name, seed
        self.forward = Forward(model)
        self.prompts = _prompts(model, task, seed)
        self.train, self.judged = (np.flatnonzero(self.prompts.split == of) for of in (TRAIN, EVALUATION))
        self._others: dict[Ablation, Replacement] = {}

    @cached_property
    def usual(self) -> Mapping[Ablation, str]:
        """The ablations that this task can be put to without more text, each with "" or why it cannot."""
        found = {}
        for ablation in USUAL:
            try:
                self.other(ablation)
                found[ablation] = ""
            except UsageError as error:
                found[ablation] = str(error)
        return found

    @property
    def best(self) -> Ablation:
        """The counterfactual twins' outputs where there are twins, else means over the task's prompts."""
        return Ablation.MEAN_TASK if self.prompts.corrupted is None else Ablation.COUNTERFACTUAL

    def other(self, ablation: Ablation) -> Replacement:
        """What is put in, on all prompts.

        :raises UsageError: the task cannot be put to this ablation.
        """
        if ablation is Ablation.MEAN_CONTROL:
            raise UsageError("circuits are found without control text: ablate by mean_task instead of mean_control")
        if ablation not in self._others:
            nothing = np.zeros((0, 1), np.int32), np.zeros(0, np.uint8)
            maker = ReplacementMaker(ablation, self.forward, *nothing, self.seed)
            self._others[ablation] = maker.for_task(self.task, self.prompts)
        return self._others[ablation]

    def on(self, rows: np.ndarray, ablation: Ablation) -> Behaviour:
        """Some prompts, int [row], under an ablation.

        :raises UsageError: the task cannot be put to this ablation.
        """
        return Behaviour(self.forward, self.prompts[rows], self.other(ablation)[rows])

    def halves(self, of: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Training prompts to search on, and to check on; the latter are as many or fewer.

        :param of: 0 for the first ones, other numbers for random halves.
        """
        n = min(SEARCHED, len(self.train) // 2)
        order = np.random.default_rng(of).permutation(self.train) if of else self.train
        return np.sort(order[:n]), np.sort(order[n:])


def _prompts(model: Model, task: Task | TaskFile, seed: int) -> Prompts:
    if isinstance(task, Task):
        counts = (TRAIN, TRAIN_PROMPTS), (EVALUATION, JUDGED_PROMPTS)
        prompts = join([generate(task, model.vocabulary, n, split, seed) for split, n in counts])
    else:
        (file,) = fit_files([task], model.vocabulary, model.n_ctx)
        prompts = arrange(file, model.vocabulary, fitting_batch_size([file]))
    longest = int(prompts.length.max())
    if longest > model.n_ctx:
        raise UsageError(
            f"task {task.name!r} has {longest} tokens in a prompt and {model.name!r} takes {model.n_ctx} at most"
        )
    check_length(model, longest)
    return prompts
