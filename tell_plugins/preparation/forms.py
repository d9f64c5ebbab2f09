"""The forms in which people keep their rows, read as (query, response) pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import Columns
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.json_values import parse_json
from tell_plugins.core.row_files import TABLES, read_records
from tell_plugins.core.rows import extract, text_of
from tell_plugins.core.table_rows import table_notes
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
_BY_USER = "named by --columns"  # the form that the user describes
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
_OF_TEXT = " (lines of the text file, not rows of a spreadsheet)"
_MEND, _DROP = "mend or remove these rows", "or --drop-broken to leave them out"
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
    """Why a row is no pair, and what to do."""

    def __init__(self, reason: str, remedy: str = _MEND) -> None:
        super().__init__(reason)
        self.remedy = remedy


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
    reading = reading or Reading()
    named, form = reading.columns, None
    if named is not None:
        form = Form(_BY_USER, named.query, named.response)
    numbered = named is not None and all(name.isdecimal() for name in named.names)
    is_table = path.suffix.lower() in TABLES
    header = not (numbered and is_table)
    pairs: list[Pair] = []
    problems: dict[str, list[int]] = {}
    remedies: list[str] = []
    lines_are_rows, columns = True, dict[str, None]()
    for row, record in enumerate(read_records(path, header), 1 + header):
        try:
            if record.problem is not None:
                raise _Unusable(record.problem)
            if not isinstance(record.value, dict):
                raise _Unusable(f"not an object but {type(record.value).__name__}")
            columns |= dict.fromkeys(map(str, record.value))
            where = f"{paths.shown(path)}, line {record.line}"
            if not header and not pairs and not problems:
                _refuse_header(record.value, where)
            form = form or _form_of(record.value, where, path)
            pairs.append(_pair(record.line, record.value, form, reading))
        except _Unusable as problem:
            problems.setdefault(str(problem), []).append(record.line)
            lines_are_rows = lines_are_rows and record.line == row
            if problem.remedy not in remedies:
                remedies.append(problem.remedy)
    notes = table_notes(path)
    missing = [name for name in (named.names if named and columns else ()) if name not in columns]
    if missing:
        wrong = unknown("column", missing[0], columns, f"--columns, {paths.shown(path)}")
        remedy = f"{wrong.remedy}{_of_table(path)}"
        raise UserError(wrong.found, where=wrong.where, allowed=wrong.allowed, remedy=remedy)
    if form and (left := [name for name in _REJECTED if name in {*columns} - {*form.columns}]):
        notes.append(f"{path.name}: '{left[0]}' is not read: the chosen answers alone are trained")
    if problems and reading.drop_broken and pairs:
        notes.append(left_out(path, problems))
    elif problems:
        raise UserError(
            f"{_rows_of(problems)} cannot be used: {told(problems, _LISTED)}",
            where=paths.shown(path) + (_OF_TEXT if is_table and not lines_are_rows else ""),
            allowed=f"rows of one form{f' ({form.name})' if form else ''}",
            remedy="; ".join([*remedies, _DROP]),
        )
    if not pairs or form is None:
        raise UserError(
            "the file has no rows", where=paths.shown(path), remedy="check where it came from"
        )
    return TaskFile(path, form.name, pairs, tuple(notes))


def left_out(path: Path, problems: Mapping[str, list[int]]) -> str:
    """The note on rows that are left out, all of them listed."""
    return f"left out: {_rows_of(problems)} of {path.name}: {told(problems, None)}"


def _rows_of(problems: Mapping[str, list[int]]) -> str:
    return count_of(sum(map(len, problems.values())), "row")


def told(problems: Mapping[str, list[int]], most: int | None) -> str:
    """Each reason with its lines; at most `most` of both."""
    shown = [f"{lines_named(lines, most)}: {reason}" for reason, lines in problems.items()]
    more = f"; and {len(shown) - most} more problems" if most and len(shown) > most else ""
    return "; ".join(shown[:most]) + more


def lines_named(lines: Sequence[int], most: int | None) -> str:
    """Line numbers in ascending order, such as "lines 2-41, 50"."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line <= runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    shown = [f"{first}-{last}" if last > first else str(first) for first, last in runs[:most]]
    more = " ..." if most and len(runs) > most else ""
    return f"line{'s' if lines[-1] > lines[0] else ''} {', '.join(shown)}{more}"


# ------------------------------------------------------------------------- what the user says


def parse_columns(text: str) -> Columns:
    """`query=a,response=b`; several query columns as `query=a+b`; `1,2` for a headerless table.

    Raises UserError for anything else.
    """
    allowed = "query=COLUMN[+COLUMN...],response=COLUMN; 1,2 in a table without header"
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        parts = [f"query={parts[0]}", f"response={parts[1]}"]
    values: dict[str, list[str]] = {}
    found = None
    for part in parts:
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in ("query", "response"):
            raise unknown("key", key, ("query", "response"), "--columns")
        names = [name.strip() for name in value.split("+")] if key == "query" else [value]
        if not all(names) or len(set(names)) < len(names) or key in values:
            found = f"bad value '{text}'"
        values[key] = names
    if found is None and len(values) < 2:
        found = f"'{text}' names only one of query and response"
    if found is not None:
        raise UserError(found, where="--columns", allowed=allowed, remedy="name each column once")
    return Columns(query=tuple(values["query"]), response=values["response"][0])


