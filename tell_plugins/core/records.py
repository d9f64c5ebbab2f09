"""One raw row with its place, and what is said of a file that holds no readable ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError

_SIGNS = {  # how files begin that are no text, and what makes rows of them
    b"\x1f\x8b": ("a gzip file", "gunzip"),
    b"\xfd7zXZ\x00": ("an xz file", "unxz"),
    b"BZh": ("a bzip2 file", "bunzip2"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "unzstd"),
    b"PK\x03\x04": ("a zip archive", "unzip"),
    b"PAR1": ("a Parquet file", "rename it to end in .parquet"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook (.xls)", "save it as .xlsx or as CSV UTF-8"),
}


class Record(NamedTuple):
    """One raw row. `line`, where it begins, counts from 1 (a row number in Parquet)."""

    line: int
    value: Any  # the row, or None when it cannot be read
    problem: str | None = None


def check_text(path: Path) -> None:
    """Raise UserError for a file that by its first bytes is no UTF-8 text."""
    with path.open("rb") as file:
        head = file.read(8)
    for sign, (what, remedy) in _SIGNS.items():
        if head.startswith(sign):
            if len(remedy.split()) == 1:
                remedy = f"unpack it ({remedy}), and name what comes out"
            if sign == b"PK\x03\x04":
                remedy += "; an Excel workbook is named .xlsx"
            raise UserError(f"the file is {what}, no text", where=paths.shown(path), remedy=remedy)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in head:
        raise UserError(
            "the file is UTF-16 or UTF-32, not UTF-8",
            where=paths.shown(path),
            remedy=f"iconv -f UTF-16 -t UTF-8 {path.name} > new{path.suffix}",
        )


def bad_encoding(path: Path) -> UserError:
    """The error for a file that is not UTF-8, with the first line that is not."""
    where, found = paths.shown(path), "not UTF-8"
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                where, found = f"{where}, line {number}", f"not UTF-8: byte {raw[error.start]:#04x}"
                break
    # not LATIN1, which iconv takes for any bytes and which makes a control character of the euro
    command = f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > new{path.suffix}"
    return UserError(
        found,
        where=where,
        remedy=f"{command}   (if it comes from Windows in Western Europe or America; else name "
        "its own encoding)",
    )
