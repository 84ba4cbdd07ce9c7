"""What an ablation is: its kinds, what one of them puts in the place of a head's output, and what is measured."""

from dataclasses import dataclass
from enum import Enum

import numpy as np

MEASURES = ("logit_diff", "logprob", "kl", "top1", "prob_diff")  # each is defined in `ablation.measures.measure`
# What an intact head looks like on a prompt; each is defined in `ablation.intact.roles.head_features`.
FEATURES = ("attention_entropy", "previous_token", "bos_attention", "output_norm")
# What interpreters look for first in a head; each is defined in `ablation.intact.roles.measure_roles`.
ROLES = ("previous_token", "duplicate_token", "induction", "bos_attention", "copying")


class Ablation(Enum):
    """A kind of ablation; the value is its name in flags and files.

    What is replaced is `hook_z` of the head after folding, at every position. On control text every kind uses control
    text only, so that control says what a head is worth there, and not how foreign another text is.
    """

    ZERO = "zero"
    """Zero. What stays is the head's constant part, which folding moved into the output bias: `b_V + b_LN W_V` per
    head. The intervention of arXiv 2605.26343."""

    ZERO_RAW = "zero_raw"
    """Minus that constant part, so that the head writes nothing at all: what zero ablation is in a model that was not
    folded."""

    MEAN_TASK = "mean_task"
    """The head's mean over the task's training prompts, position by position, counted from the end. It keeps what all
    prompts of the task share, and takes away what tells them apart."""

    MEAN_CONTROL = "mean_control"
    """The head's mean over the training spans of control text, position by position, counted from the end."""

    RESAMPLE = "resample"
    """The head's output on another training prompt of the task that is as long, drawn once, position by position."""

    COUNTERFACTUAL = "counterfactual"
    """The head's output on the prompt's counterfactual twin, position by position; on control text, as `resample`."""


@dataclass(frozen=True)
class Replacement:
    """What takes the place of `hook_z` of the heads, on some rows. With neither given: zero.

    :param table: float32 [layer, back, head, head width], `back` being the position counted from the row's end, 0 its
        last; positions further back take the last entry.
    :param sources: tokens int32 [row, position], as long as the rows: the head's own output there.
    :param sha256: of the kind and the tokens that the numbers come from; "" where they come from no text.
    """

    table: np.ndarray | None = None
    sources: np.ndarray | None = None
    sha256: str = ""

    def __getitem__(self, rows: slice | np.ndarray) -> "Replacement":
        return Replacement(self.table, None if self.sources is None else self.sources[rows], self.sha256)


NOTHING = Replacement()
