"""The floating-point operations that sweeping a batch cannot avoid: what a build costs, and how much of it is done."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mechrl.building.material import Material
from mechrl.building.merge import Part, Piece
from mechrl.building.workers.worker import Swept
from mechrl.models import Model


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
        tokens = prompts * positions
        read = prompts if task else tokens
        block = tokens * self._block + self._scores(prompts, positions)
        last = tokens * self._keys_values + read * (self._block - self._keys_values)
        last += self._scores(prompts, positions) * read // tokens
        unembed = (prompts if task else tokens - prompts) * self._unembed
        own = 2 * self.d_head * self.d_model + self._mlp
        total = (self.n_layers - 1) * block + last + unembed
        for layer in range(self.n_layers):
            is_last = layer == self.n_layers - 1
            later = 0 if is_last else (self.n_layers - layer - 2) * block + last
            total += self.n_heads * ((read if is_last else tokens) * own + later + unembed)
        return total

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
    """Adds up what is done, in operations, so that a control batch counts for what it costs."""

    def __init__(self, model: Model, material: Material, on_progress: Callable[[float, float], None]):
        shape = Shape.of(model)
        positions = {name: prompts.tokens.shape[1] for name, prompts in material.prompts.items()}
        self.per_row = {name: shape.sweep(1, n) for name, n in positions.items()}
        self.per_row["control"] = shape.sweep(1, material.control_tokens.shape[1], task=False)
        self.on_progress = on_progress
        self.done = self.total = 0

    def start(self, finished: Mapping[Piece, Part | None]) -> None:
        """Begins with what an earlier run has finished, so that it does not count for the speed."""
        work = {piece: piece.rows * self.per_row[piece.name] for piece in finished}
        self.total = sum(work.values())
        self.done = sum(work[piece] for piece, part in finished.items() if part is not None)
        self.on_progress(self.done, self.total)

    def add(self, piece: Piece, rows: int) -> None:
        self.done += rows * self.per_row[piece.name]
        self.on_progress(self.done, self.total)

    def over(self, swept: Iterator[Swept]) -> Iterator[Swept]:
        """Counts whole shards as they come."""
        for result in swept:
            self.add(result.piece, result.piece.rows)
            yield result
