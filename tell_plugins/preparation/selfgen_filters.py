"""Which of a model's own instructions and answers are kept: length, repetition, language, form."""

from __future__ import annotations

import re
from collections import Counter

LANGUAGES = ("en", "any")
INSTRUCTION_CHARS = (12, 1500)
INSTRUCTION_WORDS = 3
ANSWER_CHARS = (2, 6000)
_N = 4  # words of an n-gram
_LEAST_DISTINCT = 0.7  # of all n-grams; prose has 0.95 and more, a loop far less
_SHORT = 3 * _N  # words below which n-grams say nothing
_LATIN = 0.9  # of the letters of an English text
# the commonest English words, which no other language has so many of
_COMMON = (
    "the of and to a in is that it for on as with be are this was by or from at an your you what "
    "how why which can i have has do does will would should not if my me we our their there these "
    "into between about than more write give explain describe"
)
_STOP_WORDS = frozenset(_COMMON.split())
_LEAST_STOP_WORDS = 0.15
_REFUSAL = re.compile(
    r"\b(i(?:'|’)?m (?:very |really )?sorry\b|i apologi[sz]e\b|as an ai\b|i can(?:no|')t (?:help|"
    r"assist|provide|fulfil)|i(?:'m| am) (?:unable|not able) to\b|i do(?:n't| not) have (?:access|"
    r"the ability|personal))",
    re.IGNORECASE,
)


def instruction_problem(text: str, language: str) -> str | None:
    """Why an instruction is not kept, None when it is."""
    words = text.split()
    least, most = INSTRUCTION_CHARS
    if len(text) < least or len(words) < INSTRUCTION_WORDS:
        return "instruction too short"
    if len(text) > most:
        return "instruction too long"
    if repeats_itself(text):
        return "instruction repeats itself"
    if language == "en" and not is_english(text):
        return "instruction not English"
    return None


def answer_problem(text: str, instruction: str, language: str, drop_refusals: bool) -> str | None:
    """Why an answer is not kept, None when it is."""
    least, most = ANSWER_CHARS
    if len(text) < least:
        return "answer too short"
    if len(text) > most:
        return "answer too long"
    if text.strip().casefold() == instruction.strip().casefold():
        return "answer repeats the instruction"
    if repeats_itself(text):
        return "answer repeats itself"
    if language == "en" and not _is_latin(text):
        return "answer not English"
    if drop_refusals and _REFUSAL.search(text[:200]):
        return "refusal"
    return None


def repeats_itself(text: str) -> bool:
    """Whether the text loops: few distinct word n-grams, or one line over and over."""
    words = text.lower().split()
    if len(words) >= _SHORT:
        grams = [tuple(words[start : start + _N]) for start in range(len(words) - _N + 1)]
        if len(set(grams)) < _LEAST_DISTINCT * len(grams):
            return True
    lines = Counter(line.strip().lower() for line in text.splitlines() if len(line.strip()) > 3)
    return bool(lines) and max(lines.values()) >= 4


def is_english(text: str) -> bool:
    """Latin letters and, in all but very short texts, a fair share of common English words."""
    if not _is_latin(text):
        return False
    words = re.findall(r"[a-z']+", text.lower())
    if len(words) < 5:
        return bool(words)
    common = sum(word in _STOP_WORDS for word in words[:200])
    return common >= _LEAST_STOP_WORDS * min(len(words), 200)


def _is_latin(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    latin = sum(character < "\u0250" for character in letters)
    return latin >= _LATIN * len(letters)
