"""Sets of heads as a tree over the layers: exact, and nothing is run twice."""

import numpy as np
import pytest
from helpers import ARCHITECTURES, randomize, save

from mechrl.ablation import Ablation, reference
from mechrl.ablation.forward import Forward
from mechrl.ablation.replacement import ReplacementMaker
from mechrl.ablation.sweep import sweep_control, sweep_task
from mechrl.ablation.tree import Tree
from mechrl.models import load_model
from mechrl.tasks import TASKS, TRAIN, generate

N_LAYERS, N_HEADS = 3, 4


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    folder = save(randomize(ARCHITECTURES[request.param]()), tmp_path_factory.mktemp(request.param))
    return load_model(str(folder), device="cpu")


def some_sets() -> np.ndarray:
    """Of few heads and of nearly all, one of them twice, none and all; bool [set, site]."""
    rng = np.random.default_rng(0)
    drawn = rng.random((40, N_LAYERS * N_HEADS)) < rng.choice([0.1, 0.5, 0.9], (40, 1))
    return np.concatenate([drawn, drawn[:1], np.zeros((1, 12), bool), np.ones((1, 12), bool)])


def test_states_are_counted_by_hand():
    sets = np.zeros((5, N_LAYERS * N_HEADS), bool)
    for row, sites in zip(sets, [[], [0, 4], [0, 5, 8], [0, 5, 9], [11]], strict=True):
        row[sites] = True
    assert Tree(sets, N_LAYERS).states().tolist() == [1, 2, 4]


@pytest.mark.parametrize("kind", [Ablation.ZERO, Ablation.RESAMPLE], ids=lambda kind: kind.value)
def test_any_sets_equal_one_hook_for_each_head(model, kind):
    sets, drawn = some_sets(), generate(TASKS["ioi"], model.vocabulary, 24, TRAIN)
    spans = np.random.default_rng(0).integers(1, 700, (4, 20)).astype(np.int32)
    forward = Forward(model, pass_tokens=400)
    makers = ReplacementMaker(kind, forward, spans, np.zeros(4, np.uint8), 0)
    other, of_control = makers.for_task("ioi", drawn)[:3], makers.for_control()
    found = sweep_task(forward, drawn[:3], other, sets)[1]["logit_diff"]
    loss = sweep_control(forward, spans, of_control, sets)[1]
    for i, row in enumerate(sets):
        sites = np.flatnonzero(row).tolist()
        np.testing.assert_allclose(found[:, i], reference.logit_diff(model, drawn[:3], sites, other), atol=1e-4)
        np.testing.assert_allclose(loss[:, i], reference.control_loss(model, spans, sites, of_control), atol=1e-5)
    assert np.ptp(found, axis=1).min() > 0.1, "no set did anything, so nothing was compared"


@pytest.mark.parametrize("pass_tokens", [1, 150, 10**6])
def test_each_state_is_run_once_in_passes_that_fit(model, pass_tokens):
    sets = some_sets()
    prompts = generate(TASKS["ioi"], model.vocabulary, 2, TRAIN)
    told, rows = np.zeros(N_LAYERS, int), [[] for _ in range(N_LAYERS)]

    def on_run(clean, times, layers):
        told[layers.start : layers.stop] += times

    forward = Forward(model, pass_tokens, on_run)
    clean = forward.clean_prompts(prompts)
    handles = [
        block.mlp.register_forward_hook(lambda module, inputs, out, own=own: own.append(len(inputs[0])))
        for block, own in zip(model.bridge.blocks, rows, strict=True)
    ]
    found = [chosen for chosen, _ in Tree(sets, N_LAYERS).ablated(forward, clean)]
    for handle in handles:
        handle.remove()
    assert sorted(np.concatenate(found)) == list(range(len(sets)))
    states = Tree(sets, N_LAYERS).states()
    assert [sum(own) / len(prompts) for own in rows] == states.tolist() == told.tolist()
    assert max(max(own) for own in rows) <= max(len(prompts), pass_tokens / clean.tokens.shape[1])