def parse_labels(text: str) -> dict[str, str]:
    """`0=no,1=yes`: what each response is written as. Raises UserError for anything else."""
    labels: dict[str, str] = {}
    for part in text.split(","):
        found, equals, written = (piece.strip() for piece in part.partition("="))
        if not (found and equals and written) or found in labels:
            raise UserError(
                f"bad value '{text}'",
                where="--labels",
                allowed="FOUND=WRITTEN[,FOUND=WRITTEN...], each found once",
                remedy="--labels 0=no,1=yes",
            )
        labels[found] = written
    return labels


def _refuse_header(row: Mapping[str, Any], where: str) -> None:
    """UserError when the first row of a table "without header" holds names of columns."""
    names = [str(value).strip() for value in row.values() if value]
    known = {*_QUERIES, *_RESPONSES, *(column for form in FORMS for column in form.columns)}
    if all(name.lower() in known for name in names):
        raise UserError(
            f"the first row looks like a header: {', '.join(names)}",
            where=where,
            allowed="numbers of columns where a table has no header",
            remedy=f"--columns {_proposal(dict.fromkeys(names, ''))}",
        )


def _of_table(path: Path) -> str:
    """For a remedy: what a table's columns depend on, such as the sheet; "" of other files."""
    if path.suffix.lower() not in TABLES:
        return ""
    return "; ".join(["", "--columns 1,2 where the table has no header", *table_notes(path)[:1]])


def _form_of(row: Mapping[str, Any], where: str, path: Path) -> Form:
    for form in FORMS:
        if all(column in row for column in form.columns):
            return form
    raise UserError(
        f"columns {', '.join(map(str, row))[:200]} are of no known form",
        where=where,
        allowed="; ".join(f"{form.name}: {', '.join(form.columns)}" for form in FORMS),
        remedy=f"--columns {_proposal(row)} names them{_of_table(path)}",
    )


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
        inexact = any(isinstance(values[name], float | date) for name in columns.names)
        hint = "write dates, and numbers with a fraction, as text, so that none changes"
        raise _Unusable(found, hint if inexact else _MEND)
    query, answer = found
    if reading.labels is not None:
        if answer.strip() not in reading.labels:
            raise _Unusable(
                f"'{answer.strip()[:40]}' is none of the labels that --labels names",
                f"--labels names {', '.join(reading.labels)}: add what is missing",
            )
        answer = reading.labels[answer.strip()]
    return Pair(line, query, answer, _system_of(values))


def _check_columns(row: Mapping[str, Any], form: Form) -> None:
    """`_Unusable` for a row that lacks columns, is marked, or holds more than text."""
    missing = [column for column in form.columns if column not in row]
    if missing:
        raise _Unusable(
            f"no column '{missing[0]}' of the form {form.name} (columns: "
            f"{', '.join(map(str, row))[:160] or 'none'})",
            "name columns that are there; the first row of a table must name them"
            if form.name == _BY_USER
            else "bring all rows to one form, or name their columns with --columns",
        )
    _refuse_marked(row, form.columns, "column")
    for column in _NO_TEXT:
        if column not in form.columns and not _is_empty(row.get(column)):
            raise _Unusable(
                f"column '{column}' is not empty",
                "only text is trained here: remove the column or these rows",
            )


def _refuse_marked(row: Mapping[str, Any], columns: Sequence[str], what: str) -> None:
    """`_Unusable` for an answer that its own row says not to learn."""
    for name, values in _MARKS.items():
        if name not in columns and str(row.get(name)).lower() in values:
            raise _Unusable(
                f"marked as no answer to learn from ({what} '{name}' is {row[name]})",
                f"remove these rows, or '{name}' where it means something else",
            )


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
        if not _is_empty(turn.get("tool_calls")) or not _is_empty(turn.get("function_call")):
            raise _Unusable("a turn calls tools", "only text is trained here: remove these rows")
    roles = [str(turn[role]).lower() for turn in turns]
    texts = [_content(turn[content]) for turn in turns]
    first = 1 if roles[:1] and roles[0] in _SYSTEM else 0
    wanted = [_ASSISTANT if number % 2 else _USER for number in range(len(turns) - first)]
    fit = all(name in names for name, names in zip(roles[first:], wanted, strict=True))
    if not fit or len(wanted) < 2 or len(wanted) % 2:
        raise _Unusable(
            f"turns {', '.join(roles) or 'none'}: not user and assistant in turn, with an answer "
            "at the end",
            "cut the conversation after an answer; turns of tools are not trained here",
        )
    _refuse_marked(turns[-1], (), "the answer's")
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
            raise _Unusable(f"a part of a turn is {kind!r}, not text", "only text is trained here")
        parts.append(text)
    return "".join(parts)
