"""A journal: JSON lines that grow record by record, so that long work can stop at any moment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError


class Journal:
    """Append-only records under a header that says what they belong to.

    Use it in a `with` statement: it is locked against a second process. A last line that was cut
    off by a kill is dropped; every other unreadable line is an error.

    Attributes:
        records: all records, those of earlier runs first.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path, self.header = path, header
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
            lines = self._whole_lines()
            if lines:
                self._check_header(lines[0])
            self.records = lines[1:]
            self._file = self.path.open("ab")
            if not lines:
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
        self._file.write(json.dumps(record).encode() + b"\n")  # ASCII: half a character fits too
        self._file.flush()
        os.fsync(self._file.fileno())

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The lines of the file as it stands, cut back to its last whole one."""
        if not self.path.is_file():
            return []
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            os.truncate(self.path, whole)
        lines = []
        for number, line in enumerate(raw[:whole].splitlines(), 1):
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise UserError(
                    f"the journal is damaged: {error}",
                    where=f"{paths.shown(self.path)}, line {number}",
                    remedy="remove that line (its work is done again), or the whole file",
                ) from None
            lines.append(value)
        return lines

    def _check_header(self, line: dict[str, Any]) -> None:
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
