"""What each kind of ablation puts in: by hand, against the slow reference, and against plain modules."""

import numpy as np
import pytest
import torch
from helpers import ARCHITECTURES, planted_model, randomize, save
from test_sweep import constant_of_head
from transformers import AutoModelForCausalLM

from mechrl.ablation import NOTHING, Ablation, Replacement, reference
from mechrl.ablation.forward import Forward
from mechrl.ablation.intact.direct import direct_effect, unscaled
from mechrl.ablation.replacement import LEAST, ReplacementMaker, mean_table, others
from mechrl.ablation.sweep import sweep_control, sweep_task
from mechrl.errors import UsageError
from mechrl.models import load_model
from mechrl.tasks import EVALUATION, TASKS, TRAIN, Prompts, generate, join


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, tmp_path_factory):
    """(name, folder, model) of a randomly initialised model whose biases are not zero."""
    folder = save(randomize(ARCHITECTURES[request.param]()), tmp_path_factory.mktemp(request.param))
    return request.param, folder, load_model(str(folder), device="cpu")


def some_prompts(model, task="ioi"):
    return join([generate(TASKS[task], model.vocabulary, n, split) for n, split in ((24, TRAIN), (8, EVALUATION))])


def some_replacements(kind, forward):
    spans = np.random.default_rng(0).integers(1, 700, (16, 20)).astype(np.int32)
    split = np.repeat(np.array([TRAIN, EVALUATION], np.uint8), [12, 4])
    return ReplacementMaker(kind, forward, spans, split, seed=0)


@pytest.mark.parametrize("kind", Ablation)
def test_every_kind_equals_the_slow_reference(architecture, kind):
    model = architecture[2]
    forward, prompts = Forward(model), some_prompts(model)
    replacements = some_replacements(kind, forward)
    other, of_control = replacements.for_task("ioi", prompts), replacements.for_control()
    rows = np.arange(18, 30)  # of both splits and of several lengths
    clean, ablated = sweep_task(forward, prompts[rows], other[rows])
    loss, ablated_loss = sweep_control(forward, replacements.spans, of_control)
    zero = sweep_task(forward, prompts[rows])[1]["logit_diff"]
    tokens = torch.from_numpy(prompts.tokens[rows]).long()
    bound = 1e-5 * max(1.0, reference.logits(model, tokens).abs().max().item())
    for site in range(model.n_layers * model.n_heads):
        slow = reference.logit_diff(model, prompts[rows], site, other[rows])
        np.testing.assert_allclose(ablated["logit_diff"][:, site], slow, atol=bound)
        slow = reference.control_loss(model, replacements.spans, site, of_control)
        np.testing.assert_allclose(ablated_loss[:, site], slow, atol=bound)
    effect = np.abs(ablated["logit_diff"] - clean["logit_diff"][:, None]).max()
    assert effect > 0.01, "no head did anything, so nothing was compared"
    assert np.abs(ablated_loss - loss[:, None]).max() > 0.001
    if kind is not Ablation.ZERO and np.abs(model.constants).max() > 1e-3:
        assert np.abs(ablated["logit_diff"] - zero).max() > 1e-3, "the same as zero"


def test_zero_raw_is_zero_in_a_model_that_was_not_folded(architecture):
    name, folder, model = architecture
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    forward, prompts = Forward(model), generate(TASKS["ioi"], model.vocabulary, 4, TRAIN)
    other = some_replacements(Ablation.ZERO_RAW, forward).for_task("ioi", prompts)
    found = sweep_task(forward, prompts, other)[1]["logit_diff"]
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            projection, constant = constant_of_head(name, hf, layer, head)
            np.testing.assert_allclose(model.constants[layer, head], constant.detach(), atol=1e-5)
            of_head = slice(head * len(constant), (head + 1) * len(constant))

            def without_head(module, inputs, of_head=of_head):
                z = inputs[0].clone()
                z[..., of_head] = 0
                return (z,)

            handle = projection.register_forward_pre_hook(without_head)
            with torch.inference_mode():
                logits = [
                    hf(torch.tensor(row[None, :n]).long()).logits[0, -1]
                    for row, n in zip(prompts.tokens, prompts.length, strict=True)
                ]
            handle.remove()
            plain = [
                (of_row[a] - of_row[w]).item()
                for of_row, a, w in zip(logits, prompts.answers[:, 0], prompts.wrongs[:, 0], strict=True)
            ]
            np.testing.assert_allclose(found[:, layer * model.n_heads + head], plain, atol=2e-5)


