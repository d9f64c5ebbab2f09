"""Thoughts written by a language model: what it is asked about a row, and which answers count."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from tell_plugins.core.cards import Card
from tell_plugins.core.records import parse_json
from tell_plugins.preparation.endpoint import Question
from tell_plugins.preparation.halueval import HaluRow

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


def question_about(row: HaluRow) -> Question:
    """What the endpoint is asked about a row: query, response, label and, for yes, the spans."""
    fault = row.label == "yes"
    marked = "".join(f"\n- {span.strip()}" for span in row.spans if span.strip())
    text = TASK.format(
        query=row.query,
        response=row.response,
        verdict="it contains a hallucination (it is wrong, cannot be verified, or does not answer "
        "what was asked)."
        if fault
        else "it contains no hallucination.",
        marked="\nWhat they pointed at (passages of the response, or remarks):" + marked
        if fault and marked
        else "",
        point="what exactly is wrong with it and why" if fault else "why it holds",
        label=row.label,
    )
    messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": text})
    return Question(str(row.number), messages)


def answer_check(card: Card, rows: Sequence[HaluRow]) -> Callable[[str, str], str | None]:
    """What is wrong with an answer: against the card's schema, the row's label, and our limits."""
    import jsonschema

    assert card.answer is not None
    assert card.answer.label is not None
    validator = jsonschema.validators.validator_for({})(
        json.loads(card.schema_path().read_text(encoding="utf-8"))
    )
    by_key = {str(row.number): row for row in rows}
    label = card.answer.label

    def check(key: str, text: str) -> str | None:
        try:
            value = parse_json(bare_json(text))
        except ValueError as error:
            return f"it is no JSON ({error})"
        problem = next(iter(validator.iter_errors(value)), None)
        if problem is not None:
            return f"the JSON does not fit: {problem.message[:200]}"
        row = by_key[key]
        if value[label] != row.label:
            return f"'{label}' must be '{row.label}'"
        thought = value["thought"].strip()
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
