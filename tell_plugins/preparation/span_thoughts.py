"""Thoughts built from HaluEval's annotated spans, without a language model.

An annotator marked what is wrong with a response: passages of it (quoted here), or a remark in
the annotator's own words. The thought says that, tied to the query; nothing is added to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

QUERY_CHARS = 90
SPAN_CHARS = 140
MOST_SPANS = 3
WHOLE = 0.9  # a span of this share of the response is the response as a whole
_FAULT = "is wrong, cannot be verified or does not answer what was asked"
_WORD = re.compile(r"[^\W_]+")
_OTHER_SCRIPT = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]")  # Chinese remarks


class Thought(NamedTuple):
    """A thought, and which of the forms it has (for the provenance file)."""

    text: str
    form: str


def shorten(text: str, limit: int) -> str:
    """`text` on one line, cut at a word near `limit` characters, double quotes made single."""
    line = " ".join(text.replace('"', "'").split())
    if len(line) <= limit:
        return line
    head = line[: limit + 1]
    cut = head.rfind(" ")
    return (head[:cut] if cut > limit // 2 else head[:limit]).rstrip(" ,;:.") + " ..."


def _quoted(text: str, limit: int = SPAN_CHARS) -> str:
    """`text` shortened and in double quotes, its own full stop left out."""
    line = shorten(text, limit)
    return f'"{line if line.endswith("...") else line.rstrip(". ") or line}"'


def span_thought(query: str, response: str, label: str, spans: Sequence[str]) -> Thought:
    """The thought for one HaluEval row; the same row always gives the same thought."""
    opening = f"The query is {_quoted(query, QUERY_CHARS)}."
    if label == "no":
        return Thought(f"{opening} No part of the response was found that {_FAULT}.", "no fault")
    quotes, remarks = _sort_spans(response, spans)
    if not quotes and not remarks:
        return Thought(f"{opening} Part of the response {_FAULT}.", "yes, no span")
    parts, form = [opening], []
    if quotes and _share(quotes[0], response) >= WHOLE:
        parts.append(f"The response as a whole, beginning {_quoted(quotes[0])}, {_FAULT}.")
        form.append("whole response")
    elif quotes:
        said = " and ".join(_quoted(quote) for quote in quotes[:MOST_SPANS])
        parts.append(f"The response says {said}, which {_FAULT}.")
        form.append("quotation")
    if remarks:
        noted = ", ".join(_quoted(remark) for remark in remarks[:MOST_SPANS])
        parts.append(f"The fault, as it was noted: {noted}.")
        form.append("remark")
    return Thought(" ".join(parts), "yes, " + " and ".join(form))


def _sort_spans(response: str, spans: Sequence[str]) -> tuple[list[str], list[str]]:
    """The spans that the response holds, and the annotator's remarks.

    A span that the response does not hold as it stands is looked at line by line. Remarks in
    another script than the data's are left out.
    """
    quotes: list[str] = []
    remarks: list[str] = []
    for span in spans:
        if _holds(response, span):
            quotes.append(span)
            continue
        for line in filter(str.strip, span.splitlines()):
            (quotes if _holds(response, line) else remarks).append(line.strip())
    remarks = [remark for remark in remarks if not _OTHER_SCRIPT.search(remark)]
    return _distinct(quotes), _distinct(remarks)


def _distinct(texts: Sequence[str]) -> list[str]:
    """`texts` without those that repeat, or are part of, another one."""
    kept: list[str] = []
    for text in sorted(texts, key=len, reverse=True):
        if text.strip() and not any(_holds(other, text) for other in kept):
            kept.append(text)
    return [text for text in dict.fromkeys(texts) if text in kept]


def _holds(response: str, span: str) -> bool:
    part = _plain(span)
    return bool(part) and part in _plain(response)


def _share(span: str, response: str) -> float:
    return len(_plain(span)) / max(1, len(_plain(response)))


@lru_cache(maxsize=64)
def _plain(text: str) -> str:
    """`text` in lower case, its words alone; as it stands where it has none."""
    return " ".join(_WORD.findall(text.lower())) or text.strip()
