"""Columns and rows of the tables of searches and verifications."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mechrl.tables import shown

if TYPE_CHECKING:  # they need torch, which a table of a cache does not
    from mechrl.search.protocol import Evaluation
    from mechrl.verification.verification import TaskResult


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
