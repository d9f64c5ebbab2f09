"""The forms in which people keep their rows, read as (query, response) pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.cards import Columns
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.row_files import TABLES, read_records
from tell_plugins.core.rows import extract, text_of
from tell_plugins.core.state_files import parse_json
from tell_plugins.core.table_rows import Record, table_notes
from tell_plugins.core.text import MARK
from tell_plugins.recipe.tables import count_of


@dataclass(frozen=True)
class Form:
    """A form of rows, told by its columns.

    Attributes:
        query: columns that make the query, a line each.
        response: the column of the answer; "" where the query's is a conversation.
        optional: columns of the query that rows may lack.
        turn: of a conversation, the keys of a turn's role and text.
    """

    name: str
    query: tuple[str, ...]
    response: str = ""
    optional: tuple[str, ...] = ()
    turn: tuple[str, str] = ("role", "content")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that every row has."""
        names = (*self.query, *([self.response] if self.response else []))
        return tuple(name for name in names if name not in self.optional)


FORMS = (
    Form("messages", ("messages",)),
    Form("ShareGPT", ("conversations",), turn=("from", "value")),
    Form("Alpaca", ("instruction", "input"), "output", optional=("input",)),
    Form("Dolly", ("instruction", "context"), "response"),
    Form("query/response", ("query",), "response"),
    Form("prompt/completion", ("prompt",), "completion"),
    Form("prompt/response", ("prompt",), "response"),
    Form("preferences", ("prompt",), "chosen"),
    Form("preferences", ("chosen",)),
    Form("question/answer", ("question",), "answer"),
    Form("text/label", ("text",), "label"),
    Form("sentence/label", ("sentence",), "label"),
)
_LISTED = 10  # reasons, and places of each, that a message lists
_PAIR = Columns(query=("query",), response="response", history="history")
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt", "bot", "model")
_SYSTEM = ("system", "developer")
# columns that must be empty, since only text is trained
_NO_TEXT = ("tools", "tool_calls", "images", "videos", "audios")
# columns of preferences that nothing is learned from
_REJECTED = ("rejected", "rejected_response", "rejected_messages")
# columns and keys that mark an answer as none to learn from, and the values that do
_MARKS = {
    "label": ("false",),  # KTO
    "loss": ("false", "0", "0.0"),  # ms-swift
    "weight": ("0", "0.0"),  # OpenAI, axolotl
}
_ONLY_TEXT = "only text is trained here"
_QUERIES = ("text", "sentence", "question", "query", "input", "prompt", "content", "body", "tweet")
_RESPONSES = (
    *("label", "response", "answer", "output", "category", "class", "target", "verdict", "chosen"),
)


class Pair(NamedTuple):
    """One task row and where it stands in its file.

    Attributes:
        query: with earlier turns, if there are any (see `core.text`).
        system: the row's system prompt.
    """

    line: int
    query: str
    response: str
    system: str = ""


class _Unusable(Exception):
    """Why a row is no pair."""


