"""The fast sweep against the slow reference, against plain Hugging Face modules, and against planted heads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ARCHITECTURES, WINDOW, planted_model, randomize, save
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from mechrl.ablation import Ablation, reference, tree
from mechrl.ablation import sweep as sweep_module
from mechrl.ablation.forward import Forward
from mechrl.ablation.reference import check_logits, self_check
from mechrl.ablation.replacement import ReplacementMaker
from mechrl.ablation.sweep import sweep_control, sweep_readings, sweep_task
from mechrl.building.cost import Shape
from mechrl.errors import MachineError
from mechrl.models import load_model
from mechrl.models.running import skipped
from mechrl.tasks import TASKS, TRAIN, Prompts, generate


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, tmp_path_factory):
    """(name, folder, model) of a randomly initialised model whose biases are not zero."""
    folder = save(randomize(ARCHITECTURES[request.param]()), tmp_path_factory.mktemp(request.param))
    return request.param, folder, load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def prompts(architecture):
    """IOI prompts: of two lengths, so that some are padded."""
    prompts = generate(TASKS["ioi"], architecture[2].vocabulary, 6, TRAIN)
    assert len(set(prompts.length)) > 1
    assert prompts.length.min() > WINDOW
    return prompts


def constant_of_head(name: str, hf: torch.nn.Module, layer: int, head: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """The output projection of a plain model's layer, and what folding leaves of a zeroed head: b_V + b_LN W_V."""
    if name == "gpt2":
        block = hf.transformer.h[layer]
        width, size = block.attn.embed_dim, block.attn.head_dim
        rows = slice(2 * width + head * size, 2 * width + (head + 1) * size)
        return block.attn.c_proj, block.attn.c_attn.bias[rows] + block.ln_1.bias @ block.attn.c_attn.weight[:, rows]
    if name == "neox":
        block = hf.gpt_neox.layers[layer]
        qkv = block.attention.query_key_value
        size = qkv.in_features // 4
        rows = slice(head * 3 * size + 2 * size, head * 3 * size + 3 * size)
        return block.attention.dense, qkv.bias[rows] + qkv.weight[rows] @ block.input_layernorm.bias
    attention = hf.model.layers[layer].self_attn
    group = head // attention.num_key_value_groups
    rows = slice(group * attention.head_dim, (group + 1) * attention.head_dim)
    bias = torch.zeros(attention.v_proj.out_features) if attention.v_proj.bias is None else attention.v_proj.bias
    return attention.o_proj, bias[rows]


def plain_logits(name: str, hf: torch.nn.Module, prompts: Prompts, layer: int, head: int) -> torch.Tensor:
    """Logits at the last position of each prompt, one by one and unpadded, without TransformerLens."""
    projection, constant = constant_of_head(name, hf, layer, head)
    size = len(constant)

    def replace(module, inputs):
        z = inputs[0].clone()
        z[..., head * size : (head + 1) * size] = constant
        return (z,)

    handle = projection.register_forward_pre_hook(replace)
    try:
        with torch.inference_mode():
            rows = zip(prompts.tokens, prompts.length, strict=True)
            return torch.stack([hf(torch.tensor(row[None, :n]).long()).logits[0, -1] for row, n in rows])
    finally:
        handle.remove()


def of_layer(forward: Forward, layer: int) -> np.ndarray:
    """Every head of a layer by itself."""
    n_heads = forward.model.n_heads
    return forward.singles(range(layer * n_heads, (layer + 1) * n_heads))


def bound(logits: torch.Tensor) -> float:
    return 1e-5 * max(1.0, logits.abs().max().item())


def test_sweep_equals_one_hook_per_head_and_plain_modules(architecture, prompts):
    name, folder, model = architecture
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    forward = Forward(model)
    clean = forward.clean_prompts(prompts)
    tokens, last = clean.tokens, clean.end
    effect = 0.0
    for layer in range(model.n_layers):
        fast = tree.logits(forward, clean, of_layer(forward, layer))
        for head in range(model.n_heads):
            slow = reference.logits(model, tokens, layer * model.n_heads + head)[torch.arange(len(last)), last]
            plain = plain_logits(name, hf, prompts, layer, head)
            # Centring the unembedding moves all logits of a position alike, which no measure sees.
            centred = (slow - slow.mean(-1, keepdim=True)).double()
            assert (fast[head] - slow).abs().max() <= bound(slow)
            assert (centred - (plain - plain.mean(-1, keepdim=True))).abs().max() <= bound(slow)
            effect = max(effect, (slow - reference.logits(model, tokens)[torch.arange(len(last)), last]).abs().max())
    assert effect > 0.1, "no head did anything, so nothing was compared"
    if name in ("gemma2", "mistral"):
        wide = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, sliding_window=64).eval()
        change = plain_logits(name, wide, prompts, 0, 0) - plain_logits(name, hf, prompts, 0, 0)
        assert change.abs().max() > 0.1, "the window was longer than the prompts, so nothing was compared"


