"""`mechrl-cache tables`: the caches that come with mechrl."""

import click

from mechrl.cli import app


@click.command()
@app.as_json
def tables(as_json: bool) -> None:
    """The frozen tables that come with mechrl: caches of models, opened by a bare name.

    mechrl/tables/TABLES.md says how each was made, and how to send the table of another model.
    """
    from mechrl.cache.reader import Cache
    from mechrl.display import print_table
    from mechrl.tables import table_names

    caches = {name: Cache.load(name) for name in table_names()}
    if as_json:
        return app.print_json(
            {
                name: {
                    "path": str(cache.path),
                    "content_sha256": cache.sha256,
                    "model_sha256": cache.attributes["model_sha256"],
                    "ablation": cache.attributes["ablation"],
                    "heads": cache.n_sites,
                    "tasks": {task: len(cache.prompts(task)) for task in cache.tasks},
                }
                for name, cache in caches.items()
            }
        )
    rows = [
        [name, c.attributes["ablation"], f"{c.n_layers} × {c.n_heads}", ", ".join(c.tasks), len(c.prompts(c.tasks[0]))]
        for name, c in caches.items()
    ]
    return print_table(
        "", ["table", "ablation", "heads", "tasks", "prompts a task"], rows, "mechrl-train --from-cache TABLE",
        text="tasks",
    )  # fmt: skip
