"""Rows in JSON: a line each, an array, one value after the other, or under one key of an object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.json_values import DECODER, parse_json
from tell_plugins.core.records import Record, bad_encoding

_CHUNK = 1 << 20  # characters of a file that are read at a time
_BLOCK = 1 << 16  # bytes
_TURNS = ("messages", "conversations", "history", "turns")
_BOM = b"\xef\xbb\xbf"


def read_json_rows(path: Path) -> Iterator[Record]:
    """The rows of a JSON file. Raises UserError when an array or object in it is broken."""
    if _first_sign(path) == b"[":
        return _in_pieces(path)
    head, alone = _first_line(path)
    try:
        value = parse_json(head, nan=True)
    except ValueError:
        # `jq` and `indent=` break values over lines; in JSON lines this is one broken row
        whole = head == b"{" or path.suffix.lower() == ".json"
        return _in_pieces(path) if whole and head.startswith(b"{") else _json_lines(path)
    return _in_pieces(path) if alone and _key_of_rows(value) else _json_lines(path)


def _first_sign(path: Path) -> bytes:
    """The first byte that is not blank: an array may be one line of any length."""
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            if sign := block.removeprefix(_BOM).strip()[:1]:
                return sign
    return b""


def _first_line(path: Path) -> tuple[bytes, bool]:
    """The first line that is not blank, and whether it is the only one."""
    with path.open("rb") as file:
        lines = (line.removeprefix(_BOM).strip() for line in file)
        head = next((line for line in lines if line), b"")
        return head, not any(lines)


def _key_of_rows(value: Any) -> str | None:
    """The one key of an object whose value is a list of rows, None where there is no such key."""
    lists = [
        key
        for key, inner in (value.items() if isinstance(value, dict) else ())
        if isinstance(inner, list) and inner and all(isinstance(row, dict) for row in inner)
    ]
    if len(lists) != 1 or lists[0] in _TURNS:  # turns are no rows
        return None
    return str(lists[0])


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(_BOM)
            raw = raw.strip()
            if not raw:
                continue
            try:
                yield Record(number, parse_json(raw, nan=True))
            except UnicodeDecodeError:
                raise bad_encoding(path) from None
            except json.JSONDecodeError as error:
                hint = "; a Python dict: write it with json.dumps" if raw.startswith(b"{'") else ""
                reason = f"no JSON ({error.msg} at column {error.colno}{hint})"
                yield Record(number, None, reason)
            except ValueError as error:  # a huge number, deep nesting, a key twice
                yield Record(number, None, f"no JSON ({error})")


def _in_pieces(path: Path) -> Iterator[Record]:
    """The rows of an array, of the only object, or of values one after the other."""
    with path.open(encoding="utf-8-sig") as text:
        window = _Window(text)
        try:
            if window.skip_space() == "[":
                yield from _array(window)
                if window.skip_space():
                    raise ValueError("something follows its end")
                return
            line, value = window.line, window.value()
            key = None if window.skip_space() else _key_of_rows(value)
            if key is None:
                yield Record(line, value)
                yield from _values(window)
        except UnicodeDecodeError:
            raise bad_encoding(path) from None
        except (ValueError, RecursionError) as error:
            raise _broken(path, window, error) from None
    if key is not None:
        yield from _under(path, key)


def _broken(path: Path, window: _Window, error: Exception) -> UserError:
    return UserError(
        f"no JSON array: {error} (after {window.values:,} whole rows)",
        where=f"{paths.shown(path)}, line {window.line}",
        remedy="mend the file, or save one JSON object a line as .jsonl",
    )


def _values(window: _Window) -> Iterator[Record]:
    while window.skip_space():
        line = window.line
        yield Record(line, window.value())


def _array(window: _Window) -> Iterator[Record]:
    window.position += 1  # the opening bracket
    while (character := window.skip_space(",")) != "]":
        if not character:
            raise ValueError("its end is missing")
        line = window.line
        yield Record(line, window.value())
    window.position += 1


def _under(path: Path, wanted: str) -> Iterator[Record]:
    """The rows in the list under one key of the file's object, which is known to be whole."""
    with path.open(encoding="utf-8-sig") as text:
        window = _Window(text)
        window.skip_space()
        window.position += 1  # the opening brace
        while window.skip_space(",") != "}":
            key = window.value()
            window.skip_space(":")
            if key == wanted:
                yield from _array(window)
                return
            window.value()


class _Window:
    """The part of a JSON file that is being parsed, so that a large file is never held whole."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._text = file, ""
        self.position = 0
        self.line = 1  # the line of `position`
        self.values = 0  # how many were read

    def _read_on(self) -> bool:
        self._text = self._text[self.position :]
        self.position = 0
        chunk = self._file.read(max(_CHUNK, len(self._text)))
        self._text += chunk
        return bool(chunk)

    def skip_space(self, more: str = "") -> str:
        """Pass white space (and `more`); gives the character that follows, "" at the end."""
        while self.position < len(self._text) or self._read_on():
            character = self._text[self.position]
            if not character.isspace() and character not in more:
                return character
            self.line += character == "\n"
            self.position += 1
        return ""

    def value(self) -> Any:
        """The JSON value at the position. Raises ValueError when there is none."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self.position)
            except json.JSONDecodeError as error:
                line = self.line + self._text.count("\n", self.position, error.pos)
                if self._read_on():
                    continue
                self.line = line
                raise ValueError(error.msg) from None
            if end < len(self._text) or not self._read_on():
                break  # else a number may go on
        self.line += self._text.count("\n", self.position, end)
        self.position = end
        self.values += 1
        return value