def test_heads_in_several_passes_give_the_same(architecture, prompts):
    model = architecture[2]
    whole, parts = sweep_task(Forward(model), prompts), sweep_task(Forward(model, pass_tokens=1), prompts)
    for measure in whole[1]:
        np.testing.assert_allclose(whole[1][measure], parts[1][measure], atol=1e-5)


SETS = [[], [0, 5], [11], [4, 5, 6, 7], [1, 4, 9, 11], [9, 10], list(range(12))]  # of 3 layers × 4 heads


@pytest.mark.parametrize("kind", [Ablation.ZERO, Ablation.RESAMPLE, Ablation.MEAN_TASK], ids=lambda kind: kind.value)
def test_heads_ablated_together_equal_one_hook_for_each(architecture, kind):
    model = architecture[2]
    sets = np.zeros((len(SETS), 12), bool)
    for row, sites in zip(sets, SETS, strict=True):
        row[sites] = True
    drawn = generate(TASKS["ioi"], model.vocabulary, 24, TRAIN)
    spans = np.random.default_rng(0).integers(1, 700, (8, 20)).astype(np.int32)
    forward = Forward(model, pass_tokens=200)
    replacements = ReplacementMaker(kind, forward, spans, np.zeros(8, np.uint8), 0)
    other, of_control = replacements.for_task("ioi", drawn)[:4], replacements.for_control()
    prompts = drawn[:4]
    found = sweep_task(forward, prompts, other, sets)[1]["logit_diff"]
    loss = sweep_control(forward, spans, of_control, sets)[1]
    alone = sweep_task(forward, prompts, other)[1]["logit_diff"]
    np.testing.assert_allclose(found[:, 2], alone[:, 11], atol=1e-5)
    for i, sites in enumerate(SETS):
        np.testing.assert_allclose(found[:, i], reference.logit_diff(model, prompts, sites, other), atol=1e-4)
        np.testing.assert_allclose(loss[:, i], reference.control_loss(model, spans, sites, of_control), atol=1e-5)
    summed = alone[:, [0, 5]].sum(1) - 2 * sweep_task(forward, prompts, other)[0]["logit_diff"]
    together = found[:, 1] - sweep_task(forward, prompts, other)[0]["logit_diff"]
    assert np.abs(summed - together).max() > 1e-3, "two heads do what each does alone, so nothing was joint"


def test_two_readings_of_one_run_are_what_two_runs_give(architecture, prompts):
    forward = Forward(architecture[2])
    turned = replace(prompts, answers=prompts.wrongs, wrongs=prompts.answers)
    found = sweep_readings(forward, prompts, [prompts, turned])
    for of, (clean, ablated) in zip((prompts, turned), found, strict=True):
        expected_clean, expected = sweep_task(forward, of)
        for name in expected:
            np.testing.assert_array_equal(clean[name], expected_clean[name])
            np.testing.assert_array_equal(ablated[name], expected[name])


def test_control_loss_equals_one_hook_per_head(architecture):
    model = architecture[2]
    spans = np.random.default_rng(0).integers(1, 700, (5, 20)).astype(np.int32)
    loss, ablated = sweep_control(Forward(model), spans)
    np.testing.assert_allclose(loss, reference.control_loss(model, spans), atol=1e-5)
    for site in range(ablated.shape[1]):
        np.testing.assert_allclose(ablated[:, site], reference.control_loss(model, spans, site), atol=1e-5)
    plain = torch.nn.functional.cross_entropy  # the clean loss once more, straight from the logits
    logits = reference.logits(model, torch.from_numpy(spans).long())
    expected = [
        plain(row[:-1], torch.from_numpy(span[1:]).long()).item() for row, span in zip(logits, spans, strict=True)
    ]
    np.testing.assert_allclose(loss, expected, atol=1e-5)


def test_no_block_below_the_ablated_layer_runs(architecture, prompts):
    model = architecture[2]
    forward = Forward(model)
    clean = forward.clean_prompts(prompts)
    for layer in range(model.n_layers):
        calls = [0] * model.n_layers
        handles = [
            block.original_component.register_forward_hook(
                lambda *_, i=i, calls=calls: calls.__setitem__(i, calls[i] + 1)
            )
            for i, block in enumerate(model.bridge.blocks)
        ]
        tree.logits(forward, clean, of_layer(forward, layer))
        for handle in handles:
            handle.remove()
        assert calls == [0] * layer + [1] * (model.n_layers - layer)


def test_the_last_block_and_the_unembedding_see_one_position_for_a_task(architecture, prompts):
    model = architecture[2]
    forward = Forward(model)
    clean = forward.clean_prompts(prompts)
    seen = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
        for module in (model.bridge.blocks[-1].mlp.hook_out, model.bridge.unembed.original_component)
    ]
    tree.logits(forward, clean, forward.singles([0, 1]))
    for handle in handles:
        handle.remove()
    rows = 2 * len(prompts)
    assert seen[0] == (rows, 1, clean.layers[0].residual.shape[-1])
    assert sum(shape[0] * shape[1] for shape in seen[1:]) <= rows + 1


