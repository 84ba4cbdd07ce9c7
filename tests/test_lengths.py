"""A prompt's number does not depend on its neighbours, and a model is tried at the lengths that are used."""

import numpy as np
import pytest
import torch
from helpers import SIZES, randomize, save
from transformers import LlamaConfig, LlamaForCausalLM

from mechrl.ablation import reference
from mechrl.ablation.forward import Forward
from mechrl.ablation.reference import check_logits, self_check
from mechrl.ablation.sweep import clean_measures, sweep_task
from mechrl.errors import UsageError
from mechrl.models import check_length, load_model
from mechrl.models.probe import PROBE_TOKENS
from mechrl.tasks import Prompts

ORIGINAL = 96  # tokens that longrope was trained on
LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0, 1.0, 1.0, 1.0], "long_factor": [1.0, 2.0, 4.0, 8.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def long_rope(tmp_path_factory):
    """A model that reads all rows of a batch in another way if one of them has more than 96 tokens."""
    config = LlamaConfig(**{**SIZES, "max_position_embeddings": 512}, rope_parameters=LONG_ROPE)
    return load_model(str(save(randomize(LlamaForCausalLM(config)), tmp_path_factory.mktemp("model"))), device="cpu")


def prompts_of(*lengths: int) -> Prompts:
    rng = np.random.RandomState(0)
    tokens = np.zeros((len(lengths), max(lengths)), np.int32)
    for row, n in enumerate(lengths):
        tokens[row, :n] = rng.randint(1, 1106, size=n)
    column = rng.randint(1, 1106, size=(2, len(lengths), 1)).astype(np.int32)
    zeros = np.zeros(len(lengths), np.int32)
    return Prompts(tokens, np.array(lengths, np.int32), *column, zeros, zeros.astype(np.uint8))


def test_rows_that_a_model_reads_differently_together_run_apart(long_rope):
    length = np.array([15, 130, 96, 97, 15])
    assert [length[rows].tolist() for rows in long_rope.regimes.split(length)] == [[15, 96, 15], [130, 97]]


def test_rows_of_other_models_share_a_batch(mini):
    assert [rows.tolist() for rows in mini.regimes.split(np.array([15, 60, 3]))] == [[0, 1, 2]]


def test_every_number_is_that_of_the_prompt_alone(long_rope):
    """Clean and ablated, by the sweep and by the slow reference."""
    prompts = prompts_of(15, 130, 60, 97)
    forward = Forward(long_rope)
    clean, ablated = sweep_task(forward, prompts)
    said, slow = clean_measures(forward, prompts)[0]["logit_diff"], reference.logit_diff(long_rope, prompts, 5)
    for row in range(len(prompts)):
        alone = prompts[np.array([row])]
        alone_clean, alone_ablated = sweep_task(forward, alone)
        np.testing.assert_allclose(clean["logit_diff"][row], alone_clean["logit_diff"][0], atol=2e-5)
        np.testing.assert_allclose(ablated["logit_diff"][row], alone_ablated["logit_diff"][0], atol=2e-5)
        np.testing.assert_allclose(said[row], alone_clean["logit_diff"][0], atol=2e-5)
        np.testing.assert_allclose(slow[row], reference.logit_diff(long_rope, alone, 5)[0], atol=2e-5)


def test_the_self_check_sees_a_number_that_depends_on_its_neighbours(long_rope, monkeypatch):
    prompts = prompts_of(15, 130)
    expected = check_logits(long_rope, prompts)
    assert self_check(Forward(long_rope), prompts, expected) < 1e-5
    monkeypatch.setattr(type(long_rope.regimes), "split", lambda self, length: [np.arange(len(length))])
    with pytest.raises(Exception, match="self-check failed"):
        self_check(Forward(long_rope), prompts, expected)


def test_a_model_that_remembers_what_it_has_seen_is_refused(long_rope, monkeypatch):
    """Dynamic NTK does, beyond its context. Here the second look at a length gives another answer."""
    states, looks = type(long_rope.regimes)._states, []
    long_rope.regimes.forget()

    def drifting(self, width: int) -> torch.Tensor:
        looks.append(width)
        return states(self, width) * (1 + looks.count(width) / 10)

    monkeypatch.setattr(type(long_rope.regimes), "_states", drifting)
    with pytest.raises(UsageError, match="depends on the lengths that it has seen before"):
        long_rope.regimes.split(np.array([15, 130]))
    long_rope.regimes.forget()


def test_a_model_is_compared_with_transformers_at_the_lengths_that_are_used(long_rope, monkeypatch):
    """Here something goes wrong from 300 tokens on, which loading has not tried."""
    assert long_rope.probed == PROBE_TOKENS
    check_length(long_rope, 400)
    run = type(long_rope.bridge).run_with_hooks

    def wrong_when_long(self, tokens, *args, **kwargs):
        logits = run(self, tokens, *args, **kwargs)
        return logits * (1.1 if tokens.shape[1] > 300 else 1)

    monkeypatch.setattr(type(long_rope.bridge), "run_with_hooks", wrong_when_long)
    check_length(long_rope, PROBE_TOKENS)
    with pytest.raises(UsageError, match="its logits differ from those of transformers by 10%"):
        check_length(long_rope, 400)


def test_lengths_are_compared_over_all_positions_that_they_share(mini, monkeypatch):
    """Here what begins at 60 tokens shows from the tenth position on, so that five say nothing of it."""

    def states(self, width: int) -> torch.Tensor:
        return torch.ones(width, 4) + (width >= 60) * (torch.arange(width)[:, None] >= 10)

    monkeypatch.setattr(type(mini.regimes), "_states", states)
    mini.regimes.forget()
    assert [rows.tolist() for rows in mini.regimes.split(np.array([5, 50, 60]))] == [[0, 1], [2]]
    mini.regimes.forget()
