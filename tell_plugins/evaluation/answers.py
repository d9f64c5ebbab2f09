"""Saved answers: one JSON line an answer, written as they come, resumed where they stopped.

The batches are fixed by the prompts (longest first), so a run that was killed and resumed answers
the same batches as one that was not, and leaves the same file.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from tell_plugins.bridge.protocol import Decoding, Engine, History
from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.compressed import find, read_bytes
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import (
    Name,
    Shape,
    check_shape,
    json_lines,
    parse_json,
    read_json,
    read_json_lines,
    write_json,
)
from tell_plugins.core.progress import track
from tell_plugins.core.sources import TaskRows, open_task

ANSWERS, SETTINGS = "answers.jsonl", "settings.json"
GENERAL = "general"  # the folder, and the split, of answers to general questions
_HASHED = {
    "model_sha256": "the recipe's model keys (system, template and the like)",
    "model_files_sha256": "the model's weights, tokenizer or settings",
    "adapter_sha256": "the adapter's weights",
    "adapter_config_sha256": "the adapter's settings",
    "rows_sha256": "the rows asked, or the answers given to them,",
}


class AnswerLine(Shape):
    """A line of `answers.jsonl`."""

    id: str
    row: int
    text: str
    finish_reason: str
    attempt: int = Field(default=0, ge=0)


class SavedSettings(Shape):
    """`settings.json` of a folder of answers."""

    split: Name
    rows: int | None = None


class SettingsOfRows(SavedSettings):
    """The same where the rows that were answered are looked for."""

    card: Name
    anchor: str


@dataclass(frozen=True)
class Prompt:
    """A query as the model gets it. `id` is the row's content hash, `row` its place in the file."""

    id: str
    row: int
    text: str


@dataclass(frozen=True)
class Settings:
    """What produced the answers of a folder; answers of other settings never join it.

    Attributes:
        prompts_sha256: of what was asked; a task row's id holds its response.
        rows_sha256: of general rows with their responses, on which losses are taken.
        model_sha256: of the recipe's model keys; "" where a server answers, which knows none.
        model_files_sha256: of the files in the model's folder; "" where a server answers.
        adapter_sha256: of the adapter's weights, `adapter_config_sha256`: of peft's settings; ""
            for the base model. What is "" in one of two settings, as in those that an earlier
            release saved, is unknown and not compared.
    """

    recipe: str
    card: str
    split: str
    anchor: str
    adapter: str
    decoding: str
    seed: int
    rows: int
    model: str
    engine: str
    max_new_tokens: int
    batch_size: int
    prompts_sha256: str
    shots: int = 0
    model_sha256: str = ""
    adapter_sha256: str = ""
    model_files_sha256: str = ""
    adapter_config_sha256: str = ""
    rows_sha256: str = ""
    scale: float = 1.0  # of the adapter's weights


def answer_all(
    engine: Engine,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    settings: Settings,
    folder: Path,
    *,
    label: str,
    history: History = (),
) -> Path:
    """Answer all prompts into `folder/answers.jsonl` and return it; go on where it stopped.

    `history` stands before every prompt, and counts as part of it.
    Raises UserError when the folder holds answers of other settings, or when a prompt and its
    answer do not fit the model's context.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings)
    lengths = engine.prompt_tokens([prompt.text for prompt in prompts], history)
    _check_context(engine, prompts, lengths, settings)
    order = sorted(range(len(prompts)), key=lambda i: (-lengths[i], prompts[i].row))
    size = settings.batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    path = folder / ANSWERS
    done = _complete_batches(path, [[prompts[i].id for i in batch] for batch in batches])
    with track(len(prompts), label, "answers") as bar, path.open("ab") as file:
        bar.update(sum(len(batch) for batch in batches[:done]))
        for number in range(done, len(batches)):
            batch = batches[number]
            replies = engine.answer(
                [prompts[i].text for i in batch],
                decoding,
                max_new_tokens=settings.max_new_tokens,
                seed=settings.seed * 1_000_003 + number,
                history=history,
            )
            lines = [
                {
                    "id": prompts[i].id,
                    "row": prompts[i].row,
                    "text": unicode_text(reply.text),
                    "finish_reason": unicode_text(reply.finish_reason),
                    "prompt_tokens": reply.prompt_tokens or lengths[i],
                    "completion_tokens": reply.completion_tokens,
                    "attempt": 0,
                }
                for i, reply in zip(batch, replies, strict=True)
            ]
            file.write("".join(json_lines(lines)).encode())
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(batch))
    return path


def unicode_text(text: str) -> str:
    """`text` with U+FFFD for half a character, which a server may send and no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _claim(folder: Path, settings: Settings) -> None:
    refuse_others(folder, settings)
    path = folder / SETTINGS
    if not path.is_file():
        write_json(path, asdict(settings))


