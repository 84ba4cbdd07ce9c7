"""What replaces the output of an ablated head."""

from enum import Enum


class Ablation(Enum):
    """A kind of ablation; the value is its name in flags and files."""

    ZERO = "zero"
    """`hook_z` of the head is set to zero after folding. What stays is the head's constant part, which folding moved
    into the output bias: `b_V + b_LN W_V` per head. This is the intervention of arXiv 2605.26343."""
