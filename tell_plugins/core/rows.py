"""Valid rows of one file, kept on disk and opened without loading them.

A file is read once: its rows are checked, hashed and written under the cache folder, named by the
file's content. Texts lie one after the other in one data file; an index holds where each row lies.
Memory grows with the index alone. A file that somebody rewrites meanwhile is refused, so that a
part of its rows never lies under the hash of the whole; and each cached file carries its own hash.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tell_plugins.core import paths
from tell_plugins.core.cards import Columns
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import tracked
from tell_plugins.core.row_files import read_records
from tell_plugins.core.schemas import search
from tell_plugins.core.state_files import SEAL, is_whole, seal
from tell_plugins.core.text import MARK, comparison_keys, joined, row_id

FORMAT = 5  # raised when the stored columns change their meaning, as comparison keys do
MAX_CHARS = 200_000  # one text; about 50,000 tokens, beyond any context this project trains
LISTED = 1000  # malformed rows that are listed one by one
_BATCH = 4096


@dataclass(frozen=True)
class BadRow:
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
    lines: npt.NDArray[np.int64]
    _starts: npt.NDArray[np.int64]
    _lengths: npt.NDArray[np.int64]
    _data: IO[bytes]
    bad: list[BadRow] = field(default_factory=list)
    bad_count: int = 0

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

    def texts(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> list[tuple[str, str]]:
        """(query, response) of the rows at the given positions, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        found, file, pread = [], self._data.fileno(), os.pread
        places = zip(self._starts[index].tolist(), self._lengths[index].tolist(), strict=True)
        for start, (query, response) in places:
            both = pread(file, query + response, start)
            found.append((both[:query].decode(), both[query:].decode()))
        return found

    def holding(self, pattern: re.Pattern[bytes]) -> npt.NDArray[np.bool_]:
        """(n,) whether the bytes of a row's texts match."""
        found = np.zeros(len(self), bool)
        with mmap.mmap(self._data.fileno(), 0, access=mmap.ACCESS_READ) as texts:
            places = [match.start() for match in pattern.finditer(texts)]
        found[np.searchsorted(self._starts, places, side="right") - 1] = True
        return found

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
    folder = _folder(path, columns, sha256)
    return _open(folder, path, sha256) or _make(folder, path, columns, sha256, version)


def _folder(path: Path, columns: Columns, sha256: str) -> Path:
    """Where the rows of a file of this content are kept."""
    read = [columns.query, columns.response, columns.history]
    recipe = json.dumps([FORMAT, sha256, path.suffix, *read])
    name = hashlib.sha256(recipe.encode()).hexdigest()[:32]
    return paths.cache_dir() / "rows" / name


def _make(
    folder: Path, path: Path, columns: Columns, sha256: str, version: tuple[int, int, int]
) -> Rows:
    """Read the file into `folder`. Raises UserError when it is not of that version any more."""
    paths.make_folder(folder.parent)
    with FileLock(f"{folder}.lock"):  # a second process waits for the first instead of reading too
        rows = _open(folder, path, sha256)
        if rows is not None:
            return rows
        shutil.rmtree(folder, ignore_errors=True)  # it does not fit
        with paths.atomic_dir(folder) as temporary:
            _convert(path, columns, temporary)
            if paths.version_of(path) != version:
                raise UserError(
                    "the file changes while it is read",
                    where=paths.shown(path),
                    remedy="wait until it is written, then call again",
                )
        rows = _open(folder, path, sha256)
    assert rows is not None  # it was just written
    return rows