@dataclass(frozen=True)
class TaskFile:
    """The rows of a file, all of one form."""

    path: Path
    form: str
    pairs: list[Pair]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How the user wants rows to be read.

    Attributes:
        columns: which columns are query and response; numbers are those of a table without header.
        labels: what responses are written as, for labels that are numbers or codes.
        last_turn: of a conversation, keep the last question and its answer alone.
        drop_broken: leave broken rows out, and list them.
    """

    columns: Columns | None = None
    labels: Mapping[str, str] | None = None
    last_turn: bool = False
    drop_broken: bool = False


def read_task_file(path: Path, reading: Reading | None = None) -> TaskFile:
    """Read a file of task rows; its form is told by its first row, or given by `reading.columns`.

    Raises UserError when the form is not known, or any row is of another form or cannot be used
    for another reason: a scarce row is never left out unasked.
    """
    if not path.is_file():
        remedy = "name a file of rows, no folder" if path.is_dir() else "correct the path"
        raise UserError(f"no file '{path}'", where="command line", remedy=remedy)
    reading, form, notes = reading or Reading(), None, table_notes(path)
    numbers = reading.columns and all(name.isdecimal() for name in reading.columns.names)
    header = not (numbers and path.suffix.lower() in TABLES)
    pairs: list[Pair] = []
    problems: dict[str, list[int]] = {}
    for record in read_records(path, header):
        try:
            if record.problem is not None:
                raise _Unusable(record.problem)
            if not isinstance(record.value, dict):
                raise _Unusable(f"not an object but {type(record.value).__name__}")
            if form is None:
                form = _form_of(record, path, reading.columns)
                left = [name for name in _REJECTED if name in {*record.value} - {*form.columns}]
                note = "is not read: the chosen answers alone are trained"
                notes += [f"{path.name}: '{name}' {note}" for name in left[:1]]
            pairs.append(_pair(record.line, record.value, form, reading))
        except _Unusable as problem:
            problems.setdefault(str(problem), []).append(record.line)
    if problems and reading.drop_broken and pairs:
        notes.append(left_out(path, problems))
    elif problems:
        lines = " (lines of the text file)" if path.suffix.lower() in TABLES else ""
        raise UserError(
            f"{_rows_of(problems)} cannot be used: {told(problems)}",
            where=paths.shown(path) + lines,
            allowed=f"rows of one form{f' ({form.name})' if form else ''}",
            remedy="mend or remove these rows, or --drop-broken to leave them out",
        )
    if not pairs or form is None:
        raise UserError(
            "the file has no rows", where=paths.shown(path), remedy="check where it came from"
        )
    return TaskFile(path, form.name, pairs, tuple(notes))


def problems_of(file: TaskFile, reason: Callable[[str], str | None]) -> dict[str, list[int]]:
    """What is wrong with the responses of a file, and the lines where it is."""
    problems: dict[str, list[int]] = {}
    for pair in file.pairs:
        if (problem := reason(pair.response)) is not None:
            problems.setdefault(problem, []).append(pair.line)
    return problems


def left_out(path: Path, problems: Mapping[str, list[int]]) -> str:
    """The note on rows that are left out, all of them listed."""
    return f"left out: {_rows_of(problems)} of {path.name}: {told(problems, None)}"


def _rows_of(problems: Mapping[str, list[int]]) -> str:
    return count_of(sum(map(len, problems.values())), "row")


def told(problems: Mapping[str, list[int]], most: int | None = _LISTED) -> str:
    """Each reason with its lines; at most `most` of both."""
    shown = [f"{lines_named(lines, most)}: {reason}" for reason, lines in problems.items()]
    more = f"; and {len(shown) - most} more problems" if most and len(shown) > most else ""
    return "; ".join(shown[:most]) + more


def lines_named(lines: Sequence[int], most: int | None) -> str:
    """Line numbers in ascending order, such as "lines 2-41, 50"."""
    runs = np.split(lines, np.flatnonzero(np.diff(lines) > 1) + 1)
    shown = [f"{run[0]}-{run[-1]}" if run[-1] > run[0] else str(run[0]) for run in runs[:most]]
    more = " ..." if most and len(runs) > most else ""
    return f"line{'s' if lines[-1] > lines[0] else ''} {', '.join(shown)}{more}"


# ------------------------------------------------------------------------- what the user says


def parse_columns(text: str) -> Columns:
    """`query=a,response=b`; several query columns as `query=a+b`; `1,2` for a headerless table.

    Raises UserError for anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        parts = [f"query={parts[0]}", f"response={parts[1]}"]
    given = {key.strip(): value for key, _, value in (part.partition("=") for part in parts)}
    query = [name.strip() for name in given.get("query", "").split("+")]
    response = given.get("response", "").strip()
    once = len(parts) == len(given) and len(set(query)) == len(query)
    if given.keys() != {"query", "response"} or not (once and all(query) and response):
        raise UserError(
            f"bad value '{text}'",
            where="--columns",
            allowed="query=COLUMN[+COLUMN...],response=COLUMN; 1,2 in a table without header",
            remedy="name each column once",
        )
    return Columns(query=tuple(query), response=response)


