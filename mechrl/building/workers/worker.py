"""Workers: each holds the model and turns shards of prompts into damage, in this process or on another machine."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import mechrl
from mechrl.ablation import MEASURES, Replacement
from mechrl.ablation.attribution import attribute_run, control_slope, memory_weight, task_slope
from mechrl.ablation.forward import Forward, OnRun, finite
from mechrl.ablation.intact.direct import adds_plainly, direct_of_run
from mechrl.ablation.intact.roles import PatternFeatures, output_norms, shows_patterns
from mechrl.ablation.reference import check_logits, self_check
from mechrl.ablation.sweep import ablated_loss, ablated_measures
from mechrl.building.merge import Piece
from mechrl.cache.format import pair_sites
from mechrl.errors import FileError, MachineError, UsageError
from mechrl.models import Model, cast
from mechrl.tasks import Prompts


def as_sets(sites: np.ndarray, n_sites: int) -> np.ndarray:
    """Sets of sites, int [set, k], as the sweep takes them: bool [set, site]."""
    sets = np.zeros((len(sites), n_sites), bool)
    np.put_along_axis(sets, sites, True, axis=1)
    return sets


@dataclass(frozen=True)
class Recipe:
    """What all workers of a build must agree on. It travels to other machines, with no path or weights in it.

    :param check: a few prompts and what is put in on them; each worker compares its sweep with the slow reference there
        before it begins.
    :param pass_tokens: see `Forward`; None lets each worker find its own.
    :param pairs: whether to ablate all pairs of heads, too.
    """

    mechrl_version: str
    model: str
    revision: str
    model_sha256: str
    dtype: str
    tf32: bool
    check: tuple[Prompts, Replacement]
    pass_tokens: int | None = None
    pairs: bool = False


@dataclass(frozen=True)
class Shard:
    """Some rows of a task, or of control, to be swept; `prompts` or `spans` int32 [span, position] holds them.

    :param replacement: what the ablation puts in, on these rows.
    """

    piece: Piece
    batch_size: int
    replacement: Replacement
    prompts: Prompts | None = None
    spans: np.ndarray | None = None


@dataclass(frozen=True)
class Swept:
    """A shard's damage: arrays by the last part of their path in the file, and how they were made."""

    piece: Piece
    arrays: dict[str, np.ndarray]
    device: str
    pass_tokens: int
    self_check_error: float


