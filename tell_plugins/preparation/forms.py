"""The forms in which people keep their rows, read as (query, response) pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import Columns
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.records import parse_json
from tell_plugins.core.rowfiles import FORMATS, TABLES, read_records, table_notes
from tell_plugins.core.rows import extract, text_of
from tell_plugins.core.text import MARK, joined

_LISTED = 10  # reasons, and places of each, that a message lists
_BY_USER = "--columns"  # the form that the user describes
_PAIR = Columns(query=("query",), response="response")
_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt", "bot", "model")
_SYSTEM = ("system", "developer")
# columns that must be empty, since only text is trained, and what they would mean
_EXTRAS = {
    "tools": "tool calls",
    "tool_calls": "tool calls",
    "images": "images",
    "videos": "videos",
    "audios": "audio",
}
# columns and keys that mark an answer as none to learn from, and the values that do
_MARKS: dict[str, tuple[Any, ...]] = {
    "label": (False, "false", "False"),  # KTO
    "loss": (False, 0, "false", "False", "0", "0.0"),  # ms-swift
    "weight": (0, "0", "0.0"),  # OpenAI, axolotl
}
_MEND, _DROP = "mend or remove these rows", "or --drop-broken to leave them out"
_QUERIES = ("text", "sentence", "question", "query", "input", "prompt", "content", "body", "tweet")
_RESPONSES = ("label", "response", "answer", "output", "category", "class", "target", "verdict")


class Pair(NamedTuple):
    """One task row and where it stands in its file.

    Attributes:
        query: with earlier turns, if there are any (see `core.text`).
        lead: the part at the query's front that a column of its own holds: an instruction.
        system: the row's system prompt.
    """

    line: int
    query: str
    response: str
    lead: str = ""
    system: str = ""


class _Parts(NamedTuple):
    """What a form finds in a row, of whatever type it has there."""

    query: Any
    response: Any
    lead: Any = None
    system: Any = None
    earlier: Sequence[Any] = ()


class _Unusable(Exception):
    """Why a row is no pair, and what to do."""

    def __init__(self, reason: str, remedy: str = _MEND) -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class Form:
    """A form: its name, the columns that make it, and how a row is read."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], _Parts]

    def fits(self, row: Mapping[str, Any]) -> bool:
        return all(column in row for column in self.columns)


@dataclass(frozen=True)
class TaskFile:
    """The rows of a file, all of one form."""

    path: Path
    form: str
    pairs: list[Pair]
    notes: tuple[str, ...] = ()

    def place(self, pair: Pair) -> str:
        return f"{paths.shown(self.path)}, line {pair.line}"


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
    _check_path(path)
    reading = reading or Reading()
    form = None if reading.columns is None else _named(reading.columns)
    header = not (_numbers(reading.columns) and path.suffix.lower() in TABLES)
    pairs: list[Pair] = []
    problems: dict[str, list[int]] = {}
    remedies: list[str] = []
    for record in read_records(path, header):
        try:
            if record.problem is not None:
                raise _Unusable(record.problem)
            if not isinstance(record.value, dict):
                raise _Unusable(f"not an object but {type(record.value).__name__}")
            where = f"{paths.shown(path)}, line {record.line}"
            if not header and not pairs and not problems:
                _refuse_header(record.value, where)
            form = form or _form_of(record.value, where)
            pairs.append(_pair(record.line, record.value, form, reading))
        except _Unusable as problem:
            problems.setdefault(str(problem), []).append(record.line)
            if problem.remedy not in remedies:
                remedies.append(problem.remedy)
    notes = table_notes(path)
    if problems and reading.drop_broken and pairs:
        count = sum(map(len, problems.values()))
        notes.append(f"left out: {count} rows of {path.name}: {told(problems, None)}")
    elif problems:
        raise _broken_rows(path, problems, remedies, form)
    if not pairs or form is None:
        raise UserError(
            "the file has no rows", where=paths.shown(path), remedy="check where it came from"
        )
    return TaskFile(path, form.name, pairs, tuple(notes))


def _check_path(path: Path) -> None:
    if path.is_dir():
        endings = [*FORMATS, ".arrow"]
        inside = sorted(p.name for p in islice(path.iterdir(), 1000) if p.suffix in endings)
        remedy = f"name one of {', '.join(inside[:5])}" if inside else "name a file in it"
        if any(name.endswith(".arrow") for name in inside):
            remedy = "datasets.load_from_disk(FOLDER), then .to_json('rows.jsonl') of a split"
        raise UserError(
            f"'{path}' is a folder", where="command line", allowed="a file of rows", remedy=remedy
        )
    if not path.is_file():
        raise UserError(f"no file '{path}'", where="command line", remedy="correct the path")


