"""A journal: JSON lines that grow record by record, so that long work can stop at any moment."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.locks import only_one
from tell_plugins.core.state_files import Shape, check_shape, read_json_lines


class Journal:
    """Append-only records under a header that says what they belong to.

    Use it in a `with` statement: its folder is locked against a second process. A last line that
    was cut off by a kill is dropped, a line that stands twice counts once; one that is no record of
    this `shape` is an error.

    Attributes:
        records: all records, those of earlier runs first.
    """

    def __init__(self, path: Path, header: dict[str, Any], shape: type[Shape]) -> None:
        self.path, self.header, self._shape = path, header, shape
        self.records: list[dict[str, Any]] = []

    def __enter__(self) -> Journal:
        with ExitStack() as stack:
            stack.enter_context(only_one(self.path.parent, "process", "$TELL_DATA_HOME"))
            header, *self.records = self._lines() or [None]
            if header is not None:
                self._check_header(header.get("journal"))
            self._file = stack.enter_context(self.path.open("ab"))
            if header is None:
                self._write({"journal": self.header})
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

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

    def _lines(self) -> list[Any]:
        """The header and the records, each once; checked."""
        if self.path.is_file():
            raw = self.path.read_bytes()
            os.truncate(self.path, raw.rfind(b"\n") + 1)  # a torn line goes
        remedy = "remove that line (its work is done again), or the whole file"
        lines = read_json_lines(self.path, dict[str, Any], remedy)
        for number, line in enumerate(lines[1:], 2):
            check_shape(line, self._shape, f"{paths.shown(self.path)}, line {number}", remedy)
        return list({json.dumps(line): line for line in lines}.values())

    def _check_header(self, line: Any) -> None:
        found = line if isinstance(line, dict) else {}
        changed = [
            f"{key} was {found.get(key)!r}, is {self.header.get(key)!r}"
            for key in sorted({*found, *self.header})
            if found.get(key) != self.header.get(key)
        ]
        if changed:
            raise UserError(
                f"the journal belongs to other work: {'; '.join(changed)}",
                where=paths.shown(self.path),
                remedy="go on with the old settings, or remove the file to begin anew",
            )
