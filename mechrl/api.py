"""What `import mechrl` offers: each function does what the command of its name does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechrl.cache.reader import Cache


def build(
    model: str = "mini",
    tasks: str | Path | Sequence[str | Path] = ("induction", "ioi", "docstring"),
    *,
    out: str | Path,
    control_text: str | Path | None = None,
    revision: str = "",
    device: str = "auto",
    **settings: Any,
) -> Cache:
    """Ablate every head on every prompt, write the cache to `out`, and open it.

    :param model: `mini`, a folder, or a name on the hub.
    :param tasks: names of built-in tasks, and paths of files with tasks of your own, see `mechrl.tasks.task_file`.
    :param control_text: a text file; by default WikiText-2, for `mini` generated prose.
    :param settings: of `mechrl.building.settings.BuildSettings`: batches, batch_size, control_batches, ablation, seed,
        dtype, tf32.
    :raises UsageError: an unknown name, a task that does not fit the model, a file with mistakes.
    :raises MachineError: no network, no memory, no disk, or a model that cannot be swept correctly.
    :raises FileError: an unfinished build of the same file has other settings.
    """
    from mechrl.building.build import build
    from mechrl.building.settings import BuildSettings
    from mechrl.models import load_model
    from mechrl.tasks import TASKS
    from mechrl.tasks.control import read_control
    from mechrl.tasks.records import ENDINGS
    from mechrl.tasks.task_file import fitting_batch_size, read_task_file

    tasks = [tasks] if isinstance(tasks, str | Path) else tasks
    paths = [Path(task) for task in tasks if str(task).lower().endswith(ENDINGS)]
    own = tuple(read_task_file(path, taken=sorted(TASKS)) for path in paths)
    names = tuple(str(task) for task in tasks if not str(task).lower().endswith(ENDINGS))
    source, text = read_control(None if control_text is None else Path(control_text), generated=model == "mini")
    settings = {"batch_size": fitting_batch_size(own), **settings}
    wanted = BuildSettings(tasks=names, files=own, control_source=source, **settings)
    return Cache.open(build(load_model(model, device=device, revision=revision), wanted, Path(out), text))
