"""The kinds of failure of an answer of a fixed form; each failing answer has exactly one.

The order below is the order of judgement: an answer is counted under the first kind that applies,
so the counts add up to the failures. What does not parse is told apart by what stands there, what
parses by the first rule it breaks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ADHERENT = "adherent"

EMPTY = "empty"  # nothing but white space
CODE_FENCE = "code_fence"  # JSON alone, but inside a Markdown code fence
SEVERAL_VALUES = "several_values"  # one JSON value after the other
TEXT_AROUND = "text_around"  # a JSON object with other text before or after it
TRUNCATED = "truncated"  # an object was begun and the limit of new tokens cut it
INVALID_JSON = "invalid_json"  # an object was begun, but what stands there is no JSON
PROSE = "prose"  # no object was begun
DUPLICATE_KEY = "duplicate_key"  # JSON in which an object has a key twice
NOT_FINITE = "not_finite"  # NaN, Infinity, or a number beyond double precision
NOT_OBJECT = "not_object"  # JSON, but an array, a string, a number ...
MISSING_KEY = "missing_key"
EXTRA_KEY = "extra_key"
WRONG_TYPE = "wrong_type"
WRONG_ENUM = "wrong_enum"  # the right type, but none of the allowed values
OTHER_RULE = "other_rule"  # any other rule of the schema, such as minLength
NO_LABEL = "no_label"  # metric `label` only: text that is none of the labels
NO_NUMBER = "no_number"  # metric `number` only, as the next
WRONG_NUMBER = "wrong_number"
FEWER_LINES = "fewer_lines"  # metric `translation` only, as the next: other lines than the source's
MORE_LINES = "more_lines"
CRASH = "crash"  # scorer `official` only: the published script stops with a traceback

KINDS = (
    EMPTY,
    CODE_FENCE,
    SEVERAL_VALUES,
    TEXT_AROUND,
    TRUNCATED,
    INVALID_JSON,
    PROSE,
    DUPLICATE_KEY,
    NOT_FINITE,
    NOT_OBJECT,
    MISSING_KEY,
    EXTRA_KEY,
    WRONG_TYPE,
    WRONG_ENUM,
    OTHER_RULE,
    NO_LABEL,
    NO_NUMBER,
    WRONG_NUMBER,
    FEWER_LINES,
    MORE_LINES,
    CRASH,
)

_SCHEMA_KINDS = {
    "required": MISSING_KEY,
    "dependentRequired": MISSING_KEY,
    "additionalProperties": EXTRA_KEY,
    "unevaluatedProperties": EXTRA_KEY,
    "type": WRONG_TYPE,
    "enum": WRONG_ENUM,
    "const": WRONG_ENUM,
}


def schema_kind(errors: Iterable[Any]) -> str | None:
    """The kind of the first rule broken, in the order of KINDS; None without errors.

    `errors` are jsonschema's ValidationErrors.
    """
    kinds = {_kind(error) for error in errors}
    return min(kinds, key=KINDS.index, default=None)


def _kind(error: Any) -> str:
    kind = _SCHEMA_KINDS.get(str(error.validator), OTHER_RULE)
    if kind == WRONG_ENUM:
        allowed = error.validator_value if error.validator == "enum" else [error.validator_value]
        if json_type(error.instance) not in {json_type(value) for value in allowed}:
            return WRONG_TYPE
    return kind


def json_type(value: Any) -> str:
    """JSON's name for the type of a parsed value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for kind, name in ((str, "string"), (dict, "object"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "number"


def count_kinds(kinds: Iterable[str]) -> dict[str, int]:
    """How often each kind of failure occurs, in the order of KINDS, without the absent ones."""
    seen = list(kinds)
    return {kind: seen.count(kind) for kind in KINDS if kind in seen}
