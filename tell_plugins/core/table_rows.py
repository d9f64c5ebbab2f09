"""Rows of tables as people save them: CSV, TSV, and the first sheet of an Excel workbook."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.records import Record, bad_encoding

_EXPECTED = {".csv": ",", ".tsv": "\t"}
_MARKS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
_LOOKED_AT = 50  # rows from which the separator is told
# bytes of another encoding show in Windows-1252 as signs inside words, or as a row of accents
_FOREIGN = re.compile(r"[^\x00-\x7f]{4}|[^\W\d_][¡-©«¬®-¶¸¹»-¿×÷‚„†‡ˆ‰‹›•˜][^\W\d_]")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_DOUBLED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')


class Layout(NamedTuple):
    """How a table is written.

    Attributes:
        encoding: `utf-8-sig` or `cp1252`.
        quoted: whether `"` at both ends of a field is no part of it.
        skipped: lines before the table, as Excel's `sep=;`.
    """

    encoding: str
    delimiter: str
    quoted: bool
    skipped: int


def read_table(path: Path, header: bool = True) -> Iterator[Record]:
    """The rows of a CSV or TSV file under the names of its first row.

    With `header=False` there are no names, and columns are called "1", "2", ... . Raises UserError
    when the file as a whole is no table.
    """
    layout = layout_of(path)
    with _open(path, layout.encoding) as file:
        lines = _Lines(islice(file, layout.skipped, None), layout.skipped)
        try:
            yield from _named(_rows(lines, layout), path, header)
        except csv.Error as error:
            raise UserError(
                f"no table: {error}",
                where=f"{paths.shown(path)}, line {lines.count}",
                remedy="quote fields that hold quotes, delimiters or line breaks",
            ) from None
        except UnicodeDecodeError:
            raise bad_encoding(path) from None


def table_notes(path: Path) -> list[str]:
    """What is worth saying of how a table is read; nothing where it is the usual way."""
    if path.suffix.lower() == ".xlsx":
        sheets = _sheets(path)[0]
        return [f"of {path.name} the first sheet is read, '{sheets[0]}'"] if sheets[1:] else []
    if path.suffix.lower() not in _EXPECTED:
        return []
    layout, notes = layout_of(path), []
    if layout.delimiter != _EXPECTED[path.suffix.lower()]:
        notes.append(f"the columns of {path.name} are separated by {_MARKS[layout.delimiter]}")
    if layout.encoding == "cp1252":
        notes.append(f"{path.name} is not UTF-8 and was read as WINDOWS-1252: look at its accents")
    broken = [
        record.line
        for record in (read_table(path) if layout.quoted else ())
        if record.value and any(re.search(r"[\t\r\n]", text) for text in record.value.values())
    ]
    if broken:
        notes.append(
            f"{len(broken)} rows of {path.name} hold line breaks or tabs inside quotes, the first "
            f"at line {broken[0]}; lines are those of the text file, not rows of a spreadsheet"
        )
    return notes


def layout_of(path: Path) -> Layout:
    """How the table in `path` is written. Raises UserError when its encoding cannot be told."""
    csv.field_size_limit(1 << 30)
    encoding = _encoding(path)
    with _open(path, encoding) as file:
        first = file.readline()
    given = re.fullmatch(r'"?sep=(.)"?\s*', first)
    skipped = 1 if given else 0
    delimiter = given[1] if given else _delimiter(path, encoding)
    layout = Layout(encoding, delimiter, True, skipped)
    if delimiter == "\t":
        layout = layout._replace(quoted=_is_quoted(path, layout))
    return layout


def _open(path: Path, encoding: str) -> IO[str]:
    return path.open(encoding=encoding, newline="")


def _encoding(path: Path) -> str:
    """UTF-8, else Windows-1252 where the whole file reads as Western text in it."""
    try:
        with _open(path, "utf-8-sig") as file:
            for _ in file:
                pass
        return "utf-8-sig"
    except UnicodeDecodeError:
        pass
    try:
        with _open(path, "cp1252") as file:
            if not any(_FOREIGN.search(line) for line in file):
                return "cp1252"
    except UnicodeDecodeError:
        pass
    raise bad_encoding(path)


def _delimiter(path: Path, encoding: str) -> str:
    """The mark that gives most rows as many fields as the header; the usual one where several do.

    A mark counts only where it is in the header.
    """
    expected = _EXPECTED[path.suffix.lower()]
    with _open(path, encoding) as file:
        lines = [line for line in islice(file, 4 * _LOOKED_AT) if line.strip()]
    best, score = expected, 0.0
    for mark in sorted(_MARKS, key=lambda mark: mark != expected):
        if not lines or mark not in lines[0]:
            continue
        quoting: Literal[0, 3] = csv.QUOTE_NONE if mark == "\t" else csv.QUOTE_MINIMAL
        rows = islice(csv.reader(lines, delimiter=mark, quoting=quoting), _LOOKED_AT)
        widths = [len(_trimmed(fields)) for fields in rows]
        fitting = sum(width == widths[0] for width in widths) / len(widths)
        if widths[0] > 1 and fitting > score:
            best, score = mark, fitting
    return best


def _trimmed(fields: Sequence[Any]) -> Sequence[Any]:
    """The fields without the blank ones at the end."""
    end = len(fields)
    while end and _blank(fields[end - 1]):
        end -= 1
    return fields[:end]


def _blank(field: Any) -> bool:
    return field is None or (isinstance(field, str) and not field.strip())


# ------------------------------------------------------------------------- quotes of a TSV


def _is_quoted(path: Path, layout: Layout) -> bool:
    """Whether a tab-separated file quotes its fields: only where the file proves it.

    GLUE and Hugging Face write `"` as any other character. It is a quote where the whole file
    reads as quoted, and either does not read otherwise, or shows what only a writer of quotes
    makes: a doubled quote inside a field, a header all quoted, all fields with a comma quoted.
    """
    reads_plain, width, proof = True, 0, False
    commas = Counter[bool]()
    with _open(path, layout.encoding) as file:
        for line in islice(file, layout.skipped, None):
            cells = line.rstrip("\r\n").split("\t")
            if not _trimmed(cells):
                continue
            if not width:
                width = len(_trimmed(cells))
                proof = all(_QUOTED.fullmatch(cell) for cell in cells if cell)
            reads_plain = reads_plain and _fits(cells, width)
            proof = proof or any(cell[:1] == '"' and _DOUBLED.fullmatch(cell) for cell in cells)
            commas.update(bool(_QUOTED.fullmatch(cell)) for cell in cells if "," in cell)
    proof = proof or (commas[True] > 1 and not commas[False])
    return (proof or not reads_plain) and _reads_quoted(path, layout, width)


def _reads_quoted(path: Path, layout: Layout, width: int) -> bool:
    """Whether every row has `width` fields when quotes are read, and none swallows other rows."""
    with _open(path, layout.encoding) as file:
        lines = _Lines(islice(file, layout.skipped, None), layout.skipped, keep=True)
        try:
            for _, fields in _rows(lines, layout):
                if _trimmed(fields) and not _fits(fields, width):
                    return False
                parts = [line.rstrip("\r\n").split("\t") for line in lines.kept]
                if len(parts) > 1 and all(_fits(cells, width) for cells in parts):
                    return False
                lines.kept.clear()
        except csv.Error:
            return False
    return True


def _fits(fields: Sequence[str], width: int) -> bool:
    return len(fields) == width or (len(fields) > width and not _trimmed(fields[width:]))


class _Lines:
    """The lines of a file, counted as a CSV reader takes them."""

    def __init__(self, lines: Iterable[str], before: int, keep: bool = False) -> None:
        self._lines = iter(lines)
        self._keep = keep
        self.count = before
        self.kept: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.count += 1
        if self._keep:
            self.kept.append(line)
        return line


def _rows(lines: _Lines, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line and its fields."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE
    before = lines.count
    for fields in csv.reader(lines, delimiter=layout.delimiter, quoting=quoting, strict=True):
        yield before + 1, fields
        before = lines.count


# ------------------------------------------------------------------------- rows and their names


def _named(rows: Iterable[tuple[int, Sequence[Any]]], path: Path, header: bool) -> Iterator[Record]:
    """Rows under the names of the first one; blank rows and blank columns at the end are none."""
    names: list[str] | None = None
    for line, fields in rows:
        if not _trimmed(fields):
            continue
        if names is None:
            names = _names(_trimmed(fields), f"{paths.shown(path)}, line {line}", header)
            if header:
                continue
        width = len(names)
        if not _fits(fields, width):
            problem = f"{len(fields)} fields, but the header has {width}"
            if not header:
                problem = f"{len(fields)} fields, but the first row has {width}"
            yield Record(line, None, problem)
        else:
            yield Record(line, dict(zip(names, fields[:width], strict=True)))


def _names(fields: Sequence[Any], where: str, header: bool) -> list[str]:
    """The columns' names; a column without one is called by its number."""
    numbers = [str(number) for number in range(1, len(fields) + 1)]
    if not header:
        return numbers
    named = [
        number if _blank(field) else str(field).strip()
        for field, number in zip(fields, numbers, strict=True)
    ]
    twice = [name for name, count in Counter(named).items() if count > 1]
    if twice:
        raise UserError(
            f"column '{twice[0]}' stands twice in the header",
            where=where,
            remedy="rename one of them",
        )
    return named


# ------------------------------------------------------------------------- Excel


def read_workbook(path: Path, header: bool = True) -> Iterator[Record]:
    """The rows of the first sheet of an .xlsx file; numbers and booleans are texts, as in CSV."""
    yield from _named(_sheets(path)[1], path, header)


def _sheets(path: Path) -> tuple[list[str], list[tuple[int, list[Any]]]]:
    """The names of a workbook's visible sheets, and the rows of the first with their numbers."""
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            "reading .xlsx needs the package openpyxl",
            where=paths.shown(path),
            remedy="pip install openpyxl, or save the sheet as CSV UTF-8",
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = [sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible"]
        values = book[sheets[0]].iter_rows(values_only=True)
        rows = [(line, [_cell(value) for value in row]) for line, row in enumerate(values, 1)]
        book.close()
    except Exception as error:  # zip, XML and its own errors: a damaged file raises any of them
        raise UserError(
            f"no Excel workbook: {error}",
            where=paths.shown(path),
            remedy="save it again as .xlsx, or as CSV UTF-8",
        ) from None
    return sheets, rows


def _cell(value: Any) -> Any:
    """A cell's text, as a CSV file has it. Dates stay what they are: nobody knows their form."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value
