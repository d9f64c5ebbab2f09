"""Folders of cards outside the project: made known to this process, and to the user's shell."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.cards import card_names, find_card
from tell_plugins.core.errors import UserError


def check_name(name: str, folder: Path, where: str) -> None:
    """UserError for a name that no card can have, or that a card outside `folder` has."""
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(
            f"bad name '{name}'",
            where=where,
            allowed="letters, digits and _, a letter first",
            remedy="choose another name",
        )
    if name not in card_names():
        return
    other = find_card(name).parent
    if other.resolve() != (folder / name).resolve():
        raise UserError(
            f"there is another card '{name}': {paths.shown(other)}",
            where=where,
            remedy="choose another name",
        )


def make_known(cards: Path) -> str | None:
    """Let this process find the cards in `cards`.

    Returns the line by which the user's shell does so too, None where that is not needed.
    """
    root = cards.resolve()
    if root in [known.resolve() for known in paths.card_roots()]:
        return None
    before = os.environ.get("TELL_CARDS")
    os.environ["TELL_CARDS"] = f"{root}{os.pathsep}{before}" if before else str(root)
    return f"export TELL_CARDS={shlex.quote(str(root))}${{TELL_CARDS:+{os.pathsep}$TELL_CARDS}}"
