"""A file known by its content, made ready under its name, with a record of where it came from.

The name is given last: what lies under it is whole and verified, whatever was interrupted, and
two processes that want one file fetch it once. The record, `<file>.provenance.json`, is written
before: a file has its own record, or one that names another hash and so vouches for nothing. A
server is asked again when the line fails, and never trusted.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import requests
from filelock import FileLock, Timeout
from pydantic import Field
from requests.exceptions import ProxyError, SSLError
from urllib3.exceptions import NewConnectionError

from tell_plugins import __version__
from tell_plugins.core import paths
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.progress import track
from tell_plugins.core.rows import file_sha256, hex_digest
from tell_plugins.core.sources import blob_id
from tell_plugins.core.state_files import Shape, cached_json, json_lines, write_json

ASIDE = ".not-official"  # what a file is called that had the name of the right one
RECORD = ".provenance.json"
Proof = Callable[[Path], "str | None"]  # what is wrong with a file; None when it is the right one


class Unreachable(MachineError):
    """A server or hub did not answer, however often it was asked."""


class Places(NamedTuple):
    """Where files are taken from instead of their own address, and how long a server may take."""

    mirror: str | None = None  # a base address; files are looked for there by name
    folder: Path | None = None  # on this machine, searched for the name
    hub: str | None = None  # the hub to load from; None is the first that a card names
    accept: bool = False  # take a file that is not the card's
    wait: float = 60.0  # seconds without a byte before a try is given up
    tries: int = 5  # how often a file is asked for
    pause: float = 1.0  # seconds before the second try, doubled each time


DIRECT = Places()


def has_blob(wanted: str) -> Proof:
    return _proof("git blob id", blob_id, wanted)


def has_md5(wanted: str) -> Proof:
    return _proof("md5", lambda path: hex_digest(path, hashlib.md5(usedforsecurity=False)), wanted)


def _proof(kind: str, of: Callable[[Path], str], wanted: str) -> Proof:
    def problem(path: Path) -> str | None:
        found = of(path)
        return None if found == wanted else f"{kind} {found}, expected {wanted}"

    return problem


# ------------------------------------------------------------------------- the record


class _Record(Shape):
    sha256: str
    source: dict[str, Any] = Field(alias="from")


def read_record(file: Path) -> dict[str, Any] | None:
    """What is recorded about `file`, None when nothing readable is."""
    record: dict[str, Any] | None = cached_json(file.with_name(file.name + RECORD), _Record)
    return record


def write_record(file: Path, source: dict[str, Any], content: Path, **more: Any) -> None:
    """Record where `file` comes from, which `content` is about to become."""
    record = {
        "file": file.name,
        "sha256": file_sha256(content),
        "bytes": content.stat().st_size,
        "from": source,
        "made_by": f"tell-recipes {__version__}",
        "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **more,
    }
    write_json(file.with_name(file.name + RECORD), record)


def content_name(value: Any) -> str:
    """A name for what is made with these settings alone."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def target_of(card: Card, split: str) -> Path:
    """Where the file of a split goes: the card's folder in the first data home."""
    name = plain_name(card.split(split).file, f"card '{card.name}', split '{split}'")
    return paths.data_homes()[0] / card.name / name


def record_split(card: Card, split: str, source: dict[str, Any], part: Path, **more: Any) -> None:
    """Record where the file of a split comes from, which `part` is about to become."""
    facts = {"card": card.name, "split": split, "licence": card.licence}
    write_record(target_of(card, split), source, part, **facts | more)


def write_rows(
    card: Card, split: str, rows: Sequence[dict[str, Any]], source: dict[str, Any], **more: Any
) -> Path:
    """Write the rows of a split as JSON lines, with a record of their origin; returns the file."""
    target = target_of(card, split)
    with locked(target), arriving(target) as part:
        part.write_text("".join(json_lines(rows)), encoding="utf-8")
        record_split(card, split, source, part, rows=len(rows), **more)
    return target


# ------------------------------------------------------------------------- a verified file


def plain_name(name: str, where: str) -> str:
    """`name` when it is a file name and nothing more. Raises UserError otherwise."""
    if name in ("", ".", "..") or any(c in name for c in "/\\\0") or name != name.strip():
        found, allowed = f"'{name}' is no plain file name", "a name without folders"
        raise UserError(found, where=where, allowed=allowed, remedy="correct the card")
    return name


def ensure(url: str, blob: str, name: str, folder: str, places: Places = DIRECT) -> Path:
    """The verified file `name` with this git blob id, fetched when no data home has it.

    `folder` is the sub-folder of the first data home that it goes to. Raises MachineError when it
    cannot be had, UserError for a wrong address or name.
    """
    for home in paths.data_homes():
        for path in (home / folder / name, home / name, *sorted(home.glob(f"*/{name}"))):
            if path.is_file() and blob_id(path) == blob:
                return path
    target = paths.data_homes()[0] / folder / plain_name(name, url)
    fetch(url, has_blob(blob), target, places)
    return target


