"""A cache's results in the formats of other tools: functions from a `Cache` to the text or bytes of a file.

The numbers are those of `mechrl-cache top`: means over all prompts with 95 % intervals, in nats; the score is damage −
control damage. A positive score means that the behaviour needs the head.

Two of the tools score edges, a cache scores heads. There, every edge out of a head carries the head's score. Every edge
out of the input or an MLP carries 1 more than the largest absolute score of a head: nothing was measured about it, and
pruning keeps the input and the MLPs that way, as a circuit here does. Such a file ranks heads; it does not say through
which edge a head matters.

Instead of a ranking, three of the formats can hold a circuit: a set of heads, kept with the input and all MLPs while
the other heads are ablated. There, an edge between two that are kept has the score 1, any other 0.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from mechrl.cache.reader import Cache
from mechrl.cache.top import top_heads
from mechrl.errors import UsageError, unknown_name
from mechrl.intervals import LEVEL, Estimate

FORMATS = ("csv", "parquet", "heads-json", "eap-ig", "auto-circuit", "transformer-lens")
TABLES = ("csv", "parquet")  # of any number of tasks; the other formats are of one
GRAPHS = ("eap-ig", "auto-circuit")  # of all heads
CIRCUITS = (*GRAPHS, "transformer-lens")
BINARY = ("parquet", "auto-circuit")
SNIPPET_HEADS = 10


@dataclass(frozen=True)
class Row:
    """A head on a task: means over all prompts, each with the ends of its 95 % interval, in nats.

    Of an imported cache there is the score alone.
    """

    task: str
    layer: int
    head: int
    damage: float | None
    damage_low: float | None
    damage_high: float | None
    control_damage: float | None
    control_damage_low: float | None
    control_damage_high: float | None
    score: float
    score_low: float
    score_high: float


def export(
    cache: Cache, kind: str, tasks: Sequence[str] = (), n: int | None = None, heads: Sequence[str] | None = None
) -> bytes:
    """The file of one format.

    :param kind: one of `FORMATS`.
    :param tasks: csv and parquet: which ones, by default all; otherwise exactly one.
    :param n: only so many heads, those with the largest score; not for the graphs, which have all heads. By default
        all, and 10 for transformer-lens.
    :param heads: the circuit of these heads, written `layer.head`, instead of scores, in one of `CIRCUITS`; it needs
        neither tasks nor `n`.
    :raises UsageError: no such format, task or head, a number of heads for a format that has all, a circuit for a
        format that has none, or a cache that does not say how the model is wired.
    """
    if kind not in FORMATS:
        raise unknown_name("format", kind, list(FORMATS))
    if heads is not None:
        return _circuit(cache, kind, heads, tasks, n)
    if n is not None and kind in GRAPHS:
        raise UsageError(f"no number of heads goes with the format {kind}, whose graph has a place for every head")
    if kind in TABLES:
        rows = table(cache, tasks or cache.tasks, n)
        return csv_text(rows).encode() if kind == "csv" else parquet_bytes(cache, rows)
    if len(tasks) != 1:
        raise UsageError(f"the format {kind} is of one task: name one of {', '.join(cache.tasks)}")
    if kind == "heads-json":
        return (json.dumps(head_list(cache, tasks[0], n), indent=1, allow_nan=False) + "\n").encode()
    if kind == "transformer-lens":
        return snippet(cache, tasks[0], n or SNIPPET_HEADS).encode()
    scores = _source_scores(cache, tasks[0])
    return _graph(cache, kind, scores, np.ones(len(scores), bool), {"task": tasks[0]})


def _circuit(cache: Cache, kind: str, heads: Sequence[str], tasks: Sequence[str], n: int | None) -> bytes:
    if kind not in CIRCUITS:
        raise UsageError(f"the format {kind} has no circuits; {', '.join(CIRCUITS)} have")
    if tasks or n is not None:
        raise UsageError("a circuit is given by its heads; neither a task nor a number of heads goes with it")
    sites = sorted({cache.site(head) for head in heads})
    if not sites:
        raise UsageError("a circuit has at least one head, written layer.head")
    if kind == "transformer-lens":
        return circuit_snippet(cache, sites).encode()
    kept = np.ones((cache.n_layers, cache.n_heads + 1), bool)
    kept[:, :-1] = np.isin(np.arange(cache.n_sites), sites).reshape(cache.n_layers, -1)
    sources = np.append(True, kept)
    note = {"circuit": [cache.head(site) for site in sites]}
    return _graph(cache, kind, sources.astype(np.float32), sources, note)


def _graph(cache: Cache, kind: str, scores: np.ndarray, kept: np.ndarray, note: dict[str, Any]) -> bytes:
    if kind == "auto-circuit":
        return torch_bytes(prune_scores(cache, scores, kept))
    found = {**eap_ig_graph(cache, scores, kept), "mechrl": {**header(cache), **note}}
    return (json.dumps(found, allow_nan=False) + "\n").encode()


def header(cache: Cache) -> dict[str, str]:
    """Which model, which intervention and which cache the numbers are of."""
    note = {name: cache.attributes[name] for name in ("model", "model_sha256", "ablation", "weight_processing")}
    return {**note, "content_sha256": cache.sha256}


def table(cache: Cache, tasks: Sequence[str], n: int | None = None) -> list[Row]:
    """A row for every head, or the `n` with the largest score, of each task; the largest score first.

    :raises UsageError: the cache has no such task.
    """

    def numbers(estimate: Estimate | None) -> tuple[float | None, float | None, float | None]:
        return estimate or (None, None, None)

    return [
        Row(
            task,
            *divmod(cache.site(top.head), cache.n_heads),
            *numbers(top.damage),
            *numbers(top.control),
            *top.score,
        )
        for task in dict.fromkeys(tasks)
        for top in top_heads(cache, task, n=n or cache.n_sites)
    ]


def csv_text(rows: Sequence[Row]) -> str:
    """The fields of `Row` as columns, under a line with their names; every digit is kept."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return text.getvalue()


