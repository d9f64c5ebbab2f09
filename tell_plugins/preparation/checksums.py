"""What proves that a file is the right one: a checksum, or another check of its content."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol

from tell_plugins.core.sources import blob_id

KINDS = {"blob": "git blob id", "sha256": "sha256", "md5": "md5"}
_BLOCK = 1 << 20


class Proof(Protocol):
    """Tells whether a file is the right one."""

    def problem(self, path: Path) -> str | None:
        """What is wrong with the file; None when it is the right one."""


class Checksum(NamedTuple):
    """A checksum and how it is made: `kind` is a key of `KINDS`, `hex` its lower-case digits."""

    kind: str
    hex: str

    def __str__(self) -> str:
        return f"{KINDS[self.kind]} {self.hex}"

    def problem(self, path: Path) -> str | None:
        """What is wrong with the file; None when it has this checksum."""
        found = checksum_of(path, self.kind)
        return None if found == self else f"{found}, expected {self.hex}"


def checksum_of(path: Path, kind: str) -> Checksum:
    """The checksum of a file."""
    if kind == "blob":
        return Checksum(kind, blob_id(path))
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return Checksum(kind, digest.hexdigest())


def matches(path: Path, proof: Proof) -> bool:
    """Whether `path` is a file and the right one."""
    return path.is_file() and proof.problem(path) is None
