"""Four readings of the same JSON answers.

`strict` is the measure to go by. `lenient` shows what a tolerant reader could still use.
`official_fixed` is what the paper's script meant to measure, for comparison with its figures.
`official` is what the published script does, which fails every right answer.

Each gives an answer one verdict: adherent, or one kind of failure (`judged.KINDS`).
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
from tell_plugins.core.schemas import compile_schema, read_schema
from tell_plugins.evaluation.answers import CUT
from tell_plugins.evaluation.judged import KINDS

OFFICIAL_LIMIT = 1000  # rows that the published script looks at
ADHERENT = "adherent"
_WHITE = " \t\r\n"  # JSON's own white space, all that `strict` allows around an object
# Where an object (or a list of objects) begins; `{` in running text is not followed by these.
_OPENING = re.compile(r"""\[\s*\{\s*["'}]|\{\s*(?:["'“”‘’}]|[A-Za-z_]\w*\s*:|$)""")
_LIST = re.compile(r"""\s*\[\s*["'{\[]""")
# the kind of failure where a rule of a JSON Schema is broken; any other is `other_rule`
_KIND_OF_RULE = {
    **dict.fromkeys(("required", "dependentRequired"), "missing_key"),
    **dict.fromkeys(("additionalProperties", "unevaluatedProperties"), "extra_key"),
    **{"type": "wrong_type", "enum": "wrong_enum", "const": "wrong_enum"},
}


class Verdict(NamedTuple):
    """`ADHERENT` or a kind of failure, and the object (or list) of an adherent answer."""

    kind: str
    value: Any = None

    @property
    def adherent(self) -> bool:
        return self.kind == ADHERENT


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
    def allowed(self) -> list[Any] | None:
        """The values that the label may have, or None where the schema does not list them."""
        rule = self.properties.get(self.label or "")
        found = rule.get("enum") if isinstance(rule, dict) else None
        return found if isinstance(found, list) else None

    @property
    def labels(self) -> list[str] | None:
        """The same as text."""
        return None if self.allowed is None else [_label_text(value) for value in self.allowed]

    def verdict(self, value: Any) -> Verdict:
        """Of the kinds of rules that `value` breaks the first in the order of KINDS."""
        try:
            kinds = {_kind_of(error) for error in self._validator.iter_errors(value)}
        except (RecursionError, OverflowError):  # deeper, or larger, than any answer that is meant
            kinds = {"other_rule"}
        return Verdict(min(kinds, key=KINDS.index)) if kinds else Verdict(ADHERENT, value)

    def label_of(self, value: Any) -> str | None:
        """The label that an object carries, as text; None when it has none."""
        if value is None or self.label is None or self.label not in value:
            return None
        return _label_text(value[self.label])


def _label_text(value: Any) -> str:
    """A label as text: a string as it is, `true`, `3` or `null` as JSON writes them."""
    return value if isinstance(value, str) else json.dumps(value)


def _kind_of(error: Any) -> str:
    if error.validator == "enum" and type(error.instance) not in map(type, error.validator_value):
        return "wrong_type"
    return _KIND_OF_RULE.get(error.validator, "other_rule")


def card_schema(card: Card) -> AnswerSchema:
    """The answer schema of a JSON card. Raises UserError when it is no JSON Schema."""
    schema = read_schema(card.schema_path())
    return AnswerSchema(schema, card.answer.label if card.answer else None)


def has_labels(card: Card) -> bool:
    """Whether the card's JSON answers carry a label."""
    return card.answer is not None and card.answer.label is not None


def reference_label(response: str, schema: AnswerSchema) -> str:
    """The label of a row's response, be it an object or the bare label."""
    try:
        value = json.loads(response)
    except ValueError:
        value = None
    label = schema.label_of(value) if isinstance(value, dict) else None
    return response.strip() if label is None else label


# --- the readings ---------------------------------------------------------------------------------


def strict(text: str, finish_reason: str, schema: AnswerSchema) -> Verdict:
    """The answer is the object and nothing else, and the object obeys the card's schema.

    Only JSON's white space may stand around it. Duplicate keys and NaN, Infinity or numbers that
    overflow are refused, since readers disagree about them.
    """
    return _judged(read_whole(text), text, finish_reason, schema)


def lenient(text: str, finish_reason: str, schema: AnswerSchema) -> Verdict:
    """The first JSON object of the answer obeys the card's schema.

    Code fences and prose around it are stripped, further objects ignored. Everything about the
    object itself is as in `strict`: nothing is repaired.
    """
    parsed = read_whole(text) or read_whole(_unfenced(text)) or _first_object(text)[1]
    return _judged(parsed, text, finish_reason, schema)


def official_fixed(text: str, finish_reason: str, schema: AnswerSchema) -> Verdict:
    """What the paper's script means to count: json.loads gives an object, quotes repaired.

    Where json.loads fails, the schema's keys are looked for in their order, quoted either way, and
    quotes inside a text made single. As in the script no schema is checked, duplicate keys and NaN
    pass, and nothing may stand around the object. Unlike the script, labels are left alone.
    """
    for tried in (text, _requoted(text, list(schema.properties))):
        try:
            value = json.loads(tried)
        except (ValueError, RecursionError):
            continue
        return Verdict(ADHERENT, value) if isinstance(value, dict) else Verdict("not_object")
    return Verdict(_unparsed(text, finish_reason))


def official(text: str, finish_reason: str, schema: AnswerSchema) -> Verdict:
    """What the published script does (`eval_halu.py`), for comparison only.

    Every double quote becomes a single one and only the opening quotes of the key `thought` are
    put back, so all that can pass is an object without any string, such as `{}`, and a perfect
    model scores 0.0. "yes" becomes "no"; JSON that is no object ends the script (`crash`).
    """
    text = text.replace('"', "'")
    for quote in ("'", '"'):
        text = text.replace(f"'thought': {quote}", '"thought": "')
    try:
        value = json.loads(text.replace("yes", "no"))
    except json.JSONDecodeError:  # all that the script catches
        return Verdict("invalid_json" if text.strip() else "empty")
    except (ValueError, RecursionError):
        return Verdict("crash")
    return Verdict(ADHERENT, value) if isinstance(value, dict) else Verdict("crash")


class Reading(NamedTuple):
    """A reading under its name, over the first `limit` rows (None: over all)."""

    name: str
    judge: Callable[[str, str, AnswerSchema], Verdict]
    limit: int | None = None


READINGS = (
    Reading("strict", strict),
    Reading("lenient", lenient),
    Reading("official_fixed", official_fixed),
    Reading("official", official, OFFICIAL_LIMIT),
)


# --- JSON in a text -------------------------------------------------------------------------------


class Parsed(NamedTuple):
    """A JSON value, where it ends in the text, and the kind of failure that it is in any case."""

    value: Any
    end: int
    wrong: str | None


def read_at(text: str, start: int = 0) -> Parsed | None:
    """The JSON value that begins at `start`, or None. Never raises, however odd the text."""
    wrong: set[str] = set()

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(items)
        if len(value) < len(items):
            wrong.add("duplicate_key")
        return value

    def decimal(digits: str) -> float:
        number = float(digits)
        if not math.isfinite(number):
            wrong.add("not_finite")
        return number

    decoder = json.JSONDecoder(object_pairs_hook=pairs, parse_float=decimal, parse_constant=decimal)
    try:
        value, end = decoder.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return Parsed(value, end, min(wrong, default=None))


def read_whole(text: str) -> Parsed | None:
    """The JSON value that `text` is, white space of JSON around it allowed; else None."""
    body = text.strip(_WHITE)
    parsed = read_at(body)
    return parsed if parsed is not None and parsed.end == len(body) else None


def _judged(parsed: Parsed | None, text: str, finish_reason: str, schema: AnswerSchema) -> Verdict:
    if parsed is None:
        return Verdict(_unparsed(text, finish_reason))
    if parsed.wrong:
        return Verdict(parsed.wrong)
    wanted = list if schema.schema.get("type") == "array" else dict
    is_one = isinstance(parsed.value, wanted)
    return schema.verdict(parsed.value) if is_one else Verdict("not_object")


def _unparsed(text: str, finish_reason: str) -> str:
    """The kind of a text that is not a JSON value as a whole."""
    if not text.strip():
        return "empty"
    if read_whole(_unfenced(text)):
        return "code_fence"
    start, parsed = _first_object(text)
    if parsed is not None:
        alone = not text[:start].strip(_WHITE) and _only_values(text[parsed.end :])
        return "several_values" if alone else "text_around"
    if not _OPENING.search(text) and not _LIST.match(text):
        return "prose"
    return "truncated" if finish_reason == CUT else "invalid_json"


def _only_values(text: str) -> bool:
    """Whether the text is nothing but JSON objects and lists, one after the other."""
    while text := text.lstrip(_WHITE + ","):
        parsed = read_at(text)
        if parsed is None or not isinstance(parsed.value, (dict, list)):
            return False
        text = text[parsed.end :]
    return True


def _unfenced(text: str) -> str:
    """What stands in the code fence (or back-ticks) that the whole text is; else nothing."""
    text = text.strip()
    for fence in ("```", "~~~", "`"):
        if text.startswith(fence):  # the end may be missing; a language may stand behind it
            return re.sub(r"^[\w+-]+", "", text.removeprefix(fence).removesuffix(fence))
    return ""


def _first_object(text: str) -> tuple[int, Parsed | None]:
    """The first JSON object (or list of objects) in a text, and where it begins.

    What begins like an object and is none is passed over up to its closing brace, so an object
    nested in a broken one is never taken for the answer.
    """
    position: int | None = 0
    while position is not None and (match := _OPENING.search(text, position)):
        parsed = read_at(text, match.start())
        if parsed is not None:
            return match.start(), parsed
        position = _closing(text, match.start())
    return 0, None


def _closing(text: str, start: int) -> int | None:
    """The position after the bracket that closes the one at `start`; strings are not looked into,
    since in broken JSON nobody knows where they end."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] in "{[") - (text[position] in "}]")
        if depth == 0:
            return position + 1
    return None


# --- quotes that the paper's script means to repair -----------------------------------------------

_SPACE = f"[{_WHITE}]*"
# a value never reaches over a quote and a closing brace, into another object
_TEXT = r"""(?:(?!["']""" + _SPACE + r"""\}).)*?"""


def _requoted(text: str, keys: list[str]) -> str:
    """`text` with the quotes of the given keys and their values double, those inside single.

    The text is returned as it is unless it is one object with exactly these keys in this order.
    Values without quotes (numbers, true, null) stay as they are.
    """
    values = [
        rf"""(?:(?P<q{n}>["'])(?P<text{n}>{_TEXT})(?P=q{n})|(?P<bare{n}>[^\s"',{{}}\[\]]+))"""
        for n in range(len(keys))
    ]
    names = [rf"""["']{re.escape(key)}["']{_SPACE}:""" for key in keys]
    pairs = [_SPACE.join(("", *pair, "")) for pair in zip(names, values, strict=True)]
    match = re.fullmatch(rf"{_SPACE}\{{{','.join(pairs)}\}}{_SPACE}", text, re.DOTALL)
    if match is None:
        return text
    found = {key: match[f"bare{n}"] or _quoted(match[f"text{n}"]) for n, key in enumerate(keys)}
    return "{" + ", ".join(f'"{key}": {value}' for key, value in found.items()) + "}"


def _quoted(text: str) -> str:
    return '"' + re.sub(r"""\\?["]|\\'""", "'", text) + '"'
