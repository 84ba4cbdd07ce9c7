"""Measures on logits small enough to work out by hand."""

import math

import pytest
import torch

from mechrl.ablation import MEASURES
from mechrl.ablation.measures import measure, next_token_loss

LOG = math.log
LOGITS = torch.tensor([[LOG(1), LOG(2), LOG(3), LOG(4)]])  # probabilities 0.1, 0.2, 0.3, 0.4


def of(logits, answers, wrongs, clean=LOGITS):
    values = measure(logits, clean.log_softmax(-1), torch.tensor([answers]), torch.tensor([wrongs]))
    assert tuple(values) == (*MEASURES, "top1_margin")
    return {name: value.item() for name, value in values.items()}


def test_one_answer_and_one_wrong():
    values = of(LOGITS, [3], [0])
    assert values["logit_diff"] == pytest.approx(LOG(4))
    assert values["logprob"] == pytest.approx(LOG(0.4))
    assert values["prob_diff"] == pytest.approx(0.3)
    assert values["top1"] == 1
    assert values["top1_margin"] == pytest.approx(LOG(4) - LOG(3))
    assert values["kl"] == pytest.approx(0, abs=1e-7)


def test_several_answers_and_wrongs_with_padding():
    values = of(LOGITS, [1, 2, -1], [0, 3, -1])
    assert values["logit_diff"] == pytest.approx(LOG(5) - LOG(5))
    assert values["logprob"] == pytest.approx(LOG(0.5))
    assert values["prob_diff"] == pytest.approx(0, abs=1e-7)
    assert values["top1"] == 0


def test_logit_diff_is_in_nats_and_ignores_a_shift_of_all_logits():
    assert of(LOGITS + 5, [2], [1])["logit_diff"] == pytest.approx(LOG(1.5), abs=1e-6)


def test_kl_is_from_the_clean_distribution():
    uniform = torch.zeros(1, 4)
    assert of(LOGITS.flip(1), [3], [0])["top1_margin"] == pytest.approx(LOG(1) - LOG(4))
    expected = sum(p * LOG(p / 0.25) for p in (0.1, 0.2, 0.3, 0.4))
    assert of(uniform, [3], [0])["kl"] == pytest.approx(expected, abs=1e-6)


def test_next_token_loss_is_the_mean_over_the_positions_that_have_a_next_token():
    logits = torch.stack([LOGITS[0], torch.zeros(4), LOGITS[0]])[None]
    tokens = torch.tensor([[0, 3, 1]])
    assert next_token_loss(logits, tokens).item() == pytest.approx((LOG(1 / 0.4) + LOG(4)) / 2)
