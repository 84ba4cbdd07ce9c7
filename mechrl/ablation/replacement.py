"""What each kind of ablation puts in on given prompts: means, other prompts, twins, constants."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import RandomState

from mechrl.ablation import NOTHING, Ablation, Replacement
from mechrl.ablation.forward import Forward
from mechrl.errors import UsageError
from mechrl.tasks import TRAIN, Prompts

LEAST = 8  # rows that a mean at one position is taken over; with fewer, it is the mean over all positions
MEAN_ROWS = 32  # at a time


@dataclass(frozen=True)
class ReplacementMaker:
    """What one kind of ablation puts in, on the tasks and the control text of one cache.

    :param forward: of the model, whose outputs are put in.
    :param spans: control text, tokens int32 [span, position], and its split uint8 [span].
    :param seed: of what is drawn.
    """

    kind: Ablation
    forward: Forward
    spans: np.ndarray
    span_split: np.ndarray
    seed: int

    def for_task(self, name: str, prompts: Prompts) -> Replacement:
        """For prompts of a task, its training prompts among them; replacements come from those alone.

        Counterfactual twins are the prompts' own.

        :raises UsageError: a counterfactual without twins, or a prompt that no other training prompt is as long as.
        """
        train = prompts.split == TRAIN
        if self.kind is Ablation.MEAN_TASK:
            return self._means(prompts.tokens[train], prompts.length[train])
        if self.kind is Ablation.MEAN_CONTROL:
            return self._control_means
        if self.kind is Ablation.RESAMPLE:
            return self._sources(prompts.tokens[others(name, prompts.length, prompts.split, self.seed)])
        if self.kind is Ablation.COUNTERFACTUAL:
            if prompts.corrupted is None:
                raise UsageError(
                    f"task {name!r} has no counterfactual twins, which the ablation counterfactual puts in: give every "
                    'line of its file a "corrupted" prompt, or ablate by resample or mean_task'
                )
            return self._sources(prompts.corrupted)
        return self._constant()

    def for_control(self) -> Replacement:
        """For all control spans."""
        if self.kind in (Ablation.MEAN_TASK, Ablation.MEAN_CONTROL):
            return self._control_means
        if self.kind in (Ablation.RESAMPLE, Ablation.COUNTERFACTUAL):
            length = np.full(len(self.spans), self.spans.shape[1])
            return self._sources(self.spans[others("control", length, self.span_split, self.seed)])
        return self._constant()

    @cached_property
    def _control_means(self) -> Replacement:
        spans = self.spans[self.span_split == TRAIN]  # run through the model once, for all tasks
        return self._means(spans, np.full(len(spans), spans.shape[1]))

    def _constant(self) -> Replacement:
        """:raises UsageError: the model's folding moved more than a constant out of its heads."""
        if self.kind is Ablation.ZERO:
            return NOTHING
        constants = self.forward.model.constants
        if constants is None:
            raise UsageError(
                f"{self.forward.model.name!r}: folding changed its heads by more than a constant, so zero_raw is not "
                "defined for it"
            )
        return Replacement(table=-constants[:, None])

    def _means(self, tokens: np.ndarray, length: np.ndarray) -> Replacement:
        return Replacement(table=mean_table(self.forward, tokens, length), sha256=self._sha256(tokens, length))

    def _sources(self, tokens: np.ndarray) -> Replacement:
        return Replacement(sources=tokens, sha256=self._sha256(tokens))

    def _sha256(self, *arrays: np.ndarray) -> str:
        digest = hashlib.sha256(self.kind.value.encode())
        for array in arrays:
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array, np.int32).tobytes())
        return digest.hexdigest()


def others(name: str, length: np.ndarray, split: np.ndarray, seed: int) -> np.ndarray:
    """For each row another training row of the same length, int [row]; among training rows no one is taken twice.

    :param name: of the task, for the message.
    :raises UsageError: a row has none.
    """
    rng = RandomState(seed)
    chosen = np.full(len(length), -1)
    for n in np.unique(length):
        train, rest = (np.flatnonzero((length == n) & ((split == TRAIN) == side)) for side in (True, False))
        if len(train) < 2:
            raise UsageError(
                f"the ablation resample: {name!r} has {len(train) + len(rest)} prompts of {n} tokens and {len(train)} "
                "of them for training; it needs two. Write prompts of equal length, or ablate by mean_task"
            )
        order = rng.permutation(train)
        chosen[order] = np.roll(order, 1)  # one large cycle: nobody is his own successor
        chosen[rest] = train[rng.randint(len(train), size=len(rest))]
    return chosen


def mean_table(forward: Forward, tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Means of `hook_z` over rows, by the position counted from the end, as a `Replacement` holds them.

    float32 [layer, back, head, head width]. A position that fewer than 8 rows have, and all further ones, take the
    mean over all positions of all rows.
    """
    positions = tokens.shape[1]
    counts = np.zeros(positions + 1)
    sums: list[np.ndarray] = []
    alike = forward.model.regimes.split(length)
    for rows in (part for of in alike for part in np.array_split(of, -(-len(of) // MEAN_ROWS))):
        longest = int(length[rows].max())
        back = length[rows, None] - 1 - np.arange(longest)
        there = back >= 0
        counts += np.bincount(back[there], minlength=positions + 1)
        for layer, z in enumerate(forward.head_outputs(tokens[rows, :longest])):
            if len(sums) == layer:
                sums.append(np.zeros((positions + 1, *z.shape[2:])))
            np.add.at(sums[layer], back[there], z.double().cpu().numpy()[there])
    whole = np.stack(sums)
    mean = whole / np.maximum(counts, 1)[:, None, None]
    mean[:, counts < LEAST] = whole.sum(1, keepdims=True) / counts.sum()
    return mean.astype(np.float32)
