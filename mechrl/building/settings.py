"""What a build is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from mechrl.ablation import Ablation
from mechrl.cache.format import PAIRS
from mechrl.errors import UsageError, check_range, unknown_name
from mechrl.tasks import TASKS, TaskFile, get_task
from mechrl.tasks.batches import fitting_batch_size

USUAL_TASKS = ("induction", "ioi", "docstring")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BuildSettings:
    """What a cache is made of, apart from the model.

    :param tasks: names of built-in tasks.
    :param batches: prompt batches of each task; the last quarter of them, at least 2, is for evaluation.
    :param control_batches: batches of control spans, split likewise.
    :param dtype: what the swept model computes in, after folding in float32; `tf32` lets a GPU round float32 factors.
    :param files: tasks from files, with as many batches as they fill.
    :param sets: `pairs` to ablate all pairs of heads, too.
    :param control_source: `prose`, `model`, `wikitext-2` or `text:` and the hash of a user's text; see `tasks.control`.
    :raises UsageError: a name that does not exist or a number out of range.
    """

    tasks: tuple[str, ...] = USUAL_TASKS
    batches: int = 16
    batch_size: int = 32
    control_batches: int = 16
    control_source: str = "prose"
    ablation: str = Ablation.ZERO.value
    seed: int = 0
    dtype: str = "float32"
    tf32: bool = False
    files: tuple[TaskFile, ...] = ()
    sets: str = ""

    def __post_init__(self) -> None:
        for name in self.tasks:
            get_task(name)
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, list(DTYPES))
        if self.tf32 and self.dtype != "float32":
            raise UsageError(f"tf32 goes with float32, whose products it rounds, not with {self.dtype}")
        if self.sets not in ("", PAIRS):
            raise unknown_name("kind of sets", self.sets, [PAIRS])
        kinds = [kind.value for kind in Ablation]
        if self.ablation not in kinds:
            raise unknown_name("ablation", self.ablation, kinds)
        if not self.names or len(set(self.names)) < len(self.names):
            raise UsageError(f"a cache needs one or more tasks, each once; got {', '.join(self.names) or 'none'}")
        check_range(
            batches=(self.batches, 3, inf),
            control_batches=(self.control_batches, 3, inf),
            batch_size=(self.batch_size, 1, inf),
            seed=(self.seed, 0, 2**32 - 1),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tasks, in the order of the cache."""
        return (*self.tasks, *(file.name for file in self.files))

    def identity(self) -> dict[str, Any]:
        """What two builds must share to be one; files by their hash."""
        skipping = " without bad lines"
        files = {file.name: file.sha256 + skipping * file.skip_bad_lines for file in self.files}
        return {**vars(self), "files": files}


def choose_settings(
    model: str,
    tasks: Sequence[str] | None = None,
    files: Sequence[TaskFile] = (),
    *,
    batches: int | None = None,
    batch_size: int | None = None,
    control_batches: int | None = None,
    **others: Any,
) -> BuildSettings:
    """Settings with the defaults that go with a model and with task files, for whatever is None.

    :param tasks: names, or ["all"]; by default induction, ioi and docstring, or none where there are files.
    :param batches: by default 16 for `mini` and 64 for other models.
    :param batch_size: by default 32, or less for a small task file.
    :param control_batches: by default as many as `batches`.
    :param others: of `BuildSettings`.
    :raises UsageError: see `BuildSettings`.
    """
    if tasks is None:
        tasks = () if files else USUAL_TASKS
    elif list(tasks) == ["all"]:
        tasks = tuple(TASKS)
    if batches is None:
        batches = {"mini": 16, "smollm2-135m": 3}.get(model, 64)
    return BuildSettings(
        tasks=tuple(tasks),
        files=tuple(files),
        batches=batches,
        batch_size=fitting_batch_size(files) if batch_size is None else batch_size,
        control_batches=batches if control_batches is None else control_batches,
        **others,
    )


def split_batches(batches: int) -> tuple[int, int]:
    """How many batches are for training and for evaluation."""
    evaluation = max(2, batches // 4)
    return batches - evaluation, evaluation
