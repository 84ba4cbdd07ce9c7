"""Results handed over to other tools: each format is read back by a reader of its own."""

import ast
import csv
import io
import json
import subprocess
import sys
from dataclasses import asdict, fields, replace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers import table_cache

from mechrl.ablation import reference
from mechrl.ablation.forward import Forward
from mechrl.ablation.sweep import sweep_task
from mechrl.cache import storage
from mechrl.cache.export import CIRCUITS, FORMATS, Row, export, snippet, table
from mechrl.cache.format import Content
from mechrl.cli.cache import cache as cache_command
from mechrl.errors import UsageError

# Two layers of two heads. All prompts of a task agree, so means and both ends of the intervals are these numbers.
DAMAGE = {"ioi": [1.0, 4.0, -2.0, 0.5], "docstring": [0.25, 0.0, 3.0, 1.0]}
CONTROL = [0.5, 0.25, 0.0, 1.5]
IOI_SCORES = {"0.0": 0.5, "0.1": 3.75, "1.0": -2.0, "1.1": -1.0}
OTHERS = 4.75  # the input and the MLPs: 1 more than any head


@pytest.fixture
def cache(tmp_path):
    damage = {task: np.tile(values, (4, 1)).astype(np.float32) for task, values in DAMAGE.items()}
    return table_cache(tmp_path / "t.h5", damage, np.tile(CONTROL, (4, 1)).astype(np.float32), 2, 2)


def with_attributes(cache, **changed):
    """The cache, of which the file says other things."""
    attributes = {**cache.content.attributes, "/": {**cache.content.root, **changed}}
    return replace(cache, content=Content(cache.content.arrays, attributes))


def test_csv_has_a_row_for_every_task_and_head_and_keeps_every_digit(cache, small_cache):
    found = list(csv.DictReader(io.StringIO(export(cache, "csv").decode())))
    assert [(row["task"], row["layer"], row["head"]) for row in found] == [
        *(("ioi", *head.split(".")) for head in ("0.1", "0.0", "1.1", "1.0")),
        *(("docstring", *head.split(".")) for head in ("1.0", "0.0", "0.1", "1.1")),
    ]
    for row in found:
        site = 2 * int(row["layer"]) + int(row["head"])
        damage, control = DAMAGE[row["task"]][site], CONTROL[site]
        for name, value in (("damage", damage), ("control_damage", control), ("score", damage - control)):
            assert [float(row[name + end]) for end in ("", "_low", "_high")] == [value] * 3
    real = [tuple(row.values()) for row in csv.DictReader(io.StringIO(export(small_cache, "csv").decode()))]
    wanted = table(small_cache, small_cache.tasks)
    assert [(row[0], *map(int, row[1:3]), *map(float, row[3:])) for row in real] == [
        tuple(asdict(row).values()) for row in wanted
    ]
    assert len(wanted) == 3 * 48
    assert all(row.score_low <= row.score <= row.score_high for row in wanted)


def test_csv_of_some_tasks_and_of_the_best_heads(cache):
    assert len(export(cache, "csv", ["docstring"]).splitlines()) == 1 + 4
    lines = export(cache, "csv", ["docstring", "docstring", "ioi"], n=1).decode().splitlines()[1:]
    assert [line.split(",")[:3] for line in lines] == [["docstring", "1", "0"], ["ioi", "0", "1"]]


def test_parquet_holds_the_same_table_with_types_and_says_what_it_is_of(small_cache):
    found = pyarrow.parquet.read_table(io.BytesIO(export(small_cache, "parquet")))
    assert found.to_pylist() == [asdict(row) for row in table(small_cache, small_cache.tasks)]
    assert found.schema.names == [field.name for field in fields(Row)]
    assert [str(kind) for kind in found.schema.types] == ["string", "int32", "int32", *["double"] * 9]
    note = json.loads(found.schema.metadata[b"mechrl"])
    assert (note["model"], note["content_sha256"]) == ("mini", small_cache.sha256)


