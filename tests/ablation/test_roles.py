"""Roles of heads: planted ones, plain modules query by query, eigenvalues of whole vocabulary matrices; in a cache."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import ARCHITECTURES, randomize, save, table_cache
from transformer_lens import head_detector
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from mechrl.ablation import ROLES
from mechrl.ablation.forward import Forward
from mechrl.ablation.intact import roles
from mechrl.ablation.intact.roles import BLOCK, measure_roles, repeated_tokens
from mechrl.building.build import build, merge_files
from mechrl.building.settings import BuildSettings
from mechrl.cache.format import Content
from mechrl.cache.reader import Cache
from mechrl.cache.storage import write_content
from mechrl.cache.top import top_heads
from mechrl.cli.cache import cache as command
from mechrl.errors import MachineError
from mechrl.models import MINI, load_model

ATTENTION = ROLES[:-1]


@pytest.fixture(scope="module", params=["mini", "gpt2", "neox", "llama", "qwen3", "gemma2"])
def loaded(request, mini, tmp_path_factory):
    """(name, folder, model); those made at random have no BOS."""
    if request.param == "mini":
        return "mini", MINI, mini
    folder = save(randomize(ARCHITECTURES[request.param]()), tmp_path_factory.mktemp(request.param), bos=False)
    return request.param, folder, load_model(str(folder), device="cpu")


def plain(folder):
    """The model in plain Hugging Face modules, nothing folded."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def test_the_rows_are_a_block_of_words_twice_and_seeded(loaded):
    name, _, model = loaded
    tokens = repeated_tokens(model, 0)
    bos = int(name == "mini")
    assert tokens.shape == (32, bos + 2 * BLOCK)
    assert (tokens[:, :bos] == 0).all()
    first, second = np.split(tokens[:, bos:], 2, axis=1)
    np.testing.assert_array_equal(first, second)
    assert all(len(set(row)) == BLOCK for row in first)
    assert set(first.ravel()) <= set(model.vocabulary.word_ids)
    np.testing.assert_array_equal(tokens, repeated_tokens(model, 0))
    assert (tokens != repeated_tokens(model, 1)).any()


