"""Saved answers joined to the rows they answer: what every scorer starts from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.compressed import find, read_bytes
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import check_shape, parse_json, read_json
from tell_plugins.core.sources import TaskRows, open_task
from tell_plugins.evaluation.answers import ANSWERS, SETTINGS, AnswerLine, SettingsOfRows

CUT = "length"  # the finish reason of an answer that met the limit of new tokens
_SHOWN = 5  # lines named in one message
_REMEDY = "remove the line and call ./run.sh eval again"


class Answer(NamedTuple):
    """One saved answer. `row` is the position of its test row in the references."""

    row: int
    attempt: int
    text: str
    finish_reason: str

    @property
    def cut(self) -> bool:
        return self.finish_reason == CUT


@dataclass(frozen=True)
class Scored:
    """The answers of one folder, in the order of the test rows, and the rows themselves.

    Attributes:
        answers: sorted by row, then attempt.
        sha256: of `answers.jsonl`, uncompressed; scores of other answers never pass as these.
    """

    folder: Path
    settings: dict[str, Any]
    card: Card
    task: TaskRows
    answers: list[Answer]
    sha256: str

    @property
    def rows(self) -> list[int]:
        """The test row of each answer."""
        return [answer.row for answer in self.answers]

    @property
    def distinct_rows(self) -> int:
        return len(set(self.rows))

    @property
    def expected(self) -> int:
        """How many rows were asked; the run was interrupted where fewer are answered."""
        asked = self.settings.get("rows")
        return asked if isinstance(asked, int) else len(self.task)

    def id(self, row: int) -> str:
        """The content hash of a test row, as it stands in the answers."""
        return bytes(self.task.ids[row]).hex()


def load_scored(folder: Path) -> Scored:
    """The answers of `folder` joined to the rows of their card and split.

    Raises UserError for missing or empty files, lines that are no answers, a torn last line, an
    answer given twice, and answers whose row the split does not have.
    """
    settings = read_settings(folder)
    raw = read_bytes(folder / ANSWERS)
    if raw is None:
        raise UserError(
            f"no {ANSWERS}", where=paths.shown(folder), remedy="./run.sh eval RECIPE writes it"
        )
    where = paths.shown(find(folder / ANSWERS) or folder)
    if not raw.strip():
        raise UserError(
            "the file holds no answer", where=where, remedy="call ./run.sh eval RECIPE again"
        )
    lines = list(_lines(raw, where))
    card = load_card(settings["card"])
    task = open_task(card, settings["split"], settings["anchor"])
    answers = _join(lines, task, where)
    return Scored(folder, settings, card, task, answers, hashlib.sha256(raw).hexdigest())


def read_settings(folder: Path) -> dict[str, Any]:
    """`settings.json` of an answers folder. Raises UserError when it is missing or no such file."""
    path = folder / SETTINGS
    if not path.is_file():
        raise UserError(
            f"no {SETTINGS}, so nothing says which card and split was answered",
            where=paths.shown(folder),
            allowed=f"a folder that ./run.sh eval wrote, with {ANSWERS} and {SETTINGS}",
            remedy="name such a folder",
        )
    return dict(read_json(path, SettingsOfRows, "restore the file"))


class _Line(NamedTuple):
    number: int
    id: str
    row: int
    attempt: int
    text: str
    finish_reason: str


def _lines(raw: bytes, where: str) -> Iterator[_Line]:
    last = raw.count(b"\n") + 1
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            value = parse_json(line)
        except (ValueError, RecursionError) as error:
            if number == last:  # no line end after it: the writer was stopped
                raise UserError(
                    "the last line is torn: the run was stopped while it wrote",
                    where=place,
                    remedy="call the same ./run.sh eval again (it goes on), or remove the line",
                ) from None
            raise UserError(f"no JSON: {error}", where=place, remedy=_REMEDY) from None
        check_shape(value, AnswerLine, place, _REMEDY)
        attempt = value.get("attempt", 0)
        text, reason = value["text"], value["finish_reason"]
        yield _Line(number, value["id"], value["row"], attempt, text, reason)


def _join(lines: list[_Line], task: TaskRows, where: str) -> list[Answer]:
    """Answers by test row, matched by content: a row that moved in its file is still that row."""
    places: dict[str, list[int]] = {}
    for row, content in enumerate(task.ids):
        places.setdefault(bytes(content).hex(), []).append(row)
    strangers = [line for line in lines if line.id not in places]
    split = f"split '{task.split}' of card '{task.card.name}' ({paths.shown(task.file)})"
    if len(strangers) == len(lines):
        raise UserError(
            f"none of the {len(lines)} answers belongs to a row of {split}",
            where=where,
            remedy="these are answers to another card or split, or the data file was replaced",
        )
    if strangers:
        raise UserError(
            f"{len(strangers)} of {len(lines)} answers have no row in {split}: "
            f"{_numbers(strangers)}",
            where=where,
            remedy="remove these lines, or restore the data file that was answered",
        )
    counts = Counter((line.id, line.attempt) for line in lines)
    surplus = [line for line in lines if counts[line.id, line.attempt] > len(places[line.id])]
    if surplus:
        raise UserError(
            f"{len(surplus)} answers share an id and attempt: {_numbers(surplus)}",
            where=where,
            remedy="each row is answered once an attempt; remove the surplus lines",
        )
    return _place(lines, places)


def _place(lines: list[_Line], places: dict[str, list[int]]) -> list[Answer]:
    """Give each answer its row; equal test rows are told apart by the saved row number."""
    taken: set[tuple[int, int]] = set()
    answers = []
    exact = [line for line in lines if line.row in places[line.id]]
    moved = [line for line in lines if line.row not in places[line.id]]
    for line in [*exact, *moved]:
        wished = [line.row] if line.row in places[line.id] else []
        row = next(row for row in [*wished, *places[line.id]] if (row, line.attempt) not in taken)
        taken.add((row, line.attempt))
        answers.append(Answer(row, line.attempt, line.text, line.finish_reason))
    return sorted(answers, key=lambda answer: (answer.row, answer.attempt))


def _numbers(lines: list[_Line]) -> str:
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "line " + ", ".join(str(line.number) for line in lines[:_SHOWN]) + more


def joined(parts: Sequence[Scored], task: TaskRows, rows: int | None = None) -> Scored:
    """Answers to parts of a task as answers to the rows of `task`, of which `rows` were asked.

    Raises UserError for an answer to a row that is none of them.
    """
    places = {bytes(content).hex(): row for row, content in enumerate(task.ids)}
    answers = []
    for part in parts:
        for answer in part.answers:
            if part.id(answer.row) not in places:
                raise UserError(
                    f"row {answer.row} of {paths.shown(part.task.file)} is no row of card "
                    f"'{task.card.name}': the folds are of other rows",
                    where=paths.shown(part.folder),
                    remedy="write the task and its folds anew (new --folds K --force)",
                )
            answers.append(answer._replace(row=places[part.id(answer.row)]))
    asked = len({answer.row for answer in answers}) if rows is None else rows
    return Scored(
        folder=parts[0].folder,
        settings={**parts[0].settings, "card": task.card.name, "rows": asked},
        card=task.card,
        task=task,
        answers=sorted(answers, key=lambda answer: (answer.row, answer.attempt)),
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
    )
