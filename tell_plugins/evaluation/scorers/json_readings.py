"""Four readings of the same JSON answers.

`strict` is the measure to go by. `lenient` shows what a tolerant reader could still use.
`official_fixed` is what the paper's script meant to measure, for comparison with its figures.
`official` is what the published script does, which fails every right answer.

Every scorer gives each answer one verdict: adherent, or one kind of failure (`taxonomy`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.schemas import compile_schema, read_schema
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation import taxonomy
from tell_plugins.evaluation.answers import CUT
from tell_plugins.evaluation.scorers.label import Truth

WHITE = " \t\r\n"  # JSON's own white space, all that `strict` allows around an object
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


def true_labels(task: TaskRows, schema: AnswerSchema) -> Truth:
    """The label of each test row: the response's, be it an object or the bare label.

    Raises UserError for a row whose label is not one that the schema allows.
    """
    labels = [reference_label(response, schema) for response in task.responses]
    allowed = schema.labels or sorted(set(labels))
    for row, label in enumerate(labels):
        if label not in allowed:
            raise UserError(
                f"the response's label is '{label[:60]}'",
                where=task.place(row),
                allowed=", ".join(allowed),
                remedy=f"correct the row, or the values of '{schema.label}' in the schema",
            )
    return Truth(labels, allowed)


def reference_label(response: str, schema: AnswerSchema) -> str:
    """The label of a row's response, be it an object or the bare label."""
    try:
        value = json.loads(response)
    except ValueError:
        return response.strip()
    label = schema.label_of(value) if isinstance(value, dict) else None
    return response.strip() if label is None else label


def has_labels(card: Card) -> bool:
    return card.answer is not None and card.answer.label is not None


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