def test_attention_scores_equal_plain_attentions_query_by_query(loaded):
    _, folder, model = loaded
    tokens = repeated_tokens(model, 3)
    with torch.no_grad():
        attentions = plain(folder)(torch.from_numpy(tokens), output_attentions=True).attentions
    patterns = torch.stack(attentions, 1).flatten(1, 2).numpy()  # [row, site, query, key]
    seen = {name: [] for name in ATTENTION}
    for row, pattern in zip(tokens.tolist(), patterns, strict=True):
        for query in range(1, len(row)):
            seen["previous_token"].append(pattern[:, query, query - 1])
            seen["bos_attention"].append(pattern[:, query, 0])
            if (earlier := row.index(row[query])) < query:
                seen["duplicate_token"].append(pattern[:, query, earlier])
                seen["induction"].append(pattern[:, query, earlier + 1])
    found = measure_roles(model, seed=3)
    assert tuple(found) == ROLES
    for name in ATTENTION:
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], np.mean(seen[name], axis=0), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("head_name", ["previous_token", "duplicate_token", "induction"])
def test_attention_scores_are_those_of_transformer_lens_over_the_queries_that_can(mini, head_name):
    """Its detectors divide by all queries; ours by those that have a token before them, or an earlier occurrence."""
    tokens = torch.from_numpy(repeated_tokens(mini, 0)[:4])
    patterns = [torch.empty(0)] * 6
    hooks = [(f"blocks.{i}.attn.hook_pattern", lambda p, hook, i=i: patterns.__setitem__(i, p)) for i in range(6)]
    with torch.no_grad():
        mini.bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    theirs = np.zeros((4, 48))
    for row in range(4):
        wanted = getattr(head_detector, f"get_{head_name}_head_detection_pattern")(tokens[row : row + 1])
        able = int(wanted.any(1).sum())
        assert able == (50 if head_name == "previous_token" else 25)
        for site in range(48):
            theirs[row, site] = (51 / able) * head_detector.compute_head_attention_similarity_score(
                patterns[site // 8][row, site % 8],
                wanted,
                exclude_bos=False,
                exclude_current_token=False,
                error_measure="mul",
            )
    ours = roles._attention(Forward(mini), tokens.numpy())[head_name]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours.max() > 0.1


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """One layer of four heads that attend by position alone, and whose OV circuits are known.

    The first 64 axes are the position, the next 64 the token, with columns that are orthogonal over the vocabulary.
    Heads attend to the token before, a block back, a block less one back, and to the first position. They write the
    token's axes back as they are, with the other sign, and turned by a right angle; the last writes nothing.
    """
    config = GPT2Config(
        vocab_size=1106, n_positions=64, n_embd=256, n_layer=1, n_head=4, tie_word_embeddings=False
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    for name in state:
        if "ln_" in name and name.endswith("weight"):
            state[name] += 1
    state["transformer.wpe.weight"][:, :64] = torch.eye(64)
    embedding = torch.linalg.qr(torch.randn(1106, 64, generator=torch.Generator().manual_seed(0)))[0]
    state["transformer.wte.weight"][:, 64:128] = embedding
    state["lm_head.weight"][:, 64:128] = embedding
    attention = state["transformer.h.0.attn.c_attn.weight"]
    written = state["transformer.h.0.attn.c_proj.weight"]
    turned = torch.kron(torch.eye(32), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    outputs = [torch.eye(64), -torch.eye(64), turned, torch.zeros(64, 64)]
    for head, (back, output) in enumerate(zip((1, BLOCK, BLOCK - 1, None), outputs, strict=True)):
        of_head = slice(64 * head, 64 * head + 64)
        query, key, value = (slice(64 * head + 256 * i, 64 * head + 256 * i + 64) for i in range(3))
        if back is None:
            state["transformer.h.0.attn.c_attn.bias"][64 * head] = 10
            attention[0, key.start] = 10
        else:
            attention[:64, query] = 3 * torch.eye(64)
            attention[: 64 - back, key] = 3 * torch.eye(64)[back:]
        attention[64:128, value] = torch.eye(64)
        written[of_head, 64:128] = output
    model.load_state_dict(state)
    return load_model(str(save(model, tmp_path_factory.mktemp("planted"))), device="cpu")


def test_planted_heads_have_the_roles_that_were_planted(planted):
    found = measure_roles(planted)
    for head, name in enumerate(("previous_token", "duplicate_token", "induction", "bos_attention")):
        others = np.delete(found[name], head)
        assert found[name][head] == pytest.approx(1, abs=1e-5)
        assert others.max() < 0.1
    # The first query that counts has the first position before it.
    assert found["bos_attention"][0] == pytest.approx(1 / 50, abs=1e-5)
    assert found["previous_token"][3] == pytest.approx(1 / 50, abs=1e-5)
    np.testing.assert_allclose(found["copying"], [1, -1, 0, 0], atol=1e-5)


def vocabulary_matrix(name, hf, layer, head):
    """A head's OV circuit, what it does to the logits token by token, float64 [token, token], by hand."""
    width, embedding = hf.config.hidden_size, hf.get_input_embeddings().weight
    centre = torch.eye(width, dtype=torch.float64) - 1 / width
    if name in ("mini", "gpt2"):
        block, end = hf.transformer.h[layer], hf.transformer.ln_f
        size = width // hf.config.n_head
        of_head = slice(head * size, head * size + size)
        value, output = block.attn.c_attn.weight[:, 2 * width :][:, of_head], block.attn.c_proj.weight[of_head]
        before, after = centre * block.ln_1.weight, centre * end.weight
    elif name == "neox":
        block, end = hf.gpt_neox.layers[layer], hf.gpt_neox.final_layer_norm
        size = width // hf.config.num_attention_heads
        rows = 3 * size * head + 2 * size  # query, key and value of a head lie side by side
        value = block.attention.query_key_value.weight[rows : rows + size].T
        output = block.attention.dense.weight[:, head * size : head * size + size].T
        before, after = centre * block.input_layernorm.weight, centre * end.weight
    else:
        block, end = hf.model.layers[layer], hf.model.norm
        size = hf.config.head_dim
        group = head // (hf.config.num_attention_heads // hf.config.num_key_value_heads)
        value = block.self_attn.v_proj.weight[group * size : group * size + size].T
        output = block.self_attn.o_proj.weight[:, head * size : head * size + size].T
        plus = int(name == "gemma2")
        before, after = (plus + block.input_layernorm.weight).diag(), (plus + end.weight).diag()
        if name == "gemma2":
            after = (1 + block.post_attention_layernorm.weight).diag() @ after
    matrix = embedding @ before @ value @ output @ after @ hf.get_output_embeddings().weight.T
    # What all logits have in common changes no probability; under a soft cap it does.
    return matrix if name == "gemma2" else matrix - matrix.mean(1, keepdim=True)


def test_copying_equals_the_eigenvalues_of_the_whole_vocabulary_matrix(loaded):
    name, folder, model = loaded
    found, hf = measure_roles(model)["copying"], plain(folder)
    assert np.ptp(found) > 0.3
    sites = (1, 47) if name == "mini" else (len(found) - 1,)  # a second each
    for site in sites:
        with torch.no_grad():
            eigenvalues = np.linalg.eigvals(vocabulary_matrix(name, hf, *divmod(site, model.n_heads)).numpy())
        expected = eigenvalues.real.sum() / np.abs(eigenvalues).sum()
        assert found[site] == pytest.approx(expected, abs=1e-3)


def test_copying_equals_what_transformer_lens_factors(mini):
    bridge = mini.bridge
    eigenvalues = (bridge.W_E @ bridge.OV @ bridge.W_U).eigenvalues
    expected = (eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)).flatten()
    np.testing.assert_allclose(measure_roles(mini)["copying"], expected.detach(), atol=1e-4)


def test_what_a_model_does_not_show_is_left_out_and_the_command_says_so(call, mini, tmp_path, monkeypatch):
    model = load_model(str(save(randomize(ARCHITECTURES["llama"]()), tmp_path)), device="cpu")
    attention = model.bridge.blocks[1].attn
    with monkeypatch.context() as patch:
        patch.setitem(attention.__dict__, "hook_pattern", lambda weights: weights)
        assert tuple(measure_roles(model)) == ("copying",)
    with monkeypatch.context() as patch:  # the weights say one thing, the values another
        value = attention.v.forward
        patch.setitem(attention.v.__dict__, "forward", lambda *args, **kwargs: 2 * value(*args, **kwargs))
        assert tuple(measure_roles(model)) == ATTENTION
        patch.setattr("mechrl.models.load_model", lambda name, device, revision: model)
        code, out, err = call(command, "roles", "--model", "some")
        assert code == 0
        assert "copying: cannot be measured on this model" in err
        assert "induction" in out
    assert tuple(measure_roles(model)) == ROLES
    monkeypatch.setattr(type(mini), "n_ctx", property(lambda self: 6))
    assert tuple(measure_roles(mini)) == ("copying",), "a block of two words tells no roles apart"


def test_a_score_that_is_not_finite_names_role_and_head(mini, monkeypatch):
    monkeypatch.setattr(roles, "_copying", lambda sweep: torch.tensor([0.0] * 13 + [float("nan")] * 35))
    with pytest.raises(MachineError, match=r"'mini': copying of head 1.5 is not finite"):
        measure_roles(mini)


def test_small_passes_give_the_same(mini, monkeypatch):
    whole = measure_roles(mini)
    monkeypatch.setattr(roles, "Forward", lambda model: Forward(model, pass_tokens=200))
    for name, values in measure_roles(mini).items():
        np.testing.assert_allclose(values, whole[name], atol=1e-5)


def test_a_built_cache_holds_them(mini, small_cache):
    expected = measure_roles(mini)
    assert tuple(small_cache.roles) == ROLES
    for name, values in small_cache.roles.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[name], atol=1e-5)


def test_a_build_in_parts_and_in_less_precision_measures_them_in_float32(tiny, tmp_path):
    settings = BuildSettings(tasks=("ioi",), batches=3, batch_size=1, control_batches=3, dtype="float16")
    model = load_model(tiny.name, device="cpu")
    parts = [build(model, settings, tmp_path / f"{i}.h5", shard=(i, 2)) for i in (1, 2)]
    merge_files(tmp_path / "whole.h5", parts[::-1])
    opened = Cache.open(tmp_path / "whole.h5")
    assert next(model.bridge.parameters()).dtype == torch.float16
    assert tuple(opened.roles) == ROLES
    for name, values in measure_roles(tiny).items():
        np.testing.assert_allclose(opened.roles[name], values, atol=1e-5)


def test_top_shows_the_roles_from_0_4_on_highest_first(tmp_path, call):
    cache = table_cache(tmp_path / "without.h5", {"a": np.array([[3, 2, 1]] * 3, float)}, np.zeros((3, 3)), 1, 3)
    assert cache.roles == {}
    assert [head.roles for head in top_heads(cache, "a")] == [{}] * 3
    code, out, _ = call(command, "top", cache.path)
    assert code == 0
    assert "roles" not in out

    sites = {"induction": [0.5, 0.39, 0], "copying": [0.75, -0.9, 0.25]}
    arrays = {f"/sites/{name}": np.array(values, np.float32) for name, values in sites.items()}
    write_content(tmp_path / "with.h5", Content({**cache.content.arrays, **arrays}, cache.content.attributes))
    opened = Cache.open(tmp_path / "with.h5")
    assert {name: values.tolist() for name, values in opened.roles.items()} == {
        name: pytest.approx(values) for name, values in sites.items()
    }
    found = [list(head.roles.items()) for head in top_heads(opened, "a")]
    assert found == [
        [("copying", 0.75), ("induction", 0.5)],
        [],
        [],
    ]
    code, out, _ = call(command, "top", opened.path)
    assert code == 0
    assert re.search(r"ranks +roles", out)
    assert re.search(r"0\.0 .* copying 0\.75, induction 0\.50", out)
    assert out.count("induction") == 1
    code, out, _ = call(command, "top", opened.path, "--json")
    assert [head["roles"] for head in json.loads(out)["a"]] == [{"copying": 0.75, "induction": 0.5}, {}, {}]


def test_the_command_prints_the_best_heads_and_as_json_all(mini, call, monkeypatch):
    monkeypatch.setattr("mechrl.models.load_model", lambda name, device, revision: mini)
    found = measure_roles(mini)
    code, out, err = call(command, "roles", "--json")
    assert code == 0, err
    assert "model: mini" in err
    printed = json.loads(out)["roles"]
    assert {name: list(scores.values()) for name, scores in printed.items()} == {
        name: values.tolist() for name, values in found.items()
    }
    assert list(printed["copying"])[8:10] == ["1.0", "1.1"]
    code, out, _ = call(command, "roles", "-n", 2)
    assert code == 0
    rows = [re.findall(r"(\d\.\d) \((-?\d\.\d\d)\)", line) for line in out.splitlines()]
    rows = [row for row in rows if row]
    assert len(rows) == 2
    for column, name in enumerate(ROLES):
        best = np.sort(found[name])[::-1]
        for row in range(2):
            head, score = rows[row][column]
            assert printed[name][head] == best[row]
            assert float(score) == pytest.approx(best[row], abs=0.005)
