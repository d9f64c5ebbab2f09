"""Four readings of the same JSON answers.

`strict` is the measure to go by. `lenient` shows what a tolerant reader could still use.
`official_fixed` is what the paper's script meant to measure, for comparison with its figures.
`official` is what the published script does, which fails every right answer.

Every scorer gives each answer one verdict: adherent, or one kind of failure (`taxonomy`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tell_plugins.core.cards import Card
from tell_plugins.core.schemas import compile_schema, read_schema
from tell_plugins.evaluation import taxonomy
from tell_plugins.evaluation.json_reading import (
    WHITE,
    Reading,
    begins_object,
    first_object,
    only_values,
    read_whole,
    unfenced,
)
from tell_plugins.evaluation.scored import CUT

OFFICIAL_LIMIT = 1000  # rows that the published script looks at


class Verdict(NamedTuple):
    """What a scorer says of one answer.

    Attributes:
        kind: `taxonomy.ADHERENT` or a kind of failure.
        value: the object that was read (a list where the schema wants one), if there is any.
    """

    kind: str
    value: Any = None

    @property
    def adherent(self) -> bool:
        return self.kind == taxonomy.ADHERENT


@dataclass(frozen=True)
class AnswerSchema:
    """The schema of a card's answers and the property that carries the label (or None)."""

    schema: dict[str, Any]
    label: str | None = None

    @cached_property
    def _validator(self) -> Any:
        return compile_schema(self.schema, "the answer schema")

    @property
    def properties(self) -> dict[str, Any]:
        found = self.schema.get("properties")
        return found if isinstance(found, dict) else {}

    @property
    def labels(self) -> list[str] | None:
        """The allowed labels in the schema's order, or None where it does not list them."""
        rule = self.properties.get(self.label or "")
        allowed = rule.get("enum") if isinstance(rule, dict) else None
        return [label_text(value) for value in allowed] if isinstance(allowed, list) else None

    def broken_rule(self, value: Any) -> str | None:
        """The kind of the first rule of the schema that `value` breaks, or None."""
        try:
            return taxonomy.schema_kind(self._validator.iter_errors(value))
        except RecursionError:  # nested deeper than any answer that is meant
            return taxonomy.OTHER_RULE

    def label_of(self, value: Any) -> str | None:
        """The label that an object carries, as text; None when it has none."""
        if value is None or self.label is None or self.label not in value:
            return None
        return label_text(value[self.label])


def label_text(value: Any) -> str:
    """A label as text: a string as it is, `true`, `3` or `null` as JSON writes them."""
    return value if isinstance(value, str) else json.dumps(value)


def card_schema(card: Card) -> AnswerSchema:
    """The answer schema of a JSON card. Raises UserError when it is no JSON Schema."""
    schema = read_schema(card.schema_path())
    return AnswerSchema(schema, card.answer.label if card.answer else None)


def strict(text: str, finish_reason: str, schema: AnswerSchema) -> Verdict:
    """The answer is the object and nothing else, and the object obeys the card's schema.

    Only JSON's white space may stand around it. Duplicate keys and NaN, Infinity or numbers that
    overflow are refused, since readers disagree about them.
    """
    if not text.strip():
        return Verdict(taxonomy.EMPTY)
    reading = read_whole(text)
    return _judge(reading, schema) if reading else Verdict(_unparsed(text, finish_reason))


def lenient(text: str, finish_reason: str, schema: AnswerSchema) -> Verdict:
    """The first JSON object of the answer obeys the card's schema.

    Code fences and prose around it are stripped, further objects ignored. Everything about the
    object itself is as in `strict`: nothing is repaired.
    """
    if not text.strip():
        return Verdict(taxonomy.EMPTY)
    reading = read_whole(text) or read_whole(unfenced(text) or "")
    if reading is None and (found := first_object(text)):
        reading = found.reading
    return _judge(reading, schema) if reading else Verdict(_unparsed(text, finish_reason))


def official_fixed(text: str, finish_reason: str, schema: AnswerSchema) -> Verdict:
    """What the paper's script means to count: json.loads gives an object, quotes repaired.

    The script wants to turn quotes inside the thought into single ones and to leave the quotes of
    keys and values double, so that answers with single-quoted keys, or with bare quotes inside a
    text, still parse. Here this is done where json.loads fails: the schema's keys are looked for
    in their order, quoted either way. As in the script no schema is checked, duplicate keys and
    NaN pass, and nothing may stand around the object. Unlike the script, labels are left alone.
    """
    if not text.strip():
        return Verdict(taxonomy.EMPTY)
    value = _loads(text)
    if value is _FAILED:
        value = _loads(requoted(text, list(schema.properties)))
    if value is _FAILED:
        long_integer = read_whole(text) is not None  # the one thing json.loads refuses beyond JSON
        return Verdict(taxonomy.NOT_FINITE if long_integer else _unparsed(text, finish_reason))
    return (
        Verdict(taxonomy.ADHERENT, value)
        if isinstance(value, dict)
        else Verdict(taxonomy.NOT_OBJECT)
    )


