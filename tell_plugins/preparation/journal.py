"""A journal: JSON lines that grow record by record, so that long work can stop at any moment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import Shape, check_shape, read_json_lines


class Journal:
    """Append-only records under a header that says what they belong to.

    Use it in a `with` statement: it is locked against a second process. A last line that was cut
    off by a kill is dropped, a line that stands twice counts once; one that is no record of this
    `shape` is an error.

    Attributes:
        records: all records, those of earlier runs first.
    """

    def __init__(self, path: Path, header: dict[str, Any], shape: type[Shape]) -> None:
        self.path, self.header, self._shape = path, header, shape
        self.records: list[dict[str, Any]] = []

    def __enter__(self) -> Journal:
        from filelock import FileLock, Timeout

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{self.path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(
                "another process is at work on this journal",
                where=paths.shown(self.path),
                remedy="wait for it, or stop it",
            ) from None
        try:
            self._cut_torn_line()
            header, *self.records = self._lines() or [None]
            if header is not None:
                self._check_header(header)
            self._file = self.path.open("ab")
            if header is None:
                self._write({"journal": self.header})
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._lock.release()

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; it is on the disk when this returns."""
        self._write(record)
        self.records.append(record)

    def _write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record).encode() + b"\n"  # ASCII: half a character fits too
        with paths.room_for(self.path):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _cut_torn_line(self) -> None:
        if self.path.is_file():
            raw = self.path.read_bytes()
            whole = raw.rfind(b"\n") + 1
            if whole < len(raw):
                os.truncate(self.path, whole)

    def _lines(self) -> list[Any]:
        """The header and the records, each once; checked."""
        remedy = "remove that line (its work is done again), or the whole file"
        lines = read_json_lines(self.path, dict[str, Any], remedy)
        where = paths.shown(self.path)
        for number, line in enumerate(lines[1:], 2):
            check_shape(line, self._shape, f"{where}, line {number}", remedy)
        return list({json.dumps(line): line for line in lines}.values())

    def _check_header(self, line: Any) -> None:
        found = line.get("journal")
        if found == self.header:
            return
        found = found if isinstance(found, dict) else {}
        changed = [
            f"{key} was {found.get(key)!r}, is {self.header.get(key)!r}"
            for key in sorted({*found, *self.header})
            if found.get(key) != self.header.get(key)
        ]
        raise UserError(
            f"the journal belongs to other work: {'; '.join(changed)}",
            where=paths.shown(self.path),
            remedy="go on with the old settings, or remove the file to begin anew",
        )
