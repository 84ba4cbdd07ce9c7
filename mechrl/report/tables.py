"""Tables in the terminal."""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:  # they need torch, which a table of a cache does not
    from mechrl.agents.protocol import Evaluation
    from mechrl.cache.top import Estimate
    from mechrl.verify.verification import TaskResult


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> None:
    """A table on stdout, numbers to the right; cut off only by the width of a real terminal."""
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 200)
    table = Table(box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) or str(row[i])[:1] in "+-0123456789" for row in rows)
        table.add_column(column, justify="right" if numeric and rows else "left", no_wrap=True)
    for row in rows:
        table.add_row(*("–" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in row))
    console.print(title, style="bold")
    console.print(table)
    if caption:
        console.print(f"  {caption}\n", style="dim")


def search_rows(evaluations: "Sequence[tuple[str, Evaluation]]") -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a table of methods, from (method, evaluation) pairs of one task."""
    summaries = [(name, evaluation.summary()) for name, evaluation in evaluations]
    columns = list(summaries[0][1])
    headers = [column.replace("ratio@", "ratio\nafter ").replace(" after ", "\nafter ") for column in columns]
    return ["method", *headers], [[name, *(s[c] for c in columns)] for name, s in summaries]


def verification_rows(result: "TaskResult", head: Callable[[int], str]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of a task's table of tested heads.

    :param head: gives the name of a site.
    """
    columns = ["head", "cached\nscore", "live\nscore", "difference", "fresh score", "fresh damage", "of the\nclean"]
    columns += [
        "p (Holm)",
        "rank" if result.swept else "above\nrandom",
        "direct",
        "damage\non other tasks",
        "replicates",
    ]
    rows = [
        [
            head(h.site),
            h.cached,
            h.live,
            f"{h.difference:.1e}",
            shown(h.test.score),
            shown(h.test.damage),
            f"{h.test.share:.0%}",
            f"{h.test.p_adjusted:.4f}",
            "{:.0f} ({:.0f} to {:.0f})".format(*h.test.rank) if h.test.rank else f"{h.test.stands:.0%}",
            shown(h.direct),
            shown(h.elsewhere),
            h.test.why or "yes",
        ]
        for h in result.heads
    ]
    return columns, rows


def shown(estimate: "Estimate | None") -> str | None:
    """A mean with its 95 % interval."""
    return None if estimate is None else "{:.2f} ({:.2f} to {:.2f})".format(*estimate)
