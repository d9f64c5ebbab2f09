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
    columns = []
    for place, name in enumerate(header):
        cells = [row[place] for row in rows]
        texts = [name, *map(_shown, cells)]
        width = max(map(len, texts))
        numbers = cells and all(isinstance(cell, (int, float, type(None))) for cell in cells)
        to_right = numbers or name in right
        columns.append([f"{text:{'>' if to_right else '<'}{width}}" for text in texts])
    return "\n".join(indent + "  ".join(line).rstrip() for line in zip(*columns, strict=True))


def count_of(number: int, what: str, ending: str = "s") -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {what}{'' if number == 1 else ending}"


def _shown(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:g}" if isinstance(cell, float) else str(cell)
