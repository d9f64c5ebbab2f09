"""A card's split as rows on this machine: found, opened, anchored, counted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tell_plugins.core import paths
from tell_plugins.core.anchors import Anchor, in_front, resolve_anchor, shared_front
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.rows import BadRow, Rows, hex_digest, open_rows, question_of
from tell_plugins.core.spec import splits_of
from tell_plugins.core.text import comparison_keys, first_turn, row_ids
from tell_plugins.core.tokens import TokenCounter

# --- files


def find_file(card: Card, split: str) -> Path | None:
    """The file of a split, or None when it is not on this machine.

    It lies in the card's folder, or in a data home under the card's name or where the card's
    `file` says. A file of another folder is taken only where the card declares its git blob id
    and the content has it, so that cards may share an official file.
    """
    name, blob = card.split(split).file, card.split(split).blob
    places = [home / part for home in paths.data_homes() for part in (card.name, "")]
    for folder in (card.folder, *places):
        if (folder / name).is_file():
            return folder / name
    return None if blob is None else _with_content(name, blob)


def _with_content(name: str, blob: str) -> Path | None:
    """The file of this name and git blob id in any folder of a data home."""
    places = [path for home in paths.data_homes() for path in sorted(home.glob(f"*/{name}"))]
    # os.path's, which says no where a folder cannot be entered (lost+found)
    return next((path for path in places if os.path.isfile(path) and blob_id(path) == blob), None)


def blob_id(path: Path) -> str:
    """The git blob id of a file: the SHA-1 of `blob <size>\\0` and the content."""
    return _blob_id(path, paths.version_of(path))


@lru_cache(maxsize=64)
def _blob_id(path: Path, version: tuple[int, int, int]) -> str:
    _, size, _ = version
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    return hex_digest(path, digest)


def need_file(card: Card, split: str) -> Path:
    """The file of a split; UserError that says how to get it when it is missing."""
    path = find_file(card, split)
    if path is None:
        places = [paths.shown(card.folder), *(str(home) for home in paths.data_homes())]
        raise UserError(
            f"no file '{card.split(split).file}' (split '{split}' of card '{card.name}')",
            where="looked in " + ", ".join(places),
            remedy=f"./run.sh data {card.name}   (or put the file there, or set $TELL_DATA_HOME)",
        )
    return path


def open_split(card: Card, split: str) -> Rows:
    """The valid rows of a split as they stand in the file, anchors included."""
    return open_rows(need_file(card, split), card.columns_of(split))


# --- the rows of a task


@dataclass(frozen=True)
class TaskRows:
    """The rows of a task's splits with their anchor applied; they are few and kept in memory.

    Attributes:
        split: the split's name; `train+tm` of two that are joined.
        files: the file of each split.
        file_of: (n,) which of the files each row stands in.
        lines: (n,) its line there.
        sha256: of the file; of several, over the hashes of them all.
    """

    card: Card
    split: str
    anchor: Anchor
    files: tuple[Path, ...]
    file_of: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    sha256: str
    plain: list[str]  # queries without any anchor
    queries: list[str]  # queries as they are trained and tested
    responses: list[str]
    bad: tuple[BadRow, ...] = ()  # of rows of a task none may be malformed
    bad_count: int = 0

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def has_turns(self) -> bool:
        """Whether the card's rows may have earlier turns, of which the first has the anchor."""
        return self.card.has_turns(self.split)

    @cached_property
    def ids(self) -> npt.NDArray[np.uint8]:
        """(n, 16) content hashes of the plain rows: an anchor does not move a draw."""
        return row_ids(zip(self.plain, self.responses, strict=True))

    @cached_property
    def seen_ids(self) -> npt.NDArray[np.uint8]:
        """(n, 16) content hashes of the rows as the model sees them."""
        return row_ids(zip(self.queries, self.responses, strict=True))

    @cached_property
    def query_keys(self) -> npt.NDArray[np.uint64]:
        """(n,) comparison keys of the whole plain queries."""
        return comparison_keys(self.plain)

    @cached_property
    def question_keys(self) -> npt.NDArray[np.uint64]:
        """(n,) comparison keys of what the card calls the question (else of the plain queries)."""
        return comparison_keys(question_of(text, self.card.question) for text in self.plain)

    def texts(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> list[tuple[str, str]]:
        """(query, response) of the rows at the given positions, anchored."""
        return [(self.queries[row], self.responses[row]) for row in rows]

    @property
    def shown(self) -> str:
        """The files, for messages."""
        return " + ".join(map(paths.shown, self.files))

    def line(self, row: int) -> str:
        """Where a row stands in `shown`, for messages."""
        of_several = f" of {self.files[self.file_of[row]].name}" if len(self.files) > 1 else ""
        return f"line {self.lines[row]}{of_several}"

    def place(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{paths.shown(self.files[self.file_of[row]])}, line {self.lines[row]}"


def open_task(card: Card, split: str, anchor: str = "card") -> TaskRows:
    """The rows of a task split, or of several joined by `+`, with `anchor` applied.

    Raises UserError when any row is malformed: a scarce row is never lost in silence.
    """
    parts = [open_split(card, name) for name in splits_of(split)]
    for part in parts:
        _refuse_malformed(part)
    front = inline_front(card)
    resolved = resolve_anchor(card, anchor, front)
    pairs = [pair for part in parts for pair in part.all_texts()]
    texts, responses = map(list, zip(*pairs, strict=True))
    plain = [text.removeprefix(front).lstrip() if front else text for text in texts]
    together = "".join(part.sha256 for part in parts)
    task = TaskRows(
        card=card,
        split=split,
        anchor=resolved,
        files=tuple(part.file for part in parts),
        file_of=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
        lines=np.concatenate([part.lines for part in parts]),
        sha256=hashlib.sha256(together.encode()).hexdigest() if parts[1:] else together,
        plain=plain,
        # an inline anchor stays as it stands, with the blanks that some rows have after it
        queries=texts if resolved.text == front else [in_front(resolved.text) + p for p in plain],
        responses=responses,
    )
    _refuse_without_front(task, front, texts)
    return task


def inline_front(card: Card) -> str:
    """The anchor that the card's rows carry inline, "" when the card keeps it in a file."""
    if not card.inline_anchor:
        return ""
    splits = [name for name in ("train", "validation", "test") if name in card.splits]
    here = next((name for name in splits if find_file(card, name)), "train")
    rows = open_split(card, here)
    return shared_front([first_turn(query) for query, _ in rows.all_texts()], rows.shown)


def _refuse_malformed(rows: Rows) -> None:
    if rows.bad_count:
        shown = "; ".join(f"line {bad.line}: {bad.reason}" for bad in rows.bad[:10])
        more = f" (and {rows.bad_count - 10} more)" if rows.bad_count > 10 else ""
        raise UserError(
            f"{rows.bad_count} task rows cannot be used: {shown}{more}",
            where=rows.shown,
            remedy="mend or remove these rows; task data is too scarce to drop rows in silence",
        )


def _refuse_without_front(task: TaskRows, front: str, texts: list[str]) -> None:
    """Raise UserError where a row lacks the inline anchor, or holds nothing else."""
    wrong = {
        "lack the inline anchor": [not text.startswith(front) for text in texts],
        "hold nothing but the inline anchor": [not text.strip() for text in task.plain],
    }
    for what, mask in wrong.items():
        if any(mask):
            raise UserError(
                f"{sum(mask)} rows {what}, the first is this one",
                where=task.place(mask.index(True)),
                remedy="mend these rows, or give the card an anchor file",
            )


def lengths_of(
    rows: TaskRows | Rows,
    counter: TokenCounter | None,
    used: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64] | None:
    """(n, 2) tokens of query, anchored, and response, of the `used` rows (default: all).

    None without a counter.
    """
    if counter is None:
        return None
    places = np.arange(len(rows)) if used is None else used
    return counter.lengths(rows.seen_ids[places], lambda part: rows.texts(places[part]))
