"""The forms in which people keep their rows, read as single-turn (query, response) pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import Columns
from tell_plugins.core.errors import UserError, unknown
from tell_plugins.core.rowfiles import read_records
from tell_plugins.core.rows import extract

_LISTED = 10  # reasons, and places of each, that a message lists
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MARKS = {",": "','", ";": "';'", "|": "'|'", "\t": "tabs"}
_BY_USER = "--columns"  # the form that the user describes
_PAIR = Columns(query=("query",), response="response")
_USER, _ASSISTANT, _SYSTEM = ("user", "human"), ("assistant", "gpt", "bot"), ("system",)
# columns of single-turn forms that must be empty, and what they would mean
_EXTRAS = {
    "system": "a system prompt",
    "history": "earlier turns",
    "tools": "tool calls",
    "images": "images",
    "videos": "videos",
    "audios": "audio",
}


def parse_json(text: str) -> Any:
    """The JSON value in `text`. Raises ValueError when there is none that can be read."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once. Raises ValueError otherwise: one value would be lost."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key '{next(key for key in keys if keys.count(key) > 1)}' stands twice")
    return made


class Pair(NamedTuple):
    """One task row and where it stands in its file."""

    line: int
    query: str
    response: str


class _Unusable(Exception):
    """Why a row is no pair, and what to do."""

    def __init__(self, reason: str, remedy: str = "mend or remove these rows") -> None:
        super().__init__(reason)
        self.remedy = remedy


