"""`mechrl-cache info`: what a cache holds."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mechrl.cli import app

if TYPE_CHECKING:
    from mechrl.cache.information import ImportedInformation
    from mechrl.cache.reader import Cache


@click.command()
@app.existing
@app.as_json
def info(path: Path, as_json: bool) -> None:
    """What a cache holds, and of which model."""
    from mechrl.cache.reader import Cache

    print_info(Cache.open(path), as_json)


def print_built(path: Path, as_json: bool) -> None:
    """What a cache that was just written holds."""
    from mechrl.api import open_built

    print_info(open_built(path), as_json)


def print_info(opened: "Cache", as_json: bool) -> None:
    """What a cache holds."""
    from mechrl.cache.information import ImportedInformation, cache_information

    information = cache_information(opened)
    if as_json:
        return app.print_json(information.model_dump(mode="json"))
    if isinstance(information, ImportedInformation):
        return _print_imported(opened, information)
    from mechrl.display import print_table
    from mechrl.vocabulary import said_of_bos

    a = opened.attributes
    click.echo(f"{opened.path}: {a['ablation']} ablation of {opened.n_layers} × {opened.n_heads} heads of {a['model']}")
    click.echo(
        f"control: {a['control_source'][:17]}, {len(opened.control_damage)} spans of "
        f"{opened.content.arrays['/control/tokens'].shape[1]} tokens, clean loss {information.control_loss:.3f} nats; "
        f"{said_of_bos(a['prepend_bos'], a.get('bos_token', ''))}"
    )
    click.echo(f"fingerprint of the model {a['model_sha256'][:12]}, of the content {opened.sha256[:12]}")
    columns = ["task", "prompts", "clean logit diff", "accuracy", "top-1", "does it", "eval. answers also in training"]
    print_table(
        "",
        columns,
        [
            [task, *(v if not isinstance(v, bool) else ("yes" if v else "NO") for _, v in values)]
            for task, values in information.tasks.items()
        ],
        secondary=["eval. answers also in training", "top-1", "prompts", "does it", "accuracy"],
    )


def _print_imported(opened: "Cache", information: "ImportedInformation") -> None:
    from mechrl.display import print_table

    a = opened.attributes
    click.echo(f"{opened.path}: scores of {opened.n_layers} × {opened.n_heads} heads, measured elsewhere")
    click.echo(f"imported from {a['imported']} (sha256 {a['imported_sha256'][:12]}); no prompts, it cannot be replayed")
    click.echo(f"model {a['model']}; fingerprint of the content {opened.sha256[:12]}")
    columns = ["task", "episodes", "for evaluation", "mean best score"]
    rows = [[task, *(v for _, v in values)] for task, values in information.tasks.items()]
    print_table("", columns, rows, secondary=["for evaluation", "episodes"])