def parse_labels(text: str) -> dict[str, str]:
    """`0=no,1=yes`: what each response is written as. Raises UserError for anything else."""
    pairs = [tuple(map(str.strip, part.partition("=")[::2])) for part in text.split(",")]
    labels = {found: written for found, written in pairs if found and written}
    if len(labels) < len(pairs):
        raise UserError(
            f"bad value '{text}'",
            where="--labels",
            allowed="FOUND=WRITTEN[,FOUND=WRITTEN...], each found once",
            remedy="--labels 0=no,1=yes",
        )
    return labels


def _form_of(record: Record, path: Path, columns: Columns | None) -> Form:
    """The form of the first row. Raises UserError where it is none, or not as the user says."""
    row = record.value
    if columns is None:
        for form in FORMS:
            if all(column in row for column in form.columns):
                return form
        raise UserError(
            f"columns {', '.join(map(str, row))[:200]} are of no known form",
            where=f"{paths.shown(path)}, line {record.line}",
            allowed="; ".join(f"{form.name}: {', '.join(form.columns)}" for form in FORMS),
            remedy=f"--columns {_proposal(row)} names them{_of_table(path)}",
        )
    if all(name.isdecimal() for name in columns.names):
        _refuse_header(record, path)
    missing = [name for name in columns.names if name not in row]
    if missing:
        wrong = unknown("column", missing[0], map(str, row), f"--columns, {paths.shown(path)}")
        remedy = f"{wrong.remedy}{_of_table(path)}"
        raise UserError(wrong.found, where=wrong.where, allowed=wrong.allowed, remedy=remedy)
    return Form("named by --columns", columns.query, columns.response)


def _refuse_header(record: Record, path: Path) -> None:
    """UserError where the first row of a table "without header" holds names of columns."""
    names = [str(value).strip() for value in record.value.values() if value]
    known = {*_QUERIES, *_RESPONSES, *(column for form in FORMS for column in form.columns)}
    if all(name.lower() in known for name in names):
        raise UserError(
            f"the first row looks like a header: {', '.join(names)}",
            where=f"{paths.shown(path)}, line {record.line}",
            allowed="numbers of columns where a table has no header",
            remedy=f"--columns {_proposal(dict.fromkeys(names, ''))}",
        )


def _of_table(path: Path) -> str:
    """For a remedy: what a table's columns depend on, such as the sheet; "" of other files."""
    if path.suffix.lower() not in TABLES:
        return ""
    return "; ".join(["", "--columns 1,2 where the table has no header", *table_notes(path)[:1]])


def _proposal(row: Mapping[str, Any]) -> str:
    """The value of `--columns` that a row of no known form suggests."""
    names = [
        name
        for name, value in row.items()
        if (isinstance(value, dict) or text_of(value) is not None) and name not in _REJECTED
    ]
    if len(names) < 2:
        return "query=A,response=B"
    lower = {name.lower(): name for name in names}
    response = next((lower[name] for name in _RESPONSES if name in lower), names[-1])
    longest = max((n for n in names if n != response), key=lambda name: len(str(row[name])))
    query = next((lower[n] for n in _QUERIES if n in lower and lower[n] != response), longest)
    return f"query={query},response={response}"


# ------------------------------------------------------------------------- one row


def _pair(line: int, row: Mapping[str, Any], form: Form, reading: Reading) -> Pair:
    _check_columns(row, form)
    values, columns = _values(row, form)
    response = values[columns.response]
    if isinstance(response, dict | list):
        values[columns.response] = json.dumps(response, ensure_ascii=False)
    if reading.last_turn:
        del values["history"]
    found = extract(values, columns)
    if isinstance(found, str):
        if any(isinstance(values[name], float | date) for name in columns.names):
            found += " (write dates, and numbers with a fraction, as text, so that none changes)"
        raise _Unusable(found)
    query, answer = found
    if reading.labels is not None:
        if answer.strip() not in reading.labels:
            raise _Unusable(f"'{answer.strip()[:40]}' is none of the labels that --labels names")
        answer = reading.labels[answer.strip()]
    return Pair(line, query, answer, _system_of(values))