def _open(folder: Path, path: Path, sha256: str) -> Rows | None:
    """The rows kept in `folder`, or None when there are none or they are not as written."""
    if not all(is_whole(folder / name) for name in _FILES):
        return None
    meta = json.loads((folder / _META).read_bytes()[:-SEAL])
    index = np.load(folder / _INDEX)
    return Rows(
        file=path,
        sha256=sha256,
        ids=np.ascontiguousarray(index["id"]),
        keys=np.ascontiguousarray(index["key"]),
        lines=np.ascontiguousarray(index["line"]),
        _starts=np.concatenate([[0], np.cumsum(index["length"].sum(axis=1))[:-1]]),
        _lengths=np.ascontiguousarray(index["length"]),
        _data=(folder / _TEXTS).open("rb"),
        bad=[BadRow(*entry) for entry in meta["bad"]],
        bad_count=meta["bad_count"],
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it."""
    return hex_digest(path, hashlib.sha256())


def hex_digest(path: Path, digest: Any) -> str:
    """What `digest`, of `hashlib`, is once it was given a file."""
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return str(digest.hexdigest())


_FILES = _META, _INDEX, _TEXTS = "meta.json", "index.npy", "texts"
_ENTRY = np.dtype([("id", "u1", 16), ("key", "<u8"), ("line", "<i8"), ("length", "<i8", 2)])


def _convert(path: Path, columns: Columns, folder: Path) -> None:
    """Write the rows of a file into `folder`."""
    index: list[npt.NDArray[Any]] = []
    batch: list[tuple[int, str, str]] = []
    bad: list[BadRow] = []
    bad_count = 0

    def flush() -> None:
        if not batch:
            return
        entries = np.zeros(len(batch), _ENTRY)
        ids = b"".join(row_id(q, r) for _, q, r in batch)
        entries["id"] = np.frombuffer(ids, "u1").reshape(-1, 16)
        entries["key"] = comparison_keys([q for _, q, _ in batch])
        entries["line"] = [line for line, _, _ in batch]
        encoded = [(q.encode(), r.encode()) for _, q, r in batch]
        entries["length"] = [(len(q), len(r)) for q, r in encoded]
        texts.write(b"".join(part for pair in encoded for part in pair))
        index.append(entries)
        batch.clear()

    with (folder / _TEXTS).open("wb") as texts:
        for record in tracked(read_records(path), f"reading {path.name}", "rows"):
            problem = record.problem
            if problem is None:
                row = extract(record.value, columns)
                if isinstance(row, str):
                    problem = row
                else:
                    batch.append((record.line, *row))
            if problem is not None:
                bad_count += 1
                if len(bad) < LISTED:
                    bad.append(BadRow(record.line, problem))
            if len(batch) == _BATCH:
                flush()
        flush()
    if not index:
        first = f"; line {bad[0].line}: {bad[0].reason}" if bad else ""
        raise UserError(
            f"no usable row in {bad_count} rows{first}",
            where=paths.shown(path),
            remedy=f"the card reads columns {', '.join(columns.names)}; "
            "correct the card or the file",
        )
    np.save(folder / _INDEX, np.concatenate(index))
    meta = {"bad": [[row.line, row.reason] for row in bad], "bad_count": bad_count}
    (folder / _META).write_text(json.dumps(meta), encoding="utf-8")
    for name in _FILES:
        seal(folder / name)


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
        problem = f"is {type(raw).__name__}, not text" if text is None else _problem(text)
        if text is None or problem:
            return f"column '{name}' {problem}"
        texts.append(text)
    query = "\n".join(text for text in texts[:-1] if text.strip())
    if not query.strip():
        return "the query is empty"
    if not texts[-1].strip():
        return "the response is empty"
    earlier = _earlier(value.get(columns.history)) if columns.history else []
    return earlier if isinstance(earlier, str) else (joined([*earlier, query]), texts[-1])


def _earlier(history: Any) -> list[str] | str:
    """The turns of a list of [question, answer], or the reason why it is none."""
    if history is not None and not isinstance(history, list):
        return f"the history is {type(history).__name__}, not a list of [question, answer]"
    turns: list[str] = []
    for pair in history or []:
        if not isinstance(pair, list) or len(pair) != 2 or None in map(text_of, pair):
            return "the history is no list of [question, answer]"
        turns += [str(text_of(text)) for text in pair]
    reasons = [_problem(turn) for turn in turns if turn.strip()]
    if len(reasons) < len(turns):
        return "an earlier turn is empty"
    return next((f"an earlier turn {reason}" for reason in reasons if reason), turns)


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
