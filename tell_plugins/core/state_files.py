"""JSON that programs wrote, read back and checked; caches that mend themselves; locks.

A shape is a pydantic type; of an object, a `Shape` that names the keys that must be there. Files
may be compressed: `answers.jsonl` is also found as `answers.jsonl.xz` or `.gz`. What does not fit
is one message: file, line, what was expected, and what to delete to have it made again.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import lzma
import math
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError

_OPENERS: dict[str, Any] = {"": open, ".xz": lzma.open, ".gz": gzip.open}

# --- JSON values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once. Raises ValueError otherwise: one value would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' stands twice")
    return made


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)  # 1e999


DECODER = json.JSONDecoder(object_pairs_hook=_once)
_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)


def parse_json(text: str | bytes, *, nan: bool = False) -> Any:
    """The JSON value that a text (bytes: UTF-8) is.

    Raises ValueError when there is none that can be read: also for a key that stands twice, for too
    many levels, and for NaN and infinite numbers unless `nan` lets them pass.
    """
    if isinstance(text, bytes):
        text = text.decode()
    try:
        return (DECODER if nan else _STRICT).decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_text(value: Any, *, allow_nan: bool = True) -> str:
    """Readable JSON; half a character stands in it as an escape, which a file can hold.

    Raises ValueError for NaN and its like, unless allowed: `read_json` takes none.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=allow_nan)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def json_lines(rows: Iterable[Any]) -> Iterator[str]:
    """Each row as a line of JSON."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_json(path: Path, value: Any, *, allow_nan: bool = True) -> None:
    """Write JSON in one piece, see `json_text`."""
    paths.write_text(path, json_text(value, allow_nan=allow_nan))


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines in one piece."""
    with paths.atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json_lines(rows))


# --- files, plain or compressed


def find(path: Path) -> Path | None:
    """The file itself or its compressed form; None when neither is there."""
    forms = (path.with_name(path.name + ending) for ending in _OPENERS)
    return next((form for form in forms if form.is_file()), None)


def find_below(folder: Path, name: str) -> list[Path]:
    """The folders below `folder` that hold a file of that name, compressed or not, sorted."""
    return sorted({file.parent for ending in _OPENERS for file in folder.rglob(name + ending)})


def read_bytes(path: Path) -> bytes | None:
    """What a file holds, uncompressed; None when it is missing. UserError for a damaged one."""
    found = find(path)
    if found is None:
        return None
    try:
        with _OPENERS.get(found.suffix, open)(found, "rb") as file:
            return bytes(file.read())
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise _unreadable(found, error) from None


def read_text(path: Path) -> str | None:
    """The text of a file, uncompressed; None when it is missing. UserError for no UTF-8."""
    raw = read_bytes(path)
    try:
        return None if raw is None else raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"not readable: {error}", where=paths.shown(path), remedy="restore the file")


# --- files of a shape


class Shape(BaseModel):
    """The keys of an object that must be there, and their types; others are free."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


def _plain(name: str) -> str:
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise ValueError("not a plain name, without folders")
    return name


Name = Annotated[str, AfterValidator(_plain)]  # of a file or folder, and of nothing above it
_adapter = lru_cache(maxsize=64)(TypeAdapter)


def read_json(path: Path, shape: Any, remedy: str, *, foreign: bool = False) -> Any:
    """The JSON of a file; None when it is missing. `foreign`: another program wrote it.

    Raises UserError, with `remedy`, where it is none or not of this shape.
    """
    text = read_text(path)
    return None if text is None else _value(text, shape, _where(path), remedy, foreign)


def cached_json(path: Path, shape: Any, *, foreign: bool = False) -> Any:
    """The JSON of a file that is made again where it is missing or does not fit: then None."""
    with contextlib.suppress(UserError):
        return read_json(path, shape, "", foreign=foreign)


def read_json_lines(path: Path, shape: Any, remedy: str, *, foreign: bool = False) -> list[Any]:
    """The JSON lines of a file; empty when it is missing.

    What follows the last line break was cut when its writer was killed, and is passed over; of a
    `foreign` file, whose writer goes on after such a line, others are too. Raises UserError for
    lines of another shape.
    """
    where, found = _where(path), []
    # not splitlines: an answer may hold U+2028 and its like, which JSON leaves as they are
    lines = (read_text(path) or "").split("\n")
    for number, line in enumerate(lines, 1):
        if foreign or number == len(lines):
            try:
                parse_json(line, nan=foreign)
            except ValueError:
                continue
        found.append(_value(line, shape, f"{where}, line {number}", remedy, foreign))
    return found


def _where(path: Path) -> str:
    return paths.shown(find(path) or path)


def _value(text: str, shape: Any, where: str, remedy: str, foreign: bool) -> Any:
    try:
        value = parse_json(text, nan=foreign)
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        found = f"not what was written here: {_first_problem(error)}"
    except json.JSONDecodeError as error:
        found = f"no JSON: {error.msg}"
        where += f", line {error.lineno}" if "\n" in text.strip() else ""
    except ValueError as error:
        found = f"no JSON: {error}"
    else:
        return value
    raise UserError(found, where=where, remedy=remedy)


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{f'key {key!r}' if key else 'it'} is {first['input']!r:.60}: {message}"


# --- cached files that carry their own hash: one that was changed since is made again, never used

_SEAL = 32  # bytes of the hash, which are the last of such a file; readers stop before them


def made_once(path: Path, write: Callable[[Path], None]) -> None:
    """See to it that a file is there, its hash behind it: `write` makes it where it is not whole.

    A second process waits for the first instead of making it too.
    """
    if _is_whole(path):
        return
    paths.make_folder(path.parent)
    with FileLock(f"{path}.lock"):
        if not _is_whole(path):
            with paths.atomic_path(path) as temporary:
                write(temporary)
                digest = hashlib.sha256(_mapped(temporary)).digest()
                with temporary.open("ab") as file:
                    file.write(digest)


def _is_whole(path: Path) -> bool:
    try:
        content = _mapped(path)
    except (OSError, ValueError):  # none, or an empty one
        return False
    return hashlib.sha256(content[:-_SEAL]).digest() == content[-_SEAL:]


def _mapped(path: Path) -> memoryview:
    """The bytes of a file, which stay on disk."""
    return np.memmap(path, np.uint8, "r").data


@contextlib.contextmanager
def only_one(folder: Path, verb: str, option: str = "--out") -> Iterator[None]:
    """Hold the lock of `folder`, which a process that dies lets go.

    Raises UserError when another process holds it: which one, where, and since when.
    """
    file = paths.make_folder(folder, option) / ".lock"
    try:
        with FileLock(file, timeout=0):
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since}")
            try:
                yield
            finally:
                file.write_text("")  # nobody is here any more
    except Timeout:
        found = f"another {verb} works in this folder ({file.read_text()})"
        remedy = f"wait for it, or name another folder with {option}"
        raise UserError(found, where=paths.shown(folder), remedy=remedy) from None
