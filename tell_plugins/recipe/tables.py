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
    body = [[_shown(cell) for cell in row] for row in rows]
    to_right = [
        name in right
        or (bool(rows) and all(isinstance(row[column], (int, float, type(None))) for row in rows))
        for column, name in enumerate(header)
    ]
    widths = [
        max(len(line[column]) for line in [list(header), *body]) for column in range(len(header))
    ]
    lines = [
        indent
        + "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, to_right, strict=True)
        ).rstrip()
        for line in [list(header), *body]
    ]
    return "\n".join(lines)


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
