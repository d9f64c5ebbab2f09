"""One file over HTTP: asked for again when the line fails, never trusted.

Whether the bytes are the right ones is not decided here; see `download`.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import requests
from requests.exceptions import ProxyError, SSLError
from urllib3.exceptions import NewConnectionError, ReadTimeoutError

from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.progress import track

SCHEMES = ("http", "https")
MAX_BYTES = 8 << 30  # no data set of this project comes near; stops a server that never ends
_BLOCK = 1 << 16
_LONGEST_PAUSE = 60.0  # seconds
_BUSY = (408, 425, 429)  # and every 5xx


class Patience(NamedTuple):
    """How long a server may take.

    Attributes:
        timeout: seconds without a byte before a try is given up.
        tries: how often a file is asked for.
        pause: seconds before the second try, doubled each time.
    """

    timeout: float = 60.0
    tries: int = 5
    pause: float = 1.0


PATIENT = Patience()


class Unreachable(MachineError):
    """A server or hub did not answer at all, so another file of it need not be asked for."""


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
    """Write what `url` answers to `part`.

    Raises MachineError when the server refuses, stays silent or keeps breaking off, Unreachable
    when none is found, UserError for an address that is none or leads to none.
    """
    with requests.Session() as session:
        if url.startswith("https:"):
            del session.adapters["http://"]  # a redirect must not give up the encryption
        for tried in range(1, patience.tries + 1):
            try:
                return _receive(session, url, part, patience.timeout)
            except (requests.RequestException, ValueError) as error:
                fault = _fault(error, url, patience)
                if tried == patience.tries or not _may_pass(error):
                    raise fault from None
                pause = min(_told_pause(error) or patience.pause * 2 ** (tried - 1), _LONGEST_PAUSE)
            print(f"{str(fault).splitlines()[0]}; trying again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)


def _receive(session: requests.Session, url: str, part: Path, timeout: float) -> None:
    headers = {"Accept-Encoding": "identity"}
    with session.get(url, headers=headers, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        name = shown_url(url).rpartition("/")[2]
        with part.open("wb") as file, track(total, name, "B") as bar:
            bar.unit_scale = True
            for block in response.iter_content(_BLOCK):
                bar.update(file.write(block))
                if file.tell() > MAX_BYTES:
                    raise MachineError(
                        f"{shown_url(url)}: more than {MAX_BYTES:,} bytes; no data set has that",
                        remedy="check the address (--mirror)",
                    )


def _may_pass(error: Exception) -> bool:
    if isinstance(error, requests.HTTPError):
        return error.response.status_code in _BUSY or error.response.status_code >= 500
    return not isinstance(error, ValueError | requests.TooManyRedirects | SSLError)


def _told_pause(error: Exception) -> float | None:
    """The seconds that a busy server asks for."""
    reply = error.response if isinstance(error, requests.HTTPError) else None
    text = "" if reply is None else reply.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else None


def _fault(error: Exception, url: str, patience: Patience) -> MachineError | UserError:
    """What went wrong, as the user is told; nothing in it repeats a password or a query."""
    place, host = shown_url(url), urlsplit(shown_url(url)).netloc
    remedy = "check address and network, or name another place: --mirror URL, --from DIR"
    cause = error.args[0] if error.args else error
    cause = getattr(cause, "reason", cause)  # what urllib3 wrapped
    if isinstance(error, requests.HTTPError):
        status, reason = error.response.status_code, error.response.reason
        gone = ": the file is not there" if status in (404, 410) else ""
        return MachineError(f"{place}: HTTP {status} {reason}{gone}", remedy=remedy)
    if isinstance(error, ValueError | requests.TooManyRedirects):
        return UserError(
            f"no address, or redirected to none ({type(error).__name__})",
            where=place,
            allowed="http, https, a possible host; no redirect from https to http, nor in a circle",
            remedy=remedy,
        )
    kind, said = MachineError, "the connection broke off"
    if isinstance(error, SSLError):
        said = f"no safe connection: {cause}; check the clock and the proxy"
    elif isinstance(error, ProxyError):
        kind, said = Unreachable, "the proxy cannot be reached; check $http_proxy and $https_proxy"
    elif isinstance(cause, NewConnectionError):
        kind, said = Unreachable, f"{host} cannot be reached: {str(cause).partition(': ')[2]}"
    elif isinstance(error, requests.Timeout) or isinstance(cause, ReadTimeoutError):
        kind = Unreachable if isinstance(error, requests.ConnectTimeout) else MachineError
        said = f"no byte from {host} for {patience.timeout:g} s (time-out)"
    return kind(f"{place}: {said}", remedy=remedy)
