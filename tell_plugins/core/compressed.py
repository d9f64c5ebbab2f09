"""Files that may be compressed: `answers.jsonl` is also found as `answers.jsonl.xz` or `.gz`."""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError

_OPENERS: dict[str, Any] = {"": open, ".xz": lzma.open, ".gz": gzip.open}


def find(path: Path) -> Path | None:
    """The file itself or its compressed form; None when neither is there."""
    forms = (path.with_name(path.name + ending) for ending in _OPENERS)
    return next((form for form in forms if form.is_file()), None)


def find_below(folder: Path, name: str) -> list[Path]:
    """The folders below `folder` that hold a file of that name, compressed or not, sorted."""
    return sorted({file.parent for ending in _OPENERS for file in folder.rglob(name + ending)})


def read_bytes(path: Path) -> bytes | None:
    """What a file holds, uncompressed; None when it is missing.

    Raises UserError for a compressed file that is damaged.
    """
    found = find(path)
    if found is None:
        return None
    opener = _OPENERS[found.suffix if found.suffix in _OPENERS else ""]
    try:
        with opener(found, "rb") as file:
            return bytes(file.read())
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise _unreadable(found, error) from None


def read_text(path: Path) -> str | None:
    """The text of a file, uncompressed; None when it is missing.

    Raises UserError for a file that is damaged or no UTF-8.
    """
    raw = read_bytes(path)
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(find(path) or path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"not readable: {error}", where=paths.shown(path), remedy="restore the file")
