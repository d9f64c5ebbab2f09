"""Thoughts for rows of HaluEval: built from its annotated spans, or asked of a language model.

An annotator marked what is wrong with a response: passages of it (quoted here), or a remark in
the annotator's own words. A thought from spans says that, tied to the query; nothing is added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from tell_plugins.core.cards import Card
from tell_plugins.core.json_values import parse_json
from tell_plugins.core.schemas import card_validator
from tell_plugins.preparation.endpoint import Messages

QUERY_CHARS, SPAN_CHARS = 90, 140
MOST_SPANS = 3
WHOLE = 0.9  # a span of this share of the response is the response as a whole
_FAULT = "is wrong, cannot be verified or does not answer what was asked"
_WORD = re.compile(r"[^\W_]+")
_OTHER_SCRIPT = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]")  # Chinese remarks
LONGEST_THOUGHT = 1500  # characters; with the label it stays below the card's max_new_tokens
ANSWER_TOKENS = 130  # a usual answer, for the estimate
_GIVEN_AWAY = re.compile(
    r"\b(annotat\w*|(given|true|correct|provided|gold|expected) (label|verdict)|the verdict)\b",
    re.IGNORECASE,
)
SYSTEM = (
    "You explain why an answer of an AI system is sound or not. You write factual, analytical "
    "English and reply with one JSON object and nothing else."
)
TASK = """\
An AI system was given this query:
<query>
{query}
</query>
It answered:
<response>
{response}
</response>
Careful readers came to this verdict: {verdict}{marked}

Write the analysis that leads to this verdict, in two to four sentences, as if you had worked it \
out yourself: say what the query asks, what the response does, and {point}. Do not mention the \
readers, the verdict, a label or that anything was given to you.
Reply with exactly this JSON object, the analysis in place of the dots:
{{"thought": "...", "hallucination": "{label}"}}"""


class HaluRow(NamedTuple):
    """One row of HaluEval's general split; `number` is its position in the file, from 0."""

    number: int
    query: str
    response: str
    label: str  # yes | no
    spans: tuple[str, ...]

    @property
    def payload(self) -> str:
        """What follows the anchor in an official prompt."""
        return f"'user_query' : {self.query}\n'chatgpt_response' : {self.response}"


# ------------------------------------------------------------------------- from spans


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


def span_thought(row: HaluRow) -> str:
    """The thought for one row; the same row always gives the same thought."""
    opening = f"The query is {_quoted(row.query, QUERY_CHARS)}."
    if row.label == "no":
        return f"{opening} No part of the response was found that {_FAULT}."
    quotes, remarks = _sort_spans(row.response, row.spans)
    if not quotes and not remarks:
        return f"{opening} Part of the response {_FAULT}."
    parts = [opening]
    if quotes and len(_plain(quotes[0])) >= WHOLE * max(1, len(_plain(row.response))):
        parts.append(f"The response as a whole, beginning {_quoted(quotes[0])}, {_FAULT}.")
    elif quotes:
        said = " and ".join(_quoted(quote) for quote in quotes[:MOST_SPANS])
        parts.append(f"The response says {said}, which {_FAULT}.")
    if remarks:
        noted = ", ".join(_quoted(remark) for remark in remarks[:MOST_SPANS])
        parts.append(f"The fault, as it was noted: {noted}.")
    return " ".join(parts)


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


@lru_cache(maxsize=64)
def _plain(text: str) -> str:
    """`text` in lower case, its words alone; as it stands where it has none."""
    return " ".join(_WORD.findall(text.lower())) or text.strip()


# ------------------------------------------------------------------------- asked


def question_about(row: HaluRow) -> Messages:
    """What the endpoint is asked about a row: query, response, label and, for yes, the spans."""
    verdict, point, marked = "it contains no hallucination.", "why it holds", ""
    if row.label == "yes":
        verdict = "it contains a hallucination (it is wrong, cannot be verified, or does not "
        verdict += "answer what was asked)."
        point = "what exactly is wrong with it and why"
        spans = "".join(f"\n- {span.strip()}" for span in row.spans if span.strip())
        if spans:
            marked = "\nWhat they pointed at (passages of the response, or remarks):" + spans
    text = TASK.format(
        query=row.query,
        response=row.response,
        verdict=verdict,
        marked=marked,
        point=point,
        label=row.label,
    )
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def answer_check(card: Card, rows: Sequence[HaluRow]) -> Callable[[str, str], str | None]:
    """What is wrong with an answer: against the card's schema, the row's label, and our limits."""
    validator = card_validator(card)
    by_key = {str(row.number): row for row in rows}

    def check(key: str, text: str) -> str | None:
        try:
            value = parse_json(bare_json(text))
        except ValueError as error:
            return f"it is no JSON ({error})"
        problem = next(iter(validator.iter_errors(value)), None) if validator else None
        if problem is not None:
            return f"the JSON does not fit: {problem.message[:200]}"
        row, thought = by_key[key], value["thought"].strip()
        if value["hallucination"] != row.label:
            return f"'hallucination' must be '{row.label}'"
        if not thought or len(thought) > LONGEST_THOUGHT:
            return f"'thought' must have 1 to {LONGEST_THOUGHT} characters"
        if any("\ud800" <= character <= "\udfff" for character in thought):
            return "'thought' holds half a character (a lone surrogate)"
        given = _GIVEN_AWAY.search(thought)
        if given and given[0].lower() not in row.payload.lower():
            return f"'thought' must not speak of what was given to you ('{given[0]}')"
        return None

    return check


def bare_json(text: str) -> str:
    """An answer without the thinking before it and the code fence around it."""
    text = re.sub(r"\A\s*<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, flags=re.DOTALL)
    return fenced[1] if fenced else text


def thought_in(answer: str) -> str:
    """The thought of an answer that passed the check."""
    return str(json.loads(bare_json(answer))["thought"]).strip()