def _broken_rows(
    path: Path, problems: Mapping[str, list[int]], remedies: Sequence[str], form: Form | None
) -> UserError:
    count = sum(map(len, problems.values()))
    return UserError(
        f"{count} rows cannot be used: {told(problems, _LISTED)}",
        where=paths.shown(path),
        allowed=f"rows of one form{f' ({form.name})' if form else ''}",
        remedy="; ".join([*remedies, _DROP]),
    )


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
    values: dict[str, list[str]] = {}
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        parts = [f"query={parts[0]}", f"response={parts[1]}"]
    for part in parts:
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in ("query", "response"):
            raise unknown("key", key, ("query", "response"), "--columns")
        names = [name.strip() for name in value.split("+")] if key == "query" else [value]
        if not all(names) or len(set(names)) < len(names) or key in values:
            raise UserError(
                f"bad value '{text}'", where="--columns", allowed=allowed, remedy="name each once"
            )
        values[key] = names
    if len(values) < 2:
        raise UserError(
            f"'{text}' names only one of query and response",
            where="--columns",
            allowed=allowed,
            remedy="name both",
        )
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


def _numbers(columns: Columns | None) -> bool:
    """Whether columns are named by their numbers, as in a table without header."""
    return columns is not None and all(
        name.isdecimal() for name in (*columns.query, columns.response)
    )


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


# ------------------------------------------------------------------------- one row


def _pair(line: int, row: Mapping[str, Any], form: Form, reading: Reading) -> Pair:
    if not form.fits(row):
        missing = next(column for column in form.columns if column not in row)
        have = ", ".join(map(str, row)) or "none"
        raise _Unusable(
            f"no column '{missing}' of the form {form.name} (columns: {have[:160]})",
            "name columns that are there; the first row of a table must name them"
            if form.name == _BY_USER
            else "bring all rows to one form, or name their columns with --columns",
        )
    _refuse_marked(row, form.columns, "column")
    for column, meaning in _EXTRAS.items():
        if column not in form.columns and not _is_empty(row.get(column)):
            raise _Unusable(
                f"column '{column}' holds {meaning}",
                "only text is trained here: remove the column or these rows",
            )
    parts = form.read(row)
    response = parts.response
    if isinstance(response, dict | list):
        response = json.dumps(response, ensure_ascii=False)
    found = extract({"query": parts.query, "response": response}, _PAIR)
    if isinstance(found, str):
        if isinstance(parts.query, float) or isinstance(response, float):
            raise _Unusable(found, "write numbers with a fraction as text, so that none changes")
        raise _Unusable(found)
    query, answer = found
    if not reading.last_turn:
        query = _with_earlier(parts, query)
    if reading.labels is not None:
        answer = _label(answer, reading.labels)
    lead, system = (_text(part, "a text") for part in (parts.lead, parts.system))
    return Pair(line, query, answer, lead if query != lead else "", system)


def _refuse_marked(row: Mapping[str, Any], columns: Sequence[str], what: str) -> None:
    """`_Unusable` for an answer that its own row says not to learn."""
    for name, values in _MARKS.items():
        value = row.get(name)
        marked = any(value == other and type(value) is type(other) for other in values)
        marked = marked or (name != "label" and isinstance(value, float) and value == 0)
        if name not in columns and marked:
            raise _Unusable(
                f"marked as no answer to learn from ({what} '{name}' is {value})",
                f"remove these rows, or '{name}' where it means something else",
            )


def _with_earlier(parts: _Parts, query: str) -> str:
    earlier = [_text(turn, "a turn") for turn in parts.earlier]
    if any(not turn.strip() for turn in earlier):
        raise _Unusable("an earlier turn is empty")
    return joined([*earlier, query])


def _label(answer: str, labels: Mapping[str, str]) -> str:
    if answer.strip() not in labels:
        raise _Unusable(
            f"'{answer.strip()[:40]}' is none of the labels that --labels names",
            f"--labels names {', '.join(labels)}: add what is missing",
        )
    return labels[answer.strip()]


def _text(value: Any, what: str) -> str:
    """A part of a row as text, "" for None. `_Unusable` for what is no text."""
    text = "" if value is None else text_of(value)
    if text is None or MARK in text:
        raise _Unusable(f"{what} is {type(value).__name__}, not text")
    return text


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in ("", "[]", "null")
    return value is None or (isinstance(value, list | dict) and not value)


# ------------------------------------------------------------------------- the forms


def _form_of(row: Mapping[str, Any], where: str) -> Form:
    form = next((form for form in FORMS if form.fits(row)), None)
    if form is not None:
        return form
    proposal = _proposal(row)
    table = where.rpartition(",")[0].lower().endswith(TABLES)
    raise UserError(
        f"columns {', '.join(map(str, row))[:200]} are of no known form",
        where=where,
        allowed="; ".join(f"{form.name}: {', '.join(form.columns)}" for form in FORMS),
        remedy=f"--columns {proposal} names them"
        + ("; --columns 1,2 where the table has no header" if table else ""),
    )