def test_heads_json_lists_the_heads_under_what_they_are_of(cache):
    found = json.loads(export(with_attributes(cache, ablation="other"), "heads-json", ["ioi"], n=3))
    heads = found.pop("heads")
    assert found == {
        "model": "by hand",
        "model_sha256": "0" * 64,
        "ablation": "other",
        "weight_processing": "none",
        "content_sha256": cache.sha256,
        "task": "ioi",
        "interval": 95.0,
    }
    assert [(head["layer"], head["head"]) for head in heads] == [(0, 1), (0, 0), (1, 1)]
    assert heads[0] == {
        "layer": 0, "head": 1, "damage": 4.0, "damage_low": 4.0, "damage_high": 4.0, "control_damage": 0.25,
        "control_damage_low": 0.25, "control_damage_high": 0.25, "score": 3.75, "score_low": 3.75, "score_high": 3.75,
    }  # fmt: skip


def read_eap_ig(text):
    """Node scores, edge scores and the nodes and edges in the graph, as `Graph.from_json` of hannamw/EAP-IG reads them.

    KeyError where that would fail.

    After src/eap/graph.py at commit 8fd10d9 (package 2.0.0), `from_model` and `from_json`.
    """
    graph = json.loads(text)
    layers, heads, parallel, _ = (graph["cfg"][key] for key in ("n_layers", "n_heads", "parallel_attn_mlp", "d_model"))
    nodes, edges, residual = ["input"], [], ["input"]
    for layer in range(layers):
        attention = [f"a{layer}.h{head}" for head in range(heads)]
        edges += [f"{node}->{child}<{letter}>" for node in residual for child in attention for letter in "qkv"]
        edges += [f"{node}->m{layer}" for node in (residual if parallel else residual + attention)]
        residual += [*attention, f"m{layer}"]
        nodes += [*attention, f"m{layer}"]
    edges += [f"{node}->logits" for node in residual]
    assert set(graph["nodes"]) == {*nodes, "logits"}
    assert set(graph["edges"]) == set(edges)
    scored = {name: graph["nodes"][name]["score"] for name in nodes if "score" in graph["nodes"][name]}
    inside = {name for part in ("nodes", "edges") for name, found in graph[part].items() if found["in_graph"] is True}
    return graph["cfg"], scored, {name: graph["edges"][name]["score"] for name in edges}, inside


@pytest.mark.parametrize(("parallel", "n_edges"), [(False, 46), (True, 42)])
def test_eap_ig_reads_a_graph_in_which_edges_carry_the_score_of_the_head_they_leave(cache, parallel, n_edges):
    text = export(with_attributes(cache, parallel_attn_mlp=parallel), "eap-ig", ["ioi"])
    cfg, nodes, edges, inside = read_eap_ig(text)
    assert len(inside) == 2 * 3 + 2 + n_edges, "all of it"
    assert cfg == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": parallel, "d_model": 16}
    assert nodes == {"a0.h0": 0.5, "a0.h1": 3.75, "a1.h0": -2.0, "a1.h1": -1.0}
    assert len(edges) == n_edges
    assert ("a0.h1->m0" in edges) != parallel
    assert {name: edges[name] for name in ("input->a0.h0<q>", "a0.h1->a1.h0<k>", "a0.h0->m1", "a1.h0->logits")} == {
        "input->a0.h0<q>": OTHERS, "a0.h1->a1.h0<k>": 3.75, "a0.h0->m1": 0.5, "a1.h0->logits": -2.0,
    }  # fmt: skip
    for name, score in edges.items():
        assert score == nodes.get(name.split("->")[0], OTHERS)
    assert json.loads(text)["mechrl"]["task"] == "ioi"


def test_eap_ig_takes_the_width_from_the_cache(cache, small_cache):
    cfg, nodes, *_ = read_eap_ig(export(small_cache, "eap-ig", ["ioi"]))
    assert cfg["d_model"] == 128
    assert len(nodes) == 48
    with pytest.raises(UsageError, match="does not say the model's d_model, which this format needs; build it again"):
        export(with_attributes(cache, d_model="wide"), "eap-ig", ["ioi"])


