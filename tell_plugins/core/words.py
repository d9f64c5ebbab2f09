"""Token counts word by word: texts repeat their words, and each is tokenised once.

A tokenizer that joins nothing across a blank counts a text as the sum of its words. Whether it is
such a one is proven by its file, never tried out: all others count every text as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_Encode = Callable[[list[str]], Collection[int]]

_BLANK = "▁"  # how SentencePiece writes it
_BETWEEN = re.compile(r"(?<=\S) (?=.)", re.DOTALL)  # the blanks that part words
_RUN = re.compile(r" (?<=\s )")  # a blank that follows white space parts none
_KEPT = 1 << 25  # bytes of words, about, before they are forgotten
_ENTRY = 100  # bytes of a kept word beside its letters, about
# how GPT-4, Llama 3 and Qwen part text; the former two take three digits at once
_PARTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Rule:
    """How the words of a text are tokenised by themselves.

    Attributes:
        front: what stands in front of each word but the first.
        whole: texts that hold it are tokenised as a whole; None where no text need be.
    """

    front: str
    whole: re.Pattern[str] | None = None


def rule_of(tokenizer: str) -> Rule | None:
    """The rule of a `tokenizer.json`, given as text; None where a text is no sum of its words."""
    saved = json.loads(tokenizer)
    model = saved["model"]
    if model.get("type") != "BPE" or model.get("dropout"):
        return None
    added = saved.get("added_tokens") or []
    steps, parts = _steps(saved.get("normalizer")), _steps(saved.get("pre_tokenizer"))
    if not parts and _is_llama_2(steps, model):
        held = [re.escape(token["content"]) for token in added]
        return Rule("", re.compile("|".join([*held, _BLANK])))
    composed = all(step == {"type": "NFC"} for step in steps)
    plain = all(_is_plain(token) for token in added)
    return Rule(" ") if composed and plain and _part_at_blanks(parts) else None


def _steps(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The parts of a normalizer or pre-tokenizer that may be none, one or a sequence."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    inner = step.get("normalizers") or step.get("pretokenizers") or []
    return [part for each in inner for part in _steps(each)]


def _is_llama_2(steps: list[Mapping[str, Any]], model: Mapping[str, Any]) -> bool:
    """Llama-2's kind: blanks are letters, with which tokens begin and none goes on."""
    expected = [
        {"type": "Prepend", "prepend": _BLANK},
        {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK},
    ]
    affixes = ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    vocabulary = model["vocab"]
    return (
        steps == expected
        and not any(model.get(key) for key in affixes)
        and _BLANK in vocabulary
        and not any(_BLANK in token.lstrip(_BLANK) for token in vocabulary)
    )


def _is_plain(token: Mapping[str, Any]) -> bool:
    """Whether an added token takes nothing of what stands around it."""
    flags = ("lstrip", "rstrip", "single_word")
    return not re.search(r"\s", token["content"]) and not any(token.get(flag) for flag in flags)


def _part_at_blanks(parts: list[Mapping[str, Any]]) -> bool:
    """Whether a text is parted in front of every blank that follows a letter or sign."""
    by_bytes = [part for part in parts if part["type"] == "ByteLevel"]
    others = [part for part in parts if part["type"] not in ("ByteLevel", "Digits")]
    if len(by_bytes) != 1 or parts[-1] is not by_bytes[0]:
        return False
    if by_bytes[0].get("use_regex", True):
        return not others
    return len(others) == 1 and _parts_as_known(others[0])


def _parts_as_known(part: Mapping[str, Any]) -> bool:
    pattern = (part.get("pattern") or {}).get("Regex", "").replace(r"\p{N}{1,3}", r"\p{N}")
    is_whole = part.get("behavior") == "Isolated" and not part.get("invert")
    return part["type"] == "Split" and is_whole and pattern == _PARTS


class Words:
    """Counts tokens of texts by a tokenizer's rule and remembers words."""

    def __init__(self, rule: Rule | None, encode: _Encode) -> None:
        """`encode` gives the number of tokens of each text."""
        self._rule, self._encode = rule, encode
        self._first: dict[str, int] = {}
        self._later = self._first if rule is None or not rule.front else {}
        self._front = rule.front if rule is not None else ""
        self._size = 0

    def count(self, texts: list[str]) -> npt.NDArray[np.uint32]:
        """The number of tokens of each text."""
        if self._rule is None:
            return np.array(list(self._encode(texts)), np.uint32)
        if self._size > _KEPT:
            self._first.clear()
            self._later.clear()
            self._size = 0
        whole = self._rule.whole
        odd = np.array([_is_odd(text, whole) for text in texts], bool)
        counts = np.zeros(len(texts), np.uint32)
        if not odd.all():
            plain = [texts[place] for place in np.flatnonzero(~odd)]
            counts[~odd] = self._sums(pc.split_pattern(pa.array(plain, pa.string()), " "))
        if odd.any():
            words = [_words(texts[place], whole) for place in np.flatnonzero(odd)]
            counts[odd] = self._sums(pa.array(words, pa.list_(pa.string())))
        return counts

    def _sums(self, texts: pa.ListArray) -> npt.NDArray[np.int64]:
        """The tokens of texts given as their words; each word that is new is asked for once."""
        encoded = texts.flatten().dictionary_encode()
        words, places = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        first = texts.offsets.to_numpy()[:-1]
        is_later = np.ones(len(places), bool)
        is_later[first] = False
        counts = np.zeros(len(places), np.int64)
        counts[first] = self._counts(self._first, words, places[first], "")
        counts[is_later] = self._counts(self._later, words, places[is_later], self._front)
        return np.asarray(np.add.reduceat(counts, first))

    def _counts(
        self, known: dict[str, int], words: list[str], places: npt.NDArray[np.int32], front: str
    ) -> npt.NDArray[np.int64]:
        used = np.unique(places)
        names = [words[place] for place in used]
        self._learn(known, names, front)
        table = np.zeros(len(words), np.int64)
        table[used] = [known[name] for name in names]
        return table[places]

    def _learn(self, known: dict[str, int], words: list[str], front: str) -> None:
        new = [word for word in words if word not in known]
        if new:
            known.update(zip(new, self._encode([front + word for word in new]), strict=True))
            self._size += sum(map(len, new)) + _ENTRY * len(new)


def _is_odd(text: str, whole: re.Pattern[str] | None) -> bool:
    """Whether some blank of a text parts no words, or the text has to stay whole."""
    at_an_end = text[:1] == " " or text[-1:] == " "
    return bool(
        at_an_end or _RUN.search(text) or (whole is not None and whole.search(text) is not None)
    )


def _words(text: str, whole: re.Pattern[str] | None) -> list[str]:
    """The words of any text, at least one, without the blanks in front of them."""
    if whole is not None and whole.search(text):
        return [text]
    return _BETWEEN.split(text)
