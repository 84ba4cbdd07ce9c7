"""Tables, on a terminal and in a notebook."""

import shutil
import sys
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table

from mechrl.intervals import Estimate

NARROWEST = 40  # a terminal with fewer columns breaks the lines itself
ENDLESS = 1_000_000  # the width of what is no terminal
LEAST_TEXT = 24  # what free text is narrowed to before a column is left out for it
LEAST_NAME = 12  # what the names of columns are narrowed to beside a row's values


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    caption: str = "",
    secondary: Sequence[str] = (),
    text: str = "",
) -> None:
    """A table on stdout, numbers to the right, that never cuts a name or a number to fit a terminal.

    Where it is too wide, first the column of free text goes on over several lines. Then whole secondary columns are
    left out, and a line below the table names them. Where that is not enough, every row becomes a block of lines, one
    for each column, and nothing is left out. What is no terminal gets the whole table.

    :param secondary: the columns that may be left out, the least important first.
    :param text: the column whose cells may go on over several lines.
    """
    console = _console()
    names = [_on_one_line(column) for column in columns]
    made = [
        Column(
            _printable_lines(column),
            justify="right" if rows and name != text and all(_is_number(row[i]) for row in rows) else "left",
            no_wrap=name != text,
            overflow="fold",
        )
        for i, (name, column) in enumerate(zip(names, columns, strict=True))
    ]
    cells = [[_as_text(value) for value in row] for row in rows]
    console.print(_printable_lines(title), style="bold")
    place = {name: i for i, name in enumerate(names)}  # the last of a name: a task may be called like a column
    kept = _fitting(console, made, cells, [place[_on_one_line(column)] for column in secondary])
    if kept:
        console.print(_table([made[i] for i in kept], [[row[i] for i in kept] for row in cells]))
    else:
        console.print(_blocks(console, names, made, cells))
        console.print()
    left_out = ", ".join(name for i, name in enumerate(names) if kept and i not in kept)
    notes = [caption, f"left out at this width: {left_out}; a wider terminal or JSON shows them" * bool(left_out)]
    for note in filter(None, notes):
        console.print(Padding(_printable(note), (0, 0, 0, 2), expand=False), style="dim")
    if any(notes):
        console.print()


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """The same table for a notebook, as HTML; every text in it is escaped."""
    head = "".join(f"<th>{escape(_on_one_line(column))}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(_as_text(value))}</td>" for value in row) + "</tr>" for row in rows)
    return (
        f"<table><caption>{escape(_printable(title))}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"</table>" + f"<p>{escape(_printable(caption))}</p>" * bool(caption)
    )


def html_heatmap(title: str, values: np.ndarray) -> str:
    """One number of every head for a notebook, as an HTML table of coloured cells: layers down, heads across.

    :param values: [layer, head]; red above zero, blue below, as strong as the share of the largest absolute value.
    """
    largest = float(np.abs(values).max()) or 1.0
    cell = '<td style="background:rgba({},{:.2f})" title="{}.{}: {:.3f}">{:.2f}</td>'
    rows = [
        f"<tr><th>{layer}</th>"
        + "".join(
            cell.format("214,39,40" if v > 0 else "31,119,180", abs(v) / largest, layer, head, v, v)
            for head, v in enumerate(heads_of_layer.tolist())
        )
        + "</tr>"
        for layer, heads_of_layer in enumerate(values)
    ]
    heads = "".join(f"<th>{head}</th>" for head in range(values.shape[1]))
    return (
        f"<table><caption>{escape(_printable(title))}</caption><thead><tr><th>layer</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _console() -> Console:
    """Of stdout. By itself rich takes a terminal with TERM=dumb for 80 columns wide, one with COLUMNS=0 for none."""
    width, height = shutil.get_terminal_size()
    width = max(width, NARROWEST) if sys.stdout.isatty() else ENDLESS
    return Console(highlight=False, markup=False, emoji=False, width=width, height=height)


def _fitting(
    console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]], secondary: Sequence[int]
) -> list[int]:
    """The columns to show, as few as possible left out; none if those that must stay are too wide."""
    for n in range(len(secondary) + 1):
        kept = [i for i in range(len(columns)) if i not in secondary[:n]]
        table = _table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], LEAST_TEXT)
        if console.measure(table, options=console.options.update_width(ENDLESS)).maximum <= console.width:
            return kept
    return []


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]], most_text: int | None = None) -> Table:
    """The rows below the columns, free text no wider than `most_text`."""
    table = Table(*(column.copy() for column in columns), box=box.SIMPLE_HEAD)
    for column in table.columns:
        column.max_width = None if column.no_wrap else most_text
    for row in rows:
        table.add_row(*row)
    return table


def _blocks(console: Console, names: Sequence[str], columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    """Each row as lines with the name of a column and its value, but for empty values."""
    whole = [i for i, column in enumerate(columns) if i and column.no_wrap]  # for these the names make room
    longest = max((cell_len(row[i]) for row in rows for i in whole), default=0)
    table = Table.grid(padding=(0, 0, 0, 2), pad_edge=True)
    table.add_column(style="bold", overflow="fold", max_width=max(LEAST_NAME, console.width - longest - 4))
    table.add_column(overflow="fold")
    for i, row in enumerate(rows):
        if i:
            table.add_row()
        for name, cell in zip(names, row, strict=True):
            if cell:
                table.add_row(_printable(name), cell)
    return table


def _as_text(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else _printable(str(value))


def _is_number(value: Any) -> bool:
    """Whether a value is a number, or a text that begins with one."""
    return isinstance(value, int | float) or str(value)[:1] in "+-0123456789"


def _on_one_line(column: str) -> str:
    return " ".join(column.split())


def _printable_lines(text: str) -> str:
    return "\n".join(map(_printable, text.split("\n")))


def _printable(text: str) -> str:
    """What is in a text from a file must not steer the terminal: line breaks, tabs and control characters spelt out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(estimate: Estimate | None) -> str | None:
    """A mean with its 95 % interval."""
    return None if estimate is None else "{:.2f} ({:.2f} to {:.2f})".format(*estimate)
