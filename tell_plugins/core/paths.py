"""Where things lie: the project, the cache, data and cards; and writing a file in one piece.

In a checkout all lies in one folder, which `run.sh` works in. Installed as a package, the cards and
recipes that come along lie in it, and what is written lies in the folder that the user works in.

One rule for a relative path: what is read is looked for in the folder that one calls from, then
among what the project ships; what a flag names to be written lies in the folder that one calls
from.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tell_plugins.core.errors import MachineError, UserError

PACKAGE = Path(__file__).resolve().parents[1]
IS_CHECKOUT = (PACKAGE.parent / "run.sh").is_file()
SHIPPED = PACKAGE.parent if IS_CHECKOUT else PACKAGE / "shipped"  # cards and recipes
PROJECT = PACKAGE.parent if IS_CHECKOUT else Path.cwd()  # where ms-swift runs and `output/` lies
PLUGIN = PACKAGE / "register.py"  # what a recipe names under `external_plugins`
CARDS = SHIPPED / "datasets"
RECIPES = SHIPPED / "recipes"
OWN_CARDS = PROJECT / "datasets"
OWN_RECIPES = PROJECT / "recipes"
TEMPORARY = ".tell-tmp"  # how a folder ends that holds what is not finished yet
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# --- places


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
    """Folders whose sub-folders are cards: those that come along, of `$TELL_CARDS`, one's own."""
    roots: dict[Path, Path] = {}
    for root in (CARDS, *_folders("TELL_CARDS"), OWN_CARDS):
        roots.setdefault(root.resolve(), root)
    return list(roots.values())


def _folders(variable: str) -> list[Path]:
    parts = os.environ.get(variable, "").split(os.pathsep)
    return [user_path(part) for part in parts if part]


def user_path(text: str | os.PathLike[str]) -> Path:
    """A path as the user meant it: relative to the folder that `run.sh` was called from.

    What lies only in the project (`recipes/x.yaml`) is found too: in the folder that `run.sh` works
    in, or in the package. Raises UserError for the home (`~name`) of nobody.
    """
    path = expanded(text)
    there = Path(os.environ.get("TELL_CALLER_DIR") or "") / path
    if path.is_absolute() or not path.parts:
        return there
    return next((place for place in (there, path, SHIPPED / path) if place.exists()), there)


def user_target(text: str | os.PathLike[str]) -> Path:
    """A path to write to as the user meant it: always relative to the caller's folder."""
    return Path(os.environ.get("TELL_CALLER_DIR") or Path.cwd()) / expanded(text)


def expanded(text: str | os.PathLike[str]) -> Path:
    """A path with `~` and `~name` replaced. Raises UserError for the home of nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        found = f"no home folder for '{os.fspath(text)}'"
        raise UserError(found, where="path", remedy="write the path out") from None


def shown(path: str | os.PathLike[str]) -> str:
    """`path` as short as it can be said: relative to the project or the working folder."""
    absolute = Path(os.path.abspath(path))
    for base in (Path.cwd(), PROJECT):
        if absolute.is_relative_to(base):
            return str(absolute.relative_to(base))
    return str(absolute)


def version_of(path: Path) -> tuple[int, int, int]:
    """What changes when somebody writes a file anew; the time alone does not where it is quick."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def needs(group: str) -> str:
    """How a group of packages is installed."""
    return f"./run.sh setup {group}" if IS_CHECKOUT else f"pip install 'tell-recipes[{group}]'"


# --- reading and writing


def read_user_text(path: Path) -> str:
    """The text of a file that a user wrote. Raises UserError where it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found, remedy = f"not UTF-8 (byte {error.start})", "save it as UTF-8"
    except OSError as error:
        found, remedy = error.strerror or str(error), "name a file that can be read"
    raise UserError(found, where=shown(path), remedy=remedy)


def make_folder(folder: Path, named_by: str | None = None) -> Path:
    """Make `folder` and its parents if they are missing, and return it.

    Raises UserError where a file is in the way or permission is missing; `named_by` is the option
    that named the folder.
    """
    with writing_into(folder, named_by):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def writing_into(folder: Path, named_by: str | None = None) -> Iterator[None]:
    """Raise UserError, as `make_folder` does, where the block cannot write into the folder."""
    try:
        yield
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        denied = isinstance(error, PermissionError)
        owners = {"$TELL_DATA_HOME": data_homes()[0], "$TELL_CACHE": cache_dir()}
        owner = (name for name, root in owners.items() if root in (folder, *folder.parents))
        raise UserError(
            f"cannot write into the folder '{shown(folder)}': "
            + ("permission denied" if denied else "a file is in the way"),
            where=named_by or next(owner, None),
            allowed="a folder that you may write to; a missing one is made",
            remedy="name another folder, or mend this one",
        ) from None


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; renamed to it on success, removed on failure.

    Raises UserError where the folder cannot be made or written to, MachineError on a full disk.
    """
    with _beside(target) as temporary:
        yield temporary
        os.replace(temporary, target)


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; renamed to it on success, removed on failure.

    When another process finished the same folder first, that one stays: both are equal, since
    such folders are named by their content. Raises as `atomic_path` does.
    """
    with _beside(target) as temporary:
        temporary.mkdir()
        yield temporary
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():
                raise


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A path for what is not finished yet, in a hidden folder beside `target`, gone at the end."""
    make_folder(target.parent)
    _remove_left(target.parent)
    with writing_into(target.parent):
        hidden = Path(tempfile.mkdtemp(TEMPORARY, f".{target.name[:100]}.", target.parent))
    try:
        yield hidden / "unfinished"
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise MachineError(
            f"{shown(target)}: {error.strerror}",
            remedy="make room, or name another folder; nothing half-written was kept",
        ) from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _remove_left(folder: Path) -> None:
    """Remove what killed processes left unfinished: a day on, nobody works at it any more."""
    for path in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):  # removed meanwhile
            if path.stat().st_mtime < time.time() - 86400:
                shutil.rmtree(path, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` in one piece (UTF-8)."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
