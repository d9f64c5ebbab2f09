"""Folders of cards outside the project: made known to this process, and to the user's shell."""

from __future__ import annotations

import os
from pathlib import Path

from tell_plugins.core import paths


def make_known(cards: Path) -> str | None:
    """Let this process find the cards in `cards`.

    Returns the line by which the user's shell does so too, None where that is not needed.
    """
    root = cards.resolve()
    if root in [known.resolve() for known in paths.card_roots()]:
        return None
    before = os.environ.get("TELL_CARDS")
    os.environ["TELL_CARDS"] = f"{root}{os.pathsep}{before}" if before else str(root)
    return f"export TELL_CARDS={root}${{TELL_CARDS:+{os.pathsep}$TELL_CARDS}}"
