"""The schema of JSON answers, learnt from the rows or read from a file, and the label in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.records import parse_json
from tell_plugins.core.schemas import compile_schema
from tell_plugins.preparation.forms import TaskFile
from tell_plugins.preparation.json_repair import HINT, json_of_python

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MOST_VALUES = 12  # a property with more different texts is free text
LONGEST_VALUE = 60  # characters of one value of an enumeration
_TIMES_SEEN = 4  # how often a value of an enumeration is seen, on average
_MOST_NEW = 0.05  # the chance of another value up to which there is none
_DEEPEST = 8  # levels of objects and lists that get a rule
NO_LABEL = "none"
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


def strict_json(text: str) -> Any:
    """The JSON value in `text` as the strict scorer takes it.

    Raises ValueError for anything else: a key twice, NaN, or what json.loads refuses.
    """
    value = parse_json(text)
    try:
        json.dumps(value, allow_nan=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("NaN or Infinity") from None
    return value


def json_values(file: TaskFile) -> list[Any] | None:
    """The responses as JSON objects and lists, None unless all of them are."""
    try:
        values = [strict_json(pair.response) for pair in file.pairs]
    except ValueError:
        return None
    return values if all(isinstance(value, dict | list) for value in values) else None


def infer_schema(values: Sequence[Any]) -> dict[str, Any]:
    """A JSON schema that all `values` fit, and that leaves open what they do not show closed.

    Keys that all have are required; further ones are forbidden where all have the same keys. A
    text is an enumeration where its values come again so often that another is unlikely.
    """
    return {"$schema": _DRAFT, **_rule(values, 0)}


def _rule(values: Sequence[Any], depth: int) -> dict[str, Any]:
    types = sorted({_TYPES[type(value)] for value in values})
    if types == ["integer", "number"]:
        types = ["number"]
    if types == ["string"]:
        if _are_closed(values):
            return {"enum": sorted(set(values))}
        return {"type": "string", "minLength": 1} if all(values) else {"type": "string"}
    rule: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    if depth == _DEEPEST:
        return rule
    objects = [value for value in values if isinstance(value, dict)]
    items = [item for value in values if isinstance(value, list) for item in value]
    if objects:
        rule |= _object_rule(objects, depth)
    if items:
        rule["items"] = _rule(items, depth + 1)
    return rule


def _object_rule(objects: Sequence[dict[str, Any]], depth: int) -> dict[str, Any]:
    keys = dict.fromkeys(key for value in objects for key in value)
    required = [key for key in keys if all(key in value for value in objects)]
    rule: dict[str, Any] = {
        "properties": {
            key: _rule([value[key] for value in objects if key in value], depth + 1) for key in keys
        },
        "required": required,
    }
    return rule | ({"additionalProperties": False} if len(required) == len(keys) else {})


def _are_closed(texts: Sequence[str]) -> bool:
    """Whether the next row is unlikely to bring another text.

    By Good and Turing's estimate, the share of values seen once is the chance of a new one.
    """
    counts = Counter(texts)
    once = sum(count == 1 for count in counts.values())
    return (
        len(counts) <= MOST_VALUES
        and _TIMES_SEEN * len(counts) <= len(texts)
        and once <= _MOST_NEW * len(texts)
        and all(0 < len(text) <= LONGEST_VALUE for text in counts)
    )


def label_of(schema: dict[str, Any], wanted: str | None) -> str | None:
    """The property that carries the label: `wanted`, else the only enumeration, else None.

    "none" wants no label. Raises UserError when `wanted` is no property of the schema.
    """
    properties = schema.get("properties", {})
    if wanted is not None and wanted in properties:
        return wanted
    if wanted is not None and wanted != NO_LABEL:
        raise unknown("property", wanted, [*properties, NO_LABEL], "--label")
    listed = [key for key in properties if _values(schema, key)]
    return listed[0] if len(listed) == 1 and wanted is None else None


def label_in(text: str, key: str) -> str | None:
    """The text of a JSON answer's label; None where it has none."""
    try:
        value = strict_json(text)
    except ValueError:
        return None
    label = value.get(key) if isinstance(value, dict) else None
    return label if isinstance(label, str) else None


def with_label(text: str, key: str, label: str) -> str:
    """A JSON answer with another label."""
    return json.dumps({**parse_json(text), key: label}, ensure_ascii=False)


def close_label(schema: dict[str, Any], key: str, texts: Sequence[str]) -> None:
    """Make the property that the user calls the label an enumeration of the trained labels."""
    labels = {label for text in texts if (label := label_in(text, key)) is not None}
    if schema["properties"][key].get("type") == "string":
        schema["properties"][key] = {"enum": sorted(labels)}


def _values(schema: dict[str, Any], key: str | None) -> list[Any]:
    """The values that a property's enumeration allows; none where it has no enumeration."""
    rule = schema.get("properties", {}).get(key)
    return rule.get("enum", []) if isinstance(rule, dict) else []


def check_answers(
    file: TaskFile, schema: dict[str, Any], label: str | None, *, bare_labels: bool
) -> None:
    """UserError when a response does not fit the schema, or the schema cannot be applied.

    `bare_labels` takes responses that are the label alone, as rows that only test may be.
    """
    validator = compile_schema(schema, "--schema")
    bare = _values(schema, label) if bare_labels else []
    wrong, hint = [], ""
    for pair in file.pairs:
        if pair.response.strip() in bare:
            continue
        try:
            reason = _misfit(validator, strict_json(pair.response))
        except ValueError as error:
            reason = f"no JSON ({error})"
            hint = hint or (HINT if json_of_python(pair.response) else "")
        if reason is not None:
            wrong.append(f"line {pair.line}: {reason}")
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{len(wrong)} responses do not fit the schema: {'; '.join(wrong[:5])}{more}",
            where=paths.shown(file.path),
            remedy=f"{hint}mend the rows, or give the right schema with --schema FILE",
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
