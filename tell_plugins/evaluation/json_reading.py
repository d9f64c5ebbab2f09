"""Finding and reading JSON in an answer; nothing here knows a card."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NamedTuple

WHITE = " \t\r\n"  # JSON's own white space, all that `strict` allows around an object

_FENCE = re.compile(
    r"(?:```|~~~)[ \t]*[\w+-]*[ \t]*\r?\n?(?P<block>.*?)(?:\r?\n)?[ \t]*(?:```|~~~)?"
    r"|`(?P<inline>[^`]+)`",
    re.DOTALL,
)
# Where an object (or a list of objects) begins; `{` in running text is not followed by these.
_OPENING = re.compile(r"""\[\s*\{\s*["'}]|\{\s*(?:["'“”‘’}]|[A-Za-z_]\w*\s*:|$)""")
_LIST = re.compile(r"""\s*\[\s*["'{\[]""")
_LONG_INTEGER = 310  # digits; anything longer is beyond double precision


class Reading(NamedTuple):
    """A parsed JSON value and what is peculiar about it. `end` is where it ends in the text."""

    value: Any
    end: int
    duplicate_key: bool
    not_finite: bool


class Found(NamedTuple):
    """A JSON value inside a text, from `start` to `reading.end`."""

    start: int
    reading: Reading


def read_at(text: str, start: int = 0) -> Reading | None:
    """The JSON value that begins at `start`, or None. Never raises, however odd the text."""
    flags = {"duplicate": False, "not_finite": False}

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        flags["duplicate"] |= len(value) < len(items)
        return value

    def decimal(digits: str) -> float:
        number = float(digits)
        flags["not_finite"] |= not math.isfinite(number)
        return number

    def integer(digits: str) -> int | float:
        return int(digits) if len(digits) < _LONG_INTEGER else decimal(digits)

    decoder = json.JSONDecoder(
        object_pairs_hook=pairs, parse_float=decimal, parse_int=integer, parse_constant=decimal
    )
    try:
        value, end = decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return Reading(value, end, flags["duplicate"], flags["not_finite"])


def read_whole(text: str) -> Reading | None:
    """The JSON value that `text` is, white space of JSON around it allowed; else None."""
    body = text.strip(WHITE)
    reading = read_at(body)
    return reading if reading is not None and reading.end == len(body) else None


def unfenced(text: str) -> str | None:
    """What stands in the code fence (or back-ticks) that the whole text is; else None."""
    match = _FENCE.fullmatch(text.strip())
    if match is None:
        return None
    return match["inline"] if match["inline"] is not None else match["block"]


def first_object(text: str) -> Found | None:
    """The first JSON object (or list of objects) in a text with other things around it.

    What begins like an object and is none is passed over up to its closing brace, so an object
    nested in a broken one is never taken for the answer.
    """
    position = 0
    while match := _OPENING.search(text, position):
        reading = read_at(text, match.start())
        if reading is not None:
            return Found(match.start(), reading)
        closing = _closing(text, match.start())
        if closing is None:
            return None
        position = closing
    return None


def begins_object(text: str) -> bool:
    """Whether the text tries to be JSON: it opens an object, or begins as a list."""
    return _OPENING.search(text) is not None or _LIST.match(text) is not None


def only_values(text: str) -> bool:
    """Whether the text is nothing but JSON objects and lists, one after the other."""
    position = 0
    while rest := text[position:].lstrip(WHITE + ","):
        position = len(text) - len(rest)
        reading = read_at(text, position)
        if reading is None or not isinstance(reading.value, (dict, list)):
            return False
        position = reading.end
    return True


def _closing(text: str, start: int) -> int | None:
    """The position after the bracket that closes the one at `start`; strings are not looked into,
    since in broken JSON nobody knows where they end."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "{[") - (text[position] in "}]")
        if depth == 0:
            return position + 1
    return None
