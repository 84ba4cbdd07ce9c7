"""Control text that the model writes itself, for a model that no other text is at hand for."""

from typing import Any

import numpy as np
import torch
from numpy.random import RandomState

from mechrl.errors import UsageError, refused
from mechrl.models import Model
from mechrl.tasks.control import SPAN
from mechrl.vocabulary import Vocabulary

ROWS = 64  # spans that are written side by side
CACHE_ERROR = 1e-3  # of the largest logit: far above rounding, far below what a wrong position does


@torch.inference_mode()
def sampled_spans(model: Model, n: int, split: int, seed: int = 0, span: int = SPAN) -> np.ndarray:
    """`n` spans sampled from the intact model at temperature 1, tokens int32 [span, position].

    A span begins with BOS where prompts do, else with a word drawn at random; special tokens are left out. Another
    device or number of threads may round another way and write another text, so whoever needs it again stores it.

    :raises UsageError: the model cannot go on from what it has computed before.
    """
    start = first_tokens(model.vocabulary, n, split, seed)
    length = len(model.vocabulary.with_bos([])) + span
    what = f"{model.name!r} cannot write its own control text; name a file as the control text"
    with refused(what), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(int(RandomState([seed, SPAN, split]).randint(2**31)))
        parts = [_go_on(model, start[first : first + ROWS], length) for first in range(0, n, ROWS)]
    return np.concatenate(parts).astype(np.int32)


def first_tokens(vocabulary: Vocabulary, n: int, split: int, seed: int) -> np.ndarray:
    """What each of `n` spans begins with, int [span, 1]."""
    if vocabulary.bos is not None:
        return np.full((n, 1), vocabulary.bos)
    if not vocabulary.word_ids:
        raise UsageError("the tokenizer has neither BOS nor words that a control text could begin with")
    return RandomState([seed, SPAN, split]).choice(vocabulary.word_ids, (n, 1))


def _go_on(model: Model, start: np.ndarray, length: int) -> np.ndarray:
    from transformers import GenerationConfig

    hf, vocabulary = model.bridge.original_model, model.vocabulary
    # Rows that no word of the tokenizer has are not to be written either.
    left_out = {*vocabulary.tokenizer.all_special_ids, *range(vocabulary.size, vocabulary.rows)}
    more = length - start.shape[1]
    make: Any = GenerationConfig
    how = make(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_new_tokens=more, max_new_tokens=more,
        suppress_tokens=sorted(left_out), pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    tokens = torch.from_numpy(start).to(model.device)
    written: torch.Tensor = hf.generate(tokens, generation_config=how, attention_mask=torch.ones_like(tokens))
    _check_cache(hf, written[:1])
    return written.cpu().numpy()


def _check_cache(hf: Any, tokens: torch.Tensor) -> None:
    """:raises UsageError: going on from kept keys and values, the model gives other logits than from the beginning."""
    whole = hf(tokens).logits[:, -1]
    before = hf(tokens[:, :-1], use_cache=True).past_key_values
    resumed = hf(tokens[:, -1:], past_key_values=before, use_cache=True).logits[:, -1]
    if (whole - resumed).abs().max() > CACHE_ERROR * whole.abs().max():
        raise UsageError(
            "its logits with keys and values kept are not those without, so it cannot write its own "
            "control text: name a file"
        )
