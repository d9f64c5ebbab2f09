"""Files of rows of every format, read one record at a time with its place.

JSON may be a line for each row, an array, one value after the other, a list of rows under one key
of an object, or an object of columns, as pandas writes it. Tables are read by `table_rows`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.state_files import DECODER, parse_json
from tell_plugins.core.table_rows import Record, no_text, read_table, refuse_twice

TABLES = (".csv", ".tsv", ".xlsx")
_WANTED = (
    'rows of a query and its answer: JSON lines such as {"query": "...", "response": "..."}, or a '
    "table with these two columns"
)
_TURNS = ("messages", "conversations", "history", "turns")
_BOM = b"\xef\xbb\xbf"
_BETWEEN = re.compile(r"[\s,:]*")


def read_records(path: Path, header: bool = True) -> Iterator[Record]:
    """The records of a file in order. Raises UserError when the file as a whole is unreadable.

    `header=False` reads a table whose first row is a row: its columns are called "1", "2", ... .
    """
    suffix, where = path.suffix.lower(), paths.shown(path)
    if suffix not in _READERS:
        found = f"'{suffix or 'no ending'}' is no known file format"
        remedy = f"convert or rename it; wanted are {_WANTED}"
        raise UserError(found, where=where, allowed=", ".join(FORMATS), remedy=remedy)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise UserError("the file is empty", where=where, remedy="check where it came from")
    if suffix not in (".parquet", ".xlsx") and b"\0" in head:  # UTF-16, UTF-32, archives
        raise no_text(path)
    return _READERS[suffix](path, header) if suffix in TABLES else _READERS[suffix](path)


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            refuse_twice(file.schema_arrow.names, paths.shown(path))
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(number, row)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: also no UTF-8
        found = f"no Parquet file: {error}"
        raise UserError(found, where=paths.shown(path), remedy="write it again") from None


# --- JSON


def read_json_rows(path: Path) -> Iterator[Record]:
    """The rows of a JSON file. Raises UserError when an array or object in it is broken.

    JSON lines are read one by one; a file of another shape is held whole.
    """
    return _json_lines(path) if _is_lines(path) else _values(path)


def _is_lines(path: Path) -> bool:
    """Whether each line of a file is a row, by the first line that is not blank."""
    with path.open("rb") as file:
        lines = (line.removeprefix(_BOM).strip() for line in file)
        head = next((line for line in lines if line), b"")
        alone = not any(lines)
    if head.startswith(b"["):
        return False
    try:
        value = parse_json(head, nan=True)
    except ValueError:
        # `jq` and `indent=` break values over lines; in JSON lines this is one broken row
        whole = head == b"{" or path.suffix.lower() == ".json"
        return not (whole and head.startswith(b"{"))
    return not (alone and (_key_of_rows(value) or _rows_of_columns(value)))


def _key_of_rows(value: Any) -> str | None:
    """The one key of an object whose value is a list of rows, None where there is no such key."""
    lists = [
        key
        for key, inner in (value.items() if isinstance(value, dict) else ())
        if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner)
    ]
    return str(lists[0]) if len(lists) == 1 and lists[0] not in _TURNS else None  # turns: no rows


def _rows_of_columns(value: Any) -> list[dict[str, Any]]:
    """The rows of an object of columns: lists, or objects by the row's number; else empty."""
    columns = list(value.values()) if isinstance(value, dict) else []
    if columns and all(isinstance(column, dict) for column in columns):
        numbered = all(column.keys() == columns[0].keys() for column in columns)
        numbered = numbered and all(map(str.isdecimal, columns[0]))
        columns = [list(column.values()) for column in columns] if numbered else []
    if len(columns) < 2 or not all(isinstance(column, list) for column in columns):
        return []
    no_cell = any(isinstance(cell, dict | list) for column in columns for cell in column)
    if no_cell or len({len(column) for column in columns}) > 1:
        return []
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            raw = raw.removeprefix(_BOM).strip()
            if not raw:
                continue
            try:
                yield Record(number, parse_json(raw, nan=True))
            except UnicodeDecodeError:
                raise no_text(path) from None
            except json.JSONDecodeError as error:
                hint = "; a Python dict: write it with json.dumps" if raw.startswith(b"{'") else ""
                reason = f"no JSON ({error.msg} at column {error.colno}{hint})"
                yield Record(number, None, reason)
            except ValueError as error:  # a huge number, deep nesting, a key twice
                yield Record(number, None, f"no JSON ({error})")


def _values(path: Path) -> Iterator[Record]:
    """The rows of an array, of the only object, or of values one after the other."""
    try:
        text = _Text(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise no_text(path) from None
    try:
        yield from text.rows()
    except (ValueError, RecursionError) as error:
        where = f"{paths.shown(path)}, line {text.line}"
        remedy = "mend the file, or save one JSON object a line as .jsonl"
        raise UserError(f"no JSON array: {error}", where=where, remedy=remedy) from None


class _Text:
    """A text of JSON values, read from its beginning. ValueError where something else stands."""

    def __init__(self, text: str) -> None:
        self._text, self._place = text, 0
        self.line = 1  # of the place

    def rows(self) -> Iterator[Record]:
        if self._next_sign() == "[":
            yield from self._array()
            if self._next_sign():
                raise ValueError("something follows its end")
            return
        place, line, value = self._place, self.line, self._value()
        alone = not self._next_sign()
        if alone and (rows := _rows_of_columns(value)):
            yield from (Record(number, row) for number, row in enumerate(rows, 1))
            return
        key = _key_of_rows(value) if alone else None
        if key is None:
            yield Record(line, value)
            while self._next_sign():
                yield Record(self.line, self._value())
            return
        self._place, self.line = place, line  # once more, to the list under that key
        self._go_to(place + 1)
        while self._next_sign() and self._value() != key:
            self._next_sign()
            self._value()
        self._next_sign()
        yield from self._array()

    def _array(self) -> Iterator[Record]:
        self._go_to(self._place + 1)  # behind the opening bracket
        while (sign := self._next_sign()) != "]":
            if not sign:
                raise ValueError("its end is missing")
            yield Record(self.line, self._value())
        self._go_to(self._place + 1)

    def _value(self) -> Any:
        try:
            value, end = DECODER.raw_decode(self._text, self._place)
        except json.JSONDecodeError as error:
            self._go_to(error.pos)
            raise ValueError(error.msg) from None
        self._go_to(end)
        return value

    def _next_sign(self) -> str:
        """Pass what may stand between values; gives the character that follows, "" at the end."""
        between = _BETWEEN.match(self._text, self._place)
        self._go_to(between.end() if between else self._place)
        return self._text[self._place : self._place + 1]

    def _go_to(self, place: int) -> None:
        self.line += self._text.count("\n", self._place, place)
        self._place = place


_READERS: dict[str, Callable[..., Iterator[Record]]] = {
    ".jsonl": read_json_rows,
    ".json": read_json_rows,
    **dict.fromkeys(TABLES, read_table),
    ".parquet": _parquet,
}
FORMATS = tuple(sorted(_READERS))
