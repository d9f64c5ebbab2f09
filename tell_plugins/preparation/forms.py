"""The forms in which people keep their rows, read as queries and responses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import Columns
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.row_files import TABLES, read_records
from tell_plugins.core.rows import extract, text_of
from tell_plugins.core.shown import count_of
from tell_plugins.core.state_files import parse_json
from tell_plugins.core.table_rows import Record, table_notes


class Form(NamedTuple):
    """A form of rows, told by its columns.

    Attributes:
        query: columns that make the query, a line each; rows may lack all but the first.
        response: the column of the answer; "" where the query's is a conversation.
    """

    name: str
    query: tuple[str, ...]
    response: str = ""

    @property
    def columns(self) -> list[str]:
        """The columns that every row has."""
        return [self.query[0], *([self.response] if self.response else [])]


FORMS = (
    Form("messages", ("messages",)),
    Form("ShareGPT", ("conversations",)),
    Form("Alpaca", ("instruction", "input"), "output"),
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
_PAIR = Columns(query=("query",), response="response", history="history")
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt", "bot", "model")
_SYSTEM = ("system", "developer")
_TURN = (("role", "content"), ("from", "value"))  # the keys of a turn
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


class Row(NamedTuple):
    """One task row and where it stands.

    Attributes:
        split: the split of its file.
        query: with earlier turns, if there are any (see `core.text`).
        system: the row's system prompt.
        problem: why the row cannot be used, "" where it can.
    """

    split: str
    line: int
    query: str
    response: str
    system: str = ""
    problem: str = ""


def read_rows(
    path: Path,
    split: str,
    *,
    columns: Columns | None = None,
    labels: Mapping[str, str] | None = None,
    last_turn: bool = False,
) -> tuple[list[Row], list[str]]:
    """The rows of a file, those that cannot be used with their problem, and what is to be said.

    Their form is told by the first one, or given by `columns`, whose numbers are those of a table
    without header. `labels` says what responses are written as, `last_turn` keeps the last turn of
    conversations alone. Raises UserError for no file of rows, or rows of no known form.
    """
    if not path.is_file():
        remedy = "name a file of rows, no folder" if path.is_dir() else "correct the path"
        raise UserError(f"no file '{path}'", where="command line", remedy=remedy)
    notes, records = table_notes(path), list(read_records(path, header=not _is_numbered(columns)))
    if not records:
        remedy = "check where it came from"
        raise UserError("the file has no rows", where=paths.shown(path), remedy=remedy)
    form = Form("no known form", ("",))
    if first := next((record for record in records if isinstance(record.value, dict)), None):
        headless = ["--columns 1,2 where the table has no header"]
        also = headless + notes[:1] if path.suffix.lower() in TABLES else []
        where = f"{paths.shown(path)}, line {first.line}"
        form = _form_of(first.value, columns, where, "".join(f"; {hint}" for hint in also))
        rejected = [name for name in _REJECTED if name in first.value and name not in form.columns]
        note = "is not read: the chosen answers alone are trained"
        notes += [f"{path.name}: '{name}' {note}" for name in rejected[:1]]
    count = count_of(len(records), "row")
    notes.insert(0, f"{split}: {count} of {path.name}, read as {form.name}")
    return [_row(split, record, form, labels, last_turn) for record in records], notes


# ------------------------------------------------------------------------- what the user says


def parse_columns(text: str) -> Columns:
    """`query=a,response=b`; several query columns as `query=a+b`; `1,2` for a headerless table.

    Raises UserError for anything else.
    """
    numbers = [part.strip() for part in text.split(",")]
    is_short = len(numbers) == 2 and all(map(str.isdecimal, numbers))
    allowed = "query=COLUMN[+COLUMN...],response=COLUMN; 1,2 in a table without header"
    given = _assigned(
        "query={},response={}".format(*numbers) if is_short else text, "--columns", allowed
    )
    query = tuple(name.strip() for name in given.get("query", "").split("+"))
    named = [*query, given.get("response", "")]
    if given.keys() != {"query", "response"} or not all(named) or len({*named}) < len(named):
        remedy = "name each column once"
        raise UserError(f"bad value '{text}'", where="--columns", allowed=allowed, remedy=remedy)
    return Columns(query=query, response=given["response"])


def parse_labels(text: str) -> dict[str, str]:
    """`0=no,1=yes`: what each response is written as. Raises UserError for anything else."""
    return _assigned(text, "--labels", "FOUND=WRITTEN[,FOUND=WRITTEN...], as in 0=no,1=yes")


def _assigned(text: str, flag: str, allowed: str) -> dict[str, str]:
    """`a=b,c=d`, each once. Raises UserError for anything else."""
    pairs = [tuple(map(str.strip, part.partition("=")[::2])) for part in text.split(",")]
    found = {name: value for name, value in pairs if name and value}
    if len(found) < len(pairs):
        remedy = "name each once, and what it stands for"
        raise UserError(f"bad value '{text}'", where=flag, allowed=allowed, remedy=remedy)
    return found


def _is_numbered(columns: Columns | None) -> bool:
    return columns is not None and all(map(str.isdecimal, columns.names))


def _form_of(row: Mapping[str, Any], columns: Columns | None, where: str, also: str) -> Form:
    """The form of the first row. Raises UserError where it is none, or not as the user says.

    `also`: for a remedy, what a table's columns depend on.
    """
    if columns is None:
        for form in FORMS:
            if all(column in row for column in form.columns):
                return form
        raise UserError(
            f"columns {', '.join(map(str, row))[:200]} are of no known form",
            where=where,
            allowed="; ".join(f"{form.name}: {', '.join(form.columns)}" for form in FORMS),
            remedy=f"--columns {_proposal(row)} names them{also}",
        )
    for name in columns.names:
        if name not in row:
            wrong = unknown("column", name, map(str, row), f"--columns, {where}")
            remedy = f"{wrong.remedy}{also}"
            raise UserError(wrong.found, where=wrong.where, allowed=wrong.allowed, remedy=remedy)
    names = [str(value).strip() for value in row.values() if value]
    known = {*_QUERIES, *_RESPONSES, *(column for form in FORMS for column in form.columns)}
    if _is_numbered(columns) and known.issuperset(map(str.lower, names)):
        raise UserError(
            f"the first row looks like a header: {', '.join(names)}",
            where=where,
            allowed="numbers of columns where a table has no header",
            remedy=f"--columns {_proposal(dict.fromkeys(names, ''))}",
        )
    return Form("named by --columns", columns.query, columns.response)


def _proposal(row: Mapping[str, Any]) -> str:
    """The value of `--columns` that a row of no known form suggests."""
    names = [
        name
        for name, value in row.items()
        if (isinstance(value, dict) or text_of(value) is not None) and name not in _REJECTED
    ]
    if len(names) < 2:
        return "query=A,response=B"
    response = next((n for known in _RESPONSES for n in names if n.lower() == known), names[-1])
    names.remove(response)
    longest = max(names, key=lambda name: len(str(row[name])))
    query = next((n for known in _QUERIES for n in names if n.lower() == known), longest)
    return f"query={query},response={response}"


# ------------------------------------------------------------------------- one row


class _Unusable(Exception):
    """Why a row cannot be used."""


def _row(
    split: str, record: Record, form: Form, labels: Mapping[str, str] | None, last_turn: bool
) -> Row:
    try:
        values, columns = _values(record, form)
        if last_turn:
            del values["history"]
        found = extract(values, columns)
        if isinstance(found, str):
            if any(isinstance(values[name], float | date) for name in columns.names):
                found += " (write dates, and numbers with a fraction, as text)"
            raise _Unusable(found)
        query, answer = found
        if labels is not None:
            if answer.strip() not in labels:
                raise _Unusable(
                    f"'{answer.strip()[:40]}' is none of the labels that --labels names"
                )
            answer = labels[answer.strip()]
        return Row(split, record.line, query, answer, values["system"])
    except _Unusable as problem:
        return Row(split, record.line, "", "", problem=str(problem))


def _refuse_marked(row: Mapping[str, Any]) -> None:
    """`_Unusable` for an answer that its own row says not to learn."""
    for name, values in _MARKS.items():
        if str(row.get(name)).lower() in values:
            raise _Unusable(f"marked as no answer to learn from ('{name}' is {row[name]})")


def _is_empty(value: Any) -> bool:
    return not value or (isinstance(value, str) and value.strip() in ("", "[]", "null"))


def _values(record: Record, form: Form) -> tuple[dict[str, Any], Columns]:
    """The row with its earlier turns under `history` and a `system` prompt, and its columns.

    Raises `_Unusable` where it lacks columns, is marked, or holds more than text.
    """
    row = record.value
    if not isinstance(row, dict):
        raise _Unusable(record.problem or f"not an object but {type(row).__name__}")
    for column in form.columns:
        if column not in row:
            have = ", ".join(map(str, row))[:160] or "none"
            raise _Unusable(f"no column '{column}' of the form {form.name} (columns: {have})")
    others = {name: value for name, value in row.items() if name not in form.columns}
    _refuse_marked(others)
    for column in _NO_TEXT:
        if not _is_empty(others.get(column)):
            raise _Unusable(f"column '{column}' is not empty: {_ONLY_TEXT}")
    values: dict[str, Any] = {**dict.fromkeys(form.query), **row}
    columns = Columns(query=form.query, response=form.response or "response", history="history")
    turns = _turns(row[form.query[0]], row.get(form.response), form)
    if turns is not None:
        values, columns = values | _conversation(turns), _PAIR
    elif isinstance(row[form.response], dict | list):
        values[form.response] = json.dumps(row[form.response], ensure_ascii=False)
    system, history = values.get("system"), values.get("history")
    values["system"] = ""
    if not _is_empty(system):
        told = extract({"query": system, "response": "-"}, _PAIR)
        if isinstance(told, str):
            raise _Unusable(told.replace("column 'query'", "the system prompt"))
        values["system"] = told[0]
    values["history"] = [] if _is_empty(history) else _list(history, "history")
    return values, columns


def _turns(query: Any, response: Any, form: Form) -> list[Any] | None:
    """The turns of a conversation, None where the row is none.

    They are in one column, in two (as trl has them), or all in that of the answer, whose prompt
    stands as text beside it (as in UltraFeedback).
    """
    if not form.response:
        return _list(query, form.query[0])
    if not isinstance(response, list):
        return None
    if isinstance(query, list):
        return [*query, *response]
    is_whole = response and all(isinstance(turn, dict) and "role" in turn for turn in response)
    return response if is_whole else None


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


def _conversation(turns: list[Any]) -> dict[str, Any]:
    """The last question and answer of a conversation, and what of it comes before them."""
    roles, texts = [], []
    for turn in turns:
        keys = next(
            (keys for keys in _TURN if isinstance(turn, dict) and turn.keys() >= {*keys}), None
        )
        if keys is None:
            raise _Unusable("a turn is no object with 'role' and 'content', or 'from' and 'value'")
        if not (_is_empty(turn.get("tool_calls")) and _is_empty(turn.get("function_call"))):
            raise _Unusable(f"a turn calls tools: {_ONLY_TEXT}")
        roles.append(str(turn[keys[0]]).lower())
        texts.append(_content(turn[keys[1]]))
    before = {"system": texts.pop(0)} if roles[:1] and roles[0] in _SYSTEM else {}
    asked = roles[len(before) :]
    fit = all(name in (_ASSISTANT if n % 2 else _USER) for n, name in enumerate(asked))
    if not fit or len(asked) < 2 or len(asked) % 2:
        said = ", ".join(roles) or "none"
        raise _Unusable(f"turns {said}: not user and assistant in turn, with an answer at the end")
    _refuse_marked(turns[-1])
    earlier = [list(two) for two in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    return {"history": earlier, **before, "query": texts[-2], "response": texts[-1]}


def _content(value: Any) -> Any:
    """A turn's text, also where it is a list of text parts."""
    if not isinstance(value, list):
        return value
    parts = [part if isinstance(part, dict) else {"text": part} for part in value]
    for part in parts:
        kind = part.get("type", "text")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise _Unusable(f"a part of a turn is {kind!r}, not text: {_ONLY_TEXT}")
    return "".join(part["text"] for part in parts)
