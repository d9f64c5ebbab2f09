"""Checksums that prove that a file is the right one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

KINDS = {"blob": "git blob id", "sha256": "sha256", "md5": "md5"}
_BLOCK = 1 << 20


class Checksum(NamedTuple):
    """A checksum and how it is made: `kind` is a key of `KINDS`, `hex` its lower-case digits."""

    kind: str
    hex: str

    def __str__(self) -> str:
        return f"{KINDS[self.kind]} {self.hex}"


def checksum_of(path: Path, kind: str) -> Checksum:
    """The checksum of a file; a git blob id is the SHA-1 of `blob <size>\\0` and the content."""
    if kind == "blob":
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return Checksum(kind, digest.hexdigest())


def matches(path: Path, checksum: Checksum) -> bool:
    """Whether `path` is a file with this checksum."""
    return path.is_file() and checksum_of(path, checksum.kind) == checksum
