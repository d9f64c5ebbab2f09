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
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.files import find, read_json, read_json_lines
from tell_plugins.evaluation.answers import ANSWERS, GENERAL, SETTINGS, AnswerLine, SavedSettings
from tell_plugins.evaluation.retention import FILES, LOSSES, LossLine
from tell_plugins.experiments.records import RunFacts, Trained
from tell_plugins.experiments.results import Entry, Study

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
                problems += _evaluation(entry, 0 if entry.run.facts.get("rival") else asked)
    raise_all(problems)


def _run(entry: Entry) -> Iterator[UserError]:
    for name, shape in (("run.json", RunFacts), ("trained.json", Trained)):
        path = entry.run.folder / name
        if shape is Trained and (find(entry.run.folder / "run.json") is None or entry.run.is_base):
            continue
        if find(path) is None:
            yield UserError("the file is missing", where=paths.shown(path), remedy=_REMEDY)
        yield from _problem(path, shape)


def _problem(path: Path, shape: Any) -> Iterator[UserError]:
    """What is wrong with a file of JSON, if anything is."""
    try:
        read_json(path, shape, _REMEDY)
    except UserError as error:
        yield error


def _evaluation(entry: Entry, general_rows: int) -> Iterator[UserError]:
    folder = entry.measured.folder
    kinds = Counter[bool]()
    for path in sorted(folder.glob(f"*/*/{SETTINGS}")):
        wrong = list(_problem(path, SavedSettings))
        yield from wrong
        if wrong:
            continue
        settings = read_json(path, SavedSettings, _REMEDY)
        general = settings["split"] == GENERAL
        kinds[general] += 1
        yield from _lines(path.parent / ANSWERS, AnswerLine, settings.get("rows"))
        for name in FILES if general else ():
            if find(path.parent / name) or (name == LOSSES and general_rows):
                yield from _lines(path.parent / name, LossLine, settings.get("rows"))
    if not kinds[False] or (general_rows and not kinds[True]):
        what = "general questions" if kinds[False] else "the task"
        yield UserError(
            f"the run is finished, but its answers to {what} are not here",
            where=paths.shown(folder),
            remedy=_REMEDY,
        )


def _lines(path: Path, shape: Any, rows: Any) -> Iterator[UserError]:
    """What is wrong with a file of one line a row (and attempt)."""
    where = paths.shown(find(path) or path)
    try:
        lines = read_json_lines(path, shape, _REMEDY, foreign=shape is LossLine)
    except UserError as error:
        yield error
        return
    answered = len(lines)
    if shape is AnswerLine:
        twice = Counter((line["row"], line.get("attempt", 0)) for line in lines)
        answered = len({row for row, _ in twice})
        if len(twice) < len(lines):
            yield UserError(
                f"{len(lines) - len(twice)} answers stand twice", where=where, remedy=_REMEDY
            )
    else:
        rows = lines[0].get("rows", rows) if lines else rows
    if isinstance(rows, int) and answered != rows:
        yield UserError(
            f"{answered} rows, but {rows} were asked: lines are missing, or too many",
            where=where,
            remedy=_REMEDY,
        )
