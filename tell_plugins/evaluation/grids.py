"""Tables on the terminal: they fit its width in parts, and nothing is cropped."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNBOUNDED = 10_000  # columns of a file
WIDE = 110  # columns that tables with intervals in their cells need
_INTERVAL = re.compile(r" \[[^\]]*\]")


@dataclass(frozen=True)
class Grid:
    """One table: cells as text, the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def table_console() -> Console:
    """Where tables are printed: as wide as the terminal, without an edge in a file."""
    console = Console()
    return console if console.is_terminal else Console(width=UNBOUNDED)


def print_grid(grid: Grid, console: Console) -> None:
    """Print a table in parts that fit; below 110 columns without the scores' intervals."""
    whole = _without_intervals(grid) if console.width < WIDE else grid
    for part in fitted(whole, console.width):
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


def _without_intervals(grid: Grid) -> Grid:
    rows = [[_INTERVAL.sub("", cell) for cell in row] for row in grid.rows]
    return replace(grid, rows=rows)


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
