"""Workers: each holds the model and turns shards of prompts into damage, in this process or on another machine."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import mechrl
from mechrl.ablation.attribution import attribute_control, attribute_task, head_features
from mechrl.ablation.direct import direct_effect
from mechrl.ablation.replacement import Replacement
from mechrl.ablation.self_check import check_logits, self_check
from mechrl.ablation.sweep import Sweep
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
    :param pass_tokens: see `Sweep`; None lets each worker find its own.
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
    :raises FileError: the model, or this mechrl, is another than the recipe's.
    :raises MachineError: the self-check fails.
    """

    def __init__(self, model: Model, recipe: Recipe):
        if recipe.mechrl_version != mechrl.__version__:
            raise FileError(f"mechrl is {mechrl.__version__} here and {recipe.mechrl_version} where the build started")
        if recipe.model_sha256 != model.sha256:
            raise FileError(
                f"{recipe.model!r} has fingerprint {model.sha256[:12]} here and {recipe.model_sha256[:12]} where the "
                "build started: two different models"
            )
        if recipe.tf32 and model.device.type != "cuda":
            raise UsageError(f"--tf32 is for CUDA devices, and the model is on {model.device.type}")
        try:
            prompts, replacement = recipe.check
            expected = check_logits(model, prompts, replacement)
            cast(model, recipe.dtype)
            torch.backends.cuda.matmul.allow_tf32 = recipe.tf32
            n_sites = model.n_layers * model.n_heads
            self.pairs = as_sets(pair_sites(n_sites), n_sites) if recipe.pairs else None
            self.exact = recipe.dtype == "float32"  # gradients in less vanish, and take minutes on a CPU
            self.sweep = Sweep(model, recipe.pass_tokens)
            arithmetic = "tf32" if recipe.tf32 else recipe.dtype
            self.self_check_error = self_check(self.sweep, prompts, expected, arithmetic, replacement)
        except (RuntimeError, ValueError, LookupError, AttributeError) as error:
            raise MachineError(f"{model.name!r} cannot be swept: {error}") from error
        self._alone = threading.Lock()  # hooks of two sweeps at once would act on each other

    def __call__(self, shard: Shard, on_batch: Callable[[], None] = lambda: None) -> Swept:
        """Sweep all rows of a shard, batch by batch.

        :raises MachineError: a number is not finite, or memory does not suffice for one prompt.
        """
        with self._alone:
            batches = []
            for first in range(0, shard.piece.rows, shard.batch_size):
                batches.append(self._batch(shard, slice(first, first + shard.batch_size)))
                on_batch()
            return Swept(
                shard.piece,
                {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]},
                self.sweep.model.device.type,
                self.sweep.pass_tokens,
                self.self_check_error,
            )

    def _batch(self, shard: Shard, rows: slice) -> dict[str, Any]:
        replacement = shard.replacement[rows]
        try:
            if shard.prompts is None:
                assert shard.spans is not None
                clean_loss, ablated_loss = self.sweep.control(shard.spans[rows], replacement)
                others = attribute_control(self.sweep, shard.spans[rows], replacement) if self.exact else {}
                if self.pairs is not None:
                    others["sets/pairs"] = self.sweep.control(shard.spans[rows], replacement, self.pairs)[1]
                return {"clean": clean_loss, "ablated": ablated_loss, **others}
            prompts = shard.prompts[rows]
            clean, ablated = self.sweep.task(prompts, replacement)
            direct = direct_effect(self.sweep, prompts, replacement)
            others = head_features(self.sweep, prompts)
            if self.exact:
                others |= attribute_task(self.sweep, prompts, replacement)
            if self.pairs is not None:
                together = self.sweep.task(prompts, replacement, self.pairs)[1]["logit_diff"]
                others["sets/pairs/logit_diff"] = together
        except MachineError as error:
            first = shard.piece.first_row + rows.start
            raise MachineError(
                f"{shard.piece.name}, rows {first} to {first + shard.batch_size - 1}: {error}"
            ) from error
        arrays = {f"clean/{name}": values for name, values in clean.items()}
        arrays |= {f"ablated/{name}": values for name, values in ablated.items()} | others
        return arrays if direct is None else arrays | {"direct": direct}
