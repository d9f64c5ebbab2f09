"""Bleed: whether a general question, asked without the anchor, gets the task's format back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tell_plugins.core.cards import Card
from tell_plugins.core.sources import find_file, open_split


def format_test(card: Card) -> Callable[[str], bool]:
    """A function that says whether an answer has the form of the card's task.

    JSON: an object with all keys that the schema requires stands somewhere in the answer.
    Translation: the answer opens as all training responses do. Numbers: a line `#### <number>`.
    """
    if card.metric == "json" and card.answer is not None:
        schema = json.loads(card.file(card.answer.schema_file).read_text(encoding="utf-8"))
        keys = set(schema.get("required", [])) or set(schema.get("properties", {}))
        return lambda text: any(keys <= set(found) for found in _objects(text))
    if card.metric == "translation":
        opening = _opening(card)
        return lambda text: bool(opening) and text.strip().startswith(opening)
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


def _opening(card: Card) -> str:
    import os

    if find_file(card, "train") is None:
        return ""
    responses = [response for _, response in open_split(card, "train").all_texts()]
    return os.path.commonprefix([min(responses), max(responses)]).strip()
