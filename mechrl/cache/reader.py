"""`Cache`: a cache in memory, as everything after the build sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mechrl.ablation import FEATURES, ROLES, Ablation
from mechrl.cache.format import Content, check_content
from mechrl.cache.storage import read_content
from mechrl.errors import FileError, MachineError, UsageError, unknown_name
from mechrl.score import score
from mechrl.tables import cache_file
from mechrl.tasks import EVALUATION, TASKS, TRAIN, Prompts


@dataclass(frozen=True, repr=False)
class Cache:
    """Damage of every head on every prompt, in memory.

    A site is a head; its index is `layer * n_heads + head`. All numbers are float32; damage and logit differences in
    nats, control damage in nats per token.

    An imported cache holds the scores that somebody else measured, by episode, and nothing else. Everything that works
    on scores works on it: an episode is a batch, its damage is its score, and its control damage is 0. What needs
    prompts or damage raises MachineError.

    :param path: where it was read from.
    :param content: its arrays and attributes.
    """

    path: Path
    content: Content

    @classmethod
    def load(cls, name: str | Path) -> "Cache":
        """Read and check a finished cache: a file, or by its bare name a table that comes with mechrl.

        :raises UsageError: no such file or table.
        :raises FileError: as `open` does.
        """
        return cls.open(cache_file(name))

    @classmethod
    def open(cls, path: str | Path) -> "Cache":
        """Read and check a finished cache.

        :raises UsageError: no such file.
        :raises FileError: damaged, foreign, unfinished or of another version.
        """
        content = read_content(Path(path))
        if not content.root.get("complete"):
            raise FileError(f"{path}: not a finished cache but a part of one; run its mechrl-cache build again")
        try:
            check_content(content)
        except FileError as error:
            raise FileError(f"{path}: {error}") from error
        return cls(Path(path), content)

    def __repr__(self) -> str:
        size = f"{self.n_layers} × {self.n_heads} heads"
        return f"Cache({str(self.path)!r}: {size} of {self.attributes['model']}, tasks {', '.join(self.tasks)})"

    def _repr_html_(self) -> str:
        """A table of the tasks, and for each a heat map of the mean scores on the evaluation split."""
        from mechrl.display import html_heatmap, html_table

        if self.imported:
            columns = ["task", "episodes"]
            rows: list[list[object]] = [[task, len(self.episode_scores(task))] for task in self.tasks]
        else:
            columns = ["task", "prompts", "accuracy", "clean logit difference"]
            rows = [
                [task, len(self.clean(task)), self.accuracy(task), float(self.clean(task).mean())]
                for task in self.tasks
            ]
        maps = [
            html_heatmap(f"{task}: mean score", self.scores(task).reshape(self.n_layers, self.n_heads))
            for task in self.tasks
        ]
        return html_table(repr(self), columns, rows) + "".join(maps)

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What the file says of itself: model, fingerprints, ablation, seed, …"""
        return self.content.root

    @property
    def sha256(self) -> str:
        """The hash of everything in the cache."""
        return str(self.attributes["content_sha256"])

    @property
    def n_layers(self) -> int:
        return int(self.attributes["n_layers"])

    @property
    def n_heads(self) -> int:
        return int(self.attributes["n_heads"])

    @property
    def n_sites(self) -> int:
        return self.n_layers * self.n_heads

    @property
    def batch_size(self) -> int:
        return int(self.attributes["batch_size"])

    @property
    def imported(self) -> bool:
        """Whether it holds scores that others measured, and no prompts."""
        return self.content.imported

    def check_replayable(self) -> None:
        """:raises MachineError: the cache is imported."""
        if self.imported:
            raise MachineError(
                f"{self.path} is imported from {self.attributes['imported']!r}: it holds scores and no prompts, it "
                "cannot be replayed"
            )

    def check_control_weight(self, control_weight: float) -> None:
        """:raises UsageError: the cache is imported, and the weight is not 1."""
        if self.imported and control_weight != 1:
            raise UsageError(
                f"{self.path} is imported from {self.attributes['imported']!r}: its scores contain the control term, "
                f"whose weight cannot be changed to {control_weight:g}; leave it at 1"
            )

    @cached_property
    def tasks(self) -> list[str]:
        """The names of the tasks, in the order in which they were built."""
        return self.content.task_names()

    def head(self, site: int) -> str:
        """The name of a head, `layer.head`."""
        return f"{site // self.n_heads}.{site % self.n_heads}"

    def site(self, head: str) -> int:
        """The site of a head named `layer.head`.

        :raises UsageError: the model has no such head.
        """
        layer, _, index = head.partition(".")
        if layer.isdecimal() and index.isdecimal() and int(layer) < self.n_layers and int(index) < self.n_heads:
            return int(layer) * self.n_heads + int(index)
        raise UsageError(
            f"no head {head!r}: heads are 0.0 to {self.n_layers - 1}.{self.n_heads - 1}, written layer.head"
        )

    def task_attributes(self, task: str) -> Mapping[str, Any]:
        """generator, generator_version, generator_params (JSON), does_task, source; nothing of an imported task."""
        self.check_task(task)
        return self.content.attributes.get(f"/tasks/{task}", {})

    def check_task(self, task: str) -> None:
        """:raises UsageError: the cache has no such task."""
        if task in TASKS and task not in self.tasks:
            raise UsageError(
                f"task {task!r} is not in {self.path}, which holds {', '.join(self.tasks)}; build a cache with it"
            )
        if task not in self.tasks:
            raise unknown_name("task", task, self.tasks)

    def prompts(self, task: str) -> Prompts:
        """The prompts of a task, training batches first."""
        self.check_replayable()
        self.check_task(task)
        columns: dict[str, Any] = {
            name: self.content.arrays.get(f"/tasks/{task}/{name}") for name in Prompts.__annotations__
        }
        return Prompts(**columns)

    def clean(self, task: str, measure: str = "logit_diff") -> np.ndarray:
        """A measure of the intact model, [prompt]."""
        self.check_replayable()
        self.check_task(task)
        return self._array(f"/tasks/{task}/clean/{measure}")

    def accuracy(self, task: str) -> float:
        """The share of prompts on which the intact model puts the answers before the wrongs."""
        return float((self.clean(task) > 0).mean())

    def damage(self, task: str, measure: str = "logit_diff") -> np.ndarray:
        """Clean minus ablated measure, [prompt, site]."""
        damage: np.ndarray = self.clean(task, measure)[:, None] - self._array(f"/tasks/{task}/ablated/{measure}")
        return damage

    def pairs(self, task: str) -> tuple[np.ndarray, np.ndarray] | None:
        """All pairs of sites, int32 [set, 2], and the damage of both together, [prompt, set]; None if not there.

        :raises UsageError: the cache has no such task.
        """
        self.check_task(task)
        ablated = self.content.arrays.get(f"/tasks/{task}/sets/pairs/logit_diff")
        if ablated is None:
            return None
        return self._array("/sets/pairs/sites"), self.clean(task)[:, None] - ablated

    def direct(self, task: str) -> np.ndarray | None:
        """Each head's direct effect on the logit difference, [prompt, site]; None if not there.

        See `ablation.intact.direct`.
        """
        self.check_task(task)
        return self.content.arrays.get(f"/tasks/{task}/direct")

    def attribution(self, task: str, integrated: bool = False) -> np.ndarray | None:
        """Damage of each head estimated from gradients, in nats, [prompt, site]; None if not there.

        See `ablation.attribution`. Beyond the clean run, the one-step estimate costs 2 runs for all heads, the
        integrated one 15.
        """
        self.check_task(task)
        return self.content.arrays.get(f"/tasks/{task}/{_attribution_name(integrated)}")

    def control_attribution(self, integrated: bool = False) -> np.ndarray | None:
        """Control damage of each head estimated from gradients, in nats per token, [span, site]; None if not there."""
        return self.content.arrays.get(f"/control/{_attribution_name(integrated)}")

    def head_features(self, task: str) -> dict[str, np.ndarray]:
        """What each head of the intact model does on each prompt, [prompt, site] by name; those that are there.

        `attention_entropy` (nats), `previous_token` and `bos_attention` (shares of attention), `output_norm` (in the
        residual stream's unit); see `ablation.intact.roles.head_features`.
        """
        self.check_task(task)
        arrays = self.content.arrays
        return {name: arrays[path] for name in FEATURES if (path := f"/tasks/{task}/{name}") in arrays}

    @property
    def roles(self) -> dict[str, np.ndarray]:
        """What each head does on random tokens or by its weights, [site] by name; those that are there.

        `previous_token`, `duplicate_token`, `induction`, `bos_attention` (shares of attention, 0 to 1), `copying` (-1
        to 1); see `ablation.intact.roles.measure_roles`. Old and imported caches have none.
        """
        arrays = self.content.arrays
        return {name: arrays[path] for name in ROLES if (path := f"/sites/{name}") in arrays}

    @cached_property
    def control_damage(self) -> np.ndarray:
        """Ablated minus clean mean next-token loss, [span, site]."""
        self.check_replayable()
        damage: np.ndarray = self._array("/control/ablated") - self._array("/control/clean")[:, None]
        return damage

    def episode_scores(self, task: str) -> np.ndarray:
        """The scores of an imported task, [episode, site], training episodes first.

        :raises UsageError: the cache has no such task, or was built from prompts.
        """
        self.check_task(task)
        if not self.imported:
            raise UsageError(f"{self.path} is not imported: its scores are damage minus control damage")
        return self._array(f"/tasks/{task}/scores")

    def in_split(self, task: str | None, split: int) -> np.ndarray:
        """Which rows belong to a split, bool [prompt], or [episode] if imported; of the control spans with None."""
        place = "/control" if task is None else f"/tasks/{task}"
        return np.asarray(self._array(f"{place}/split") == split)

    def batch_damage(self, task: str, split: int = EVALUATION) -> np.ndarray:
        """Mean damage of each batch of a split, [batch, site]; if imported, the score of each episode."""
        if self.imported:
            return np.asarray(self.episode_scores(task)[self.in_split(task, split)])
        return self._batch_means(self.damage(task)[self.in_split(task, split)])

    def batch_control(self, split: int = EVALUATION) -> np.ndarray:
        """Mean control damage of each control batch of a split, [batch, site]; if imported, 0 for each episode."""
        if self.imported:
            return np.zeros_like(self.batch_damage(self.tasks[0], split))
        return self._batch_means(self.control_damage[self.in_split(None, split)])

    def scores(self, task: str, split: int = EVALUATION, control_weight: float = 1.0) -> np.ndarray:
        """Mean score of each head over a split, [site]: damage minus `control_weight` × control damage.

        :raises UsageError: the cache has no such task, or is imported and the weight is not 1.
        """
        self.check_control_weight(control_weight)
        damage, control = self.batch_damage(task, split).mean(0), self.batch_control(split).mean(0)
        return np.asarray(score(damage, control, control_weight))

    def answer_overlap(self, task: str) -> tuple[int, int]:
        """How many of the evaluation prompts' answers are answers in training too, and of how many."""
        prompts = self.prompts(task)
        train, evaluation = (set(prompts.answers[prompts.split == s].ravel()) - {-1} for s in (TRAIN, EVALUATION))
        return len(train & evaluation), len(evaluation)

    @property
    def ablation(self) -> Ablation:
        """What was put in place of the heads' outputs.

        :raises FileError: the cache is of an ablation that this mechrl does not know.
        :raises MachineError: the cache is imported, and does not say.
        """
        self.check_replayable()
        name = self.attributes["ablation"]
        try:
            return Ablation(name)
        except ValueError as error:
            raise FileError(f"{self.path}: this mechrl knows no ablation {name!r}") from error

    def _array(self, path: str) -> np.ndarray:
        array: np.ndarray = self.content.arrays[path]
        return array

    def _batch_means(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(rows.reshape(-1, self.batch_size, self.n_sites).mean(1))


def _attribution_name(integrated: bool) -> str:
    return "attribution_integrated" if integrated else "attribution"