def auto_circuit_edges(n_layers, n_heads, parallel):
    """(source, module, index) of every edge, and the shape of each module's mask, as AutoCircuit counts them.

    After auto-circuit 1.0.1: `factorized_src_nodes` and `factorized_dest_nodes` of
    model_utils/transformer_lens_utils.py, `graph_edges` and `make_model_patchable` of utils/graph_utils.py,
    `Edge.patch_idx` of types.py.
    """
    sources, readers, layer = [("Resid Start", 0)], [], 0
    for block in range(n_layers):
        layer += 1
        sources += [(f"A{block}.{head}", layer) for head in range(n_heads)]
        modules = [f"blocks.{block}.hook_{letter}_input" for letter in "qkv"]
        readers += [(module, head, layer) for module in modules for head in range(n_heads)]
        layer += not parallel
        sources.append((f"MLP {block}", layer))
        readers.append((f"blocks.{block}.hook_mlp_in", None, layer))
    readers.append((f"blocks.{n_layers - 1}.hook_resid_post", None, layer + 1))
    edges, shapes = [], {}
    for module, head, at in readers:
        before = [(index, name) for index, (name, source_layer) in enumerate(sources) if source_layer < at]
        shapes[module] = (len(before),) if head is None else (n_heads, len(before))
        edges += [(name, module, (index,) if head is None else (head, index)) for index, name in before]
    return edges, shapes


@pytest.mark.parametrize(
    ("parallel", "mlp_0", "n_edges"),
    [(False, [OTHERS, 0.5, 3.75], 46), (True, [OTHERS], 42)],
    ids=["one by one", "parallel"],
)
def test_auto_circuit_loads_prune_scores_in_which_edges_carry_the_score_of_their_source(
    cache, parallel, mlp_0, n_edges
):
    data = export(with_attributes(cache, parallel_attn_mlp=parallel), "auto-circuit", ["ioi"])
    scores = torch.load(io.BytesIO(data), weights_only=True)
    edges, shapes = auto_circuit_edges(2, 2, parallel)
    assert {name: tuple(tensor.shape) for name, tensor in scores.items()} == shapes
    assert {tensor.dtype for tensor in scores.values()} == {torch.float32}
    assert len(edges) == n_edges == sum(tensor.numel() for tensor in scores.values())
    for source, module, index in edges:
        assert scores[module][index].item() == IOI_SCORES.get(source.removeprefix("A"), OTHERS)
    # By hand: input, 0.0, 0.1, MLP 0, 1.0, 1.1, MLP 1.
    assert scores["blocks.0.hook_mlp_in"].tolist() == mlp_0
    assert scores["blocks.1.hook_v_input"].tolist() == [[OTHERS, 0.5, 3.75, OTHERS]] * 2
    assert scores["blocks.1.hook_resid_post"].tolist() == [OTHERS, 0.5, 3.75, OTHERS, -2.0, -1.0, OTHERS]


def edges_kept(data, n_edges, n_layers=2, n_heads=2):
    """The edges that AutoCircuit keeps of a file when told to keep so many, as (source, module, index).

    By its rule in `run_circuits` and `prune_scores_threshold`: those that reach the n-th largest absolute score.
    """
    scores = torch.load(io.BytesIO(data), weights_only=True)
    threshold = torch.cat([tensor.flatten().abs() for tensor in scores.values()]).sort(descending=True).values
    edges, _ = auto_circuit_edges(n_layers, n_heads, parallel=False)
    return [edge for edge in edges if scores[edge[1]][edge[2]].abs() >= threshold[n_edges - 1]]


def test_auto_circuit_that_prunes_keeps_the_input_and_the_mlps_and_the_heads_in_order(cache):
    """Asked for one edge more than it has, it adds all of the next head's: the absolute scores fall from 0.1 to 0.0."""
    data = export(cache, "auto-circuit", ["ioi"])
    edges, _ = auto_circuit_edges(2, 2, parallel=False)
    kept = {"Resid Start", "MLP 0", "MLP 1"}
    count = 1
    for head in (None, "0.1", "1.0", "1.1", "0.0"):
        kept |= {f"A{head}"} if head else set()
        found = edges_kept(data, count)
        assert found == [edge for edge in edges if edge[0] in kept]
        count = len(found) + 1
    assert count == len(edges) + 1


