"""Dated corrections of what a folder of results said before; its report shows them."""

from __future__ import annotations

from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.experiments.results import read_json

FILE = "corrections.json"


def corrections(root: Path) -> dict[str, list[str]]:
    """Sentences with their date, by the study's name; "" for all of them.

    The file is a list of `{"date", "study", "text"}`, `study` left out for all. Raises UserError
    for another content.
    """
    found: dict[str, list[str]] = {}
    saved = read_json(root / FILE)
    for entry in saved if isinstance(saved, list) else [] if saved is None else [saved]:
        wanted = {"date": str, "text": str}
        if not isinstance(entry, dict) or any(
            not isinstance(entry.get(key), kind) for key, kind in wanted.items()
        ):
            raise UserError(
                "no list of corrections",
                where=paths.shown(root / FILE),
                allowed='[{"date": "2026-11-29", "study": "NAME", "text": "..."}]',
                remedy="mend the file, or remove it",
            )
        text = f"Correction of {entry['date']}: {entry['text']}"
        found.setdefault(str(entry.get("study", "")), []).append(text)
    return found
