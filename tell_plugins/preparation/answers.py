"""What the answers of an own task are: JSON and its schema, closed labels, numbers or free text."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.numbers import whole_number
from tell_plugins.core.schemas import compile_schema
from tell_plugins.core.state_files import parse_json
from tell_plugins.core.text import normalise

METRICS = ("json", "label", "translation", "number", "text")
MOST_LABELS = 150  # more different answers are free text
MOST_VALUES = 12  # a property with more different texts is free text
LONGEST_VALUE = 60  # characters of one value of an enumeration
_FEWEST_ROWS = 10  # fewer show nothing by answers that come again
_SHOWN = 5
_TIMES_SEEN = 4  # how often a value of an enumeration is seen, on average
_MOST_NEW = 0.05  # the chance of another value up to which there is none
_DEEPEST = 8  # levels of objects and lists that get a rule
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES: dict[type, str] = {
    **{str: "string", bool: "boolean", int: "integer", float: "number"},
    **{list: "array", dict: "object", type(None): "null"},
}


def kind_of(responses: Sequence[str]) -> str:
    """The metric that responses call for, where the user names none.

    JSON is told by its brackets, be it broken.
    """
    ends = [text.strip()[:1] + text.strip()[-1:] for text in responses]
    if 2 * sum(two in ("{}", "[]") for two in ends) > len(responses):
        return "json"
    if _are_labels(responses):
        return "label"
    return "number" if all(whole_number(text) is not None for text in responses) else "text"


def _are_labels(texts: Sequence[str]) -> bool:
    """Whether answers are closed labels: a few short ones, most of which come again.

    Of numbers at most `MOST_VALUES` different ones are labels, and none with decimals.
    """
    counts = Counter(normalise(text) for text in texts)
    again = sum(count > 1 for count in counts.values())
    numbers = all(whole_number(text) is not None for text in counts)
    return (
        len(texts) >= _FEWEST_ROWS
        and 2 <= len(counts) <= (MOST_VALUES if numbers else MOST_LABELS)
        and 2 * len(counts) <= len(texts)
        and 2 * again >= len(counts)
        and all(len(text) <= LONGEST_VALUE and "\n" not in text.strip() for text in texts)
        and (not numbers or all(re.fullmatch(r"[-+]?\d+(\.0+)?", text) for text in counts))
    )


# ------------------------------------------------------------------------- JSON


def json_value(text: str) -> Any:
    """The JSON object or list that an answer is, None where it is none."""
    with suppress(ValueError):
        value = parse_json(text)
        return value if isinstance(value, dict | list) else None


def json_of_python(text: str) -> str | None:
    """A Python dict or list as JSON, None where it is none or JSON could not say the same.

    Token by token: strings are written anew, and what then is no strict JSON was none in Python's
    words either, such as tuples, sets, and keys that stand twice.
    """
    words = {"True": "true", "False": "false", "None": "null"}
    parts = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a backslash that Python only guesses at
            for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
                part = token.string
                if token.type == tokenize.STRING:
                    part = json.dumps(ast.literal_eval(part))
                elif token.type == tokenize.NAME:
                    part = words[part]
                parts.append(part if part == "-" else f"{part} ")
        value = json_value("".join(parts))
        written = None if value is None else json.dumps(value, ensure_ascii=False)
        return written if written is None or written.encode() else None
    except (SyntaxError, ValueError, TypeError, KeyError, tokenize.TokenError):
        return None


def infer_schema(values: Sequence[Any]) -> dict[str, Any]:
    """A JSON schema that all `values` fit, and that leaves open what they do not show closed.

    Keys that all have are required; further ones are forbidden where all have the same keys. A
    text is an enumeration where its values come again so often that another is unlikely.
    """
    rule = _rule(values, 0) if values else {"type": ["array", "object"]}
    return {"$schema": _DRAFT, **rule}


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
        keys = dict.fromkeys(key for value in objects for key in value)
        rule["properties"] = {
            key: _rule([value[key] for value in objects if key in value], depth + 1) for key in keys
        }
        rule["required"] = [key for key in keys if all(key in value for value in objects)]
        if len(rule["required"]) == len(keys):
            rule["additionalProperties"] = False
    if items:
        rule["items"] = _rule(items, depth + 1)
    return rule


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


def fits(schema: dict[str, Any]) -> Callable[[str], str]:
    """Why a response does not fit the schema, "" where it does.

    Raises UserError when the schema cannot be applied.
    """
    validator = compile_schema(schema, "--schema")

    def reason(text: str) -> str:
        try:
            found = next(iter(validator.iter_errors(parse_json(text))), None)
        except ValueError as error:
            return f"no JSON ({error})"
        return "" if found is None else found.message[:120]

    return reason


# ------------------------------------------------------------------------- the label


def label_of(schema: dict[str, Any], wanted: str | None) -> str | None:
    """The property that carries the label: `wanted`, else the only enumeration, else None.

    "none" wants no label. Raises UserError when `wanted` is no property of the schema.
    """
    properties = schema.get("properties", {})
    if wanted is None:
        listed = [k for k, rule in properties.items() if isinstance(rule, dict) and "enum" in rule]
        return listed[0] if len(listed) == 1 else None
    if wanted not in properties and wanted != "none":
        raise unknown("property", wanted, [*properties, "none"], "--label")
    return wanted if wanted in properties else None


def label_in(response: str, key: str | None) -> str | None:
    """The label of an answer: what stands under `key` of a JSON one, None where nothing does; else
    the whole answer."""
    if key is None:
        return response
    answer = json_value(response)
    value = answer.get(key) if isinstance(answer, dict) else None
    return None if value is None else str(value)


def labels_of(responses: Sequence[str], metric: str, key: str | None) -> list[str] | None:
    """The label of each answer, None where the answers have none."""
    if key is None and metric != "label":
        return None
    return [str(label_in(response, key)).strip() for response in responses]


def one_spelling(responses: Sequence[str], key: str | None, clean: bool) -> list[str]:
    """The responses with labels that differ only in blanks, case or Unicode form in one form, the
    most frequent one.

    Raises UserError that names them unless `clean` says to. Blanks around labels that have no
    other form are taken off unasked.
    """
    found = [label_in(response, key) for response in responses]
    groups: dict[str, list[str]] = {}
    for form, _ in Counter(label for label in found if label is not None).most_common():
        groups.setdefault(normalise(form), []).append(form)
    several = [", ".join(map(repr, group)) for group in groups.values() if len(group) > 1]
    if several and not clean:
        raise UserError(
            "labels that differ only in blanks, case or Unicode form: "
            + "; ".join(several[:_SHOWN]),
            where="the answers",
            allowed="one form of each label",
            remedy="--clean-labels writes each in its most frequent form; or mend the rows",
        )
    to = {form: group[0].strip() for group in groups.values() for form in group}
    return [
        response if label is None or to[label] == label else _relabelled(response, key, to[label])
        for response, label in zip(responses, found, strict=True)
    ]


def _relabelled(response: str, key: str | None, label: str) -> str:
    return (
        label
        if key is None
        else json.dumps({**parse_json(response), key: label}, ensure_ascii=False)
    )