@pytest.mark.parametrize("task", ["induction", "ioi"])
def test_auto_circuit_keeps_the_input_and_the_mlps_of_a_real_cache_first(small_cache, task):
    layers, heads = small_cache.n_layers, small_cache.n_heads
    kept = edges_kept(export(small_cache, "auto-circuit", [task]), 1, layers, heads)
    edges, _ = auto_circuit_edges(layers, heads, parallel=False)
    assert kept == [edge for edge in edges if edge[0][0] in "RM"]


CIRCUIT = ["1.1", "0.1", "1.1"]


def test_auto_circuit_keeps_exactly_the_edges_of_a_circuit(cache):
    """Those between the input, the MLPs and its heads, asked for one or for all of them."""
    data = export(cache, "auto-circuit", heads=CIRCUIT)
    edges, _ = auto_circuit_edges(2, 2, parallel=False)
    wanted = [
        (source, module, index)
        for source, module, index in edges
        if source not in ("A0.0", "A1.0") and (len(index) == 1 or index[0] == 1)
    ]
    assert edges_kept(data, 1) == edges_kept(data, len(wanted)) == wanted
    # By hand: q, k and v of 0.1 read the input, of 1.1 the input, 0.1 and MLP 0; two, four and five for the others.
    assert len(wanted) == 3 + 2 + 9 + 4 + 5
    scores = torch.load(io.BytesIO(data), weights_only=True)
    assert {value for tensor in scores.values() for value in tensor.flatten().tolist()} == {0.0, 1.0}
    assert {tensor.dtype for tensor in scores.values()} == {torch.float32}


@pytest.mark.parametrize("parallel", [False, True])
def test_eap_ig_reads_a_circuit_of_which_every_edge_has_both_ends_in_it(cache, parallel):
    text = export(with_attributes(cache, parallel_attn_mlp=parallel), "eap-ig", heads=CIRCUIT)
    _, nodes, edges, inside = read_eap_ig(text)
    assert nodes == {"a0.h0": 0.0, "a0.h1": 1.0, "a1.h0": 0.0, "a1.h1": 1.0}
    left = {"input", "a0.h1", "m0", "a1.h1", "m1", "logits"}
    assert inside - edges.keys() == left
    for name, score in edges.items():
        source, _, reader = name.partition("->")
        kept = source in left and reader.partition("<")[0] in left
        assert (name in inside, score) == (kept, float(kept))
    assert json.loads(text)["mechrl"]["circuit"] == ["0.1", "1.1"]


def run_snippet(cache, task, n):
    """The logit differences of a task's prompts by the exported snippet alone, [prompt], and the snippet's heads."""
    return run_code(export(cache, "transformer-lens", [task], n=n), cache, task)


def run_code(code, cache, task):
    names: dict = {}
    exec(code.decode(), names)
    prompts = cache.prompts(task)
    tokens, answers, wrongs = (torch.from_numpy(c).long() for c in (prompts.tokens, prompts.answers, prompts.wrongs))
    with torch.inference_mode():
        logits = names["ablated_logits"](tokens)[torch.arange(len(tokens)), prompts.length - 1]
    right, wrong = (
        logits.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf).logsumexp(1) for ids in (answers, wrongs)
    )
    return (right - wrong).numpy(), names["HEADS"]


@pytest.mark.parametrize("task", ["induction", "ioi", "docstring"])
def test_the_snippet_with_one_head_gives_what_the_cache_says(small_cache, task):
    found, heads = run_snippet(small_cache, task, n=1)
    layer, head = heads[0]
    site = small_cache.n_heads * layer + head
    assert site == np.argmax(small_cache.damage(task).mean(0) - small_cache.control_damage.mean(0))
    np.testing.assert_allclose(
        found, small_cache.content.arrays[f"/tasks/{task}/ablated/logit_diff"][:, site], atol=1e-4
    )