def fetch(
    url: str | None,
    proof: Proof,
    target: Path,
    places: Places = DIRECT,
    record: Callable[[Path, str], object] | None = None,
) -> str | None:
    """Make `target` the file that `proof` accepts.

    `record` is called with the right file and its source before it gets its name.

    Returns the source as it may be shown, None where the file was there already. One that is wrong
    is put aside under another name once the right one has arrived. Raises MachineError when the
    file cannot be had or is not the right one, UserError for a wrong address or a folder that does
    not have it.
    """
    with locked(target):
        if target.is_file() and proof(target) is None:
            return None
        with arriving(target) as part:
            source = _bring(url, target.name, part, proof, places)
            problem = proof(part)
            if problem is not None:
                page = part.read_bytes()[:256].lstrip().lower().startswith((b"<!doctype", b"<html"))
                kind = "an HTML page" if page else "a file"
                raise (UserError if places.folder else MachineError)(
                    f"{source}: not the right file: {kind} of {part.stat().st_size:,} bytes: "
                    f"{problem}; nothing was kept",
                    remedy="try again, or another place: --mirror URL, --from DIR",
                )
            if record is not None:
                record(part, source)
    return source


def _bring(url: str | None, name: str, part: Path, proof: Proof, places: Places) -> str:
    """Write the file to `part`; returns where it was taken from."""
    if places.folder is None:
        address = address_of(url, name, places)
        transfer(address, part, places)
        return shown_url(address)
    found = find_named(places.folder, name)
    right = next((path for path in found if proof(path) is None), found[0])
    shutil.copyfile(right, part)
    return str(right)


def address_of(url: str | None, name: str, places: Places) -> str:
    """Where `name` is downloaded from: the mirror when one is named, else its own address."""
    if places.mirror is not None:
        return f"{places.mirror.rstrip('/')}/{quote(name)}"
    assert url is not None
    return url


def find_named(folder: Path, *names: str) -> list[Path]:
    """Files of these names in `folder` and below, nearest first; links to folders not followed.

    Raises UserError where there is none.
    """
    found = [
        Path(place) / name for place, _, files in os.walk(folder) for name in names if name in files
    ]
    if not found:
        missing = f"no file '{names[0]}' in it or below it"
        raise UserError(
            missing if folder.is_dir() else f"no folder '{folder}'",
            where=f"--from {folder}",
            allowed=f"a folder with {' or '.join(names)}",
            remedy="name the folder that has it, or leave --from out to download it",
        )
    return sorted(found, key=lambda path: (len(path.parts), str(path)))


@contextmanager
def arriving(target: Path) -> Iterator[Path]:
    """A file to write into that becomes `target`; one that had the name is kept under another."""
    with paths.atomic_path(target) as part:
        yield part
        if target.exists():
            os.replace(target, target.with_name(target.name + ASIDE))


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`; a second process says that it waits, and does."""
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


# ------------------------------------------------------------------------- over HTTP

_LONGEST_PAUSE = 60.0  # seconds
_BUSY = (408, 425, 429, *range(500, 600))
_NO_ADDRESS = (ValueError, requests.TooManyRedirects)


def shown_url(url: str) -> str:
    """An address without user name, password and query, for messages and records."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url  # the path of a file
    host, slash, path = rest.partition("/")
    return re.split("[?#]", scheme + separator + host.rpartition("@")[2] + slash + path)[0]


def transfer(url: str, part: Path, places: Places) -> None:
    """Write what `url` answers to `part`.

    Raises MachineError when the server refuses, stays silent or keeps breaking off, Unreachable
    when none is found, UserError for an address that is none or leads to none.
    """
    with requests.Session() as session:
        if url.startswith("https:"):
            del session.adapters["http://"]  # a redirect must not give up the encryption
        for tried in range(1, places.tries + 1):
            try:
                return _receive(session, url, part, places.wait)
            except (requests.RequestException, ValueError) as error:
                fault = _fault(error, url)
                if tried == places.tries or not _may_pass(error):
                    raise fault from None
                reply = getattr(error, "response", None)
                told = "" if reply is None else reply.headers.get("Retry-After", "")
            pause = float(told) if told.isdigit() else places.pause * 2 ** (tried - 1)
            pause = min(pause, _LONGEST_PAUSE)
            print(f"{str(fault).splitlines()[0]}; trying again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)


def _receive(session: requests.Session, url: str, part: Path, timeout: float) -> None:
    headers = {"Accept-Encoding": "identity"}
    with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        with part.open("wb") as file, track(total, shown_url(url).rpartition("/")[2], "B") as bar:
            bar.unit_scale = True
            for block in response.iter_content(1 << 16):
                bar.update(file.write(block))


def _may_pass(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in _BUSY
    return not isinstance(error, (*_NO_ADDRESS, SSLError))


def _fault(error: Exception, url: str) -> MachineError | UserError:
    """What went wrong, as the user is told; nothing in it repeats a password or a query."""
    place = shown_url(url)
    remedy = "check address, network and proxy ($http_proxy, $https_proxy), or name another place: "
    remedy += "--mirror URL, --from DIR"
    if isinstance(error, _NO_ADDRESS):
        found = f"no address, or redirected to none ({type(error).__name__})"
        allowed = "http, https, a possible host; no redirect from https to http, nor in a circle"
        return UserError(found, where=place, allowed=allowed, remedy=remedy)
    if isinstance(error, requests.HTTPError):
        reply = error.response
        return MachineError(f"{place}: HTTP {reply.status_code} {reply.reason}", remedy=remedy)
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", cause)  # what urllib3 wrapped
    said = re.sub(r"^(<.*?>|\w+\(.*?\)): ", "", str(cause))  # without the object it happened to
    nobody = isinstance(error, (ProxyError, requests.ConnectTimeout))
    nobody = nobody or isinstance(cause, NewConnectionError)
    return (Unreachable if nobody else MachineError)(f"{place}: {said}", remedy=remedy)
