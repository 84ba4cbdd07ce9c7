"""A cache as a notebook shows it."""

from mechrl.cache.reader import Cache
from mechrl.tables import html_heatmap, html_table


def cache_html(cache: Cache) -> str:
    """A table of the tasks, and for each a heat map of the mean scores on the evaluation split; every text escaped."""
    if cache.imported:
        columns = ["task", "episodes"]
        rows: list[list[object]] = [[task, len(cache.episode_scores(task))] for task in cache.tasks]
    else:
        columns = ["task", "prompts", "accuracy", "clean logit difference"]
        rows = [
            [task, len(cache.clean(task)), cache.accuracy(task), float(cache.clean(task).mean())]
            for task in cache.tasks
        ]
    maps = [
        html_heatmap(f"{task}: mean score", cache.scores(task).reshape(cache.n_layers, cache.n_heads))
        for task in cache.tasks
    ]
    return html_table(repr(cache), columns, rows) + "".join(maps)
