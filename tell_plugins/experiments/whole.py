"""Whether what a sweep left is whole: a report counts answers, so each must be there, once.

A finished run says itself how many rows it was asked. Files that were damaged since, or edited,
would give other numbers without a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.compressed import find
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.evaluation.answers import ANSWERS, GENERAL, SETTINGS
from tell_plugins.evaluation.retention import FILES, LOSSES
from tell_plugins.experiments.results import Entry, Study, read_json, read_lines

_ANSWER = {"id": str, "row": int, "text": str, "finish_reason": str}
_LOSS = {"loss_sum": (int, float), "tokens": int}
_REMEDY = "restore the file, or remove the evaluation's folder and start the sweep again"


def refuse_damaged(studies: Sequence[Study]) -> None:
    """Raise UserError, all problems together, where a finished run is not what it says."""
    problems: list[UserError] = []
    seen: set[tuple[Path, str]] = set()
    for study in studies:
        asked = int(study.index["evaluate"].get("general_rows") or 0)
        for entry in study.done:
            key = (entry.run.folder, entry.evaluation)
            if key not in seen:
                seen.add(key)
                problems += _run(entry)
                problems += _evaluation(entry, asked)
    raise_all(problems)


def _run(entry: Entry) -> Iterator[UserError]:
    for name, key in (("run.json", None), ("trained.json", "steps")):
        if entry.run.is_base and key is not None:
            continue
        content = read_json(entry.run.folder / name)
        if not isinstance(content, dict) or (key is not None and key not in content):
            where = paths.shown(entry.run.folder / name)
            yield UserError("missing, or not what a sweep writes", where=where, remedy=_REMEDY)


def _evaluation(entry: Entry, general_rows: int) -> Iterator[UserError]:
    folder = entry.measured.folder
    kinds = Counter[bool]()
    for path in sorted(folder.glob(f"*/*/{SETTINGS}")):
        settings = read_json(path)
        if not isinstance(settings, dict) or not isinstance(settings.get("split"), str):
            yield UserError("no settings of answers", where=paths.shown(path), remedy=_REMEDY)
            continue
        general = settings["split"] == GENERAL
        kinds[general] += 1
        yield from _lines(path.parent / ANSWERS, _ANSWER, settings.get("rows"))
        for name in FILES if general else ():
            if find(path.parent / name) or (name == LOSSES and general_rows):
                yield from _lines(path.parent / name, _LOSS, settings.get("rows"))
    if not kinds[False] or (general_rows and not kinds[True]):
        what = "general questions" if kinds[False] else "the task"
        yield UserError(
            f"the run is finished, but its answers to {what} are not here",
            where=paths.shown(folder),
            remedy=_REMEDY,
        )


def _lines(path: Path, keys: dict[str, Any], rows: Any) -> Iterator[UserError]:
    """What is wrong with a file of one line a row (and attempt)."""
    where = paths.shown(find(path) or path)
    lines = read_lines(path)
    for number, line in enumerate(lines, 1):
        wrong = [
            key
            for key, kind in keys.items()
            if not isinstance(line, dict) or not isinstance(line.get(key), kind)
        ]
        if wrong:
            yield UserError(
                f"key '{wrong[0]}' is missing or of another type",
                where=f"{where}, line {number}",
                remedy=_REMEDY,
            )
            return
    if keys is _ANSWER:
        twice = Counter((line["row"], line.get("attempt", 0)) for line in lines)
        answered = len({row for row, _ in twice})
        if len(twice) < len(lines):
            yield UserError(
                f"{len(lines) - len(twice)} answers stand twice", where=where, remedy=_REMEDY
            )
    else:
        answered = len(lines)
        rows = lines[0].get("rows", rows) if lines else rows
    if isinstance(rows, int) and answered != rows:
        yield UserError(
            f"{answered} rows, but {rows} were asked: lines are missing, or too many",
            where=where,
            remedy=_REMEDY,
        )
