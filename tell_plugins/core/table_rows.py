"""Rows of tables as people save them: CSV, TSV, and the first sheet of an Excel workbook."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError

_EXPECTED = {".csv": ",", ".tsv": "\t"}
_MARKS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
_LOOKED_AT = 50  # rows from which the separator is told
# bytes of another encoding show in Windows-1252 as signs inside words, or as a row of accents
_FOREIGN = re.compile(r"[^\x00-\x7f]{4}|[^\W\d_][¡-©«¬®-¶¸¹»-¿×÷‚„†‡ˆ‰‹›•˜][^\W\d_]")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_DOUBLED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')


class Record(NamedTuple):
    """One raw row. `line`, where it begins, counts from 1 (a row number in Parquet)."""

    line: int
    value: Any  # the row, or None when it cannot be read
    problem: str | None = None


class Table(NamedTuple):
    """A table's lines, and how they are written.

    Attributes:
        encoding: `utf-8` or `cp1252`.
        skipped: lines before the table, as Excel's `sep=;`.
        quoted: whether `"` at both ends of a field is no part of it.
    """

    lines: list[str]
    encoding: str
    delimiter: str
    skipped: int
    quoted: bool = True


def read_table(path: Path, header: bool = True) -> Iterator[Record]:
    """The rows of a CSV, TSV or .xlsx file under the names of its first row.

    Numbers and booleans of a workbook are texts, as in CSV. With `header=False` there are no names,
    and columns are called "1", "2", ... . Raises UserError when the file as a whole is no table.
    """
    is_book = path.suffix.lower() == ".xlsx"
    yield from _named(_sheets(path)[1] if is_book else _rows(_table(path), path), path, header)


def table_notes(path: Path) -> list[str]:
    """What is worth saying of how a table is read; nothing where it is the usual way."""
    suffix, notes = path.suffix.lower(), []
    if suffix == ".xlsx":
        sheets = _sheets(path)[0]
        return [f"of {path.name} the first sheet is read, '{sheets[0]}'"] if sheets[1:] else []
    if suffix not in _EXPECTED:
        return []
    table = _table(path)
    if table.delimiter != _EXPECTED[suffix]:
        notes.append(f"the columns of {path.name} are separated by {_MARKS[table.delimiter]}")
    if table.encoding == "cp1252":
        notes.append(f"{path.name} is not UTF-8 and was read as WINDOWS-1252: look at its accents")
    rows = _rows(table, path) if table.quoted else ()
    broken = [line for line, _, fields in rows if re.search(r"[\t\r\n]", "".join(fields))]
    if broken:
        notes.append(
            f"{len(broken)} rows of {path.name} hold line breaks or tabs inside quotes, the first "
            f"at line {broken[0]}; lines are those of the text file, not rows of a spreadsheet"
        )
    return notes


# --- how a text file is written


def _table(path: Path) -> Table:
    """The table in a file. Raises UserError when its encoding cannot be told."""
    csv.field_size_limit(1 << 30)
    text, encoding = _text(path)
    lines = list(io.StringIO(text, newline=""))
    given = re.fullmatch(r'"?sep=(.)"?\s*', lines[0] if lines else "")
    delimiter = given[1] if given else _delimiter(lines, _EXPECTED[path.suffix.lower()])
    table = Table(lines, encoding, delimiter, skipped=int(bool(given)))
    return table._replace(quoted=delimiter != "\t" or _is_quoted(table))


def _text(path: Path) -> tuple[str, str]:
    """A file's text and encoding: UTF-8, else Windows-1252 where it reads as Western text."""
    content = path.read_bytes()
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig"), "utf-8"
    with contextlib.suppress(UnicodeDecodeError):
        text = content.decode("cp1252")
        if not _FOREIGN.search(text):
            return text, "cp1252"
    raise no_text(path)


def no_text(path: Path) -> UserError:
    """The error for a file that is not UTF-8, with the first line that is not."""
    where, found = paths.shown(path), "no UTF-8 text"
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                where, found = f"{where}, line {number}", f"not UTF-8: byte {raw[error.start]:#04x}"
                break
    # not LATIN1, which iconv takes for any bytes and which makes a control character of the euro
    command = f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > new{path.suffix}"
    remedy = f"{command}   (or its own encoding, such as UTF-16); unpack a packed file first"
    return UserError(found, where=where, remedy=remedy)


def _delimiter(lines: Sequence[str], expected: str) -> str:
    """The mark of the header that gives most rows as many fields as it; of equals the usual one."""
    some = [line for line in lines[: 4 * _LOOKED_AT] if line.strip()]
    best, score = expected, 0.0
    for mark in sorted(_MARKS, key=lambda mark: mark != expected):
        quoting: Literal[0, 3] = csv.QUOTE_NONE if mark == "\t" else csv.QUOTE_MINIMAL
        rows = islice(csv.reader(some, delimiter=mark, quoting=quoting), _LOOKED_AT)
        widths = [len(_trimmed(fields)) for fields in rows] or [0]
        fitting = sum(width == widths[0] for width in widths) / len(widths)
        if widths[0] > 1 and fitting > score:
            best, score = mark, fitting
    return best


