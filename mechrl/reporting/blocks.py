"""What the page is made of: sections of blocks, a block of sentences, figures and tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go
from markupsafe import Markup

from mechrl.reporting.figures import as_json


@dataclass(frozen=True)
class Table:
    """Texts, the first of each row naming it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A Plotly figure with its text alternative.

    :param label: what it is, for those who do not see it.
    :param caption: what it shows, in a sentence.
    """

    label: str
    caption: str
    plot: go.Figure
    table: Table

    @property
    def data(self) -> Markup:
        return Markup(as_json(self.plot))  # has no character that HTML knows


@dataclass(frozen=True)
class Block:
    """A piece of a section, from top to bottom: sentences, figures side by side, open tables, folded tables."""

    title: str = ""
    sentences: list[str] = field(default_factory=list)
    answers: list[tuple[str, bool | None]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: list[tuple[str, Table]] = field(default_factory=list)


@dataclass(frozen=True)
class TaskSection:
    name: str
    claim: str
    blocks: list[Block]


@dataclass(frozen=True)
class Part:
    """What belongs to one cache, or to a verification without one."""

    title: str
    facts: list[tuple[str, str]]
    blocks: list[Block]
    tasks: list[TaskSection]
    after: list[Block]


@dataclass(frozen=True)
class ModelSection:
    title: str
    sha256: str
    notes: list[str]
    missing: list[tuple[str, str]]
    parts: list[Part]
    benches: list[Block]
    commands: list[tuple[str, str]]
    fingerprints: Table