def refuse_others(folder: Path, settings: Settings) -> None:
    """Raise UserError when the folder holds answers of other settings."""
    theirs = saved_settings(folder)
    if theirs is None:
        return
    mine = asdict(settings)
    other = differing(mine, theirs, mine)
    if other:
        shown = ", ".join(
            f"{_HASHED[key]} have changed since"
            if key in _HASHED
            else f"{key}: {theirs.get(key)} there, {mine[key]} now"
            for key in other
        )
        raise UserError(
            f"the folder holds answers of other settings ({shown})",
            where=paths.shown(folder),
            remedy="name another folder with --out, or remove this one",
        )


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """The keys in which two settings differ; a hash that one of them does not know is left out."""
    return [
        key
        for key in keys
        if theirs.get(key) != mine.get(key)
        and not (key in _HASHED and not (theirs.get(key) and mine.get(key)))
    ]


def saved_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of a folder, None where there are none; one that an earlier release did not
    save has its default. Raises UserError for a file that is none."""
    path = folder / SETTINGS
    if not path.is_file():
        return None
    remedy = "name another folder with --out, or remove this one"
    saved = read_json(path, SavedSettings, remedy)
    defaults = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}
    return {**defaults, **saved}


def _check_context(
    engine: Engine, prompts: Sequence[Prompt], lengths: Sequence[int], settings: Settings
) -> None:
    if engine.context is None or not prompts:
        return
    longest = max(range(len(prompts)), key=lambda i: lengths[i])
    room = engine.context - lengths[longest]
    if room >= settings.max_new_tokens:
        return
    remedy = "a model with a longer context"
    if settings.split == GENERAL:  # the first that does not fit: a smaller draw ends before it
        most = engine.context - settings.max_new_tokens
        first = next(i for i, length in enumerate(lengths) if length > most)
        remedy = f"--retention-rows {first}, or {remedy}"
    elif room > 0:
        remedy = f"--max-new-tokens {room}, or {remedy}"
    raise UserError(
        f"row {prompts[longest].row} has {lengths[longest]:,} prompt tokens, which leaves "
        f"{max(room, 0):,} of the model's {engine.context:,} for an answer of up to "
        f"{settings.max_new_tokens:,}",
        where=f"split '{settings.split}' of card '{settings.card}'",
        remedy=remedy,
    )


def _complete_batches(path: Path, batches: list[list[str]]) -> int:
    """How many leading batches the file holds whole; cuts off what follows them."""
    if not path.is_file():
        return 0
    raw = path.read_bytes()
    ids: list[str] = []
    ends: list[int] = []
    position = 0
    for line in raw.splitlines(keepends=True):
        position += len(line)
        try:
            if not line.endswith(b"\n"):
                break
            ids.append(parse_json(line)["id"])
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        ends.append(position)
    done = rows = 0
    for batch in batches:
        if ids[rows : rows + len(batch)] != batch:
            break
        rows += len(batch)
        done += 1
    keep = ends[rows - 1] if rows else 0
    if keep < len(raw):
        os.truncate(path, keep)
    return done


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The answers of a folder, by row. Raises UserError when there are none."""
    path = folder / ANSWERS
    if not path.is_file():
        raise UserError("no answers", where=paths.shown(folder), remedy="./run.sh eval RECIPE")
    lines = read_json_lines(path, AnswerLine, "remove the line and call ./run.sh eval again")
    return sorted(lines, key=lambda answer: int(answer["row"]))


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
