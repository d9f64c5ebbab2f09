"""Where things lie: the project, the cache, data and cards; and writing a file in one piece."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CARDS = PROJECT / "datasets"
RECIPES = PROJECT / "recipes"


def cache_dir() -> Path:
    """Derived files that may be deleted at any time: `$TELL_CACHE` or the user's cache folder."""
    named = os.environ.get("TELL_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "tell-recipes"


def data_homes() -> list[Path]:
    """Folders that hold data files, in order of search; downloads go into the first.

    `$TELL_DATA_HOME` may name several folders, separated as in `PATH`.
    """
    named = os.environ.get("TELL_DATA_HOME", "")
    homes = [Path(part).expanduser() for part in named.split(os.pathsep) if part]
    return homes or [cache_dir() / "data"]


def card_roots() -> list[Path]:
    """Folders whose sub-folders are cards: the project's, then those of `$TELL_CARDS`."""
    named = os.environ.get("TELL_CARDS", "")
    return [CARDS, *(Path(part).expanduser() for part in named.split(os.pathsep) if part)]


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as the user meant it: `run.sh` works in the project's root, the user perhaps not."""
    path = Path(text).expanduser()
    caller = os.environ.get("TELL_CALLER_DIR")
    if not path.is_absolute() and not path.exists() and caller:
        there = Path(caller) / path
        if there.exists():
            return there
    return path


def shown(path: str | os.PathLike[str]) -> str:
    """`path` as short as it can be said: relative to the project or the working folder."""
    absolute = Path(os.path.abspath(path))
    for base in (Path.cwd(), PROJECT):
        with contextlib.suppress(ValueError):
            return str(absolute.relative_to(base))
    return str(absolute)


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; renamed to it on success, removed on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; renamed to it on success, removed on failure.

    When another process finished the same folder first, that one stays: both are equal, since
    such folders are named by their content.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` in one piece (UTF-8)."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