def test_the_snippet_with_many_heads_ablates_them_together(small_cache, mini):
    """Against zeros written in front of the output projections, without any hook on z."""
    found, heads = run_snippet(small_cache, "ioi", n=20)
    assert len(set(heads)) == 20
    assert len({layer for layer, _ in heads}) < 20
    width = mini.bridge.cfg.d_head
    handles = []
    for layer, head in heads:

        def zero(module, inputs, head=head):
            return (torch.cat([inputs[0][..., : head * width], torch.zeros_like(inputs[0][..., :width]),
                               inputs[0][..., (head + 1) * width :]], -1), *inputs[1:])  # fmt: skip

        handles.append(mini.bridge.blocks[layer].attn.o.register_forward_pre_hook(zero))
    try:
        wanted = reference.logit_diff(mini, small_cache.prompts("ioi"))
    finally:
        for handle in handles:
            handle.remove()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(wanted - small_cache.clean("ioi")).mean() > 1


def test_the_snippet_of_a_circuit_ablates_all_other_heads(small_cache, mini):
    found, heads = run_code(export(small_cache, "transformer-lens", heads=["3.0", "0.4", "2.7"]), small_cache, "ioi")
    assert heads == [(0, 4), (2, 7), (3, 0)]
    ablated = np.ones((1, small_cache.n_sites), bool)
    ablated[0, [4, 23, 24]] = False
    wanted = sweep_task(Forward(mini), small_cache.prompts("ioi"), sets=ablated)[1]["logit_diff"][:, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(wanted - small_cache.clean("ioi")).mean() > 1


@pytest.mark.parametrize(
    "text", ["x'); import os; os.abort() #", 'a"""\nimport os\nos.abort()\n"""', "{heads}\\", "ü '\"'"]
)
def test_whatever_the_file_says_stays_a_literal_in_the_snippet(cache, text):
    plain = ast.parse(snippet(with_attributes(cache, model_revision="r"), "ioi"))
    found = ast.parse(snippet(with_attributes(cache, model=text, model_revision=text, weight_processing=text), "ioi"))
    for tree, name, revision in ((plain, "by hand", "r"), (found, text, text)):
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        boot = next(call for call in calls if getattr(call.func, "attr", "") == "boot_transformers")
        assert ast.literal_eval(boot.args[0]) == name
        assert {word.arg: ast.literal_eval(word.value) for word in boot.keywords} == {"revision": revision}
        boot.args, boot.keywords = [], []
    assert ast.dump(found) == ast.dump(plain)


def test_the_snippet_has_ten_heads_unless_told_otherwise_and_is_for_zero_ablation_only(small_cache):
    for n, count in ((None, 10), (3, 3), (1000, 48)):
        heads = next(
            ast.literal_eval(node.value)
            for node in ast.parse(export(small_cache, "transformer-lens", ["ioi"], n=n)).body
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "HEADS"
        )
        assert heads == [(row.layer, row.head) for row in table(small_cache, ["ioi"], count)]
        assert len(heads) == count
    with pytest.raises(UsageError, match="is of 'mean' ablation; the TransformerLens snippet exists for zero only"):
        export(with_attributes(small_cache, ablation="mean"), "transformer-lens", ["ioi"])


@pytest.mark.parametrize("kind", FORMATS)
def test_the_command_writes_a_file_or_to_stdout(call, cache, tmp_path, kind):
    one_task = () if kind in ("csv", "parquet") else ("--task", "ioi")
    arguments = ("export", cache.path, "--format", kind, *one_task)
    wanted = export(cache, kind, one_task[1:])
    assert call(cache_command, *arguments, "-o", tmp_path / "new" / "out") == (
        0, f"{tmp_path / 'new' / 'out'} written\n", ""
    )  # fmt: skip
    assert (tmp_path / "new" / "out").read_bytes() == wanted
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]
    code, out, err = call(cache_command, *arguments)
    if kind in ("parquet", "auto-circuit"):
        assert (code, out) == (2, "")
        assert "name a file with --out" in err
    else:
        assert (code, out, err) == (0, wanted.decode(), "")