def test_means_are_counted_from_the_end_and_rare_positions_take_the_mean_over_all(mini):
    forward = Forward(mini)
    prompts = generate(TASKS["ioi"], mini.vocabulary, 20, TRAIN)
    table = mean_table(forward, prompts.tokens, prompts.length)
    z = [
        [z[0].double().numpy() for z in forward.head_outputs(row[None, :n])]
        for row, n in zip(prompts.tokens, prompts.length, strict=True)
    ]
    longest = prompts.length.max()
    rare = 0
    for layer in (0, 5):
        everything = np.concatenate([of_row[layer] for of_row in z]).mean(0)
        for back in range(longest + 1):
            there = [of_row[layer][-1 - back] for of_row in z if len(of_row[layer]) > back]
            expected = np.mean(there, axis=0) if len(there) >= LEAST else everything
            rare += 0 < len(there) < LEAST
            np.testing.assert_allclose(table[layer, back], expected, atol=1e-5)
    assert len(set(prompts.length.tolist())) > 1
    assert rare, "no position was rare, so the rule was not tried"


def test_means_come_from_the_training_prompts_alone(mini):
    forward = Forward(mini)
    prompts = some_prompts(mini)
    replacements = some_replacements(Ablation.MEAN_TASK, forward)
    found = replacements.for_task("ioi", prompts)
    train = prompts[prompts.split == TRAIN]
    np.testing.assert_array_equal(found.table, mean_table(forward, train.tokens, train.length))
    of_control = mean_table(forward, replacements.spans[:12], np.full(12, 20))
    for kind in (Ablation.MEAN_TASK, Ablation.MEAN_CONTROL):
        np.testing.assert_array_equal(some_replacements(kind, forward).for_control().table, of_control)
    np.testing.assert_array_equal(
        some_replacements(Ablation.MEAN_CONTROL, forward).for_task("ioi", prompts).table, of_control
    )


def test_resampling_is_a_seeded_derangement_of_training_prompts_of_one_length():
    length = np.array([5] * 10 + [7] * 6 + [5, 5, 7])
    split = np.array([TRAIN] * 16 + [EVALUATION] * 3, np.uint8)
    chosen = others("t", length, split, 0)
    assert (chosen < 16).all()
    np.testing.assert_array_equal(length[chosen], length)
    assert (chosen != np.arange(19)).all()
    assert sorted(chosen[:16].tolist()) == list(range(16)), "each training prompt is put in once"
    np.testing.assert_array_equal(chosen, others("t", length, split, 0))
    assert (chosen != others("t", length, split, 1)).any()
    length[15] = 9
    with pytest.raises(UsageError, match="'t' has 1 prompts of 9 tokens and 1 of them for training"):
        others("t", length, split, 0)


def test_the_counterfactual_is_the_twins_own_activation(mini):
    forward = Forward(mini)
    prompts = some_prompts(mini)
    other = some_replacements(Ablation.COUNTERFACTUAL, forward).for_task("ioi", prompts)
    np.testing.assert_array_equal(other.sources, prompts.corrupted)
    alone = type(prompts)(**{**vars(prompts), "corrupted": None})
    with pytest.raises(UsageError, match="has no counterfactual twins"):
        some_replacements(Ablation.COUNTERFACTUAL, forward).for_task("ioi", alone)


def test_the_fingerprint_tells_kinds_and_prompts_apart(mini):
    forward = Forward(mini)
    prompts = some_prompts(mini)
    found = {kind: some_replacements(kind, forward).for_task("ioi", prompts).sha256 for kind in Ablation}
    assert found[Ablation.ZERO] == found[Ablation.ZERO_RAW] == ""
    assert len(set(found.values())) == 5
    changed = prompts.tokens.copy()
    changed[0, 3] += 1
    changed = type(prompts)(**{**vars(prompts), "tokens": changed})
    assert some_replacements(Ablation.MEAN_TASK, forward).for_task("ioi", changed).sha256 != found[Ablation.MEAN_TASK]


def keep(seen, name):
    """A hook that keeps what a module is given at the last position."""
    return lambda module, inputs: seen.__setitem__(name, inputs[0][0, -1])