class Worker:
    """Sweeps one shard after the other.

    :param model: in float32; it is cast to the recipe's dtype in place.
    :param on_run: told of the runs of each batch as they are done.
    :raises FileError: the model, or this mechrl, is another than the recipe's.
    :raises MachineError: the self-check fails.
    """

    def __init__(self, model: Model, recipe: Recipe, on_run: OnRun = lambda clean, layer, times: None):
        if recipe.mechrl_version != mechrl.__version__:
            raise FileError(f"mechrl is {mechrl.__version__} here and {recipe.mechrl_version} where the build started")
        if recipe.model_sha256 != model.sha256:
            raise FileError(
                f"{recipe.model!r} has fingerprint {model.sha256[:12]} here and {recipe.model_sha256[:12]} where the "
                "build started: two different models"
            )
        if recipe.tf32 and model.device.type != "cuda":
            raise UsageError(f"tf32 is for CUDA devices, and the model is on {model.device.type}")
        try:
            prompts, replacement = recipe.check
            expected = check_logits(model, prompts, replacement)
            cast(model, recipe.dtype)
            torch.backends.cuda.matmul.allow_tf32 = recipe.tf32
            n_sites = model.n_layers * model.n_heads
            self.pairs = as_sets(pair_sites(n_sites), n_sites) if recipe.pairs else None
            self.exact = recipe.dtype == "float32"  # gradients in less vanish, and take minutes on a CPU
            self.forward = Forward(model, recipe.pass_tokens, on_run)
            self.adds_plainly, self.shows_patterns = adds_plainly(self.forward), shows_patterns(self.forward)
            arithmetic = "tf32" if recipe.tf32 else recipe.dtype
            uncounted = Forward(model, recipe.pass_tokens)
            self.self_check_error = self_check(uncounted, prompts, expected, arithmetic, replacement)
        except (RuntimeError, ValueError, LookupError, AttributeError) as error:
            raise MachineError(f"{model.name!r} cannot be swept: {error}") from error
        self._alone = threading.Lock()  # hooks of two sweeps at once would act on each other

    def __call__(self, shard: Shard) -> Swept:
        """Sweep all rows of a shard, batch by batch.

        :raises MachineError: a number is not finite, or memory does not suffice for one prompt.
        """
        with self._alone:
            batches = [
                self._batch(shard, slice(first, first + shard.batch_size))
                for first in range(0, shard.piece.rows, shard.batch_size)
            ]
            return Swept(
                shard.piece,
                {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]},
                self.forward.model.device.type,
                self.forward.pass_tokens,
                self.self_check_error,
            )

    def _batch(self, shard: Shard, rows: slice) -> dict[str, np.ndarray]:
        try:
            if shard.prompts is not None:
                return self._task(shard.prompts[rows], shard.replacement[rows])
            assert shard.spans is not None
            return self._control(shard.spans[rows], shard.replacement[rows])
        except MachineError as error:
            first = shard.piece.first_row + rows.start
            raise MachineError(
                f"{shard.piece.name}, rows {first} to {first + shard.batch_size - 1}: {error}"
            ) from error

    def _task(self, prompts: Prompts, replacement: Replacement) -> dict[str, np.ndarray]:
        """Everything about one batch of prompts, from one clean run of each group of them that fits memory."""
        forward = self.forward

        def measure(rows: np.ndarray) -> dict[str, torch.Tensor]:
            group, features = prompts[rows], None
            if self.shows_patterns:
                features = PatternFeatures(forward, group.length)
            clean = forward.clean_prompts(group, replacement[rows], self.exact, features.hooks if features else ())
            forward.on_run(clean, 1, None)
            tensors: dict[str, torch.Tensor] = {}
            if self.exact:
                tensors |= attribute_run(forward, clean, task_slope(forward, group))
            ((intact, ablated),) = ablated_measures(forward, clean, [group], forward.singles())
            tensors |= {f"clean/{name}": intact[name] for name in MEASURES}
            tensors |= {f"ablated/{name}": ablated[name] for name in MEASURES}
            if self.pairs is not None:
                together = ablated_measures(forward, clean, [group], self.pairs)[0][1]
                tensors["sets/pairs/logit_diff"] = together["logit_diff"]
            if self.adds_plainly:
                tensors |= output_norms(forward, clean) | {"direct": direct_of_run(forward, clean, group)}
            return tensors | (features.columns() if features else {})

        return self._checked(forward.in_groups(measure, prompts.length, self._weight), "prompt")

    def _control(self, spans: np.ndarray, replacement: Replacement) -> dict[str, np.ndarray]:
        """Everything about one batch of spans, from one clean run of each group of them that fits memory."""
        forward = self.forward

        def measure(rows: np.ndarray) -> dict[str, torch.Tensor]:
            clean = forward.clean_spans(spans[rows], replacement[rows], self.exact)
            forward.on_run(clean, 1, None)
            tensors: dict[str, torch.Tensor] = {}
            if self.exact:
                tensors |= attribute_run(forward, clean, control_slope(forward, clean))
            tensors["clean"], tensors["ablated"] = ablated_loss(forward, clean, forward.singles())
            if self.pairs is not None:
                tensors["sets/pairs"] = ablated_loss(forward, clean, self.pairs)[1]
            return tensors

        length = np.full(len(spans), spans.shape[1])
        return self._checked(forward.in_groups(measure, length, self._weight), "span")

    @property
    def _weight(self) -> int:
        return memory_weight(self.forward) if self.exact else 1

    def _checked(self, tensors: dict[str, torch.Tensor], row_name: str) -> dict[str, np.ndarray]:
        """:raises MachineError: a number is not finite."""

        def heads(name: str) -> Callable[[int], str] | None:
            if name.startswith("clean"):
                return None
            return self.forward.named(self.pairs if name.startswith("sets/") else None)

        return {name: finite(values, row_name, heads(name)) for name, values in tensors.items()}