def official(text: str, finish_reason: str, schema: AnswerSchema) -> Verdict:
    """What the published script does (`eval_halu.py`), for comparison only.

    Every double quote becomes a single one and only the opening quotes of the key `thought` are
    put back, so every object with a string in it stops being JSON and a perfect model scores 0.0;
    "yes" becomes "no" in the whole text; JSON that is no object ends the script (`crash`). All
    that can pass is an object without any string, such as `{}`.
    """
    text = text.replace('"', "'")
    for quote in ("'", '"'):
        text = text.replace(f"'thought': {quote}", '"thought": "')
    try:
        value = json.loads(text.replace("yes", "no"))
    except json.JSONDecodeError:  # all that the script catches
        return Verdict(taxonomy.INVALID_JSON if text.strip() else taxonomy.EMPTY)
    except (ValueError, RecursionError):
        return Verdict(taxonomy.CRASH)
    if not isinstance(value, dict):
        return Verdict(taxonomy.CRASH)
    return Verdict(taxonomy.ADHERENT, value)


Scorer = Callable[[str, str, AnswerSchema], Verdict]


class NamedScorer(NamedTuple):
    """A scorer under its name, over the first `limit` rows (None: over all)."""

    name: str
    judge: Scorer
    limit: int | None


SCORERS = (
    NamedScorer("strict", strict, None),
    NamedScorer("lenient", lenient, None),
    NamedScorer("official_fixed", official_fixed, None),
    NamedScorer("official", official, OFFICIAL_LIMIT),
)


def requoted(text: str, keys: list[str]) -> str:
    """`text` with the quotes of the given keys and their values double, those inside single.

    The text is returned as it is unless it is one object with exactly these keys in this order.
    Values without quotes (numbers, true, null) stay as they are.
    """
    if not keys:
        return text
    pairs = [_pair(key, n) for n, key in enumerate(keys)]
    pattern = _SPACE + r"\{" + ",".join(pairs) + r"\}" + _SPACE
    match = re.fullmatch(pattern, text, re.DOTALL)
    if match is None:
        return text
    return "{" + ", ".join(f'"{key}": {_value(match, n)}' for n, key in enumerate(keys)) + "}"


_SPACE = f"[{WHITE}]*"


def _pair(key: str, n: int) -> str:
    """The pattern of the n-th key and its value, quoted either way.

    A value never reaches over a quote and a closing brace, into another object.
    """
    inside = r"""(?:(?!["']""" + _SPACE + r"""\}).)*?"""
    quoted = rf"""(?P<quote{n}>["'])(?P<text{n}>{inside})(?P=quote{n})"""
    bare = rf"""(?P<bare{n}>[^\s"',{{}}\[\]]+)"""
    name = rf"""["']{re.escape(key)}["']"""
    return f"{_SPACE}{name}{_SPACE}:{_SPACE}(?:{quoted}|{bare}){_SPACE}"


def _value(match: re.Match[str], n: int) -> str:
    if match[f"bare{n}"] is not None:
        return match[f"bare{n}"]
    inner = match[f"text{n}"].replace('\\"', "'").replace("\\'", "'").replace('"', "'")
    return f'"{inner}"'


_FAILED = object()  # json.loads may well give None


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _FAILED


def _judge(reading: Reading, schema: AnswerSchema) -> Verdict:
    """The verdict on what was parsed."""
    wanted = list if schema.schema.get("type") == "array" else dict
    value = reading.value if isinstance(reading.value, wanted) else None
    if reading.duplicate_key:
        return Verdict(taxonomy.DUPLICATE_KEY, value)
    if reading.not_finite:
        return Verdict(taxonomy.NOT_FINITE, value)
    if value is None:
        return Verdict(taxonomy.NOT_OBJECT)
    return Verdict(schema.broken_rule(value) or taxonomy.ADHERENT, value)


def _unparsed(text: str, finish_reason: str) -> str:
    """The kind of a text that is not a JSON value as a whole, nor empty."""
    inside = unfenced(text)
    if inside is not None and read_whole(inside):
        return taxonomy.CODE_FENCE
    found = first_object(text)
    if found is not None:
        before, after = text[: found.start], text[found.reading.end :]
        alone = not before.strip(WHITE) and only_values(after)
        return taxonomy.SEVERAL_VALUES if alone else taxonomy.TEXT_AROUND
    if not begins_object(text):
        return taxonomy.PROSE
    return taxonomy.TRUNCATED if finish_reason == CUT else taxonomy.INVALID_JSON