def _check_columns(row: Mapping[str, Any], form: Form) -> None:
    """`_Unusable` for a row that lacks columns, is marked, or holds more than text."""
    missing = [column for column in form.columns if column not in row]
    if missing:
        have = ", ".join(map(str, row))[:160] or "none"
        raise _Unusable(f"no column '{missing[0]}' of the form {form.name} (columns: {have})")
    _refuse_marked(row, form.columns)
    for column in _NO_TEXT:
        if column not in form.columns and not _is_empty(row.get(column)):
            raise _Unusable(f"column '{column}' is not empty: {_ONLY_TEXT}")


def _refuse_marked(row: Mapping[str, Any], columns: Sequence[str] = ()) -> None:
    """`_Unusable` for an answer that its own row says not to learn."""
    for name, values in _MARKS.items():
        if name not in columns and str(row.get(name)).lower() in values:
            raise _Unusable(f"marked as no answer to learn from ('{name}' is {row[name]})")


def _is_empty(value: Any) -> bool:
    return not value or (isinstance(value, str) and value.strip() in ("", "[]", "null"))


def _values(row: Mapping[str, Any], form: Form) -> tuple[dict[str, Any], Columns]:
    """The row with a list of its earlier turns under `history`, and its columns.

    Two columns may hold messages, as trl's do.
    """
    values, columns = dict.fromkeys(form.optional) | dict(row), _PAIR
    first, answer = row[form.query[0]], row.get(form.response)
    if not form.response:
        values |= _conversation(_list(first, form.query[0]), *form.turn)
    elif isinstance(first, list) and isinstance(answer, list):
        values |= _conversation([*first, *answer], *form.turn)
    else:
        columns = Columns(query=form.query, response=form.response, history="history")
    earlier = values.get("history")
    turns = [] if _is_empty(earlier) else _list(earlier, "history")
    # some write a table of turns
    values["history"] = [list(two.values()) if isinstance(two, dict) else two for two in turns]
    return values, columns


def _system_of(values: Mapping[str, Any]) -> str:
    value = values.get("system")
    text = "" if _is_empty(value) else text_of(value)
    if text is None or MARK in text:
        raise _Unusable(f"the system prompt is {type(value).__name__}, not text")
    return text


def _list(value: Any, column: str) -> list[Any]:
    """A list of turns; in a table it stands as JSON text."""
    if isinstance(value, str):
        try:
            value = parse_json(value, nan=True)
        except ValueError:
            raise _Unusable(f"column '{column}' is no JSON list of turns") from None
    if not isinstance(value, list):
        raise _Unusable(f"column '{column}' is {type(value).__name__}, not a list of turns")
    return value


def _conversation(turns: list[Any], role: str, content: str) -> dict[str, Any]:
    """The last question and answer of a conversation, and what of it comes before them."""
    for turn in turns:
        if not isinstance(turn, dict) or role not in turn or content not in turn:
            raise _Unusable(f"a turn is no object with '{role}' and '{content}'")
        if not (_is_empty(turn.get("tool_calls")) and _is_empty(turn.get("function_call"))):
            raise _Unusable(f"a turn calls tools: {_ONLY_TEXT}")
    roles = [str(turn[role]).lower() for turn in turns]
    texts = [_content(turn[content]) for turn in turns]
    first = 1 if roles[:1] and roles[0] in _SYSTEM else 0
    wanted = [_ASSISTANT if number % 2 else _USER for number in range(len(turns) - first)]
    fit = all(name in names for name, names in zip(roles[first:], wanted, strict=True))
    if not fit or len(wanted) < 2 or len(wanted) % 2:
        said = ", ".join(roles) or "none"
        raise _Unusable(f"turns {said}: not user and assistant in turn, with an answer at the end")
    _refuse_marked(turns[-1])
    earlier = [list(two) for two in zip(texts[first:-2:2], texts[first + 1 : -2 : 2], strict=True)]
    before = {"system": texts[0] if first else None, "history": earlier}
    return {"query": texts[-2], "response": texts[-1]} | {k: v for k, v in before.items() if v}


def _content(value: Any) -> Any:
    """A turn's text, also where it is a list of text parts."""
    if not isinstance(value, list):
        return value
    parts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text" or not isinstance(text, str):
            raise _Unusable(f"a part of a turn is {kind!r}, not text: {_ONLY_TEXT}")
        parts.append(text)
    return "".join(parts)
