"""GSM8K: the final number of an answer, exactly (Figure 15).

The number that follows the last `####` counts; without one, the last number of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation.intervals import Rate
from tell_plugins.evaluation.scored import Answer

EMPTY = "empty"
TRUNCATED = "truncated"  # the limit of new tokens cut the answer before its `####`
NO_NUMBER = "no_number"
WRONG_NUMBER = "wrong_number"
KINDS = (EMPTY, TRUNCATED, NO_NUMBER, WRONG_NUMBER)

MARKER = "####"
_CURRENCY = "$€£¥₹"
_MOST_DIGITS = 300  # longer "numbers" are loops of a model, and slow to compare
_VULGAR = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_DIGITS = r"(?:\d{1,3}(?:[,\u00a0\u202f']\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]}}%])-)?            # a minus, unless something is being subtracted
    (?:\\?[{_CURRENCY}]\s?(?P<sign2>-)?)?
    (?:
      \\[dt]?frac\{{(?P<over>{_DIGITS})\}}\{{(?P<under>{_DIGITS})\}}
    | (?:(?P<whole>{_DIGITS})[ ])?(?<![\d/])(?P<top>{_DIGITS})\s?/\s?(?P<bottom>{_DIGITS})(?![\d/])
    | (?P<before>{_DIGITS})?(?P<vulgar>[{_VULGAR}])
    | (?P<plain>{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE](?P<power>[+-]?\d{{1,3}})(?![\w.]))?
    )
    """,
    re.VERBOSE,
)
# What may stand between the marker and its number: white space, "Answer:", emphasis, brackets.
_AFTER_MARKER = re.compile(
    r"[ \t]*(?:(?:final[ ])?answer[ ]?(?:is|[:=])[ ]?)?(?:\\boxed\{|[*_`(\[{ ])*", re.IGNORECASE
)
_HEADING = re.compile(r"[.)][ \t]+[A-Za-z]")  # `#### 1. First step` numbers a heading


@dataclass(frozen=True)
class NumberScores:
    """Exact match of the final number.

    Attributes:
        failures: kinds in the order of KINDS; their sum is exact.n - exact.k.
        marked: answers that hold the `####` of the training answers.
        baseline: always answering the most frequent number of the references.
    """

    exact: Rate
    failures: dict[str, int]
    marked: Rate
    most_frequent: str | None
    most_frequent_share: Rate
    baseline_number: str
    baseline: Rate


def final_number(text: str) -> Fraction | None:
    """The final number of a text, exact; None when it has none.

    Understood: thousands separators (1,234), currency, signs, decimals, powers of ten (1e3),
    fractions (3/4, 1 1/2, ½, LaTeX's frac). A per cent sign is passed over: 50% is 50.
    """
    text = text.replace("\u2212", "-").replace("\\,", "").replace("\\!", "").replace("{,}", ",")
    marker = text.rfind(MARKER)
    while marker >= 0:
        start = marker + len(MARKER)
        lead = _AFTER_MARKER.match(text, start)
        found = _NUMBER.match(text, lead.end() if lead else start)
        heading = found and _HEADING.match(text, found.end())
        if found and not heading and (number := _value(found)) is not None:
            return number
        marker = text.rfind(MARKER, 0, marker)
    last = None
    for number in _numbers(text):
        last = number
    return last


def _numbers(text: str) -> Iterator[Fraction]:
    for match in _NUMBER.finditer(text):
        number = _value(match)
        if number is not None:
            yield number


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if match["sign"] or match["sign2"] else 1
    if len(match[0]) > _MOST_DIGITS:
        return None
    if match["over"]:
        under = _whole(match["under"])
        return sign * Fraction(_whole(match["over"]), under) if under else None
    if match["top"]:
        bottom = _whole(match["bottom"])
        if not bottom:
            return None
        return sign * (_whole(match["whole"] or "0") + Fraction(_whole(match["top"]), bottom))
    if match["vulgar"]:
        part = Fraction(unicodedata.numeric(match["vulgar"])).limit_denominator(10)
        return sign * (_whole(match["before"] or "0") + part)
    digits = re.sub(r"[,\u00a0\u202f']", "", match["plain"])
    return sign * Fraction(digits) * Fraction(10) ** int(match["power"] or 0)


def _whole(digits: str) -> int:
    return int(re.sub(r"\D", "", digits))


def shown_number(number: Fraction) -> str:
    """A number as one reads it: 18, 2.5, 1/3."""
    if number.denominator == 1:
        return str(number.numerator)
    decimal = f"{float(number):.15g}" if abs(number) < 10**15 else str(number)
    return decimal if Fraction(decimal) == number else str(number)


def reference_numbers(task: TaskRows) -> list[Fraction]:
    """The final number of each test row. Raises UserError for a row without one."""
    numbers = []
    for row, response in enumerate(task.responses):
        number = final_number(response)
        if number is None:
            raise UserError(
                "the response holds no number",
                where=task.place(row),
                allowed="a response that ends with `#### <number>`, or holds a number",
                remedy="correct the row, or the card's metric",
            )
        numbers.append(number)
    return numbers


def kind_of(answer: Answer, number: Fraction | None, right: Fraction) -> str | None:
    """The kind of failure of an answer with this final number, or None when it is right."""
    if number == right:
        return None
    if not answer.text.strip():
        return EMPTY
    if answer.cut and MARKER not in answer.text:
        return TRUNCATED
    return NO_NUMBER if number is None else WRONG_NUMBER