def parquet_bytes(cache: Cache, rows: Sequence[Row]) -> bytes:
    """The fields of `Row` as columns: string, int32, float64. The schema's metadata hold the header as JSON."""
    import pyarrow
    import pyarrow.parquet

    first = {"task": pyarrow.string(), "layer": pyarrow.int32(), "head": pyarrow.int32()}
    schema = pyarrow.schema(
        [(field.name, first.get(field.name, pyarrow.float64())) for field in fields(Row)],
        {"mechrl": json.dumps(header(cache))},
    )
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([asdict(row) for row in rows], schema), sink)
    return bytes(sink.getvalue())


def head_list(cache: Cache, task: str, n: int | None = None) -> dict[str, Any]:
    """The header, the task, and `heads`: a list of rows, the largest score first. `interval` is in percent."""
    heads = [asdict(row) for row in table(cache, [task], n)]
    for head in heads:
        del head["task"]
    return {**header(cache), "task": task, "interval": LEVEL[1] - LEVEL[0], "heads": heads}


def eap_ig_graph(cache: Cache, scores: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    """A graph that `Graph.from_json` of EAP-IG reads: `cfg`, `nodes` and `edges`.

    The format is that of github.com/hannamw/EAP-IG since its package 2.0 (src/eap/graph.py). Heads have node scores.
    `input` and MLPs have none, so that `apply_topn(level="node")` keeps them; with `level="edge"` their edges come
    first. EAP-IG goes by absolute scores unless told `absolute=False`. An edge is `in_graph` if both of its ends are.

    :param scores: float32 [source], of the input, then layer by layer of the heads and the MLP.
    :param kept: bool [source], whether it is in the graph: of a ranking all, which are then pruned there.
    """
    names = ["input"]
    for layer in range(cache.n_layers):
        names += [*(f"a{layer}.h{head}" for head in range(cache.n_heads)), f"m{layer}"]
    score = dict(zip(names, scores.tolist(), strict=True))
    inside = dict(zip(names, kept.tolist(), strict=True)) | {"logits": True}
    edges: dict[str, dict[str, Any]] = {}

    def add(count: int, reader: str, letters: Sequence[str] = ("",)) -> None:
        for name in names[:count]:
            edge = {"score": score[name] * inside[reader], "in_graph": inside[name] and inside[reader]}
            edges.update({f"{name}->{reader}{letter}": edge for letter in letters})

    for layer, for_attention, for_mlp in _read(cache):
        for head in range(cache.n_heads):
            add(for_attention, f"a{layer}.h{head}", ("<q>", "<k>", "<v>"))
        add(for_mlp, f"m{layer}")
    add(len(names), "logits")
    return {
        "cfg": {
            "n_layers": cache.n_layers,
            "n_heads": cache.n_heads,
            "parallel_attn_mlp": _wiring(cache, "parallel_attn_mlp", bool),
            "d_model": _wiring(cache, "d_model", int),
        },
        "nodes": {
            name: {"in_graph": here, "score": score[name]} if name.startswith("a") else {"in_graph": here}
            for name, here in inside.items()
        },
        "edges": edges,
    }


def prune_scores(cache: Cache, scores: np.ndarray, kept: np.ndarray) -> dict[str, np.ndarray]:
    """`PruneScores` of AutoCircuit: for each module that reads, the score of each edge into it, float32.

    For auto-circuit 1.0 (auto_circuit/types.py, model_utils/transformer_lens_utils.py) and a model made patchable with
    `factorized=True, separate_qkv=True` and no `seq_len`. Sources are the input, then layer by layer the heads and the
    MLP; a module has the sources before it: `blocks.L.hook_q_input` (`k`, `v`) [head, source], `blocks.L.hook_mlp_in`
    [source], and `hook_resid_post` of the last block [source].

    `run_circuits` (prune.py) keeps n edges by a threshold: the n-th largest absolute score, and all edges that reach
    it, so that ties stay together. `edge_counts_util` with `EdgeCounts.GROUPS` gives the counts that end with a tie: of
    a ranking first all edges out of the input and the MLPs, then one head more at a time; of a circuit its edges, then
    all. With `PatchType.TREE_PATCH` the prompt is run and the edges that are not kept are ablated.

    :param scores: as in `eap_ig_graph`; so is `kept`. An edge into a head that is not kept has 0.
    """
    inside = kept[1:].reshape(cache.n_layers, -1)[:, :-1].astype(np.float32)
    found = {}
    for layer, for_attention, for_mlp in _read(cache):
        for letter in "qkv":
            found[f"blocks.{layer}.hook_{letter}_input"] = np.outer(inside[layer], scores[:for_attention])
        found[f"blocks.{layer}.hook_mlp_in"] = scores[:for_mlp]
    found[f"blocks.{cache.n_layers - 1}.hook_resid_post"] = scores
    return found


def torch_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """A file of `torch.save`, as AutoCircuit's `load_cache` reads it: a dict of tensors, safe to load."""
    import torch

    file = io.BytesIO()
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, file)
    return file.getvalue()


