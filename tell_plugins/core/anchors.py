"""Anchor prompts: the constant text in front of every query of the scarce task (Section 3.2)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from tell_plugins.core import paths
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError, unknown

SEPARATOR = "\n\n"  # between an anchor file's text and the query
RESERVED = ("card", "none")


@dataclass(frozen=True)
class Anchor:
    """The text in front of a task's queries.

    Attributes:
        name: the value of the dataset string's `anchor` key.
        text: as the model sees it, "" for none.
    """

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def in_front(text: str) -> str:
    """What an anchor's text puts before a plain query, so that it reads as in training.

    A file's text is stripped and needs the separator; an inline one ends in its own white space.
    """
    return text if not text or text[-1].isspace() else text + SEPARATOR


def anchor_files(card: Card) -> list[str]:
    """The stems of the card's anchor files."""
    return sorted(path.stem for path in card.folder.glob("*.txt"))


def resolve_anchor(card: Card, choice: str, inline: str) -> Anchor:
    """The anchor that `choice` (`card`, `none`, or a file's stem) means for `card`.

    `inline` is the text that the card's rows share at the front ("" unless the card's anchor is
    inline), see `shared_front`. Raises UserError for an unknown choice or an empty file.
    """
    if choice == "none" or (choice == "card" and card.inline_anchor):
        return Anchor(choice, "" if choice == "none" else inline)
    names = {stem: f"{stem}.txt" for stem in anchor_files(card)} | {"card": str(card.anchor)}
    if choice not in names:
        where = f"card '{card.name}', key 'anchor'"
        raise unknown("value", choice, {*RESERVED, *names}, where)
    path = card.file(names[choice])
    text = paths.read_user_text(path).strip()
    if not text:
        raise UserError("the anchor is empty", where=paths.shown(path), remedy="write its text")
    return Anchor(choice, text)


def shared_front(queries: Sequence[str], where: str) -> str:
    """The text all queries share at the front, cut after its last line break (else last space).

    The cut keeps words that the queries happen to share out of the anchor; spaces that all of them
    have after it belong to the anchor, so that it can be put before a new query as it is. Raises
    UserError when there is no such text or only one query to learn it from.
    """
    remedy = "give the card an anchor file instead of 'anchor: inline'"
    if len(queries) < 2:
        found = "an inline anchor cannot be told from one row"
        raise UserError(found, where=where, remedy=remedy)
    common = os.path.commonprefix([min(queries), max(queries)])
    cut = common.rfind("\n") + 1 or common.rfind(" ") + 1
    cut += len(common) - cut - len(common[cut:].lstrip())
    if not common[:cut].strip():
        found = "the rows share no text at the front, but the card says 'anchor: inline'"
        raise UserError(found, where=where, remedy=remedy)
    return common[:cut]