@dataclass(frozen=True)
class Form:
    """A form: its name, the columns that make it, and how a row is read."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[Any, Any]]

    def fits(self, row: Mapping[str, Any]) -> bool:
        return all(column in row for column in self.columns)


@dataclass(frozen=True)
class TaskFile:
    """The rows of a file, all of one form."""

    path: Path
    form: str
    pairs: list[Pair]

    def place(self, pair: Pair) -> str:
        return f"{paths.shown(self.path)}, line {pair.line}"


def read_task_file(path: Path, columns: Columns | None = None) -> TaskFile:
    """Read a file of task rows; its form is told by its first row, or given by `columns`.

    Raises UserError when the form is not known, or any row is of another form, has several turns
    or a system prompt, or cannot be used for another reason: a scarce row is never left out.
    """
    if not path.is_file():
        raise UserError(f"no file '{path}'", where="command line", remedy="correct the path")
    form = None if columns is None else _named(columns)
    pairs: list[Pair] = []
    problems: dict[str, list[int]] = {}
    remedies: list[str] = []
    records = read_records(path)
    _check_delimiter(path)
    for record in records:
        try:
            if record.problem is not None:
                raise _Unusable(record.problem)
            if not isinstance(record.value, dict):
                raise _Unusable(f"not an object but {type(record.value).__name__}")
            form = form or _form_of(record.value, f"{paths.shown(path)}, line {record.line}")
            pairs.append(Pair(record.line, *_pair(record.value, form)))
        except _Unusable as problem:
            problems.setdefault(str(problem), []).append(record.line)
            if problem.remedy not in remedies:
                remedies.append(problem.remedy)
    if problems:
        shown = [f"{_lines(lines)}: {reason}" for reason, lines in problems.items()]
        more = f"; and {len(shown) - _LISTED} more problems" if len(shown) > _LISTED else ""
        count = sum(map(len, problems.values()))
        raise UserError(
            f"{count} rows cannot be used: {'; '.join(shown[:_LISTED])}{more}",
            where=paths.shown(path),
            allowed=f"rows of one form{f' ({form.name})' if form else ''}, one turn each",
            remedy="; ".join(remedies),
        )
    if not pairs or form is None:
        raise UserError(
            "the file has no rows", where=paths.shown(path), remedy="check where it came from"
        )
    return TaskFile(path, form.name, pairs)


def _lines(lines: Sequence[int]) -> str:
    """Line numbers in ascending order, such as "lines 2-41, 50"."""
    runs: list[list[int]] = []
    for line in lines:
        if runs and line <= runs[-1][1] + 1:
            runs[-1][1] = line
        else:
            runs.append([line, line])
    shown = [f"{first}-{last}" if last > first else str(first) for first, last in runs[:_LISTED]]
    more = " ..." if len(runs) > _LISTED else ""
    return f"line{'s' if lines[-1] > lines[0] else ''} {', '.join(shown)}{more}"


def _check_delimiter(path: Path) -> None:
    """UserError for a table whose header is separated by something else than its ending says."""
    wanted = _DELIMITERS.get(path.suffix.lower())
    if wanted is None:
        return
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = next((line.strip() for line in file if line.strip()), "")
    found = next((mark for mark in _MARKS if mark in header), None)
    if found is not None and wanted not in header:
        raise UserError(
            f"the columns are separated by {_MARKS[found]}, not {_MARKS[wanted]}",
            where=f"{paths.shown(path)}, header",
            allowed=", ".join(f"{_MARKS[mark]} in {end}" for end, mark in _DELIMITERS.items()),
            remedy="save the table again with that separator",
        )


def parse_columns(text: str) -> Columns:
    """`query=a,response=b`; several query columns as `query=a+b`. UserError for anything else."""
    values: dict[str, list[str]] = {}
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in ("query", "response"):
            raise unknown("key", key, ("query", "response"), "--columns")
        names = [name.strip() for name in value.split("+")] if key == "query" else [value]
        if not all(names) or len(set(names)) < len(names) or key in values:
            raise UserError(
                f"bad value '{text}'",
                where="--columns",
                allowed="query=COLUMN[+COLUMN...],response=COLUMN",
                remedy="name each once",
            )
        values[key] = names
    if len(values) < 2:
        raise UserError(
            f"'{text}' names only one of query and response",
            where="--columns",
            allowed="query=COLUMN[+COLUMN...],response=COLUMN",
            remedy="name both",
        )
    return Columns(query=tuple(values["query"]), response=values["response"][0])


def _pair(row: Mapping[str, Any], form: Form) -> tuple[str, str]:
    if not form.fits(row):
        missing = next(column for column in form.columns if column not in row)
        have = ", ".join(map(str, row)) or "none"
        raise _Unusable(
            f"no column '{missing}' of the form {form.name} (columns: {have[:160]})",
            "name columns that are there; the first row of a table must name them"
            if form.name == _BY_USER
            else "bring all rows to one form, or name their columns with --columns",
        )
    for column, meaning in _EXTRAS.items():
        if column not in form.columns and not _is_empty(row.get(column)):
            raise _Unusable(f"column '{column}' holds {meaning}", _one_turn(column))
    query, response = form.read(row)
    if isinstance(response, dict | list):
        response = json.dumps(response, ensure_ascii=False)
    found = extract({"query": query, "response": response}, _PAIR)
    if isinstance(found, str):
        if isinstance(query, bool | int | float) or isinstance(response, bool | int | float):
            raise _Unusable(found, 'quote numbers, true and false as text: "1", "true"')
        raise _Unusable(found)
    return found


def _one_turn(kind: str) -> str:
    if kind == "system":
        return (
            "put what the system prompt says into the anchor (--anchor) and remove it from the rows"
        )
    if kind == "history":
        return "keep one user turn and one answer a row: split conversations into rows"
    return "only text is trained here: remove the column or these rows"


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in ("", "[]", "null")
    return value is None or (isinstance(value, list | dict) and not value)


# ------------------------------------------------------------------------- the forms


def _form_of(row: Mapping[str, Any], where: str) -> Form:
    form = next((form for form in FORMS if form.fits(row)), None)
    if form is not None:
        return form
    raise UserError(
        f"columns {', '.join(map(str, row))} are of no known form",
        where=where,
        allowed="; ".join(f"{form.name}: {', '.join(form.columns)}" for form in FORMS),
        remedy="--columns query=A,response=B names them",
    )


def _named(columns: Columns) -> Form:
    """The form that `--columns` describes."""

    def read(row: Mapping[str, Any]) -> tuple[Any, Any]:
        return _joined(row, columns.query), row[columns.response]

    return Form(_BY_USER, (*columns.query, columns.response), read)


def _joined(row: Mapping[str, Any], columns: tuple[str, ...]) -> Any:
    """The texts of several columns, one a line, empty ones left out; other types as they are."""
    values = [row.get(column) for column in columns]
    if len(values) == 1:
        return values[0]
    wrong = [value for value in values if value is not None and not isinstance(value, str)]
    if wrong:
        return wrong[0]
    return "\n".join(value for value in values if value and value.strip())


def _alpaca(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return _joined(row, ("instruction", "input")), row["output"]


def _turns(column: str, role: str, content: str) -> Callable[[Mapping[str, Any]], tuple[Any, Any]]:
    def read(row: Mapping[str, Any]) -> tuple[Any, Any]:
        return _single_turn(_list(row[column], column), role, content)

    return read


def _columns(query: str, response: str) -> Callable[[Mapping[str, Any]], tuple[Any, Any]]:
    """Two columns of texts, or of messages (as trl's conversational prompt and completion are)."""

    def read(row: Mapping[str, Any]) -> tuple[Any, Any]:
        if isinstance(row[query], list) and isinstance(row[response], list):
            return _single_turn([*row[query], *row[response]], "role", "content")
        return row[query], row[response]

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


def _single_turn(turns: list[Any], role: str, content: str) -> tuple[Any, Any]:
    """Query and response of a conversation that has one of each. `_Unusable` otherwise."""
    for turn in turns:
        if not isinstance(turn, dict) or role not in turn or content not in turn:
            raise _Unusable(f"a turn is no object with '{role}' and '{content}'")
    roles = [str(turn[role]).lower() for turn in turns]
    if any(name in _SYSTEM for name in roles):
        raise _Unusable("a system turn", _one_turn("system"))
    known = all(name in (*_USER, *_ASSISTANT) for name in roles)
    if len(turns) != 2 or not known or roles[0] not in _USER or roles[1] not in _ASSISTANT:
        raise _Unusable(
            f"turns {', '.join(roles) or 'none'}, not one user and one assistant turn",
            _one_turn("history"),
        )
    return turns[0][content], turns[1][content]


FORMS = (
    Form("messages", ("messages",), _turns("messages", "role", "content")),
    Form("ShareGPT", ("conversations",), _turns("conversations", "from", "value")),
    Form("Alpaca", ("instruction", "output"), _alpaca),
    Form("query/response", ("query", "response"), _columns("query", "response")),
    Form("prompt/completion", ("prompt", "completion"), _columns("prompt", "completion")),
    Form("prompt/response", ("prompt", "response"), _columns("prompt", "response")),
    Form("question/answer", ("question", "answer"), _columns("question", "answer")),
)