def snippet(cache: Cache, task: str, n: int = SNIPPET_HEADS) -> str:
    """Python for TransformerLens 4 that loads the model and ablates the `n` heads with the largest score together.

    What comes out of the file and could be anything, the names of the model and its revision and the note on its
    weights, is written as a Python literal; task names and hashes were checked when the file was opened.

    :raises UsageError: the cache is of another ablation than zero, or has no such task.
    """
    sites = [cache.n_heads * row.layer + row.head for row in table(cache, [task], n)]
    title = f"Zero ablation of the {len(sites)} heads with the largest score on {task}, all at once"
    return _snippet(cache, sites, title, "the largest score first", "for layer, head in HEADS", "without HEADS")


def circuit_snippet(cache: Cache, sites: Sequence[int]) -> str:
    """The same for a circuit: all heads but these are ablated together.

    :raises UsageError: the cache is of another ablation than zero.
    """
    title = f"A circuit of {len(sites)} heads: zero ablation of all others, all at once"
    others = f"for layer in range({cache.n_layers}) for head in range({cache.n_heads}) if (layer, head) not in HEADS"
    return _snippet(cache, sites, title, "the circuit", others, "of the circuit")


def _snippet(cache: Cache, sites: Sequence[int], title: str, order: str, ablated: str, which: str) -> str:
    attributes = cache.attributes
    if attributes["ablation"] != "zero":  # of an imported table it is unknown
        raise UsageError(
            f"{cache.path} is of {attributes['ablation']!r} ablation; the TransformerLens snippet exists for zero only"
        )
    import_mini, name = ("from mechrl.models import MINI\n", "str(MINI)") if attributes["model"] == "mini" else ("", "")
    revision = attributes.get("model_revision")
    return SNIPPET.format(
        title=title,
        sha256=cache.sha256,
        import_mini=import_mini,
        heads=[divmod(site, cache.n_heads) for site in sites],
        order=order,
        ablated=ablated,
        which=which,
        name=name or repr(attributes["model"]),
        revision=f", revision={str(revision)!r}" if revision else "",
        weights=repr(attributes["weight_processing"]),
        bos="begin with the tokenizer's BOS token" if attributes["prepend_bos"] else "have no BOS token",
    )


