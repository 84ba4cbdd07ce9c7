"""What a build sweeps: the prompts of each task, and control spans."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mechrl.ablation import Ablation, Replacement
from mechrl.ablation.forward import Forward
from mechrl.ablation.replacement import ReplacementMaker
from mechrl.building.merge import Piece
from mechrl.building.settings import BuildSettings, split_batches
from mechrl.building.workers.worker import Shard
from mechrl.cache.format import FROM_FILE
from mechrl.cache.reader import Cache
from mechrl.models import Model, check_context, check_length
from mechrl.progress import say
from mechrl.tasks import EVALUATION, TRAIN, Prompts, generate, get_task, join, usable_pools
from mechrl.tasks.batches import arrange
from mechrl.tasks.control import control_spans, fitting_span
from mechrl.tasks.fitting import check_file
from mechrl.tasks.sampled import sampled_spans


@dataclass(frozen=True)
class Material:
    """What a build sweeps: the prompts of each task, control spans, and the attributes that describe them."""

    prompts: dict[str, Prompts]
    control_tokens: np.ndarray
    control_split: np.ndarray
    attributes: dict[str, dict[str, Any]]

    def shard(self, piece: Piece, batch_size: int, replacement: Replacement) -> Shard:
        """The rows of a piece, as a worker gets them; `replacement` is for all rows of the task or of control."""
        rows = slice(piece.first_row, piece.first_row + piece.rows)
        if piece.name == "control":
            return Shard(piece, batch_size, replacement[rows], spans=self.control_tokens[rows])
        return Shard(piece, batch_size, replacement[rows], prompts=self.prompts[piece.name][rows])

    def replacements(self, model: Model, settings: BuildSettings, names: Iterable[str]) -> dict[str, Replacement]:
        """What the ablation puts in, on each of some tasks, or on "control".

        :raises UsageError: the ablation does not fit a task or the model.
        """
        maker = ReplacementMaker(
            Ablation(settings.ablation), Forward(model), self.control_tokens, self.control_split, settings.seed
        )
        return {
            name: maker.for_control() if name == "control" else maker.for_task(name, self.prompts[name])
            for name in sorted(names)
        }

    def rows(self, name: str) -> int:
        """How many prompts a task has, or how many control spans there are."""
        return len(self.control_tokens if name == "control" else self.prompts[name])


def prepare(
    model: Model, settings: BuildSettings, control_text: str | None = None, base: Cache | None = None
) -> Material:
    """Draw all prompts and control spans of a build.

    :param control_text: the text that `settings.control_source` stands for; None for what is made.
    :param base: a cache whose control spans are taken.
    :raises UsageError: a task or the control text does not fit the model's tokenizer or context.
    """
    prompts, attributes = {}, {}
    for name in settings.tasks:
        prompts[name], attributes[f"/tasks/{name}"] = make_prompts(model, name, settings)
    for file in settings.files:
        fitting = check_file(file, model.vocabulary, model.n_ctx)
        prompts[file.name] = arrange(fitting, model.vocabulary, settings.batch_size)
        left_out = {"skipped": fitting.skipped} if file.skip_bad_lines else {}
        left_out |= {"dropped_answers": fitting.dropped} if fitting.dropped else {}
        attributes[f"/tasks/{file.name}"] = {
            "generator": FROM_FILE,
            "generator_version": 1,
            "generator_params": json.dumps({"file": file.path.name, "sha256": file.sha256, **left_out}),
            "source": f"{file.path.name}",
        }
    n_train, n_evaluation = (n * settings.batch_size for n in split_batches(settings.control_batches))
    span = fitting_span(model.vocabulary, model.n_ctx)

    def spans(n: int, split: int) -> np.ndarray:
        if settings.control_source == "model":
            return sampled_spans(model, n, split, settings.seed, span)
        return control_spans(model.vocabulary, control_text, n, split, settings.seed, span)

    if base is not None:
        tokens = base.content.arrays["/control/tokens"]
    else:
        tokens = np.concatenate([spans(n_train, TRAIN), spans(n_evaluation, EVALUATION)])
    check_length(model, max(tokens.shape[1], *(of.tokens.shape[1] for of in prompts.values())))
    split = np.repeat(np.array([TRAIN, EVALUATION], np.uint8), [n_train, n_evaluation])
    return Material(prompts, tokens, split, attributes)


def make_prompts(model: Model, name: str, settings: BuildSettings) -> tuple[Prompts, dict[str, Any]]:
    """The prompts of a task, training ones first, and the attributes that describe them.

    :raises UsageError: the task does not fit the model's tokenizer or context.
    """
    task = get_task(name)
    parts = [
        generate(task, model.vocabulary, n * settings.batch_size, split, settings.seed)
        for split, n in zip((TRAIN, EVALUATION), split_batches(settings.batches), strict=True)
    ]
    prompts = join(parts)
    length = prompts.tokens.shape[1]
    check_context(model, name, length)
    usable = usable_pools(task, model.vocabulary)
    if usable.form is not task:
        say(f"{name}, in its form for this tokenizer: {usable.form.about.splitlines()[0]}")
    dropped = {slot: n for slot, n in usable.dropped.items() if n}
    return prompts, {
        "generator": name,
        "generator_version": usable.form.version,
        "generator_params": json.dumps({"seed": settings.seed, "dropped_fillers": dropped}),
        "source": usable.form.source,
    }
