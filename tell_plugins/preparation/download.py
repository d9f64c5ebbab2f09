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
    disk_faults,
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
    with locked(target):
        if matches(target, proof):
            return Ready(target, None)
        if places.folder is not None:
            return Ready(target, _copy(places.folder, proof, target, name or target.name, record))
        address = address_of(url, name or target.name, places)
        part = _download(address, proof, target, places.patience)
        if record is not None:
            record(part, shown_url(address))
        place(part, target)
        return Ready(target, shown_url(address))


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
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`; a second process says that it waits, and does."""
    from filelock import FileLock, Timeout

    _make_folder(target.parent)
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{target.name}: another process is at it, waiting ...", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        raise _not_writable(folder, error.strerror or str(error)) from None
    if not writable:
        raise _not_writable(folder, "permission denied")


def _not_writable(folder: Path, reason: str) -> MachineError:
    return MachineError(
        f"no file can be put into {folder}: {reason}\n"
        "  remedy:  set $TELL_DATA_HOME to a folder of your own"
    )


def _download(url: str, proof: Proof, target: Path, patience: Patience) -> Path:
    """The right file, not yet under its name."""
    part = target.with_name(f"{target.name}.part")
    resumed = part.is_file()
    transfer(url, part, patience)
    if resumed and not matches(part, proof):
        part.unlink()  # the earlier part was of another file, or broken
        transfer(url, part, patience)
    problem = proof.problem(part)
    if problem is not None:
        what = _describe(part)
        part.unlink()
        raise MachineError(
            f"{shown_url(url)}: not the right file: {what}: {problem}; nothing was kept\n"
            "  remedy:  try again, or another place: --mirror URL, --from DIR"
        )
    return part


def _describe(part: Path) -> str:
    with part.open("rb") as file:
        head = file.read(256).lstrip().lower()
    kind = "an HTML page" if head.startswith((b"<!doctype html", b"<html")) else "a file"
    return f"{kind} of {part.stat().st_size:,} bytes"


def place(part: Path, target: Path) -> None:
    """Give the finished `part` its name; a file that had it is kept beside it under another."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    if target.exists():
        os.replace(target, target.with_name(target.name + ASIDE))
    os.chmod(part, 0o644)
    os.replace(part, target)


def _copy(
    folder: Path,
    proof: Proof,
    target: Path,
    name: str,
    record: Callable[[Path, str], object] | None,
) -> str:
    """Copy the right file of this name out of `folder` to `target`; returns where it lay."""
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
    copy = target.with_name(f"{target.name}.copy")
    try:
        with disk_faults(copy):
            shutil.copyfile(right, copy)
        if not matches(copy, proof):
            raise MachineError(
                f"{right}: the copy differs from the file",
                remedy="the disk may be failing: name another first folder in $TELL_DATA_HOME",
            )
        if record is not None:
            record(copy, str(right))
        place(copy, target)
    finally:
        copy.unlink(missing_ok=True)
    return str(right)


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
