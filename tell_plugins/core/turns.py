"""Earlier turns of a conversation, which stand in front of the query of its last turn.

A query is one text everywhere: it is hashed, anchored, counted and drawn as such. Where a row has
earlier turns they are part of that text, and `MARK` parts user from assistant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MARK = "\x03\x02"  # end of text, start of text; no white space, so that no strip takes it off


def joined(turns: Sequence[str]) -> str:
    """One text of user, assistant, user, ... turns; a single turn as it stands."""
    return MARK.join(turns)


def turns_of(query: str) -> list[str]:
    """The user, assistant, user, ... turns of a query."""
    return query.split(MARK)


def row_of(query: str, response: str) -> dict[str, Any]:
    """A row as this project writes it to JSON lines; `history` is there where turns are."""
    *earlier, last = turns_of(query)
    row: dict[str, Any] = {"query": last, "response": response}
    if earlier:
        row["history"] = [list(pair) for pair in zip(earlier[::2], earlier[1::2], strict=True)]
    return row


def first_turn(query: str) -> str:
    """The turn that an anchor stands in front of."""
    return query.partition(MARK)[0]


def messages_of(query: str) -> list[dict[str, Any]]:
    """The turns of a query as messages; of the assistant's, none is trained but the response."""
    messages: list[dict[str, Any]] = []
    for number, text in enumerate(turns_of(query)):
        if number % 2:
            messages.append({"role": "assistant", "content": text, "loss": 0.0})
        else:
            messages.append({"role": "user", "content": text})
    return messages
