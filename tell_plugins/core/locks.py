"""One process in a folder at a time, and who it is."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def only_one(folder: Path, verb: str, option: str = "--out") -> Iterator[None]:
    """Hold the lock of `folder`, which a process that dies lets go.

    Raises UserError when another process holds it: which one, where, and since when.
    """
    paths.make_folder(folder, option)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another {verb} works in this folder{_holder(folder / LOCK)}",
            where=paths.shown(folder),
            allowed="one at a time",
            remedy=f"wait for it, or name another folder with {option}",
        ) from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        (folder / LOCK).write_text(
            f"process {os.getpid()} on {socket.gethostname()}, since {since}, "
            f"{Path(sys.argv[0]).name} {' '.join(sys.argv[1:3])}",
            encoding="utf-8",
            errors="replace",
        )
        yield
    finally:
        (folder / LOCK).write_text("", encoding="utf-8")  # nobody is here any more
        lock.release()


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeError):
        text = path.read_text(encoding="utf-8").strip()
        return f" ({text})" if text else ""
    return ""
