"""Answer schemas (JSON Schema 2020-12) and patterns, looked at before anything is asked of a model.

References stay inside the file; matching a pattern to a text may take at most a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from tell_plugins.core import paths
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.state_files import parse_json
from tell_plugins.core.text import shortened

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_PATIENCE = 1.0  # seconds that a pattern may take on one text


def search(pattern: str, text: str, where: str, flags: int = 0) -> regex.Match[str] | None:
    """`re.search` for a second at most. Raises UserError, naming the pattern, beyond it."""
    try:
        return regex.search(pattern, text, flags, timeout=_PATIENCE)
    except TimeoutError:
        raise UserError(
            f"the pattern '{pattern}' runs longer than {_PATIENCE:g} s on '{shortened(text, 60)}'",
            where=where,
            remedy="write it without repeats inside repeats, such as (a+)+ or (.*)*",
        ) from None


def read_schema(path: Path) -> dict[str, Any]:
    """The JSON schema in a file. Raises UserError for one that answers cannot be held against."""
    where = paths.shown(path)
    try:
        schema = parse_json(paths.read_user_text(path))
    except ValueError as error:
        raise _no_schema(str(error), where) from None
    if not isinstance(schema, dict):
        raise UserError("a schema is a JSON object", where=where, remedy="mend it")
    compile_schema(schema, where)
    return schema


def card_validator(card: Card) -> Validator | None:
    """What holds answers of a card against its schema; None for a card without one.

    Raises UserError as `read_schema` does.
    """
    if card.answer is None or card.answer.schema_file is None:
        return None
    path = card.schema_path()
    return compile_schema(read_schema(path), paths.shown(path))


def compile_schema(schema: dict[str, Any], where: str) -> Validator:
    """A validator that fetches nothing. Raises UserError for a schema that cannot be applied."""
    from jsonschema import SchemaError
    from referencing import Registry

    for part in _parts(schema):
        _check_references(part, schema, where)
        _check_patterns(part, where)
    kind = _timed(where)
    try:
        kind.check_schema(schema)
        validator = kind(schema, registry=Registry())
        samples: list[Any] = [{}, [], "", 0, None]
        for value in samples:  # a schema that refers to itself alone never ends
            next(iter(validator.iter_errors(value)), None)
    except SchemaError as error:
        raise _no_schema(error.message, where) from None
    except RecursionError:
        raise _no_schema("it refers to itself without end", where) from None
    return validator  # type: ignore[no-any-return]


def _no_schema(reason: str, where: str) -> UserError:
    return UserError(f"no JSON Schema (draft 2020-12): {reason}", where=where, remedy="mend it")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a schema."""
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield part
        stack += part.values() if isinstance(part, dict) else part if isinstance(part, list) else []


def _check_references(part: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    """References lead to a place in the same file."""
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    resource = DRAFT202012.create_resource(schema)
    name = resource.id() or ""
    for key in ("$ref", "$dynamicRef"):
        if not isinstance(reference := part.get(key), str):
            continue
        try:
            Registry().with_resource(name, resource).resolver(name).lookup(reference)
        except (Unresolvable, ValueError, TypeError):
            raise UserError(
                f"'{key}': '{reference}' leads out of the file, or to nothing in it",
                where=where,
                remedy="write what it refers to under '$defs', and refer to #/$defs/name",
            ) from None


def _check_patterns(part: dict[str, Any], where: str) -> None:
    if "patternProperties" in part:
        found = "'patternProperties' is not read here: its patterns would have no time limit"
        raise UserError(found, where=where, remedy="name the keys under 'properties'")
    pattern = part.get("pattern")
    try:
        regex.compile(pattern if isinstance(pattern, str) else "")
    except regex.error as error:
        raise _no_schema(f"'{pattern}' is no regular expression ({error})", where) from None


def _timed(where: str) -> Any:
    """The validator of draft 2020-12 whose patterns have a time limit."""
    from jsonschema import Draft202012Validator, ValidationError
    from jsonschema.validators import extend

    def pattern(validator: Any, wanted: str, value: Any, _: Any) -> Iterator[ValidationError]:
        if validator.is_type(value, "string") and not search(wanted, value, where):
            yield ValidationError(f"{value!r} does not match {wanted!r}")

    return extend(Draft202012Validator, {"pattern": pattern})
