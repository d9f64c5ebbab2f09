"""Numbers in texts, exactly: the one a text ends with, or the one that it is.

A number is read whole or not at all: of 12,5 or 192.168.0.1 no part is taken for a number.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

MARKER = "####"  # stands before the final number, as in GSM8K
_CURRENCY = "$€£¥₹"
_MOST_DIGITS = 300  # longer "numbers" are loops of a model, and slow to compare
_VULGAR = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_DIGITS = r"(?:[1-9]\d{0,2}(?:[,\u00a0\u202f']\d{3})+(?!\d)|\d+)"
_BEFORE = r"(?<!\d)(?<!\d[.,:/'eE])(?<!\d[eE][+-])"  # here no number goes on from the left,
_AFTER = r"(?!\d|[.,:/']\d|[eE][+-]?\d)"  # nor to the right
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w)\]}}%])-)?            # a minus, unless something is being subtracted
    (?:\\?[{_CURRENCY}]\s?(?P<sign2>-)?)?
    {_BEFORE}
    (?:
      (?:(?P<whole>{_DIGITS})[ ])?(?P<top>{_DIGITS})\s?/\s?(?P<bottom>{_DIGITS})
    | (?P<before>{_DIGITS})?(?P<vulgar>[{_VULGAR}])
    | (?P<plain>{_DIGITS}(?:\.\d+)?|(?<!\.)\.\d+)(?:[eE](?P<power>[+-]?\d{{1,3}})(?!\w))?
    )
    {_AFTER}
    """,
    re.VERBOSE,
)
_FRAC = re.compile(rf"(?<!\d)\\[dt]?frac\{{({_DIGITS})\}}\{{({_DIGITS})\}}")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
# What may stand between the marker and its number: white space, "Answer:", emphasis, brackets.
_AFTER_MARKER = re.compile(
    r"[ \t]*(?:(?:final[ ])?answer[ ]?(?:is|[:=])[ ]?)?(?:\\boxed\{|[*_`(\[{ ])*", re.IGNORECASE
)
_UNREAD = re.compile(rf"[-+.\\{_CURRENCY}\s]*\d")  # after a marker: a number that is none
_HEADING = re.compile(r"[.)][ \t]+[A-Za-z]")  # `#### 1. First step` numbers a heading


def final_number(text: str) -> Fraction | None:
    """The final number of a text, exact; None when it has none, or one that cannot be read.

    The number that follows the last `####` counts; without one, the last number of the text.
    Understood: thousands separators (1,234), currency, signs, decimals, powers of ten (1e3),
    fractions (3/4, 1 1/2, ½, LaTeX's frac). A per cent sign is passed over: 50% is 50.
    """
    text = _prepared(text)
    marker = text.rfind(MARKER)
    while marker >= 0:
        lead = _AFTER_MARKER.match(text, marker + len(MARKER))
        start = lead.end() if lead else marker + len(MARKER)
        number = _NUMBER.match(text, start)
        if number and not _HEADING.match(text, number.end()):
            return _value(number)
        if not number and _UNREAD.match(text, start):
            return None
        marker = text.rfind(MARKER, 0, marker)
    found = list(_NUMBER.finditer(text))
    if not found or re.search(r"\d", text[found[-1].end() :]):
        return None
    return _value(found[-1])


def whole_number(text: str) -> Fraction | None:
    """The number that a text is and nothing else, or that stands so after its last `####`."""
    body = _prepared(text).rpartition(MARKER)[2].strip().rstrip(f".%{_CURRENCY} ")
    match = _NUMBER.fullmatch(body)
    return None if match is None else _value(match)


def _prepared(text: str) -> str:
    text = text.replace("\u2212", "-").replace("\\,", "").replace("\\!", "").replace("{,}", ",")
    text = _FRAC.sub(r"\1/\2", text)
    return _DATE.sub("0:0", text)  # which is no number, while its parts would be three


def _value(match: re.Match[str]) -> Fraction | None:
    sign = -1 if match["sign"] or match["sign2"] else 1
    if len(match[0]) > _MOST_DIGITS:
        return None
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
