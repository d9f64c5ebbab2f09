"""Reading row files: JSON lines, JSON, CSV, TSV, Parquet; one record at a time, with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError

_EXTRA = "\x00"  # csv puts surplus fields under this key


class Record(NamedTuple):
    """One raw row. `line` counts from 1 (a row number in Parquet and JSON arrays)."""

    line: int
    value: Any  # the row, or None when it cannot be read
    problem: str | None = None


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file in order. Raises UserError when the file as a whole is unreadable."""
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise UserError(
            f"'{suffix or 'no ending'}' is no known file format",
            where=paths.shown(path),
            allowed=", ".join(sorted(_READERS)),
            remedy="convert the file or rename it",
        )
    if path.stat().st_size == 0:
        raise UserError(
            "the file is empty", where=paths.shown(path), remedy="check where it came from"
        )
    if suffix != ".parquet":
        _refuse_utf16(path)
    return _READERS[suffix](path)


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(4)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in head:
        raise UserError(
            "the file is UTF-16 or UTF-32, not UTF-8",
            where=paths.shown(path),
            remedy=f"iconv -f UTF-16 -t UTF-8 {path.name} > new{path.suffix}",
        )


def _bad_encoding(path: Path, error: UnicodeDecodeError, line: int | None = None) -> UserError:
    where = paths.shown(path) + (f", line {line}" if line else "")
    return UserError(
        f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}",
        where=where,
        remedy=f"iconv -f LATIN1 -t UTF-8 {path.name} > new{path.suffix} (if it is Latin-1)",
    )


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            raw = raw.strip()
            if not raw:
                continue
            try:
                yield Record(number, json.loads(raw))
            except json.JSONDecodeError as error:
                yield Record(number, None, f"no JSON ({error.msg} at column {error.colno})")
            except UnicodeDecodeError as error:
                raise _bad_encoding(path, error, number) from None


def _json(path: Path) -> Iterator[Record]:
    """A JSON array of rows, or JSON lines under a `.json` name (as HaluEval's files are)."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"["):
        yield from _json_lines(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise _bad_encoding(path, error) from None
    yield from _json_array(path, text)


def _json_array(path: Path, text: str) -> Iterator[Record]:
    decoder = json.JSONDecoder()
    position, number = text.index("[") + 1, 0
    while True:
        position = _skip(text, position, " \t\r\n,")
        if position < len(text) and text[position] == "]":
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise UserError(
                f"no JSON array: {error.msg} at line {error.lineno}, column {error.colno}",
                where=paths.shown(path),
                remedy="mend the file, or save one JSON object a line as .jsonl",
            ) from None
        number += 1
        yield Record(number, value)


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _separated(delimiter: str) -> Callable[[Path], Iterator[Record]]:
    def read(path: Path) -> Iterator[Record]:
        csv.field_size_limit(1 << 30)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, restkey=_EXTRA, strict=True)
            try:
                for row in reader:
                    if _EXTRA in row or None in row.values():
                        want = len(reader.fieldnames or ())
                        yield Record(reader.line_num, None, f"not the header's {want} columns")
                    else:
                        yield Record(reader.line_num, dict(row))
            except csv.Error as error:
                raise UserError(
                    f"no table: {error}",
                    where=f"{paths.shown(path)}, line {reader.line_num}",
                    remedy="quote fields that hold quotes, delimiters or line breaks",
                ) from None
            except UnicodeDecodeError as error:
                raise _bad_encoding(path, error) from None

    return read


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield Record(number, row)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"no Parquet file: {error}", where=paths.shown(path), remedy="write it again"
        ) from None


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
FORMATS = tuple(sorted(_READERS))
