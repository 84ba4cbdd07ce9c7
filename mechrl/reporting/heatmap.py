"""Heat maps, layer × head."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mechrl.cache.reader import Cache
from mechrl.cache.storage import check_writable, write_whole
from mechrl.errors import UsageError
from mechrl.score import score

SUFFIXES = (".png", ".svg", ".pdf")


def draw_heatmaps(cache: Cache, path: Path) -> None:
    """Draws the mean score of every head on every task, and the control damage, over all prompts, in nats.

    Of an imported cache, the mean score over all episodes.

    :raises UsageError: the ending of the path is not that of a picture.
    :raises MachineError: the path cannot be written to.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: a heat map ends in one of {', '.join(SUFFIXES)}")
    check_writable(path)
    if cache.imported:
        panels = {f"{task}: score": cache.episode_scores(task).mean(0) for task in cache.tasks}
    else:
        control = cache.control_damage.mean(0)
        panels = {f"{task}: score": score(cache.damage(task).mean(0), control) for task in cache.tasks}
        panels["control damage"] = control
    figure = _figure(panels, cache)
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=110))


def _figure(panels: Mapping[str, np.ndarray], cache: Cache) -> Figure:
    width, height = 1.2 + 0.52 * cache.n_heads, 1.2 + 0.36 * cache.n_layers
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(columns * width, rows * height + 0.4), layout="constrained")
    source = "imported scores" if cache.imported else f"{cache.attributes['ablation']} ablation, nats"
    figure.suptitle(f"{cache.attributes['model']}: {source}", parse_math=False)
    for i, (title, values) in enumerate(panels.items()):
        grid = values.reshape(cache.n_layers, cache.n_heads)
        limit = float(np.abs(grid).max()) or 1.0
        axes = figure.add_subplot(rows, columns, i + 1)
        image = axes.imshow(grid, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set(title=title, xlabel="head", ylabel="layer", xticks=range(cache.n_heads), yticks=range(cache.n_layers))
        digits = 2 if limit > 0.5 else 3
        for (layer, head), value in np.ndenumerate(np.round(grid, digits) + 0.0):
            colour = "white" if abs(value) > 0.6 * limit else "black"
            axes.text(head, layer, f"{value:.{digits}f}", ha="center", va="center", fontsize=6.5, color=colour)
        figure.colorbar(image, ax=axes)
    return figure
