"""One file over HTTP into a `.part` file: resumed, retried, never trusted.

Whether the bytes are the right ones is not decided here; see `download`.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
from tqdm import tqdm
from urllib3.exceptions import (
    HTTPError,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
)

from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.progress import track

SCHEMES = ("http", "https")
MAX_BYTES = 8 << 30  # no data set of this project comes near; stops a server that never ends
_REDIRECTS = 10
_BLOCK = 1 << 16
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_PAUSE = 60.0  # seconds


class Patience(NamedTuple):
    """How long a server may take.

    Attributes:
        timeout: seconds without a byte before a try is given up.
        tries: tries in a row that may bring nothing; one that brought bytes starts the count anew.
        pause: seconds before the second try, doubled each time.
    """

    timeout: float = 60.0
    tries: int = 5
    pause: float = 1.0


PATIENT = Patience()


class Unreachable(MachineError):
    """A server or hub did not answer at all, so another file of it need not be asked for."""


class _TryAgain(Exception):
    """This try failed in a way that another may not.

    Attributes:
        pause: seconds that the server asks for.
        answered: whether a server was found.
    """

    def __init__(self, reason: str, pause: float | None = None, answered: bool = True) -> None:
        super().__init__(reason)
        self.pause, self.answered = pause, answered


def is_address(url: str) -> bool:
    """Whether `url` is http or https with a host, and a port if any."""
    try:
        parts = urlsplit(url)
        return parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bracket left open, no port
        return False


def shown_url(url: str) -> str:
    """An address without user name, password and query, for messages and records."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url  # the path of a file
    host, slash, path = rest.partition("/")
    return re.split("[?#]", scheme + separator + host.rpartition("@")[2] + slash + path)[0]


def check_url(url: str, where: str) -> str:
    """`url` when it is an address, see `is_address`. Raises UserError otherwise."""
    if not is_address(url):
        raise UserError(
            f"'{shown_url(url)}' is no address to download from",
            where=where,
            allowed="http://... or https://...",
            remedy="use --from DIR for a file on this machine",
        )
    return url


def transfer(url: str, part: Path, patience: Patience = PATIENT) -> None:
    """Bring the whole of `url` into `part`, going on where an earlier call stopped.

    Raises MachineError when the server refuses, stays silent or keeps breaking off, or when the
    disk is full; Unreachable when no try found a server; UserError for a name that no host can
    have. Unless the disk was full, `part` keeps what came and the next call goes on there.
    """
    failures, answered = 0, False
    with requests.Session() as session:
        while True:
            before = _size(part)
            try:
                _one_try(session, url, part, patience)
                return
            except _TryAgain as error:
                failures = 1 if _size(part) > before else failures + 1
                answered = answered or error.answered
                if failures >= patience.tries:
                    raise (MachineError if answered else Unreachable)(
                        f"{shown_url(url)}: {error} ({failures} tries)\n"
                        f"  remedy:  {_remedy(_size(part))}"
                    ) from None
                wait = patience.pause * 2 ** (failures - 1) if error.pause is None else error.pause
                wait = min(wait, _LONGEST_PAUSE)
                print(f"{part.stem}: {error}; trying again in {wait:g} s", file=sys.stderr)
                time.sleep(wait)


def _remedy(have: int) -> str:
    kept = f"; {have:,} bytes are kept and the same command goes on there" if have else ""
    return f"check the network, or name another place: --mirror URL, --from DIR{kept}"


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _one_try(session: requests.Session, url: str, part: Path, patience: Patience) -> None:
    have = _size(part)
    with _network_faults(url, patience), _get(session, url, have, patience) as response:
        start = _accept(response, url, have)
        if start is None:  # the server has no more than we do
            return
        if start == 0 and have:
            part.unlink()
        total = _total(response, start)
        _refuse_too_much(url, total or 0)
        _need_room(part, (total or start) - start)
        with track(total, part.name.removesuffix(".part"), "B") as bar:
            bar.unit_scale = True
            bar.update(start)
            _receive(response, url, part, bar)
    got = _size(part)
    if total is not None and got != total:
        raise _TryAgain(f"the connection broke off after {got:,} of {total:,} bytes")


