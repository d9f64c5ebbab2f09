"""Valid rows of one file, kept on disk and opened without loading them.

A file is read once: its rows are checked, hashed and written under the cache folder as Arrow, named
by the file's content. Memory grows with hashes and line numbers alone. A file that somebody
rewrites meanwhile is refused, so that a part of its rows never lies under the hash of the whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tell_plugins.core import paths
from tell_plugins.core.cards import Columns
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import tracked
from tell_plugins.core.row_files import read_records
from tell_plugins.core.schemas import search
from tell_plugins.core.state_files import made_once
from tell_plugins.core.text import MARK, comparison_keys, row_ids

FORMAT = 7  # raised when the stored columns change their meaning, as comparison keys do
MAX_CHARS = 200_000  # one text; about 50,000 tokens, beyond any context this project trains
LISTED = 1000  # malformed rows that are listed one by one
_BATCH = 4096
_ENTRY = np.dtype([("id", "u1", 16), ("key", "<u8"), ("line", "<i8"), ("valid", "?")])
_SCHEMA = pa.schema(
    [
        ("entry", pa.binary(_ENTRY.itemsize)),
        ("query", pa.large_string()),
        ("response", pa.large_string()),  # of a row that is not valid: why
    ]
)
_Texts = list[tuple[pa.Array, pa.Array]]  # queries and responses, `_BATCH` rows each
_Positions = npt.NDArray[np.int64]


class BadRow(NamedTuple):
    """A row that cannot be used, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Rows:
    """The valid rows of one file, and what was wrong with the others.

    Attributes:
        ids: (n, 16) bytes, the content hash of each row.
        keys: (n,) the comparison key of each row's query.
        lines: (n,) where each row stands in the file.
        bad: malformed rows, the first `LISTED` of them; `bad_count` counts all.
    """

    file: Path
    sha256: str
    ids: npt.NDArray[np.uint8]
    keys: npt.NDArray[np.uint64]
    lines: _Positions
    bad: list[BadRow]
    bad_count: int
    _places: _Positions  # (n,) among all rows of the file
    _texts: _Texts  # of all rows of the file

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file; a task's rows may stand in several (`TaskRows`)."""
        return (self.file,)

    @property
    def shown(self) -> str:
        """The file, for messages."""
        return paths.shown(self.file)

    @property
    def seen_ids(self) -> npt.NDArray[np.uint8]:
        """(n, 16) content hashes of the rows as the model sees them: as they stand here."""
        return self.ids

    def texts(self, rows: Sequence[int] | _Positions) -> list[tuple[str, str]]:
        """(query, response) of the rows at the given positions, in that order."""
        return _texts_at(self._texts, self._places[np.asarray(rows, dtype=np.int64)])

    def holding(self, pattern: str) -> npt.NDArray[np.bool_]:
        """(n,) whether a text of a row matches the regular expression."""
        match = pc.match_substring_regex
        found = (pc.or_(match(q, pattern), match(r, pattern)) for q, r in self._texts)
        # by its buffer: `to_numpy` would load pandas
        flags = [np.frombuffer(part.cast("u1").buffers()[1], "u1", len(part)) for part in found]
        return np.concatenate(flags)[self._places] > 0

    def all_texts(self) -> list[tuple[str, str]]:
        """(query, response) of every row; for sources that are small by nature."""
        return self.texts(np.arange(len(self)))


def open_rows(path: Path, columns: Columns) -> Rows:
    """Open the rows of `path`, reading and checking the file if its content is new.

    Raises UserError when the file as a whole cannot be read, lacks the columns, or is being
    written.
    """
    version = paths.version_of(path)
    sha256 = file_sha256(path)
    read = [columns.query, columns.response, columns.history]
    name = hashlib.sha256(json.dumps([FORMAT, sha256, path.suffix, *read]).encode()).hexdigest()
    kept = paths.cache_dir() / "rows" / f"{name[:32]}.arrow"
    made_once(kept, lambda target: _convert(path, columns, version, target))
    rows = _opened(kept, path, sha256)
    if not len(rows):
        first = f"; line {rows.bad[0].line}: {rows.bad[0].reason}" if rows.bad else ""
        names = ", ".join(columns.names)
        raise UserError(
            f"no usable row in {rows.bad_count} rows{first}",
            where=paths.shown(path),
            remedy=f"the card reads columns {names}; correct the card or the file",
        )
    return rows


def _opened(kept: Path, path: Path, sha256: str) -> Rows:
    """The rows that are kept in a file; their texts stay there."""
    batches = list(pa.ipc.open_stream(pa.memory_map(str(kept))))
    parts = [np.frombuffer(part["entry"].buffers()[1], _ENTRY, len(part)) for part in batches]
    entries = np.concatenate([np.zeros(0, _ENTRY), *parts])
    texts = [(part["query"], part["response"]) for part in batches]
    valid, bad = np.flatnonzero(entries["valid"]), np.flatnonzero(~entries["valid"])
    reasons = [reason for _, reason in _texts_at(texts, bad[:LISTED])]
    ids, keys, lines = (np.ascontiguousarray(entries[k][valid]) for k in ("id", "key", "line"))
    listed = [*map(BadRow, entries["line"][bad[:LISTED]].tolist(), reasons)]
    return Rows(path, sha256, ids, keys, lines, listed, len(bad), valid, texts)


