"""What a loaded model is, for all that measure on it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mechrl.models.regimes import Regimes, probe_tokens
from mechrl.vocabulary import Vocabulary


@dataclass(frozen=True)
class Model:
    """A causal language model whose heads can be ablated.

    :param bridge: the TransformerBridge, in eval mode, weights folded (see `weight_processing` in a cache).
    :param name: what the user called it.
    :param revision: the hub revision asked for, else "".
    :param sha256: of the config and all weights before folding; the same on every machine.
    :param tokenizer_sha256: of the tokenizer's whole definition.
    :param constants: what folding moved out of each head's output into the output bias, `b_V + b_LN W_V`, float32
        [layer, head, head width]; None if it moved more than a constant.
    :param probed: the number of tokens up to which loading has compared it with transformers.
    :param regimes: which lengths of prompts may share a batch.
    :param quantisation: what the weights were dequantised from, such as "Q4_1"; "" for whole ones.
    """

    bridge: Any
    name: str
    revision: str
    sha256: str
    tokenizer_sha256: str
    vocabulary: Vocabulary
    constants: np.ndarray | None
    probed: int
    regimes: Regimes
    quantisation: str = ""

    @property
    def n_layers(self) -> int:
        return int(self.bridge.cfg.n_layers)

    @property
    def n_heads(self) -> int:
        return int(self.bridge.cfg.n_heads)

    @property
    def n_ctx(self) -> int:
        """The longest sequence, in tokens."""
        return int(self.bridge.cfg.n_ctx)

    @property
    def weight_processing(self) -> str:
        """What was done to the weights, as a cache records it; some norms TransformerLens cannot fold."""
        folded = (
            "LayerNorm and value biases" if getattr(self.bridge.adapter, "supports_fold_ln", True) else "value biases"
        )
        before = f"dequantised from {self.quantisation}; " if self.quantisation else ""
        return f"{before}TransformerLens enable_compatibility_mode: {folded} folded"

    @property
    def zero_means(self) -> str:
        """What zero ablation takes away from a head of this model, as a sentence beside `zero_raw`."""
        if self.constants is not None and np.abs(self.constants).max() < 1e-5:
            return "zero sets a head's output to zero; zero_raw is the same, this model has no value or norm biases"
        if self.constants is None:
            return "zero leaves a head what folding moved out of it, which depends on the text; zero_raw is not defined"
        return (
            "zero leaves a head its constant part (value and norm biases, folded away, as in TransformerLens); "
            "the ablation zero_raw sets the whole slice to zero, as tools on plain modules do"
        )

    def some_tokens(self, n: int) -> torch.Tensor:
        """`n` tokens that mean nothing, or as many as the model takes, to see what it computes, int64 [position]."""
        return probe_tokens(self.bridge.original_model, min(n, self.n_ctx)).to(self.device)

    @property
    def device(self) -> torch.device:
        return torch.device(next(self.bridge.parameters()).device)
