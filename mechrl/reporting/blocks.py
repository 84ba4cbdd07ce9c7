"""What the page is made of: sections of blocks, a block of sentences, figures and tables.

Figures are Plotly's, as JSON that is safe inside a <script>. Plotly reads a few HTML tags in every text, so what came
from a file is escaped for it too, by `plain`.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup

DIVERGING, MAGNITUDE = "PuOr_r", "Cividis"  # both can be read by the colour-blind
# Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), told apart by the colour-blind as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "hexagon")
MOST_NUMBERED = 16  # heads in a layer: with more, there is no room for numbers in the cells
LONGEST_LABEL, MOST_LABELS = 14, 32  # letters of a token beside a map, and how many tokens there is room for
INK, GRID = "#222", "#e4e4e0"


def number(value: float | None, digits: int = 2) -> str:
    """A number for people; – where there is none."""
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def estimate(value: Sequence[float] | None, digits: int = 2) -> str:
    """A mean with its 95 % interval."""
    if value is None:
        return "–"
    mean, low, high = (number(v, digits) for v in value)
    return f"{mean} ({low} to {high})"


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
class PageSection:
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
    parts: list[PageSection]
    benches: list[Block]
    attention: list[Block]
    circuits: list[Block]
    commands: list[tuple[str, str]]
    fingerprints: Table


def plain(text: object) -> str:
    """A text that Plotly shows as it is."""
    return html.escape(str(text), quote=False)


def as_json(figure: go.Figure) -> str:
    """The figure for a <script type="application/json">: no character that could end the script."""
    text = json.dumps(figure.to_plotly_json(), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


class HasHeads(Protocol):
    """Something of a model, such as a cache or a circuit."""

    @property
    def n_layers(self) -> int: ...

    @property
    def n_heads(self) -> int: ...


def heatmap(
    of: HasHeads,
    values: np.ndarray,
    hover: Sequence[str],
    unit: str = "nats",
    magnitude: bool = False,
    marked: Mapping[str, bool] | None = None,
    roles: Mapping[str, Sequence[str]] | None = None,
) -> go.Figure:
    """A layer × head map.

    :param values: [site].
    :param hover: what the pointer shows, escaped already, [site].
    :param magnitude: all values are 0 or more: a scale from 0 on, instead of one with its middle at 0.
    :param marked: outlined heads; dashed where False.
    :param roles: heads by role; each role has its symbol.
    """
    grid = np.asarray(values, np.float64).reshape(of.n_layers, of.n_heads)
    limit = float(np.abs(grid).max()) or 1.0
    digits = 2 if limit > 0.5 else 3
    numbers = [[f"{v:.{digits}f}" for v in row] for row in np.round(grid, digits) + 0.0]
    numbered = of.n_heads <= MOST_NUMBERED
    figure = go.Figure(
        go.Heatmap(
            z=grid.tolist(), x=list(range(of.n_heads)), y=list(range(of.n_layers)), text=numbers,
            texttemplate="%{text}" if numbered else None, hovertext=np.reshape(hover, grid.shape).tolist(),
            hoverinfo="text", colorscale=MAGNITUDE if magnitude else DIVERGING, zmin=0 if magnitude else -limit,
            zmax=limit, xgap=1, ygap=1,
            colorbar={"title": {"text": unit, "side": "right"}, "thickness": 10, "len": 0.9},
        )
    )  # fmt: skip
    for head, answer in (marked or {}).items():
        layer, index = map(int, head.split("."))
        figure.add_shape(
            type="rect", x0=index - 0.47, x1=index + 0.47, y0=layer - 0.47, y1=layer + 0.47,
            line={"color": INK, "width": 2.5, "dash": "solid" if answer else "dot"},
        )  # fmt: skip
    for i, (role, heads) in enumerate((roles or {}).items()):
        layers, indices = zip(*(map(int, head.split(".")) for head in heads), strict=True)
        figure.add_trace(
            go.Scatter(
                x=[x + 0.3 for x in indices], y=[y - 0.28 for y in layers], mode="markers", name=plain(role),
                hoverinfo="skip", showlegend=True,
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 6, "color": COLOURS[i % len(COLOURS)],
                        "line": {"width": 1, "color": "white"}},
            )
        )  # fmt: skip
    rows = -(-len(roles) // 3) if roles else 0
    figure.update_layout(_layout(110 + 30 * of.n_layers + 24 * rows, legend=bool(roles)))
    step = 1 if of.n_heads <= MOST_NUMBERED else 4
    figure.update_xaxes(title="head", dtick=step, showgrid=False, range=[-0.5, of.n_heads - 0.5], zeroline=False)
    figure.update_yaxes(title="layer", dtick=1 if of.n_layers <= 24 else 4, range=[of.n_layers - 0.5, -0.5])
    figure.update_yaxes(showgrid=False, zeroline=False)
    return figure


def attention_map(
    weights: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    hover: Sequence[Sequence[str]],
    titles: tuple[str, str],
) -> tuple[go.Figure, float]:
    """Shares of attention as cells, and where their colours end: at the largest share off the first column.

    The first position often gets nearly everything, and with it in the scale the rest would look alike.

    :param weights: [row, column]; None where there is no cell.
    :param rows: the name of each row; `columns` likewise; cut where they are long.
    :param hover: what the pointer shows, escaped already, like `weights`.
    :param titles: of the columns and of the rows.
    """
    others = [weight for row in weights for weight in row[1:] if weight is not None]
    limit = max(others, default=0.0) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=[list(row) for row in weights], hovertext=[list(row) for row in hover], hoverinfo="text",
            colorscale=MAGNITUDE, zmin=0, zmax=limit, xgap=1, ygap=1, hoverongaps=False,
            colorbar={"title": {"text": "share", "side": "right"}, "thickness": 10, "len": 0.9},
        )
    )  # fmt: skip
    figure.update_layout(_layout(190 + min(19 * len(rows), 620), legend=False))
    for update, names, title in (
        (figure.update_xaxes, columns, titles[0]),
        (figure.update_yaxes, rows, titles[1]),
    ):
        labels = [plain(name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…") for name in names]
        shown = slice(None, None, -(-len(names) // MOST_LABELS))  # from the last on
        update(title=title, tickvals=list(range(len(names)))[::-1][shown], ticktext=labels[::-1][shown])
        update(showgrid=False, zeroline=False, automargin=True)
    figure.update_xaxes(tickangle=-60)
    figure.update_yaxes(range=[len(rows) - 0.5, -0.5])
    return figure, limit


def lines(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    *,
    steps: bool = False,
    log: bool = False,
    levels: Mapping[str, float] | None = None,
    share: bool = False,
) -> go.Figure:
    """Curves by name, (x, y) each.

    :param steps: a value holds until the next.
    :param levels: horizontal lines by name.
    :param share: y runs from 0 to 1.
    """
    figure = go.Figure()
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        figure.add_trace(
            go.Scatter(
                x=list(xs), y=list(ys), name=plain(name), mode="lines" if len(xs) > 24 or steps else "lines+markers",
                line={"color": COLOURS[i % len(COLOURS)], "dash": DASHES[i % len(DASHES)], "width": 2,
                      "shape": "hv" if steps else "linear"},
                hovertext=[f"{plain(name)}<br>{plain(x)} {a:g}: {b:.3f}" for a, b in zip(xs, ys, strict=True)],
                hoverinfo="text",
            )
        )  # fmt: skip
    for name, level in (levels or {}).items():
        figure.add_hline(
            y=level, line={"color": "#777", "width": 1, "dash": "dot"}, annotation_text=plain(name),
            annotation_position="top left", annotation_font_size=11,
        )  # fmt: skip
    figure.update_layout(_layout(330 + 20 * -(-len(curves) // 2), legend=True))
    figure.update_xaxes(title=x, type="log" if log else "linear", gridcolor=GRID, zeroline=False)
    figure.update_yaxes(title=y, gridcolor=GRID, zerolinecolor=GRID)
    if share:
        figure.update_yaxes(range=[-0.02, 1.04])
    return figure


def joint_bars(
    counts: Sequence[int], series: Mapping[str, Sequence[Sequence[float]]], labels: Sequence[str]
) -> go.Figure:
    """Means with 95 % intervals of growing sets of heads, side by side.

    :param series: (mean, low, high) of each set, by name.
    :param labels: what the pointer shows of each set.
    """
    figure = go.Figure()
    for i, (name, values) in enumerate(series.items()):
        means = [v[0] for v in values]
        figure.add_trace(
            go.Bar(
                x=list(map(str, counts)), y=means, name=plain(name), marker_color=COLOURS[i],
                marker_pattern_shape="/" if i else "",
                error_y={"type": "data", "symmetric": False, "array": [max(0, v[2] - v[0]) for v in values],
                         "arrayminus": [max(0, v[0] - v[1]) for v in values], "thickness": 1.2, "width": 3},
                hovertext=[f"{plain(label)}<br>{plain(name)}: {v[0]:.3f} nats ({v[1]:.3f} to {v[2]:.3f})"
                           for label, v in zip(labels, values, strict=True)],
                hoverinfo="text",
            )
        )  # fmt: skip
    figure.update_layout(_layout(320, legend=True), barmode="group")
    figure.update_xaxes(title="heads removed", type="category")
    figure.update_yaxes(title="damage, nats", gridcolor=GRID, zerolinecolor="#888")
    return figure


def _layout(height: int, legend: bool) -> go.Layout:
    return go.Layout(
        template="none", height=height, margin={"l": 48, "r": 8, "t": 12, "b": 44}, dragmode=False,
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK}, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", showlegend=legend, hoverlabel={"align": "left", "bgcolor": "white",
        "font": {"color": INK}}, xaxis={"fixedrange": True}, yaxis={"fixedrange": True},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "font": {"size": 11}},
    )  # fmt: skip