def test_direct_effects_equal_a_computation_by_hand(tmp_path):
    """GPT-2 in plain Hugging Face modules: z W_O through the final norm with its scale kept, times W_U."""
    folder = save(randomize(ARCHITECTURES["gpt2"]()), tmp_path)
    model = load_model(str(folder), device="cpu")
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    prompts = generate(TASKS["ioi"], model.vocabulary, 3, TRAIN)
    forward = Forward(model)
    other = some_replacements(Ablation.ZERO_RAW, forward).for_task("ioi", prompts)
    found = direct_effect(forward, prompts, other)
    for i, (row, n) in enumerate(zip(prompts.tokens, prompts.length, strict=True)):
        seen = {}
        handles = [
            block.attn.c_proj.register_forward_pre_hook(keep(seen, layer))
            for layer, block in enumerate(hf.transformer.h)
        ]
        handles.append(hf.transformer.ln_f.register_forward_pre_hook(keep(seen, "end")))
        with torch.no_grad():
            hf(torch.tensor(row[None, :n]).long())
        for handle in handles:
            handle.remove()
        scale = (seen["end"].var(unbiased=False) + hf.transformer.ln_f.eps).sqrt()
        reader = hf.lm_head.weight[prompts.answers[i, 0]] - hf.lm_head.weight[prompts.wrongs[i, 0]]
        for layer, block in enumerate(hf.transformer.h):
            for head in range(4):
                rows = slice(8 * head, 8 * head + 8)
                written = seen[layer][rows] @ block.attn.c_proj.weight[rows]
                expected = (written - written.mean()) / scale * hf.transformer.ln_f.weight @ reader
                np.testing.assert_allclose(found[i, 4 * layer + head], expected.item(), atol=1e-5)
    assert np.abs(found).max() > 0.01


def test_in_the_last_layer_of_a_planted_model_damage_is_direct(tmp_path):
    model = load_model(str(save(planted_model({(2, 1): 2.0, (2, 3): 1.0}), tmp_path)), device="cpu")
    tokens = np.array([[1, 2, 3, 4, 2, 5]] * 4, np.int32)
    column = np.array([[2]] * 4, np.int32)
    prompts = Prompts(tokens, np.full(4, 6, np.int32), column, column + 6, np.arange(4), np.zeros(4, np.uint8))
    forward = Forward(model)
    clean, ablated = sweep_task(forward, prompts)
    damage = clean["logit_diff"][:, None] - ablated["logit_diff"]
    np.testing.assert_allclose(direct_effect(forward, prompts), damage, atol=1e-3)
    assert damage[:, 9].min() > 1


def test_with_several_answers_the_direct_effect_is_the_slope_of_the_logit_difference(mini):
    """A small step of z along a head of the last layer changes the logit difference by step × direct effect."""
    forward = Forward(mini)
    prompts = generate(TASKS["copy_suppression"], mini.vocabulary, 4, TRAIN)
    assert prompts.answers.shape[1] > 1
    none = sweep_task(forward, prompts)
    step = 1e-2
    site = np.abs(direct_effect(forward, prompts)).mean(0)[40:].argmax() + 40
    z = forward.head_outputs(prompts.tokens)[5][:, :, site % 8].numpy()
    # A table holds one row for all prompts, so one prompt at a time.
    for i in range(4):
        n = prompts.length[i]
        table = np.zeros((6, int(n), 8, 16), np.float32)
        table[5, :, site % 8] = (1 - step) * z[i, :n][::-1]
        near = sweep_task(forward, prompts[i : i + 1], Replacement(table=table))[1]["logit_diff"][0, site]
        moved = (none[0]["logit_diff"][i] - near) / step
        direct = direct_effect(forward, prompts[i : i + 1])[0, site]
        assert abs(moved - direct) < 0.3 * abs(direct) + 0.05, "up to what the MLP of its layer and the norm do"


def test_where_a_norm_follows_attention_there_is_no_direct_effect(architecture):
    name, _, model = architecture
    found = direct_effect(Forward(model), generate(TASKS["ioi"], model.vocabulary, 3, TRAIN), NOTHING)
    assert (found is None) == (name == "gemma2")


def test_a_norm_without_its_scale_is_linear(architecture):
    model = architecture[2]
    norm, one, other = model.bridge.ln_final, *(2 + torch.randn(2, 5, 3, 32, generator=torch.manual_seed(0)))
    sums = unscaled(model, norm, one + 3 * other), unscaled(model, norm, one) + 3 * unscaled(model, norm, other)
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(norm(one + 3 * other), norm(one) + 3 * norm(other), atol=0.1)
