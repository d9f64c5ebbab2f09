"""One process in a folder at a time, and who it is."""

from __future__ import annotations

import contextlib
import os
import socket
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
    file = paths.make_folder(folder, option) / LOCK
    try:
        with FileLock(file, timeout=0):
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since}")
            try:
                yield
            finally:
                file.write_text("")  # nobody is here any more
    except Timeout:
        raise UserError(
            f"another {verb} works in this folder ({file.read_text()})",
            where=paths.shown(folder),
            allowed="one at a time",
            remedy=f"wait for it, or name another folder with {option}",
        ) from None
