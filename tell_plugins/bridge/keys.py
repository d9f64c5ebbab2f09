"""What `swift sft` accepts, told by the installed ms-swift itself."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import swift


def argument_keys() -> dict[str, dict[str, Any]]:
    """What `swift sft` accepts: key -> default (if plain), allowed values (if listed), type."""
    from swift.arguments import SftArguments

    hints = typing.get_type_hints(SftArguments)
    keys = {}
    for field in dataclasses.fields(SftArguments):
        if not field.init:
            continue
        hint = hints.get(field.name)
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        keys[field.name] = {
            "default": default if isinstance(default, (str, int, float, bool, list)) else None,
            "choices": _choices(hint),
            "type": _plain_type(hint),
        }
    return keys


def _choices(hint: Any) -> list[Any] | None:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    for part in typing.get_args(hint) if typing.get_origin(hint) is typing.Union else ():
        if typing.get_origin(part) is typing.Literal:
            return list(typing.get_args(part))
    return None


def _plain_type(hint: Any) -> str:
    kinds = [hint, *typing.get_args(hint)]
    for kind in (bool, int, float, list, dict, str):
        if any(part is kind or typing.get_origin(part) is kind for part in kinds):
            return kind.__name__
    return "str"


def print_argument_keys() -> None:
    """Print version and keys as JSON; `check` runs this once and keeps the answer."""
    print(json.dumps({"version": swift.__version__, "keys": argument_keys()}, default=str))


if __name__ == "__main__":
    print_argument_keys()