@contextmanager
def _network_faults(url: str, patience: Patience) -> Iterator[None]:
    """Faults of the line as `_TryAgain`, each with its own words."""
    host = urlsplit(shown_url(url)).netloc
    silent = f"no byte from {host} for {patience.timeout:g} s (time-out)"
    try:
        yield
    except (requests.Timeout, ReadTimeoutError) as error:
        found = not isinstance(error, requests.ConnectTimeout)
        raise _TryAgain(silent, answered=found) from None
    except (requests.RequestException, HTTPError) as error:
        cause = _cause(error)
        if isinstance(cause, ReadTimeoutError):
            raise _TryAgain(silent) from None
        if isinstance(error, requests.exceptions.SSLError):
            raise MachineError(
                f"{shown_url(url)}: no safe connection: {cause}\n"
                "  remedy:  check the clock and the proxy"
            ) from None
        if isinstance(cause, NameResolutionError):
            name = urlsplit(url).hostname
            raise _TryAgain(f"the name '{name}' cannot be resolved", answered=False) from None
        if isinstance(cause, NewConnectionError):
            refused = isinstance(cause.__cause__, ConnectionRefusedError)
            why = f"{host} refuses the connection" if refused else f"{host} cannot be reached"
            raise _TryAgain(why, answered=False) from None
        if isinstance(error, requests.exceptions.InvalidURL | LocationParseError):
            raise UserError(
                f"no host can be called '{host}'",
                where=shown_url(url),
                remedy="correct the address",
            ) from None
        raise _TryAgain("the connection broke off") from None
    except ValueError as error:
        raise MachineError(
            f"{shown_url(url)}: redirected to what is no address ({error}), which is not followed\n"
            "  remedy:  --mirror URL, --from DIR"
        ) from None


def _cause(error: Exception) -> object:
    """What lies under the errors that requests and urllib3 wrap around it."""
    inner = error.args[0] if error.args else error
    return getattr(inner, "reason", None) or inner


def _get(session: requests.Session, url: str, have: int, patience: Patience) -> requests.Response:
    """The answer to a GET from byte `have` on. Redirects are followed here, to check each one."""
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    for _ in range(_REDIRECTS):
        response = session.get(
            url, headers=headers, stream=True, timeout=patience.timeout, allow_redirects=False
        )
        if not response.is_redirect:
            return response
        response.close()
        url = _redirected(url, response.headers["Location"])
    raise MachineError(
        f"{shown_url(url)}: more than {_REDIRECTS} redirects\n  remedy:  --mirror URL"
    )


def _redirected(url: str, location: str) -> str:
    """The address that `url` is redirected to. MachineError for one that is not followed."""
    target = urljoin(url, location)
    old, new = url.partition(":")[0], target.partition(":")[0]
    if not is_address(target) or (old, new) == ("https", "http"):
        raise MachineError(
            f"{shown_url(url)}: redirected from {old} to '{shown_url(target)}', which is not "
            "followed\n"
            "  allowed: http to http or https, https to https\n"
            "  remedy:  --mirror URL, --from DIR"
        )
    return target


def _accept(response: requests.Response, url: str, have: int) -> int | None:
    """The position the body starts at; None when there is nothing more to get.

    Raises _TryAgain for a passing refusal and MachineError for a lasting one.
    """
    status = response.status_code
    if status == 200:
        return 0
    if status == 206:
        match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        start = int(match[1]) if match else 0
        if start in (0, have):
            return start
        raise MachineError(
            f"{shown_url(url)}: asked for byte {have}, got byte {start}\n  remedy:  --mirror URL"
        )
    if status == 416 and have:
        return None
    if status in (408, 425, 429) or status >= 500:
        raise _TryAgain(f"HTTP {status} {response.reason}", _retry_after(response))
    found = "the file is not there" if status in (404, 410) else "the server refuses"
    raise MachineError(
        f"{shown_url(url)}: HTTP {status} {response.reason}: {found}\n"
        "  remedy:  check the address, or name another place: --mirror URL, --from DIR"
    )


def _retry_after(response: requests.Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else None


def _total(response: requests.Response, start: int) -> int | None:
    """The size of the whole file, None when the server does not say."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _refuse_too_much(url: str, size: int) -> None:
    if size > MAX_BYTES:
        raise MachineError(
            f"{shown_url(url)}: more than {MAX_BYTES:,} bytes; this is no data set of ours",
            remedy="check the address (--mirror)",
        )


def _receive(response: requests.Response, url: str, part: Path, bar: tqdm) -> None:
    # read1 and no buffer: every byte that came is on the disk when the connection breaks
    with disk_faults(part), part.open("ab", buffering=0) as file:
        while block := response.raw.read1(_BLOCK, decode_content=True):
            left = memoryview(block)
            while left:  # an unbuffered write may take a part only
                left = left[file.write(left) :]
            bar.update(len(block))
            _refuse_too_much(url, bar.n)


def _need_room(part: Path, size: int) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(part.parent).free
    if size > free:
        part.unlink(missing_ok=True)
        raise _disk_full(part, f"{size:,} bytes are needed, {free:,} are free")


@contextmanager
def disk_faults(part: Path) -> Iterator[None]:
    """A full disk as one message, and nothing half-written left to fill it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        size = _size(part)
        part.unlink(missing_ok=True)
        raise _disk_full(part, f"no room after {size:,} bytes") from None


def _disk_full(path: Path, what: str) -> MachineError:
    """The error for a file that finds no room."""
    return MachineError(
        f"the disk is full: {what} in {path.parent}; nothing was kept of "
        f"{path.name.removesuffix('.part').removesuffix('.copy')}\n"
        "  remedy:  make room, or set $TELL_DATA_HOME to a folder that has it"
    )