def test_control_takes_the_vocabulary_in_chunks(architecture, monkeypatch):
    """A soft cap comes after the unembedding, which is then asked for few positions at a time instead."""
    name, _, model = architecture
    spans = np.random.default_rng(0).integers(1, 700, (4, 20)).astype(np.int32)
    whole = sweep_control(Forward(model), spans)[1]
    sizes = []
    chunked = sweep_module._chunked_loss

    def seen(hidden, weight, bias, targets, step):
        sizes.append((len(hidden) * step, step))
        return chunked(hidden, weight, bias, targets, step)

    def seen_rows(forward, final):
        sizes.append((len(final) * 1106, 0))
        return unembed(forward, final)

    unembed = Forward.unembed
    if name == "gemma2":
        monkeypatch.setattr(Forward, "unembed", seen_rows)
    monkeypatch.setattr(sweep_module, "_chunked_loss", seen)
    forward = Forward(model, pass_tokens=40)
    np.testing.assert_allclose(sweep_control(forward, spans)[1], whole, atol=1e-5)
    assert max(size for size, _ in sizes) <= 40 * 128, "no more than the widest tensor of a pass"
    assert max(step for _, step in sizes) < 1106 / 2, "the vocabulary was not cut"


@pytest.mark.parametrize("task", [True, False])
def test_the_floor_is_below_what_torch_counts_and_not_far(mini, task):
    spans = np.random.default_rng(0).integers(1, 700, (32, 61)).astype(np.int32)
    prompts = Prompts(spans, np.full(32, 61), spans[:, :1], spans[:, 1:2], np.arange(32), np.zeros(32))
    shape = Shape.of(mini)
    with FlopCounterMode(display=False) as counter:
        sweep_task(Forward(mini), prompts) if task else sweep_control(Forward(mini), spans)
    assert 0.75 < shape.sweep(32, 61, task) / counter.get_total_flops() < 1
    with FlopCounterMode(display=False) as counter:
        reference.logits(mini, torch.from_numpy(spans).long())
    assert shape.loop(32, 61) / (49 * counter.get_total_flops()) == pytest.approx(1, abs=0.05)


def test_blocks_run_again_after_an_error(architecture, prompts):
    model = architecture[2]
    before = sweep_task(Forward(model), prompts)[0]["logit_diff"]
    with pytest.raises(RuntimeError, match="in the middle"), skipped(model.bridge.blocks):
        raise RuntimeError("in the middle")
    np.testing.assert_array_equal(sweep_task(Forward(model), prompts)[0]["logit_diff"], before)


def test_self_check_passes_and_can_fail(architecture, prompts):
    model = architecture[2]
    expected = check_logits(model, prompts)
    assert self_check(Forward(model), prompts, expected) <= 1e-5
    for row in range(len(expected)):  # the clean run, and each of the heads
        wrong = expected.clone()
        wrong[row] += 0.01
        with pytest.raises(MachineError, match="self-check failed"):
            self_check(Forward(model), prompts, wrong)


def test_sweep_finds_exactly_the_planted_heads(tmp_path):
    planted = {(0, 3): 0.5, (1, 2): 2.0, (2, 0): 1.0}
    model = load_model(str(save(planted_model(planted), tmp_path)), device="cpu")
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 8, (10, 6)).astype(np.int32)
    prompts = Prompts(
        tokens=tokens,
        length=np.full(10, 6, np.int32),
        answers=tokens[:, :1],
        wrongs=rng.integers(8, 16, (10, 1)).astype(np.int32),
        group=np.arange(10, dtype=np.int32),
        split=np.zeros(10, np.uint8),
    )
    clean, ablated = sweep_task(Forward(model), prompts)
    damage = (clean["logit_diff"][:, None] - ablated["logit_diff"]).mean(0)
    sites = [layer * 4 + head for layer, head in planted]
    others = np.delete(damage, sites)
    assert np.abs(others).max() < 1e-3
    assert (np.argsort(-damage)[:3] == [6, 8, 3]).all()  # 1.2, 2.0 and 0.3, by strength
    assert damage[sites].min() > 0.1


def test_a_number_that_is_not_finite_stops_the_sweep(tmp_path):
    model = load_model(str(save(randomize(ARCHITECTURES["gpt2"]()), tmp_path)), device="cpu")
    model.bridge.original_model.transformer.h[1].mlp.c_fc.bias[0] = torch.nan
    with pytest.raises(MachineError, match="nan on prompt 0 of the batch"):
        sweep_task(Forward(model), generate(TASKS["ioi"], model.vocabulary, 4, TRAIN))
