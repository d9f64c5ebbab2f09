"""The schema of JSON answers, learnt from the rows or read from a file, and the label in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.preparation.forms import TaskFile, parse_json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MOST_VALUES = 12  # a property with more different texts is free text
LONGEST_VALUE = 60  # characters of one value of an enumeration
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


def parse_objects(texts: Sequence[str]) -> list[dict[str, Any]] | None:
    """The texts as JSON objects, None unless all of them are."""
    objects = []
    for text in texts:
        try:
            value = parse_json(text)
        except ValueError:
            return None
        if not isinstance(value, dict):
            return None
        objects.append(value)
    return objects


def infer_schema(objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A JSON schema that all `objects` fit.

    Keys that all have are required, others optional, further ones forbidden. A text property is
    an enumeration when it has few values and they come again.
    """
    keys = dict.fromkeys(key for value in objects for key in value)
    properties = {key: _property([value[key] for value in objects if key in value]) for key in keys}
    return {
        "$schema": _DRAFT,
        "type": "object",
        "properties": properties,
        "required": [key for key in keys if all(key in value for value in objects)],
        "additionalProperties": False,
    }


def _property(values: Sequence[Any]) -> dict[str, Any]:
    types = sorted({_TYPES[type(value)] for value in values})
    if types == ["integer", "number"]:
        types = ["number"]
    if types == ["string"]:
        distinct = sorted(set(values))
        comes_again = 2 * len(distinct) <= len(values)
        if (
            comes_again
            and len(distinct) <= MOST_VALUES
            and max(map(len, distinct)) <= LONGEST_VALUE
        ):
            return {"enum": distinct}
        return {"type": "string", "minLength": 1} if all(values) else {"type": "string"}
    return {"type": types[0] if len(types) == 1 else types}


def label_of(schema: dict[str, Any], wanted: str | None) -> str | None:
    """The property that carries the label: `wanted`, else the only enumeration, else None.

    Raises UserError when `wanted` is no property of the schema.
    """
    properties = schema.get("properties", {})
    if wanted is not None:
        if wanted not in properties:
            raise unknown("property", wanted, properties, "--label")
        return wanted
    listed = [key for key in properties if _values(schema, key)]
    return listed[0] if len(listed) == 1 else None


def _values(schema: dict[str, Any], key: str | None) -> list[Any]:
    """The values that a property's enumeration allows; none where it has no enumeration."""
    rule = schema.get("properties", {}).get(key)
    return rule.get("enum", []) if isinstance(rule, dict) else []


def read_schema(path: Path) -> dict[str, Any]:
    """The JSON schema in a file, as the scorers read it. UserError when it is none."""
    from jsonschema import Draft202012Validator, SchemaError

    where = paths.shown(path)
    if not path.is_file():
        raise UserError(f"no file '{path}'", where="--schema", remedy="correct the path")
    try:
        schema = parse_json(path.read_text(encoding="utf-8-sig"))
        if not isinstance(schema, dict):
            raise ValueError("not an object")
        Draft202012Validator.check_schema(schema)
    except (ValueError, SchemaError) as error:
        message = getattr(error, "message", str(error))
        raise UserError(f"no JSON schema: {message}", where=where, remedy="mend it") from None
    return schema


def check_answers(
    file: TaskFile, schema: dict[str, Any], label: str | None, *, bare_labels: bool
) -> None:
    """UserError when a response does not fit the schema, or the schema cannot be applied.

    `bare_labels` takes responses that are the label alone, as rows that only test may be.
    """
    from jsonschema import Draft202012Validator
    from referencing import Registry

    validator = Draft202012Validator(schema, registry=Registry())  # fetches nothing remote
    bare = _values(schema, label) if bare_labels else []
    wrong = []
    for pair in file.pairs:
        if pair.response.strip() in bare:
            continue
        try:
            reason = _misfit(validator, parse_json(pair.response))
        except ValueError as error:
            reason = f"no JSON ({error})"
        if reason is not None:
            wrong.append(f"line {pair.line}: {reason}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{len(wrong)} responses do not fit the schema: {'; '.join(wrong[:5])}{more}",
            where=paths.shown(file.path),
            remedy="mend the rows, or give the right schema with --schema FILE",
        )


def _misfit(validator: Validator, value: Any) -> str | None:
    """Why a value does not fit the schema. UserError when the schema cannot be applied to it."""
    from referencing.exceptions import Unresolvable

    try:
        problem = next(iter(validator.iter_errors(value)), None)
    except (Unresolvable, RecursionError, ValueError) as error:
        raise UserError(
            f"the schema cannot be applied: {error}",
            where="--schema",
            remedy="mend its references ($ref)",
        ) from None
    return None if problem is None else problem.message[:120]