def _proposal(row: Mapping[str, Any]) -> str:
    """The value of `--columns` that a row of no known form suggests."""
    names = [name for name, value in row.items() if text_of(value) is not None]
    if len(names) < 2:
        return "query=A,response=B"
    lower = {name.lower(): name for name in names}
    response = next((lower[name] for name in _RESPONSES if name in lower), names[-1])
    longest = max((n for n in names if n != response), key=lambda name: len(str(row[name])))
    query = next((lower[n] for n in _QUERIES if n in lower and lower[n] != response), longest)
    return f"query={query},response={response}"


def _named(columns: Columns) -> Form:
    """The form that `--columns` describes."""

    def read(row: Mapping[str, Any]) -> _Parts:
        return _with_context(row, _Parts(_joined(row, columns.query), row[columns.response]))

    return Form(_BY_USER, (*columns.query, columns.response), read)


def _joined(row: Mapping[str, Any], columns: tuple[str, ...]) -> Any:
    """The texts of several columns, one a line, empty ones left out; other types as they are."""
    values = [row.get(column) for column in columns]
    if len(values) == 1:
        return values[0]
    texts = ["" if value is None else text_of(value) for value in values]
    wrong = [value for value, text in zip(values, texts, strict=True) if text is None]
    return wrong[0] if wrong else "\n".join(text for text in texts if text and text.strip())


def _with_context(row: Mapping[str, Any], parts: _Parts) -> _Parts:
    """The parts with what the row's columns `system` and `history` hold."""
    system, history = row.get("system"), row.get("history")
    if not _is_empty(system):
        parts = parts._replace(system=system)
    if not _is_empty(history):
        turns = [turn for pair in _list(history, "history") for turn in _pair_of_turns(pair)]
        parts = parts._replace(earlier=turns)
    return parts


def _pair_of_turns(value: Any) -> list[Any]:
    if isinstance(value, dict):  # as some write a table of turns
        value = list(value.values())
    if not isinstance(value, list) or len(value) != 2:
        raise _Unusable("column 'history' is no list of [question, answer]")
    return value


def _instruction(*inputs: str, response: str) -> Callable[[Mapping[str, Any]], _Parts]:
    """An instruction, what it is about, and the response, as Alpaca and Dolly have them."""

    def read(row: Mapping[str, Any]) -> _Parts:
        query = _joined(row, ("instruction", *inputs))
        return _with_context(row, _Parts(query, row[response], lead=row["instruction"]))

    return read


def _turns(column: str, role: str, content: str) -> Callable[[Mapping[str, Any]], _Parts]:
    def read(row: Mapping[str, Any]) -> _Parts:
        parts = _conversation(_list(row[column], column), role, content)
        return parts if parts.system else _with_context(row, parts)

    return read


def _columns(query: str, response: str) -> Callable[[Mapping[str, Any]], _Parts]:
    """Two columns of texts, or of messages (as trl's conversational prompt and completion are)."""

    def read(row: Mapping[str, Any]) -> _Parts:
        if isinstance(row[query], list) and isinstance(row[response], list):
            return _conversation([*row[query], *row[response]], "role", "content")
        return _with_context(row, _Parts(row[query], row[response]))

    return read


def _list(value: Any, column: str) -> list[Any]:
    """A list of turns; in a table it stands as JSON text."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            raise _Unusable(f"column '{column}' is no JSON list of turns") from None
    if not isinstance(value, list):
        raise _Unusable(f"column '{column}' is {type(value).__name__}, not a list of turns")
    return value


def _conversation(turns: list[Any], role: str, content: str) -> _Parts:
    """The last question and answer of a conversation, with what comes before them."""
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
    return _Parts(texts[-2], texts[-1], system=texts[0] if first else None, earlier=texts[first:-2])


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


FORMS = (
    Form("messages", ("messages",), _turns("messages", "role", "content")),
    Form("ShareGPT", ("conversations",), _turns("conversations", "from", "value")),
    Form("Alpaca", ("instruction", "output"), _instruction("input", response="output")),
    Form(
        "Dolly",
        ("instruction", "context", "response"),
        _instruction("context", response="response"),
    ),
    Form("query/response", ("query", "response"), _columns("query", "response")),
    Form("prompt/completion", ("prompt", "completion"), _columns("prompt", "completion")),
    Form("prompt/response", ("prompt", "response"), _columns("prompt", "response")),
    Form("question/answer", ("question", "answer"), _columns("question", "answer")),
    Form("text/label", ("text", "label"), _columns("text", "label")),
    Form("sentence/label", ("sentence", "label"), _columns("sentence", "label")),
)