def _is_quoted(table: Table) -> bool:
    """Whether a tab-separated file quotes its fields: only where the file proves it.

    GLUE and Hugging Face write `"` as any other character. It is a quote where the whole file
    reads as quoted, and either does not read otherwise, or shows what only a writer of quotes
    makes: a doubled quote inside a field, a header all quoted, all fields with a comma quoted.
    """
    plain = [line.rstrip("\r\n").split("\t") for line in table.lines]
    rows = [cells for cells in plain[table.skipped :] if _trimmed(cells)]
    if not rows:
        return False
    width, cells = len(_trimmed(rows[0])), [cell for row in rows for cell in row]
    commas = [bool(_QUOTED.fullmatch(cell)) for cell in cells if "," in cell]
    proof = (
        all(_QUOTED.fullmatch(cell) for cell in rows[0] if cell)
        or any(_DOUBLED.fullmatch(cell) for cell in cells)
        or (len(commas) > 1 and all(commas))
        or not all(_fits(row, width) for row in rows)
    )
    return proof and _reads_quoted(table, plain, width)


def _reads_quoted(table: Table, plain: Sequence[Sequence[str]], width: int) -> bool:
    """Whether every row has `width` fields when quotes are read, and none swallows other rows."""
    with contextlib.suppress(UserError):
        for first, last, fields in _rows(table, Path()):
            swallows = first < last and all(_fits(row, width) for row in plain[first - 1 : last])
            if swallows or (_trimmed(fields) and not _fits(fields, width)):
                return False
        return True
    return False


# --- its rows


def _rows(table: Table, path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Each row's first and last line, and its fields. Raises UserError where it is no table."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if table.quoted else csv.QUOTE_NONE
    lines = table.lines[table.skipped :]
    reader = csv.reader(lines, delimiter=table.delimiter, quoting=quoting, strict=True)
    last = table.skipped
    try:
        for fields in reader:
            first, last = last + 1, table.skipped + reader.line_num
            yield first, last, fields
    except csv.Error as error:
        where = f"{paths.shown(path)}, line {table.skipped + reader.line_num}"
        remedy = "quote fields that hold quotes, delimiters or line breaks"
        raise UserError(f"no table: {error}", where=where, remedy=remedy) from None


def _named(rows: Iterable[tuple[Any, ...]], path: Path, header: bool) -> Iterator[Record]:
    """Rows under the names of the first one; blank rows and blank columns at the end are none.

    `rows` are the line that each begins at, more of no interest here, and its fields.
    """
    names: list[str] | None = None
    for line, *_, fields in rows:
        if not _trimmed(fields):
            continue
        if names is None:
            names = _names(_trimmed(fields), f"{paths.shown(path)}, line {line}", header)
            if header:
                continue
        width = len(names)
        if not _fits(fields, width):
            owner = "header" if header else "first row"
            yield Record(line, None, f"{len(fields)} fields, but the {owner} has {width}")
        else:
            yield Record(line, dict(zip(names, fields[:width], strict=True)))


def _names(fields: Sequence[Any], where: str, header: bool) -> list[str]:
    """The columns' names; a column without one is called by its number."""
    named = [
        str(number) if not header or _blank(field) else str(field).strip()
        for number, field in enumerate(fields, 1)
    ]
    refuse_twice(named, where)
    return named


def refuse_twice(names: Iterable[str], where: str) -> None:
    """Raise UserError for a column that stands twice: one of the two would be lost."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(
            f"column '{twice[0]}' stands twice", where=where, remedy="rename one of them"
        )


def _fits(fields: Sequence[str], width: int) -> bool:
    return len(fields) == width or (len(fields) > width and not _trimmed(fields[width:]))


def _trimmed(fields: Sequence[Any]) -> Sequence[Any]:
    """The fields without the blank ones at the end."""
    end = max((place for place, field in enumerate(fields, 1) if not _blank(field)), default=0)
    return fields[:end]


def _blank(field: Any) -> bool:
    return field is None or (isinstance(field, str) and not field.strip())


def _sheets(path: Path) -> tuple[list[str], list[tuple[int, list[Any]]]]:
    """The names of a workbook's visible sheets, and the rows of the first with their numbers."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = [sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible"]
        values = book[sheets[0]].iter_rows(values_only=True)
        rows = [(line, [_cell(value) for value in row]) for line, row in enumerate(values, 1)]
        book.close()
    except Exception as error:  # zip, XML and its own errors: a damaged file raises any of them
        remedy = "save it again as .xlsx, or as CSV UTF-8"
        found = f"no Excel workbook: {error}"
        raise UserError(found, where=paths.shown(path), remedy=remedy) from None
    return sheets, rows


def _cell(value: Any) -> Any:
    """A cell's text, as a CSV file has it. Dates stay what they are: nobody knows their form."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value) if isinstance(value, int | float) else value
