"""Plain text tables: aligned columns, numbers to the right."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    indent: str = "  ",
    right: Collection[str] = (),
) -> str:
    """A table as text; numbers get thousands separators, None shows as a dash.

    Numbers stand to the right, and so do the columns named in `right`.
    """
    columns = [
        _column(name, [row[place] for row in rows], name in right)
        for place, name in enumerate(header)
    ]
    return "\n".join(indent + "  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _column(name: str, cells: Sequence[object], to_right: bool) -> list[str]:
    """The name and the cells of a column, all of one width."""
    texts = [name, *map(_shown, cells)]
    width = max(map(len, texts))
    if cells and all(isinstance(cell, (int, float, type(None))) for cell in cells):
        to_right = True
    return [text.rjust(width) if to_right else text.ljust(width) for text in texts]


def count_of(number: int, what: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _shown(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:g}" if isinstance(cell, float) else str(cell)
