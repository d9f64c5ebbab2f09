"""Bleed: whether a general question, asked without the anchor, gets the task's format back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tell_plugins.core.cards import Card
from tell_plugins.core.sources import find_file, open_split
from tell_plugins.evaluation.json_scorers import card_schema
from tell_plugins.evaluation.scorers.label import closed_labels
from tell_plugins.evaluation.segments import reference_opening


def format_test(card: Card) -> Callable[[str], bool] | None:
    """A function that says whether an answer has the form of the card's task.

    JSON: an object with all keys that the schema requires stands somewhere in the answer.
    Labels: the answer is one. Numbers: a line `#### <number>`. Translation and free text: the
    answer opens as all training responses do; None where these share no opening, since such a task
    has no form to be known by.
    """
    if card.metric == "json":
        schema = card_schema(card).schema
        keys = set(schema.get("required", [])) or set(schema.get("properties", {}))
        return lambda text: any(keys <= set(found) for found in _objects(text))
    if card.metric == "label":
        labels = set(closed_labels(card))
        return lambda text: text.strip() in labels
    if card.metric in ("translation", "text"):
        return opening_test(opening_of(card))
    return lambda text: re.search(r"^#### ?-?[\d,.]+\s*$", text, re.MULTILINE) is not None


def _objects(text: str) -> list[dict[str, object]]:
    decoder, found = json.JSONDecoder(), []
    for match in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def opening_test(opening: str) -> Callable[[str], bool] | None:
    """Whether an answer begins with this opening sentence; None without one."""
    return (lambda text: text.strip().startswith(opening)) if opening else None


def opening_of(card: Card) -> str:
    """The opening sentence of the card's training responses, "" where there is none."""
    if find_file(card, "train") is None:
        return ""
    responses = [response for _, response in open_split(card, "train").all_texts()]
    return reference_opening(responses).strip()
