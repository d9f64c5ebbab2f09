"""JSON and JSON lines that this project writes itself, read back with their shape checked.

A shape is a pydantic type; of an object, a `Shape` that names the keys that must be there. Files
may be compressed (`.xz`, `.gz`). What does not fit is one message: file, line, what was expected,
and what to delete to have it made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from tell_plugins.core import paths
from tell_plugins.core.compressed import find, read_text
from tell_plugins.core.errors import UserError

MAX_DEPTH = 100  # levels of arrays and objects; nothing written here has ten
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


class Shape(BaseModel):
    """The keys of an object that must be there, and their types; others are free."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


def _plain(name: str) -> str:
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise ValueError("not a plain name, without folders")
    return name


Name = Annotated[str, AfterValidator(_plain)]  # of a file or folder, and of nothing above it


def parse_json(text: str | bytes, *, foreign: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError also for too many levels, and for NaN and its
    like where the file is not a `foreign` one: the trainer's files may hold them."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogatepass")  # as json does; older answers may hold some
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels of arrays and objects")
    return json.loads(text, parse_constant=float if foreign else _no_constant)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _depth(text: str) -> int:
    depth = deepest = 0
    for sign in re.findall(r"[][{}]", _STRING.sub("", text)):
        depth += 1 if sign in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def read_json(path: Path, shape: Any, remedy: str, *, foreign: bool = False) -> Any:
    """The JSON of a file; None when it is missing. `foreign`: another program wrote it.

    Raises UserError, with `remedy`, where it is none or not of this shape.
    """
    text = read_text(path)
    return None if text is None else _value(text, shape, _where(path), remedy, foreign)


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
                parse_json(line, foreign=foreign)
            except (ValueError, RecursionError):
                continue
        found.append(_value(line, shape, f"{where}, line {number}", remedy, foreign))
    return found


def cached_json(path: Path, shape: Any, *, foreign: bool = False) -> Any:
    """The JSON of a file that is made again where it is missing or does not fit: then None."""
    try:
        return read_json(path, shape, "", foreign=foreign)
    except UserError:
        return None


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


def _where(path: Path) -> str:
    return paths.shown(find(path) or path)


def _value(text: str, shape: Any, where: str, remedy: str, foreign: bool) -> Any:
    try:
        value = parse_json(text, foreign=foreign)
    except json.JSONDecodeError as error:
        if "\n" in text.strip():
            where = f"{where}, line {error.lineno}"
        raise UserError(f"no JSON: {error.msg}", where=where, remedy=remedy) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"no JSON: {error}", where=where, remedy=remedy) from None
    check_shape(value, shape, where, remedy)
    return value


def check_shape(value: Any, shape: Any, where: str, remedy: str) -> None:
    """Raise UserError where a value is not of a shape."""
    try:
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        if first["type"] == "missing":
            found = f"key '{key}' is missing"
        else:
            message = str(first["msg"]).removeprefix("Value error, ")
            short = repr(first["input"])[:60]
            found = f"{f'key {key!r}' if key else 'it'} is {short}: {message}"
        raise UserError(f"not what was written here: {found}", where=where, remedy=remedy) from None


@lru_cache(maxsize=64)
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)
