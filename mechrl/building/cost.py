"""What a build costs: the floating-point operations that it cannot avoid, how many of them are done, time and space."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mechrl.ablation import FEATURES, MEASURES, ROLES
from mechrl.ablation.attribution import RUNS, memory_weight
from mechrl.ablation.forward import CleanRun, Forward, token_bytes
from mechrl.ablation.intact.direct import adds_plainly
from mechrl.ablation.intact.roles import shows_patterns
from mechrl.ablation.sweep import ablated_loss, ablated_measures
from mechrl.building.material import Material
from mechrl.building.merge import Part, Piece
from mechrl.building.settings import BuildSettings
from mechrl.building.workers.worker import Swept
from mechrl.cache.format import PAIRS, pair_sites
from mechrl.cache.storage import file_size
from mechrl.models import Model, cast
from mechrl.process import resident_bytes

SECONDS = 1  # that the rate of a task, and that of control, are measured


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer that matter for its matrix products.

    :param n_kv_heads: heads that keys and values have; fewer than `n_heads` in grouped-query attention.
    :param gated: whether the MLP has three matrices, as Llama's, or two, as GPT-2's.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_kv_heads: int
    gated: bool = False

    @classmethod
    def of(cls, model: Model) -> "Shape":
        cfg = model.bridge.cfg
        return cls(
            n_layers=model.n_layers,
            n_heads=model.n_heads,
            d_model=cfg.d_model,
            d_head=cfg.d_head,
            d_mlp=cfg.d_mlp or 4 * cfg.d_model,
            d_vocab=cfg.d_vocab,
            n_kv_heads=getattr(cfg, "n_key_value_heads", None) or model.n_heads,
            gated=bool(getattr(cfg, "gated_mlp", False)),
        )

    def loop(self, prompts: int, positions: int) -> int:
        """Operations of the whole model once, and once more per head: what one hook per head costs."""
        tokens = prompts * positions
        run = self.n_layers * (tokens * self._block + self._scores(prompts, positions)) + tokens * self._unembed
        return (1 + self.n_layers * self.n_heads) * run

    def sweep(self, prompts: int, positions: int, task: bool = True) -> int:
        """Operations that sweeping all heads cannot avoid, with nothing computed twice.

        The clean model once. Per head its part of the output projection, the MLP after it and the later blocks; the
        unembedding at one position of each prompt (`task`) or at all but the last (control). For a task the last block
        needs keys and values everywhere, and the rest at one position.
        """
        heads = sum(self.ablated(layer, prompts, positions, task) for layer in range(self.n_layers))
        return self.intact(prompts, positions, task) + self.n_heads * heads

    def intact(self, prompts: int, positions: int, task: bool = True) -> int:
        """Operations of the whole model once, read where `sweep` reads it."""
        return self._blocks(self.n_layers, prompts, positions, task) + self._logits(prompts, positions, task)

    def ablated(self, layer: int, prompts: int, positions: int, task: bool = True) -> int:
        """Operations of what follows from a head of a layer, or from a set of heads whose first is of that layer."""
        later = self.n_layers - 1 - layer
        own = (prompts if task and not later else prompts * positions) * (2 * self.d_head * self.d_model + self._mlp)
        return own + self._blocks(later, prompts, positions, task) + self._logits(prompts, positions, task)

    def between(self, layers: range, prompts: int, positions: int, task: bool = True) -> int:
        """Operations from the heads of one layer on to those of a later one; with the last layer, to the logits."""
        to_the_end = self.ablated(layers.start, prompts, positions, task)
        return to_the_end - (self.ablated(layers.stop, prompts, positions, task) if layers.stop < self.n_layers else 0)

    def _blocks(self, n: int, prompts: int, positions: int, task: bool) -> int:
        """Of the last `n` blocks."""
        if n == 0:
            return 0
        tokens, scores = prompts * positions, self._scores(prompts, positions)
        read = prompts if task else tokens
        last = tokens * self._keys_values + read * (self._block - self._keys_values) + scores * read // tokens
        return (n - 1) * (tokens * self._block + scores) + last

    def _logits(self, prompts: int, positions: int, task: bool) -> int:
        return prompts * (1 if task else positions - 1) * self._unembed

    @property
    def _mlp(self) -> int:
        return 2 * (3 if self.gated else 2) * self.d_model * self.d_mlp

    @property
    def _keys_values(self) -> int:
        return 4 * self.d_model * self.n_kv_heads * self.d_head

    @property
    def _block(self) -> int:
        """Of one token in one block, attention scores apart."""
        return 4 * self.d_model * self.n_heads * self.d_head + self._keys_values + self._mlp

    @property
    def _unembed(self) -> int:
        return 2 * self.d_model * self.d_vocab

    def _scores(self, prompts: int, positions: int) -> int:
        """Queries times keys and pattern times values; each position sees those up to itself."""
        return 4 * self.n_heads * self.d_head * prompts * positions * (positions + 1) // 2


class Work:
    """Adds up what a build does, in operations, so that every pass counts for what it costs.

    A batch is the intact model once, what attribution runs, and every head or pair of heads. Direct effects and head
    features are left out: on `mini` they take 2 % of the time, and less on any larger model.
    """

    def __init__(
        self,
        model: Model,
        material: Material,
        settings: BuildSettings,
        on_progress: Callable[[float, float], None] = lambda done, total: None,
    ):
        self.shape, self.material, self.batch_size = Shape.of(model), material, settings.batch_size
        self.exact, self.pairs = settings.dtype == "float32", settings.sets == PAIRS
        heads = model.n_heads * np.arange(1, model.n_layers + 1)  # up to each layer
        pairs = heads * (heads - 1) // 2 + heads * (heads < heads[-1])  # whole ones, and first heads of later ones
        self.states = (heads + self.pairs * pairs).tolist()  # after each layer, as `Tree.states` counts them
        self.on_progress = on_progress
        self.done = self.total = 0

    def of(self, piece: Piece) -> int:
        """Operations that sweeping a piece takes."""
        task, total = piece.name != "control", 0
        for first in range(piece.first_row, piece.first_row + piece.rows, self.batch_size):
            rows = slice(first, min(first + self.batch_size, piece.first_row + piece.rows))
            positions = (
                int(self.material.prompts[piece.name].length[rows].max())
                if task
                else self.material.control_tokens.shape[1]
            )
            size = rows.stop - rows.start, positions, task
            total += (1 + RUNS * self.exact) * self.shape.intact(*size)
            total += sum(n * self.shape.between(range(layer, layer + 1), *size) for layer, n in enumerate(self.states))
        return total

    @staticmethod
    def rows(pieces: Iterable[Piece]) -> dict[str, int]:
        """How many rows of each task, and of control, some pieces hold."""
        return {name: sum(p.rows for p in pieces if p.name == name) for name in dict.fromkeys(p.name for p in pieces)}

    def start(self, finished: Mapping[Piece, Part | None]) -> None:
        """Begins with what an earlier run has finished, so that it does not count for the speed."""
        work = {piece: self.of(piece) for piece in finished}
        self.total = sum(work.values())
        self.done = sum(work[piece] for piece, part in finished.items() if part is not None)

    def ran(self, clean: CleanRun, times: int, layers: range | None) -> None:
        """Counts what has been run in this process; see `OnRun`."""
        size = *clean.tokens.shape, not clean.every_position
        self.done += times * (self.shape.intact(*size) if layers is None else self.shape.between(layers, *size))
        self.on_progress(min(self.done, self.total), self.total)

    def over(self, swept: Iterator[Swept]) -> Iterator[Swept]:
        """Counts whole shards as they come: also what other processes ran, and no run twice that memory cut short."""
        done = self.done
        self.on_progress(done, self.total)
        for result in swept:
            done += self.of(result.piece)
            self.done = done
            self.on_progress(done, self.total)
            yield result


@dataclass(frozen=True)
class Estimate:
    """What a build would take, in one process on this machine.

    :param operations: floating-point operations by task, control included.
    :param operations_per_second: likewise, as measured.
    :param memory_bytes: at the peak, of the device that sweeps; on a CPU of the whole process.
    :param file_bytes: of the cache; while it is built it takes twice as much, for its shards.
    """

    operations: dict[str, int]
    operations_per_second: dict[str, float]
    memory_bytes: int
    file_bytes: int

    @property
    def seconds(self) -> dict[str, float]:
        return {name: n / self.operations_per_second[name] for name, n in self.operations.items()}


def estimate(model: Model, settings: BuildSettings, material: Material, pieces: Sequence[Piece]) -> Estimate:
    """What sweeping some pieces would take; heads are swept on control and on the first task for a second each.

    :param model: in float32; it is cast to the settings' dtype in place.
    """
    work = Work(model, material, settings)
    size = file_size(columns(model, work, pieces))
    operations = {name: sum(work.of(p) for p in pieces if p.name == name) for name in work.rows(pieces)}
    cast(model, settings.dtype)
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    forward = Forward(model, on_run=work.ran)
    of_control, of_tasks = (_rate(work, forward, name) for name in ("control", settings.names[0]))
    rates = {name: of_control if name == "control" else of_tasks for name in operations}
    return Estimate(operations, rates, _memory(forward, work), size)


def _rate(work: Work, forward: Forward, name: str) -> float:
    """Operations per second of heads swept layer by layer for a second, from the middle layer on.

    A pass each, of as many heads as it holds on a row, or of all of a layer on as many rows.
    """
    model, material = forward.model, work.material
    spans, prompts = material.control_tokens, material.prompts.get(name)
    positions = (spans if prompts is None else prompts.tokens).shape[1]
    rows = np.arange(min(work.batch_size, max(1, forward.pass_tokens // (positions * model.n_heads))))
    clean = forward.clean_spans(spans[rows]) if prompts is None else forward.clean_prompts(prompts[rows])

    def sweep(layer: int) -> None:
        n_heads = min(model.n_heads, max(1, forward.pass_tokens // clean.tokens.numel()))
        sets = forward.singles(range(layer * model.n_heads, layer * model.n_heads + n_heads))
        if prompts is None:
            ablated_loss(forward, clean, sets)[1].cpu()
        else:
            ablated_measures(forward, clean, [prompts[rows]], sets)[0][1]["kl"].cpu()

    sweep(model.n_layers - 1)  # the first pass asks for memory
    before, start, spent = work.done, time.perf_counter(), 0.0
    layers = itertools.cycle(sorted(range(model.n_layers), key=lambda layer: abs(layer - model.n_layers // 2)))
    while spent < SECONDS:
        sweep(next(layers))
        spent = time.perf_counter() - start
    return (work.done - before) / spent


def _memory(forward: Forward, work: Work) -> int:
    """Bytes at the peak, once the model is loaded and passes have been run: what attribution keeps comes on top."""
    model, material = forward.model, work.material
    cuda = model.device.type == "cuda"
    taken = int(torch.cuda.memory_allocated(model.device)) if cuda else resident_bytes() or 0
    if not work.exact:
        return taken + forward.pass_tokens * token_bytes(model)
    arrays = material.control_tokens, *(prompts.tokens for prompts in material.prompts.values())
    longest: int = max(array.shape[1] for array in arrays)
    tokens = max(longest, min(work.batch_size * longest, forward.pass_tokens // memory_weight(forward)))
    return taken + model.n_layers * tokens * token_bytes(model)


def columns(model: Model, work: Work, pieces: Sequence[Piece]) -> dict[str, tuple[int, ...]]:
    """The shape of every dataset in the file that these pieces make, by path."""
    forward, n_sites = Forward(model), model.n_layers * model.n_heads
    estimated = ["attribution", "attribution_integrated"] * work.exact
    per_site = [f"ablated/{name}" for name in MEASURES] + estimated
    per_site += ["direct", "output_norm"] * adds_plainly(forward)
    per_site += [name for name in FEATURES if name != "output_norm"] * shows_patterns(forward)
    shapes: dict[str, tuple[int, ...]] = {f"/sites/{name}": (n_sites,) for name in ("kind", "layer", "index", *ROLES)}
    if work.pairs:
        shapes["/sets/pairs/sites"] = pair_sites(n_sites).shape
    for name, n in work.rows(pieces).items():
        if name == "control":
            held = {"tokens": work.material.control_tokens, "split": work.material.control_split}
            place, clean, ablated, pairs = "/control", ["clean"], ["ablated", *estimated], "sets/pairs"
        else:
            held = {key: column for key, column in vars(work.material.prompts[name]).items() if column is not None}
            place, clean, ablated = f"/tasks/{name}", [f"clean/{name}" for name in MEASURES], per_site
            pairs = "sets/pairs/logit_diff"
        of_name = {key: (n, *column.shape[1:]) for key, column in held.items()}
        of_name |= dict.fromkeys(clean, (n,)) | dict.fromkeys(ablated, (n, n_sites))
        if work.pairs:
            of_name[pairs] = (n, n_sites * (n_sites - 1) // 2)
        shapes |= {f"{place}/{key}": shape for key, shape in of_name.items()}
    return shapes
