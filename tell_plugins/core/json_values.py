"""The JSON values of texts: of rows, of answers, and of files that programs write."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


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
