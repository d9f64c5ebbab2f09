"""Cached files that carry their own hash: one that was changed since is made again, never used."""

from __future__ import annotations

import hashlib
from pathlib import Path

SIZE = 32  # bytes of the hash, which are the last of a sealed file; readers stop before them
_BLOCK = 1 << 20


def seal(path: Path) -> None:
    """Put the SHA-256 of what a finished file holds behind it."""
    digest, _ = _content(path, path.stat().st_size)
    with path.open("ab") as file:
        file.write(digest)


def is_whole(path: Path) -> bool:
    """Whether a file is there and is what was sealed."""
    try:
        digest, end = _content(path, path.stat().st_size - SIZE)
    except OSError:
        return False
    return digest == end


def _content(path: Path, size: int) -> tuple[bytes, bytes]:
    """The SHA-256 of the first `size` bytes, and the bytes that follow them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (block := file.read(min(size, _BLOCK))):
            digest.update(block)
            size -= len(block)
        return digest.digest(), file.read()
