"""Tables: rows of cells, and how they are written to the terminal, as Markdown and as CSV.

On the terminal they fit its width in parts, and nothing is cropped.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tell_plugins.core.shown import csv_cell, markdown_cell
from tell_plugins.evaluation.intervals import Estimate, shown

UNBOUNDED = 10_000  # columns of a file
POINTS = ", points"  # how a column of differences in percentage points ends
_DIGITS = 6  # beyond what any interval here carries; keeps files equal on every machine
Cell = tuple[Mapping[str, str], str, str]  # the names of its row by their heads, column, text
Record = Mapping[str, Any]  # a row: texts, numbers, rates and estimates by column


@dataclass(frozen=True)
class Grid:
    """One table: cells as text, the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def pivot(title: str, cells: Iterable[Cell], notes: Iterable[str] = ()) -> Grid:
    """The cells as a table, rows and columns as they come; what is not among them is a dash."""
    lines: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    heads: Mapping[str, str] = {}
    for heads, column, text in cells:
        lines[tuple(heads.values())][column] = text
    columns = list(dict.fromkeys(column for line in lines.values() for column in line))
    rows = [[*names, *(line.get(c, "-") for c in columns)] for names, line in lines.items()]
    return Grid(title, [*heads, *columns], rows, list(notes))


def table_console() -> Console:
    """Where tables are printed: as wide as the terminal, without an edge in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=UNBOUNDED)


def print_grid(grid: Grid, console: Console) -> None:
    """Print a table, in parts where it is wider than the terminal."""
    for part in fitted(grid, console.width):
        table = Table(
            title=Text(part.title),
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for number, column in enumerate(part.columns):
            side: Literal["left", "right"] = "left" if number == 0 else "right"
            least = min(_least_width(part, number), console.width - 2)
            table.add_column(Text(column), justify=side, overflow="fold", min_width=least)
        for row in part.rows:
            table.add_row(*map(Text, row))
        console.print(table)
        for note in part.notes:
            console.print(Text("  " + note), soft_wrap=True)
        console.print()


def _least_width(grid: Grid, column: int) -> int:
    """Columns of the terminal that a column needs: its longest word, which is never broken.

    Nor is a line of a cell that has several: an interval stands below its value.
    """
    words = grid.columns[column].split()
    for row in grid.rows:
        cell = row[column]
        words += cell.split("\n") if "\n" in cell else cell.split()
    return max(map(len, words), default=0)


def fitted(grid: Grid, width: int) -> list[Grid]:
    """The table, or several with the same first column, none of them wider than `width`."""
    needs = [_least_width(grid, number) + 2 for number in range(len(grid.columns))]
    parts: list[list[int]] = [[0]]
    for number in range(1, len(needs)):
        taken = sum(needs[place] for place in parts[-1])
        if len(parts[-1]) > 1 and taken + needs[number] + 1 > width:
            parts.append([0])
        parts[-1].append(number)
    return [
        Grid(
            grid.title if part is parts[0] else f"{grid.title} (continued)",
            [grid.columns[number] for number in part],
            [[row[number] for number in part] for row in grid.rows],
            grid.notes if part is parts[-1] else [],
        )
        for part in parts
    ]


def grid_of(records: Sequence[Record], title: str = "", without: Collection[str] = ()) -> Grid:
    """The records as they are read; columns that are empty or in `without` are left out."""
    cells = {
        name: [_text(name, record.get(name)) for record in records]
        for name in _columns(records)
        if name not in without
    }
    kept = {name: texts for name, texts in cells.items() if any(texts)}
    return Grid(title, list(kept), [list(row) for row in zip(*kept.values(), strict=True)])


def _columns(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record))


def _text(column: str, cell: Any) -> str:
    """A cell as it is read: rates with their counts, points with their sign."""
    if isinstance(cell, Estimate):
        if cell.value is None:
            return ""
        if cell.k is not None:
            share = shown(cell, 1, factor=100).replace(" [", " % [")
            return f"{cell.k}/{cell.n} = {share}"
        return shown(cell, 1, sign="+") if column.endswith(POINTS) else shown(cell, 3)
    if isinstance(cell, float):
        return f"{int(cell):,}" if cell.is_integer() else f"{cell:,.2f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell or "")


def to_markdown(grid: Grid) -> str:
    """A table as Markdown."""
    lines = [grid.columns, ["---"] * len(grid.columns), *grid.rows]
    texts = [" | ".join(map(markdown_cell, line)) for line in lines]
    return "".join(f"| {text} |\n" for text in texts)


def to_csv(records: Sequence[Record]) -> str:
    """Records as CSV, a number as columns of its counts, value and interval."""
    parts = [
        {name: part for key, cell in record.items() for name, part in _parts(key, cell).items()}
        for record in records
    ]
    out = io.StringIO()
    if parts:
        writer = csv.writer(out, lineterminator="\n")
        names = _columns(parts)
        writer.writerow(map(csv_cell, names))
        writer.writerows([csv_cell(part.get(name)) for name in names] for part in parts)
    return out.getvalue()


def _parts(name: str, cell: Any) -> dict[str, Any]:
    if not isinstance(cell, Estimate):
        return {name: round(cell, _DIGITS) if isinstance(cell, float) else cell}
    counts = {f"{name} n": cell.n}
    if cell.k is not None:
        counts = {f"{name} k": cell.k, **counts}
    ends = {"": cell.value, " low": cell.low, " high": cell.high}
    return counts | {name + key: v and round(float(v), _DIGITS) for key, v in ends.items()}
