"""A file known by its checksum, made ready under its name: from its address, a mirror or a folder.

The name is given last: what lies under it is whole and verified, whatever was interrupted, and
two processes that want one file fetch it once.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.preparation.checksums import Checksum, Proof, matches
from tell_plugins.preparation.transfer import (
    PATIENT,
    Patience,
    check_url,
    shown_url,
    transfer,
)

ASIDE = ".not-official"  # what a file is called that had the name of the right one


class Places(NamedTuple):
    """Where files are taken from instead of their own address.

    Attributes:
        mirror: a base address; files are looked for there by name.
        folder: a folder on this machine, searched for the name.
    """

    mirror: str | None = None
    folder: Path | None = None
    patience: Patience = PATIENT


DIRECT = Places()


class Ready(NamedTuple):
    """A verified file. `source` shows where it was taken from, None when it was there already."""

    path: Path
    source: str | None


def plain_name(name: str, where: str) -> str:
    """`name` when it is a file name and nothing more. Raises UserError otherwise."""
    if name in ("", ".", "..") or any(c in name for c in "/\\\0") or name != name.strip():
        raise UserError(
            f"'{name}' is no plain file name",
            where=where,
            allowed="a name without folders",
            remedy="correct the card",
        )
    return name


def ensure(url: str, blob: str, name: str, folder: str, places: Places = DIRECT) -> Path:
    """The verified file `name` with this git blob id, fetched when no data home has it.

    `folder` is the sub-folder of the first data home that it goes to. Raises MachineError when it
    cannot be had, UserError for a wrong address or name.
    """
    checksum = Checksum("blob", blob)
    for home in paths.data_homes():
        for path in (home / folder / name, home / name, *sorted(home.glob(f"*/{name}"))):
            if matches(path, checksum):
                return path
    target = paths.data_homes()[0] / folder / plain_name(name, url)
    return fetch(url, checksum, target, places).path


def fetch(
    url: str | None,
    proof: Proof,
    target: Path,
    places: Places = DIRECT,
    name: str | None = None,
    record: Callable[[Path, str], object] | None = None,
) -> Ready:
    """Make `target` the file that `proof` accepts; a mirror or folder may know it as `name`.

    `record` is called with the right file and its source before it gets its name.

    A file that is there already and is right is left alone; one that is wrong is put aside under
    another name once the right one has arrived. Raises MachineError when the file cannot be had
    or is not the right one, UserError for a wrong address or a folder that does not have it.
    """
    plain_name(target.name, paths.shown(target))
    with arriving(target) as part:
        if matches(target, proof):
            return Ready(target, None)
        source = _bring(url, name or target.name, part, proof, places)
        problem = proof.problem(part)
        if problem is not None:
            raise MachineError(
                f"{source}: not the right file: {_describe(part)}: {problem}; nothing was kept",
                remedy="try again, or another place: --mirror URL, --from DIR",
            )
        if record is not None:
            record(part, source)
    return Ready(target, source)


def _bring(url: str | None, name: str, part: Path, proof: Proof, places: Places) -> str:
    """Write the file to `part`; returns where it was taken from."""
    if places.folder is not None:
        found = _right_one(places.folder, name, proof)
        shutil.copyfile(found, part)
        return str(found)
    address = address_of(url, name, places)
    transfer(address, part, places.patience)
    return shown_url(address)


def address_of(url: str | None, name: str, places: Places) -> str:
    """Where `name` is downloaded from: the mirror when one is named, else its own address."""
    if places.mirror is not None:
        base = check_url(places.mirror, "--mirror").rstrip("/")
        return f"{base}/{quote(name)}"
    if url is None:
        raise UserError(
            f"no address is known for '{name}'",
            where="./run.sh data",
            remedy="name a place: --mirror URL, --from DIR",
        )
    return check_url(url, f"address of '{name}'")


@contextmanager
def arriving(target: Path) -> Iterator[Path]:
    """A file beside `target` to write into. It gets that name at the end, if it was written.

    A file that had the name is kept beside it under another. `target` is locked meanwhile.
    """
    part = target.with_name(f".new.{target.name}")  # readers go by the ending
    with locked(target), paths.room_for(target):
        part.unlink(missing_ok=True)  # left by a killed process
        try:
            yield part
            if part.is_file():
                _settle(part, target)
        finally:
            part.unlink(missing_ok=True)


def _settle(part: Path, target: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    if target.exists():
        os.replace(target, target.with_name(target.name + ASIDE))
    os.replace(part, target)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`; a second process says that it waits, and does."""
    from filelock import FileLock, Timeout

    with paths.writing_into(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{target.name}: another process is at it, waiting ...", file=sys.stderr)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _describe(part: Path) -> str:
    with part.open("rb") as file:
        head = file.read(256).lstrip().lower()
    kind = "an HTML page" if head.startswith((b"<!doctype html", b"<html")) else "a file"
    return f"{kind} of {part.stat().st_size:,} bytes"


def _right_one(folder: Path, name: str, proof: Proof) -> Path:
    """The file of this name in `folder` or below that `proof` accepts. Raises UserError."""
    found = find_named(folder, name)
    right = next((path for path in found if matches(path, proof)), None)
    if right is None:
        listed = "; ".join(f"{path}: {proof.problem(path)}" for path in found[:5])
        raise UserError(
            f"'{name}' is there, but not the right file: {listed}"
            if found
            else f"no file '{name}' in the folder or below it",
            where=f"--from {folder}",
            remedy="name the folder that has it, or leave --from out to download it",
        )
    return right


def find_named(folder: Path, *names: str) -> list[Path]:
    """Files of these names in `folder` and below, nearest first; links to folders not followed."""
    if not folder.is_dir():
        raise UserError(
            f"no folder '{folder}'", where="--from", remedy="name a folder that holds the files"
        )
    found = [
        Path(place) / name for place, _, files in os.walk(folder) for name in names if name in files
    ]
    return sorted(found, key=lambda path: (len(path.parts), str(path)))