@pytest.mark.parametrize("kind", CIRCUITS)
def test_the_command_writes_a_circuit(call, cache, tmp_path, kind):
    out = tmp_path / "out"
    code, _, err = call(cache_command, "export", cache.path, "--format", kind, "--heads", "0.1, 1.1", "-o", out)
    assert (code, err) == (0, "")
    assert out.read_bytes() == export(cache, kind, heads=CIRCUIT)


def test_a_file_that_cannot_be_written_leaves_the_old_one(call, cache, tmp_path, monkeypatch):
    (tmp_path / "out.csv").write_text("old")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "replace", full)
    code, out, err = call(cache_command, "export", cache.path, "--format", "csv", "-o", tmp_path / "out.csv")
    assert (code, out) == (1, "")
    assert "cannot write" in err
    assert (tmp_path / "out.csv").read_text() == "old"
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "csv", "--task", "iou"], 2, "Did you mean 'ioi'"),
        (["--format", "csv", "--task", "induction"], 2, "holds ioi, docstring"),
        (["--format", "cvs"], 2, "csv"),
        ([], 2, "--format"),
        (["--format", "heads-json"], 2, "the format heads-json is of one task: name one of ioi, docstring"),
        (["--format", "auto-circuit", "--task", "ioi,docstring", "-o", "x.pt"], 2, "is of one task"),
        (["--format", "eap-ig", "--task", "ioi", "--n", "3"], 2, "no number of heads goes with"),
        (["--format", "csv", "--n", "0"], 2, "0"),
        (["--format", "csv", "--heads", "0.1"], 2, "the format csv has no circuits; eap-ig, auto-circuit, tr"),
        (["--format", "eap-ig", "--heads", "0.1,2.0"], 2, "no head '2.0': heads are 0.0 to 1.1"),
        (["--format", "eap-ig", "--heads", "0.²"], 2, "no head '0.²'"),
        (["--format", "eap-ig", "--heads", ","], 2, "a circuit has at least one head"),
        (["--format", "eap-ig", "--heads", "0.1", "--task", "ioi"], 2, "neither a task nor a number of heads goes"),
        (["--format", "transformer-lens", "--heads", "0.1", "--n", "1"], 2, "neither a task nor a number of heads"),
        (["--format", "minari", "--heads", "0.1", "-o", "x"], 2, "--heads does not go with --format minari"),
        (["--format", "csv", "-o", "CACHE"], 2, "would overwrite the cache"),
        (["--format", "csv", "-o", "other.h5"], 2, "would overwrite another cache"),
        (["--format", "csv", "-o", "CACHE.json"], 2, "would overwrite the cache or its manifest"),
        (["--format", "csv", "-o", "CACHE/x.csv"], 1, "cannot write"),
        (["--format", "csv", "-o", "."], 2, "name a file"),
    ],
)
def test_wrong_usage_gets_one_message_and_writes_nothing(call, cache, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.h5").write_bytes(cache.path.read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ended, out, err = call(cache_command, "export", cache.path, *(a.replace("CACHE", "t.h5") for a in arguments))
    assert (ended, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_unknown_format_gets_the_nearest_one_as_a_hint(cache):
    with pytest.raises(UsageError, match="unknown format 'heads-jsn'\\. Did you mean 'heads-json'"):
        export(cache, "heads-jsn", ["ioi"])


def test_only_auto_circuit_imports_torch_and_nothing_imports_a_model_library(cache, tmp_path):
    code = f"""
import sys
from mechrl.cache.export import export
from mechrl.cache.reader import Cache
cache = Cache.open({str(cache.path)!r})
for kind in {FORMATS!r}:
    if kind != "auto-circuit":
        export(cache, kind, ["ioi"])
before = "torch" in sys.modules
export(cache, "auto-circuit", ["ioi"])
print(before, *("torch" in sys.modules, "transformers" in sys.modules, "transformer_lens" in sys.modules))
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "True", "False", "False"]
