"""Attribution against finite differences, where it is exact, and what it sums to; features against plain modules."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import ARCHITECTURES, planted_model, randomize, save, table_cache
from test_replacement import some_prompts, some_replacements
from test_sweep import constant_of_head
from transformers import AutoModelForCausalLM

from mechrl.ablation import FEATURES, Ablation, attribution
from mechrl.ablation.attribution import attribute_control, attribute_task
from mechrl.ablation.forward import Forward
from mechrl.ablation.intact.roles import head_features, shows_patterns
from mechrl.ablation.measures import measure, next_token_loss
from mechrl.ablation.sweep import sweep_task
from mechrl.cache.agreement import agreement
from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_content
from mechrl.cli.cache import cache as command
from mechrl.errors import UsageError
from mechrl.models import cast, load_model
from mechrl.tasks import TASKS, TRAIN, Prompts, generate

STEP = 3e-3  # of a finite difference: float64, but RMS norms of transformers round to float32 inside


def load(name, folder):
    """A small model of a family in float64, with weights that matter."""
    model = load_model(str(save(randomize(ARCHITECTURES[name]()), folder)), device="cpu")
    cast(model, "float64")
    return model


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    return load(request.param, tmp_path_factory.mktemp(request.param))


class ByHand:
    """One batch of prompts, or of spans, on which `hook_z` of every layer can be set."""

    def __init__(self, model, rows, other):
        self.model, self.rows = model, rows
        self.is_task = isinstance(rows, Prompts)
        self.tokens = torch.from_numpy(rows.tokens[:, : rows.length.max()] if self.is_task else rows).long()
        length = rows.length if self.is_task else np.full(len(rows), rows.shape[1])
        forward = Forward(model)
        end = torch.from_numpy(length).long() - 1
        layers = forward.clean(self.tokens, end, True, other).layers
        self.z = [layer.z for layer in layers]
        self.taken = [entry.z - (0 if entry.other is None else entry.other) for entry in layers]

    @torch.inference_mode()
    def value(self, change, copies=1):
        """The logit difference, or minus the loss, float64 [copy × row], with z of each layer as `change` says.

        :param change: of (layer, z), z being that of so many copies of the rows, one after the other.
        """
        hooks = [
            (f"blocks.{layer}.attn.hook_z", lambda z, hook, layer=layer: change(layer, z))
            for layer in range(self.model.n_layers)
        ]
        tokens = self.tokens.repeat(copies, 1)
        logits = self.model.bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
        if not self.is_task:
            return -next_token_loss(logits, tokens).numpy()
        columns = (self.rows.length - 1, self.rows.answers, self.rows.wrongs)
        last, answers, wrongs = (torch.from_numpy(np.concatenate([c] * copies)).long() for c in columns)
        read = logits[range(len(last)), last]
        return measure(read, read.log_softmax(-1), answers, wrongs)["logit_diff"].numpy()

    def slopes(self, share):
        """Central differences by the gate of each head, [row, site], with all heads' gates at `share`.

        All of them in one run: a copy of the rows for each head and direction.
        """
        n, n_heads = len(self.tokens), self.model.n_heads
        sites = self.model.n_layers * n_heads

        def stepped(layer, z):
            away = z - (self.z[layer] - self.taken[layer]).repeat(len(z) // n, 1, 1, 1)
            z = z - (1 - share) * away
            for head in range(n_heads):
                for copy, step in ((layer * n_heads + head, STEP), (sites + layer * n_heads + head, -STEP)):
                    rows = slice(copy * n, (copy + 1) * n)
                    z[rows, :, head] += step * away[rows, :, head]
            return z

        up, down = self.value(stepped, copies=2 * sites).reshape(2, sites, n)
        return ((up - down) / (2 * STEP)).T

    def at_share(self, share):
        """All heads of all layers at once, so far from what is put in to the clean run."""
        points = [z - (1 - share) * taken for z, taken in zip(self.z, self.taken, strict=True)]
        return lambda layer, z: points[layer].repeat(len(z) // len(self.tokens), 1, 1, 1)


def some_rows(model, kind):
    """(rows, what is put in, their attribution) of some IOI prompts of two lengths, and of some spans."""
    forward = Forward(model)
    replacements = some_replacements(kind, forward)
    prompts, other = some_prompts(model), replacements.for_task("ioi", some_prompts(model))
    chosen = np.array([0, *np.flatnonzero(prompts.length != prompts.length[0])[:1], 25])
    task = prompts[chosen], other[chosen]
    control = replacements.spans[10:13], replacements.for_control()[10:13]
    return [(*task, attribute_task(forward, *task)), (*control, attribute_control(forward, *control))]


@pytest.mark.parametrize("kind", [Ablation.ZERO, Ablation.MEAN_TASK, Ablation.COUNTERFACTUAL])
def test_one_step_is_the_slope_of_the_measure_along_the_ablation_of_each_head(model, kind):
    for rows, other, found in some_rows(model, kind):
        slopes = ByHand(model, rows, other).slopes(1.0)
        np.testing.assert_allclose(found["attribution"], slopes, rtol=1e-3, atol=3e-4)
        assert np.abs(slopes).max() > 0.01, "no head did anything, so nothing was compared"


def test_integrated_is_the_mean_slope_by_the_gates_at_five_points(model):
    for rows, other, found in some_rows(model, Ablation.MEAN_TASK):
        by_hand = ByHand(model, rows, other)
        slopes = np.mean([by_hand.slopes(share) for share in (0.1, 0.3, 0.5, 0.7, 0.9)], axis=0)
        np.testing.assert_allclose(found["attribution_integrated"], slopes, rtol=1e-3, atol=3e-4)
        assert np.abs(slopes - found["attribution"]).max() > 0.001, "one step gives the same, so nothing was compared"


@pytest.mark.parametrize("kind", [Ablation.ZERO, Ablation.MEAN_TASK, Ablation.RESAMPLE])
def test_integrated_sums_to_the_damage_of_ablating_all_heads_at_once(tmp_path, kind, monkeypatch):
    model = load("gpt2", tmp_path)
    coarse = [found["attribution_integrated"].sum(1) for _, _, found in some_rows(model, kind)]
    monkeypatch.setattr(attribution, "STEPS", 100)
    for (rows, other, found), five in zip(some_rows(model, kind), coarse, strict=True):
        by_hand = ByHand(model, rows, other)
        damage = by_hand.value(lambda layer, z: z) - by_hand.value(by_hand.at_share(0))
        np.testing.assert_allclose(found["attribution_integrated"].sum(1), damage, rtol=2e-3, atol=2e-3)
        error = np.abs(five - damage).max()
        assert error < 0.1 * np.abs(damage).max()
        assert error < 0.5 * np.abs(found["attribution"].sum(1) - damage).max(), "one step is as near"


def test_attribution_is_damage_where_the_model_is_linear(tmp_path, monkeypatch):
    """GPT-2 without MLPs, norms and scores: each head adds a fixed linear map of the positions before it."""
    plain = randomize(ARCHITECTURES["gpt2"]())
    with torch.no_grad():
        for block in plain.transformer.h:
            block.mlp.c_proj.weight.zero_()
            block.attn.c_attn.weight[:, :64] = 0
            block.attn.c_attn.bias[:64] = 0
    model = load_model(str(save(plain, tmp_path)), device="cpu")
    for norm in (model.bridge.ln_final, *(block.ln1 for block in model.bridge.blocks)):
        monkeypatch.setitem(norm.__dict__, "_python_norm_forward", lambda hidden: hidden)
    prompts = generate(TASKS["ioi"], model.vocabulary, 4, TRAIN)
    assert len(set(prompts.length)) > 1
    forward = Forward(model)
    clean, ablated = sweep_task(forward, prompts)
    found = attribute_task(forward, prompts)
    damage = clean["logit_diff"][:, None] - ablated["logit_diff"]
    assert np.abs(damage).min(0).max() > 0.05
    np.testing.assert_allclose(found["attribution"], damage, atol=1e-4)


def test_both_are_damage_where_no_head_reads_another(tmp_path):
    """Planted heads read the embedding alone, so that the model is linear in all of them together."""
    planted = {(0, 1): 1.0, (1, 2): -0.5, (2, 0): 2.0}
    model = load_model(str(save(planted_model(planted), tmp_path)), device="cpu")
    rng = np.random.default_rng(0)
    columns = (rng.integers(1, 16, (4, 9)), np.full(4, 9), rng.integers(1, 8, (4, 1)), rng.integers(8, 16, (4, 1)))
    tokens, length, answers, wrongs = (column.astype(np.int32) for column in columns)
    prompts = Prompts(tokens, length, answers, wrongs, np.arange(4, dtype=np.int32), np.zeros(4, np.uint8))
    forward = Forward(model)
    clean, ablated = sweep_task(forward, prompts)
    damage = clean["logit_diff"][:, None] - ablated["logit_diff"]
    assert np.abs(damage).max() > 0.05
    for found in attribute_task(forward, prompts).values():
        np.testing.assert_allclose(found, damage, rtol=1e-2, atol=1e-3)


def test_small_passes_give_the_same(mini):
    prompts = generate(TASKS["ioi"], mini.vocabulary, 5, TRAIN)
    spans = np.random.default_rng(0).integers(1, 700, (5, 20)).astype(np.int32)
    for attribute, rows in ((attribute_task, prompts), (attribute_control, spans), (head_features, prompts)):
        whole, parts = attribute(Forward(mini), rows), attribute(Forward(mini, pass_tokens=40), rows)
        assert whole.keys() == parts.keys()
        for name in whole:
            np.testing.assert_allclose(whole[name], parts[name], atol=1e-5)


def test_control_takes_few_logits_at_a_time(mini, monkeypatch):
    unembed, sizes = Forward.unembed, []

    def seen(forward, final):
        sizes.append(len(final))
        return unembed(forward, final)

    forward = Forward(mini, pass_tokens=40)
    monkeypatch.setattr(Forward, "unembed", seen)
    attribute_control(forward, np.random.default_rng(0).integers(1, 700, (2, 20)).astype(np.int32))
    assert max(sizes) * mini.bridge.cfg.d_vocab <= 40 * 4 * mini.bridge.cfg.d_model
    assert sum(sizes) == 6 * 2 * 19, "each position but the last of each span, at each of 1 + 5 points"


def test_attribution_halves_its_groups_until_they_fit(mini, monkeypatch):
    prompts = generate(TASKS["ioi"], mini.vocabulary, 8, TRAIN)
    expected = attribute_task(Forward(mini), prompts)["attribution"]
    run, limit = Forward.run, 3 * int(prompts.length.max())

    def limited(self, hooks, last, rows, **kwargs):
        if rows.numel() > limit and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("no memory left")
        return run(self, hooks, last, rows, **kwargs)

    monkeypatch.setattr(Forward, "run", limited)
    forward = Forward(mini, pass_tokens=4 * limit)
    np.testing.assert_allclose(attribute_task(forward, prompts)["attribution"], expected, atol=1e-5)
    assert forward.pass_tokens == limit


def test_features_equal_a_computation_by_hand(tmp_path):
    """GPT-2 in plain Hugging Face modules, one prompt at a time and unpadded."""
    folder = save(randomize(ARCHITECTURES["gpt2"]()), tmp_path)
    model = load_model(str(folder), device="cpu")
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    prompts = generate(TASKS["ioi"], model.vocabulary, 4, TRAIN)
    assert len(set(prompts.length)) > 1
    found = head_features(Forward(model), prompts)
    assert set(found) == set(FEATURES)
    for i, (row, n) in enumerate(zip(prompts.tokens, prompts.length, strict=True)):
        seen = []
        handles = [
            block.attn.c_proj.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0][0, -1]))
            for block in hf.transformer.h
        ]
        with torch.no_grad():
            patterns = hf(torch.tensor(row[None, :n]).long(), output_attentions=True).attentions
        for handle in handles:
            handle.remove()
        for layer in range(3):
            for head in range(4):
                pattern = patterns[layer][0, head].numpy()
                entropy = [-sum(p * np.log(p) for p in pattern[q, : q + 1]) for q in range(n)]
                projection, constant = constant_of_head("gpt2", hf, layer, head)
                written = (seen[layer][8 * head : 8 * head + 8] - constant) @ projection.weight[8 * head : 8 * head + 8]
                expected = {
                    "attention_entropy": np.mean(entropy),
                    "previous_token": np.mean([pattern[q, q - 1] for q in range(1, n)]),
                    "bos_attention": np.mean([pattern[q, 0] for q in range(1, n)]),
                    "output_norm": (written - written.mean()).norm().item(),  # folding centres what is written
                }
                for name, value in expected.items():
                    np.testing.assert_allclose(found[name][i, 4 * layer + head], value, atol=1e-5, err_msg=name)


def test_every_family_shows_its_patterns_and_those_without_a_norm_after_attention_what_they_write(model):
    found = head_features(Forward(model), generate(TASKS["ioi"], model.vocabulary, 2, TRAIN))
    has_norm_after = model.bridge.original_model.config.model_type == "gemma2"
    assert set(FEATURES) - set(found) == ({"output_norm"} if has_norm_after else set())


@pytest.mark.parametrize(
    "changed",
    [
        lambda hook, weights: weights,  # never shown
        lambda hook, weights: (hook(weights), weights)[1],  # shown, and not what is used
        lambda hook, weights: hook(weights / 2),  # a share of attention goes elsewhere
    ],
)
def test_patterns_that_are_not_what_heads_attend_with_are_left_out(tmp_path, monkeypatch, changed):
    model = load_model(str(save(randomize(ARCHITECTURES["llama"]()), tmp_path)), device="cpu")
    forward = Forward(model)
    assert shows_patterns(forward)
    attention = model.bridge.blocks[1].attn
    hook = attention.hook_pattern
    monkeypatch.setitem(attention.__dict__, "hook_pattern", lambda weights: changed(hook, weights))
    assert not shows_patterns(forward)
    assert set(head_features(forward, generate(TASKS["ioi"], model.vocabulary, 2, TRAIN))) == {"output_norm"}


def test_a_built_cache_holds_them(mini, small_cache):
    forward = Forward(mini)
    for task in small_cache.tasks:
        rows = small_cache.prompts(task)[24:32]  # a batch of the evaluation split
        expected = {**attribute_task(forward, rows), **head_features(forward, rows)}
        found = {
            "attribution": small_cache.attribution(task),
            "attribution_integrated": small_cache.attribution(task, integrated=True),
            **small_cache.head_features(task),
        }
        assert found.keys() == expected.keys()
        for name, values in found.items():
            assert values.dtype == np.float32
            assert values.shape == (32, 48)
            np.testing.assert_allclose(values[24:32], expected[name], atol=1e-5)
    estimated = attribute_control(forward, small_cache.content.arrays["/control/tokens"][:8])
    for integrated, name in ((False, "attribution"), (True, "attribution_integrated")):
        np.testing.assert_allclose(small_cache.control_attribution(integrated)[:8], estimated[name], atol=1e-5)


@pytest.fixture
def by_hand(tmp_path):
    """Two layers of three heads, damages known, and attributions that order them otherwise."""
    damage = np.array([[1, 2, 3, 4, 5, 6]] * 3, np.float32)
    cache = table_cache(tmp_path / "without.h5", {"a": damage}, 10 - damage, 2, 3)
    arrays = {
        **cache.content.arrays,
        "/tasks/a/attribution": damage + np.array([[-9], [0], [9]], np.float32),
        "/tasks/a/attribution_integrated": np.array([[2, 1, 3, 7, 7, 7]] * 3, np.float32),
        "/control/attribution": damage,
        "/control/attribution_integrated": (10 - damage) ** 3,
    }
    write_content(tmp_path / "with.h5", Content(arrays, cache.content.attributes))
    return cache, Cache.open(tmp_path / "with.h5")


def test_agreement_by_hand(by_hand, call):
    opened = by_hand[1]
    found = agreement(opened, "a")
    assert found["one-step"].heads == pytest.approx(1)
    assert found["one-step"].layers == pytest.approx([1, 1])
    # Ranks 2 1 3 5 5 5 against 1 to 6: products 14.5, sums of squares 17.5 and 15.5.
    assert found["integrated"].heads == pytest.approx(14.5 / (17.5 * 15.5) ** 0.5)
    assert found["integrated"].layers == [pytest.approx(1 - 6 * 2 / (3 * 8)), None]
    control = agreement(opened, None)
    assert (control["one-step"].heads, control["integrated"].heads) == (pytest.approx(-1), pytest.approx(1))

    code, out, _ = call(command, "attribution", opened.path, "--json")
    assert code == 0
    printed = json.loads(out)
    assert list(printed) == ["a", "control"]
    assert printed["a"] == {name: vars(values) for name, values in found.items()}
    code, out, _ = call(command, "attribution", opened.path, "--task", "a")
    assert code == 0
    assert re.search(r"all heads +1\.000 +0\.880", out)
    assert re.search(r"layer 1 +1\.000 +–", out)
    assert "control" not in out


def test_a_cache_without_attribution_says_so(by_hand, call):
    without, opened = by_hand
    for integrated in (False, True):
        assert without.attribution("a", integrated) is None
        assert without.control_attribution(integrated) is None
    assert without.head_features("a") == opened.head_features("a") == {}
    for cache in by_hand:
        for ask in (cache.attribution, cache.head_features):
            with pytest.raises(UsageError, match="unknown task 'b'"):
                ask("b")
    code, _, err = call(command, "attribution", without.path)
    assert code == 2
    assert "holds no attribution" in err
