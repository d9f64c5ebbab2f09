"""Where things lie: the project, the cache, data and cards; and writing a file in one piece."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tell_plugins.core.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]
CARDS = PROJECT / "datasets"
RECIPES = PROJECT / "recipes"


def cache_dir() -> Path:
    """Derived files that may be deleted at any time: `$TELL_CACHE` or the user's cache folder."""
    named = os.environ.get("TELL_CACHE")
    if named:
        return user_path(named)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tell-recipes"


def data_homes() -> list[Path]:
    """Folders that hold data files, in order of search; downloads go into the first.

    `$TELL_DATA_HOME` may name several folders, separated as in `PATH`.
    """
    return _folders("TELL_DATA_HOME") or [cache_dir() / "data"]


def card_roots() -> list[Path]:
    """Folders whose sub-folders are cards: the project's, then those of `$TELL_CARDS`."""
    roots: dict[Path, Path] = {}
    for root in (CARDS, *_folders("TELL_CARDS")):
        roots.setdefault(root.resolve(), root)
    return list(roots.values())


def _folders(variable: str) -> list[Path]:
    """The folders that an environment variable names, separated as in `PATH`."""
    parts = os.environ.get(variable, "").split(os.pathsep)
    return [user_path(part) for part in parts if part]


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as the user meant it: relative to the folder that `run.sh` was called from.

    `run.sh` works in the project's root; what lies only there (`recipes/x.yaml`) is found too.
    Raises UserError for the home (`~name`) of nobody.
    """
    path = expanded(text)
    caller = os.environ.get("TELL_CALLER_DIR")
    if caller is None or path.is_absolute():
        return path
    there = Path(caller) / path
    return there if there.exists() or not path.exists() else path


def expanded(text: str | os.PathLike[str]) -> Path:
    """A path with `~` and `~name` replaced. Raises UserError for the home of nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"nobody's home: '{os.fspath(text)}'",
            where="path",
            allowed="~ for your own folder, ~name for that of a user of this machine",
            remedy="write the path out",
        ) from None


def shown(path: str | os.PathLike[str]) -> str:
    """`path` as short as it can be said: relative to the project or the working folder."""
    absolute = Path(os.path.abspath(path))
    for base in (Path.cwd(), PROJECT):
        with contextlib.suppress(ValueError):
            return str(absolute.relative_to(base))
    return str(absolute)


def make_folder(folder: Path, named_by: str | None = None) -> Path:
    """Make `folder` and its parents if they are missing, and return it.

    Raises UserError where a file is in the way or permission is missing; `named_by` is the option
    that named the folder.
    """
    with _writing_into(folder, named_by):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def _writing_into(folder: Path, named_by: str | None = None) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        denied = isinstance(error, PermissionError)
        in_cache = cache_dir() in (folder, *folder.parents)
        raise UserError(
            f"cannot write into the folder '{shown(folder)}': "
            + ("permission denied" if denied else "a file is in the way"),
            where=named_by or ("$TELL_CACHE" if in_cache else None),
            allowed="a folder that you may write to; a missing one is made",
            remedy="name another folder, or mend this one",
        ) from None


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; renamed to it on success, removed on failure.

    Raises UserError where the folder cannot be made or written to.
    """
    with _writing_into(target.parent):
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
    such folders are named by their content. Raises UserError where the folder around it cannot be
    made or written to.
    """
    with _writing_into(target.parent):
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
