"""A task on a model, and from it what is searched and judged: some of its prompts under one ablation."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

import mechrl
from mechrl.ablation import Ablation, Replacement
from mechrl.ablation.attribution import mask_gradients
from mechrl.ablation.forward import CleanRun, Forward
from mechrl.ablation.measures import measure
from mechrl.ablation.replacement import ReplacementMaker
from mechrl.ablation.sweep import ablated_measures
from mechrl.circuits.journal import Journal, Recorded
from mechrl.circuits.search import KEPT, Numbers, objective
from mechrl.errors import UsageError
from mechrl.models import Model, check_context, check_length
from mechrl.tasks import EVALUATION, TRAIN, Prompts, Task, TaskFile, generate, join
from mechrl.tasks.batches import arrange, fitting_batch_size
from mechrl.tasks.fitting import fit_files

TRAIN_PROMPTS, JUDGED_PROMPTS = 64, 96  # of a built-in task; means are taken over the former
SEARCHED = 32  # training prompts that a search runs on; the others check what it finds
# Those that need no control text; `zero_raw` differs from `zero` by constants alone, and only whoever asks gets it.
USUAL = (Ablation.COUNTERFACTUAL, Ablation.MEAN_TASK, Ablation.RESAMPLE, Ablation.ZERO)


class Behaviour:
    """Some prompts of a task, run intact once; every set of heads starts from there.

    :param other: what the ablation puts in, on these prompts.
    :param batch_size: how many prompts go through the model at once.
    """

    def __init__(self, forward: Forward, prompts: Prompts, other: Replacement, batch_size: int = 32):
        self.forward, self.prompts, self.other, self.batch_size = forward, prompts, other, batch_size
        self.n_sites = forward.model.n_layers * forward.model.n_heads
        self._few: list[tuple[np.ndarray, CleanRun]] | None = None

    def _clean(self) -> Iterator[tuple[np.ndarray, CleanRun]]:
        """Clean runs of all prompts, a batch at a time; those of a single batch are kept in memory."""
        if self._few is None:
            alike = self.forward.model.regimes.split(self.prompts.length)
            batches = [part for rows in alike for part in np.array_split(rows, -(-len(rows) // self.batch_size))]
            runs = ((rows, self.forward.clean_prompts(self.prompts[rows], self.other[rows])) for rows in batches)
            if len(self.prompts) > self.batch_size:
                yield from runs
                return
            self._few = list(runs)
        yield from self._few

    def measure(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """What each set keeps: `logit_diff`, `kl` and `top1_margin`, float64 [prompt, set].

        :param kept: bool [set, site]; all other heads are ablated.
        """
        found = {name: np.empty((len(self.prompts), len(kept))) for name in KEPT}
        for rows, clean in self._clean():
            ((_, ablated),) = ablated_measures(self.forward, clean, [self.prompts[rows]], ~kept)
            for name, column in found.items():
                column[rows] = ablated[name].cpu().numpy()
        return found

    def gradient(self, mask: np.ndarray, numbers: Numbers) -> np.ndarray:
        """The gradient of the search's objective by the mask of heads, float64 [site].

        :param mask: from 0, ablated, to 1, kept; float [site].
        :param numbers: of the intact and the empty model, see `search.objective`.
        """
        total = np.zeros(self.n_sites)
        for rows, clean in self._clean():
            per_row = mask_gradients(self.forward, clean, self._slope(clean, rows, numbers), mask)
            total += per_row.sum(0).double().cpu().numpy()
        return total / len(self.prompts)

    def _slope(self, clean: CleanRun, rows: np.ndarray, numbers: Numbers) -> Any:
        answers, wrongs = self.forward.tensors(self.prompts.answers[rows], self.prompts.wrongs[rows])
        with torch.inference_mode():
            intact = self.forward.unembed(clean.final).log_softmax(-1)

        def slope(final: torch.Tensor) -> torch.Tensor:
            measures = measure(self.forward.unembed(final), intact.clone(), answers, wrongs)
            return torch.autograd.grad(len(rows) * objective(measures, numbers, smooth=True), final)[0]

        return slope


class Subjects:
    """Prompts of a task on a live model, whose fillers differ between training and evaluation where the task allows.

    :param judged: prompts to judge on, of a built-in task; a file has what it has.
    :raises UsageError: the task does not fit the model's tokenizer or context.
    """

    def __init__(self, model: Model, task: Task | TaskFile, seed: int, judged: int = JUDGED_PROMPTS):
        self.model, self.task, self.seed = model, task.name, seed
        self.forward = Forward(model)
        self.prompts = _prompts(model, task, seed, judged)
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

    def journal(self, ablation: Ablation) -> Journal:
        """Where measurements under an ablation are written down: they depend on what is named here, and on the rows."""
        prompts, other = self.prompts, self.other(ablation)
        arrays = prompts.tokens, prompts.length, prompts.answers, prompts.wrongs, prompts.split
        return Journal(
            mechrl.__version__, self.model.sha256, str(self.model.device), ablation.value, other.sha256,
            *(np.ascontiguousarray(array).tobytes() for array in arrays),
        )  # fmt: skip

    def recorded(self, rows: np.ndarray, ablation: Ablation, journal: Journal) -> Recorded:
        """As `on`, its measurements written down."""
        name = hashlib.sha256(rows.astype(np.int64).tobytes()).hexdigest()[:16]
        return Recorded(self.on(rows, ablation), journal, name, len(rows))

    def halves(self, of: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Training prompts to search on, and to check on; the latter are as many or fewer.

        :param of: 0 for the first ones, other numbers for random halves.
        """
        n = min(SEARCHED, len(self.train) // 2)
        order = np.random.default_rng(of).permutation(self.train) if of else self.train
        return np.sort(order[:n]), np.sort(order[n:])


def _prompts(model: Model, task: Task | TaskFile, seed: int, judged: int) -> Prompts:
    if isinstance(task, Task):
        counts = (TRAIN, TRAIN_PROMPTS), (EVALUATION, judged)
        prompts = join([generate(task, model.vocabulary, n, split, seed) for split, n in counts])
    else:
        (file,) = fit_files([task], model.vocabulary, model.n_ctx)
        prompts = arrange(file, model.vocabulary, fitting_batch_size([file]))
    longest = int(prompts.length.max())
    check_context(model, task.name, longest)
    check_length(model, longest)
    return prompts
