"""Dated corrections of what a folder of results said before; its report shows them."""

from __future__ import annotations

from pathlib import Path

from tell_plugins.core.files import Shape, read_json

FILE = "corrections.json"


class _Correction(Shape):
    date: str
    text: str
    study: str = ""


def corrections(root: Path) -> dict[str, list[str]]:
    """Sentences with their date, by the study's name; "" for all of them.

    The file is a list of `{"date", "study", "text"}`, `study` left out for all. Raises UserError
    for another content.
    """
    found: dict[str, list[str]] = {}
    for entry in read_json(root / FILE, list[_Correction], "mend the file, or remove it") or []:
        text = f"Correction of {entry['date']}: {entry['text']}"
        found.setdefault(str(entry.get("study", "")), []).append(text)
    return found