SNIPPET = '''\
"""{title}, in TransformerLens 4.

Written by mechrl-cache export; sha256 of the cache's content: {sha256}
"""

{import_mini}from transformer_lens.model_bridge import TransformerBridge

HEADS = {heads}  # (layer, head), {order}

model = TransformerBridge.boot_transformers({name}{revision})
# What zero ablation removes depends on how the weights were folded. The cache says: {weights}
model.enable_compatibility_mode()


def without(head):
    """A hook that sets the output of one head to zero; z is [batch, position, head, d_head]."""

    def zero(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    return zero


HOOKS = [(f"blocks.{{layer}}.attn.hook_z", without(head)) {ablated}]


def ablated_logits(tokens):
    """Logits [batch, position, vocabulary] {which}, of int64 tokens [batch, position].

    The prompts of the cache {bos}.
    """
    return model.run_with_hooks(tokens, fwd_hooks=HOOKS, return_type="logits")
'''


def _source_scores(cache: Cache, task: str) -> np.ndarray:
    """The score of all that writes into the residual stream, float32 [1 + layer × (head + 1)].

    The input, then layer by layer the heads and the MLP, as both graphs count them.
    """
    rows = table(cache, [task])
    scores = np.full((cache.n_layers, cache.n_heads + 1), 1 + max(abs(row.score) for row in rows), np.float32)
    for row in rows:
        scores[row.layer, row.head] = row.score
    return np.append(scores[0, -1], scores)


def _read(cache: Cache) -> Iterator[tuple[int, int, int]]:
    """Of each layer: how many sources its attention reads, and how many its MLP.

    In models like Pythia and GPT-J both read the same residual stream.
    """
    parallel = _wiring(cache, "parallel_attn_mlp", bool)
    for layer in range(cache.n_layers):
        before = 1 + layer * (cache.n_heads + 1)
        yield layer, before, before + (0 if parallel else cache.n_heads)


def _wiring(cache: Cache, name: str, kind: type) -> Any:
    """What the cache says of its model.

    :raises UsageError: it does not say that, being from elsewhere or from an earlier mechrl.
    """
    value = cache.attributes.get(name)
    if not isinstance(value, kind):
        remedy = "a table that was imported has no such format" if cache.imported else "build it again"
        raise UsageError(f"{cache.path} does not say the model's {name}, which this format needs; {remedy}")
    return value