def _texts_at(texts: _Texts, places: _Positions) -> list[tuple[str, str]]:
    found = []
    for place in places.tolist():
        queries, responses = texts[place // _BATCH]
        row = place % _BATCH
        found.append((queries[row].as_py(), responses[row].as_py()))
    return found


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it."""
    return hex_digest(path, hashlib.sha256())


def hex_digest(path: Path, digest: Any) -> str:
    """What `digest`, of `hashlib`, is once it was given a file."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return str(digest.hexdigest())


def _convert(path: Path, columns: Columns, version: tuple[int, int, int], target: Path) -> None:
    """Write the rows of a file to `target`. Raises UserError when it is not of that version."""
    rows = _all_rows(path, columns)
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        while batch := list(islice(rows, _BATCH)):
            lines, valid, queries, responses = zip(*batch, strict=True)
            entries = np.zeros(len(batch), _ENTRY)
            entries["id"] = row_ids(zip(queries, responses, strict=True))
            entries["key"] = comparison_keys(queries)
            entries["line"], entries["valid"] = lines, valid
            buffers = [None, pa.py_buffer(entries.tobytes())]
            stored = pa.Array.from_buffers(_SCHEMA.types[0], len(batch), buffers)
            parts = [stored, _strings(queries), _strings(responses)]
            writer.write_batch(pa.record_batch(parts, schema=_SCHEMA))
    if paths.version_of(path) != version:
        found, remedy = "the file changes while it is read", "wait until it is written"
        raise UserError(found, where=paths.shown(path), remedy=remedy)


def _strings(texts: Sequence[str]) -> pa.Array:
    """Texts as Arrow has them; `pa.array` would load pandas."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype="<i8")
    buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)


def _all_rows(path: Path, columns: Columns) -> Iterator[tuple[int, bool, str, str]]:
    """(line, whether it is valid, query, response or the reason) of each row of a file."""
    for record in tracked(read_records(path), f"reading {path.name}", "rows"):
        row = record.problem or extract(record.value, columns)
        if isinstance(row, str):
            yield record.line, False, "", row.encode("utf-8", "backslashreplace").decode()
        else:
            yield record.line, True, *row


def extract(value: Any, columns: Columns) -> tuple[str, str] | str:
    """(query, response) of a raw row, or the reason why it has none.

    A query with earlier turns is one text, see `core.text`.
    """
    if not isinstance(value, dict):
        return f"not an object but {type(value).__name__}"
    wanted = columns.names
    missing = [name for name in wanted if name not in value]
    if missing:
        have = ", ".join(map(str, value)) or "none"
        return f"no column '{missing[0]}' (columns: {have[:200]})"
    texts = []
    for name in wanted:
        raw = value[name]
        if raw is None and name != columns.response and len(columns.query) > 1:
            raw = ""
        text = text_of(raw)
        if text is None:
            return f"column '{name}' is {type(raw).__name__}, not text"
        if problem := _problem(text):
            return f"column '{name}' {problem}"
        texts.append(text)
    *queries, response = texts
    query = "\n".join(text for text in queries if text.strip())
    for what, text in (("query", query), ("response", response)):
        if not text.strip():
            return f"the {what} is empty"
    earlier = _earlier(value.get(columns.history) or []) if columns.history else []
    return earlier if isinstance(earlier, str) else (MARK.join([*earlier, query]), response)


def _earlier(history: Any) -> list[str] | str:
    """The turns of a list of [question, answer], or the reason why it is none."""
    turns: list[str] = []
    for pair in history if isinstance(history, list) else [None]:
        texts = [text_of(part) for part in pair] if isinstance(pair, list) else []
        if len(texts) != 2 or None in texts:
            return "the history is no list of [question, answer]"
        turns += map(str, texts)
    for turn in turns:
        problem = _problem(turn) if turn.strip() else "is empty"
        if problem:
            return f"an earlier turn {problem}"
    return turns


def text_of(value: Any) -> str | None:
    """A value as text: integers and booleans as they stand in JSON, None for any other type."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else None


def _problem(text: str) -> str | None:
    """Why a text can be no part of a row."""
    if len(text) > MAX_CHARS:
        return f"has {len(text):,} characters, more than {MAX_CHARS:,}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half a character (a lone surrogate)"
    if MARK in text:
        return "holds the control characters that part turns (ETX, STX)"
    return None


def question_of(query: str, pattern: str | None) -> str:
    """The part of a query that comparison looks at: the pattern's group, else the query."""
    match = None
    if pattern is not None:
        match = search(pattern, query, "key 'question' of the card", re.DOTALL)
    part = match[1] if match else None  # a group may take no part in a match
    return query if part is None else part
