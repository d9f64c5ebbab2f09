"""Reading row files: JSON lines, JSON, CSV, TSV, Parquet; one record at a time, with its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError

_CHUNK = 1 << 20  # characters of a JSON array that are read at a time


class Record(NamedTuple):
    """One raw row. `line`, where it begins, counts from 1 (a row number in Parquet)."""

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
            allowed=", ".join(FORMATS),
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


def _bad_encoding(path: Path) -> UserError:
    """The error for a file that is not UTF-8, with the first line that is not."""
    where, found = paths.shown(path), "not UTF-8"
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                where, found = f"{where}, line {number}", f"not UTF-8: byte {raw[error.start]:#04x}"
                break
    remedy = f"iconv -f LATIN1 -t UTF-8 {path.name} > new{path.suffix} (if it is Latin-1)"
    return UserError(found, where=where, remedy=remedy)


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            raw = raw.strip()
            if not raw:
                continue
            try:
                yield Record(number, json.loads(raw.decode()))
            except UnicodeDecodeError:
                raise _bad_encoding(path) from None
            except json.JSONDecodeError as error:
                yield Record(number, None, f"no JSON ({error.msg} at column {error.colno})")
            except (ValueError, RecursionError) as error:  # a huge number, deep nesting
                yield Record(number, None, f"no JSON ({error})")


def _json(path: Path) -> Iterator[Record]:
    """A JSON array of rows, or JSON lines under a `.json` name (as HaluEval's files are)."""
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head.startswith(b"["):
        yield from _json_lines(path)
        return
    with path.open(encoding="utf-8-sig") as text:
        window = _Window(text)
        try:
            yield from _json_array(window)
        except UnicodeDecodeError:
            raise _bad_encoding(path) from None
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"no JSON array: {error} (after {window.values:,} whole rows)",
                where=f"{paths.shown(path)}, line {window.line}",
                remedy="mend the file, or save one JSON object a line as .jsonl",
            ) from None


def _json_array(window: _Window) -> Iterator[Record]:
    window.skip_space()
    window.position += 1  # the opening bracket
    while (character := window.skip_space(",")) != "]":
        if not character:
            raise ValueError("its end is missing")
        line = window.line
        yield Record(line, window.value())
    window.position += 1
    if window.skip_space():
        raise ValueError("something follows its end")


class _Window:
    """The part of a JSON file that is being parsed, so that a large file is never held whole."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text = file, ""
        self._decoder = json.JSONDecoder()
        self.position = 0
        self.line = 1  # the line of `position`
        self.values = 0  # how many were read

    def _read_on(self) -> bool:
        self._text = self._text[self.position :]
        self.position = 0
        chunk = self._file.read(max(_CHUNK, len(self._text)))
        self._text += chunk
        return bool(chunk)

    def skip_space(self, more: str = "") -> str:
        """Pass white space (and `more`); gives the character that follows, "" at the end."""
        while self.position < len(self._text) or self._read_on():
            character = self._text[self.position]
            if not character.isspace() and character not in more:
                return character
            self.line += character == "\n"
            self.position += 1
        return ""

    def value(self) -> Any:
        """The JSON value at the position. Raises ValueError when there is none."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self.position)
            except json.JSONDecodeError as error:
                line = self.line + self._text.count("\n", self.position, error.pos)
                if self._read_on():
                    continue
                self.line = line
                raise ValueError(error.msg) from None
            if end < len(self._text) or not self._read_on():
                break  # else a number may go on
        self.line += self._text.count("\n", self.position, end)
        self.position = end
        self.values += 1
        return value


def _separated(delimiter: str) -> Callable[[Path], Iterator[Record]]:
    def read(path: Path) -> Iterator[Record]:
        csv.field_size_limit(1 << 30)
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            try:
                yield from _table(reader, path)
            except csv.Error as error:
                raise UserError(
                    f"no table: {error}",
                    where=f"{paths.shown(path)}, line {reader.line_num}",
                    remedy="quote fields that hold quotes, delimiters or line breaks",
                ) from None
            except UnicodeDecodeError:
                raise _bad_encoding(path) from None

    return read


def _table(reader: Any, path: Path) -> Iterator[Record]:
    """Rows of a CSV reader under the names of its first row; blank lines are passed over."""
    header: list[str] | None = None
    before = 0
    for fields in reader:
        line, before = before + 1, reader.line_num
        if not fields:
            continue
        if header is None:
            header = fields
            twice = [name for name in header if header.count(name) > 1]
            if twice:
                raise UserError(
                    f"column '{twice[0]}' stands twice in the header",
                    where=f"{paths.shown(path)}, line {line}",
                    remedy="rename one of them",
                )
        elif len(fields) != len(header):
            problem = f"{len(fields)} fields, but the header has {len(header)}"
            yield Record(line, None, problem)
        else:
            yield Record(line, dict(zip(header, fields, strict=True)))


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(number, row)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
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
