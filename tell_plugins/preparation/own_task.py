"""An own task read from the user's files: rows, split, anchor, metric, schema; all checked."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.anchors import SEPARATOR, shared_front
from tell_plugins.core.errors import UserError
from tell_plugins.preparation.answer_schema import (
    LONGEST_VALUE,
    check_answers,
    infer_schema,
    label_of,
    parse_objects,
    read_schema,
)
from tell_plugins.preparation.forms import Pair, TaskFile, parse_columns, read_task_file
from tell_plugins.preparation.task_split import (
    count_test_labels,
    split_off_test,
    without_duplicates,
    without_overlap,
)

METRICS = ("json", "translation", "number", "text")
SPLITS = ("train", "validation", "test")
_FEW_BROKEN = 0.1  # a share of responses that are no JSON, up to which they are mistakes
LEAST_FRONT = 40  # characters that rows must share to be taken for an anchor unasked
_NUMBER = re.compile(r"\s*[-+]?[\d.,]+\s*|[\s\S]*####\s*[-+$]?[\d.,]+\s*")


@dataclass
class Task:
    """An own task, read and checked, nothing written yet."""

    name: str
    train: list[Pair]
    test: list[Pair]
    validation: list[Pair]
    anchor: str  # as the model sees it
    inline: bool
    metric: str
    schema: dict[str, Any] | None = None
    label: str | None = None
    languages: tuple[str, str] | None = None
    notes: list[str] = field(default_factory=list)

    def seen(self, pair: Pair) -> str:
        """The query as the model will see it."""
        return pair.query if self.inline else self.anchor + SEPARATOR + pair.query


def read_task(args: argparse.Namespace) -> Task:
    """The rows, split and checked, with anchor and metric. Raises UserError; writes nothing."""
    if args.test is not None and args.test_rows is not None:
        raise UserError(
            "rows to split off, and a file of test rows",
            where="--test, --test-rows",
            allowed="one of both",
            remedy="leave --test-rows out, or shorten the file",
        )
    columns = parse_columns(args.columns) if args.columns else None
    files: dict[str, TaskFile] = {}
    notes: list[str] = []
    for name in SPLITS:
        given = getattr(args, name)
        if given is None:
            continue
        file = read_task_file(paths.user_path(given), columns)
        notes.append(f"{name}: {len(file.pairs)} rows of the form {file.form} in {file.path.name}")
        files[name], warnings = without_duplicates(file)
        notes += warnings
    for name in ("test", "validation"):
        if name in files:
            files["train"] = without_overlap(files["train"], files[name], name, args.drop_overlap)
    if "test" in files and "validation" in files:  # else the test rows choose the settings
        files["validation"] = without_overlap(
            files["validation"], files["test"], "test", args.drop_overlap, "validation"
        )
    task = Task(args.name, [], [], [], "", False, "", notes=notes)
    _set_metric(task, args, files)
    if "test" not in files:
        task.train, task.test = split_off_test(
            files["train"], task.label, args.seed, args.test_rows
        )
    else:
        task.train, task.test = files["train"].pairs, files["test"].pairs
    notes += _test_notes(task, None if "test" in files else args.seed)
    task.validation = files["validation"].pairs if "validation" in files else []
    _set_anchor(task, args)
    return task


def _test_notes(task: Task, seed: int | None) -> list[str]:
    """How the test rows were split off, None for `seed` when not, and whether they tell much."""
    labels = count_test_labels(task.train, task.test, task.label)
    notes = []
    if seed is not None:
        counts = ", ".join(f"{count} {_short(label)}" for label, count in (labels or {}).items())
        notes.append(
            f"no --test: {len(task.test)} rows are split off to test with, chosen by content and "
            f"seed {seed}"
            + (f" in the labels' shares ({counts})" if counts else "")
            + f"; {len(task.train)} train"
        )
    if labels is not None and len(labels) == 1:
        [label] = labels
        notes.append(
            f"WARNING: the label of every test row is {_short(label)}, so a model that always "
            "answers that scores 100 %; give test rows of each label with --test FILE"
            + (", or split more off with --test-rows N" if seed is not None else "")
        )
    return notes


def _short(label: str) -> str:
    """A label quoted on one line, the beginning of a long one."""
    line = " ".join(label.split())
    return f"'{line}'" if len(line) <= LONGEST_VALUE else f"'{line[:LONGEST_VALUE]} ...'"


def _set_metric(task: Task, args: argparse.Namespace, files: dict[str, TaskFile]) -> None:
    train = files["train"]
    responses = [pair.response for pair in train.pairs]
    objects = parse_objects(responses)
    if objects is None and args.metric in (None, "json") and args.schema is None:
        _refuse_broken_objects(train)
    metric = args.metric or _metric_of(args, objects, responses)
    if metric == "number":
        for file in files.values():
            _need_numbers(file)
    if metric != "json" and (args.schema or args.label):
        raise UserError(
            f"--schema and --label belong to JSON answers, but the metric is '{metric}'",
            where="command line",
            remedy="leave them out, or --metric json",
        )
    task.metric = metric
    if metric == "json":
        everything = list(objects or [])
        for name in ("validation", "test"):
            if name in files:
                everything += parse_objects([p.response for p in files[name].pairs]) or []
        schema = read_schema(paths.user_path(args.schema)) if args.schema else None
        if schema is None and objects is None:
            raise UserError(
                "metric 'json', but not all responses are JSON objects",
                where=paths.shown(train.path),
                remedy="mend the responses, give --schema FILE, or another --metric",
            )
        task.schema = schema or infer_schema(everything)
        task.label = label_of(task.schema, args.label)
        for name, file in files.items():
            check_answers(file, task.schema, task.label, bare_labels=name != "train")
        if args.schema is None:
            task.notes.append(f"schema learnt from the responses: {_brief(task.schema)}")
        if task.label is None:
            task.notes.append("no property is taken for the label; name one with --label")
    if metric == "translation":
        task.languages = _languages(args.languages)


def _refuse_broken_objects(train: TaskFile) -> None:
    """Raise UserError where nearly all responses are JSON objects: the others are mistakes."""
    broken = [pair for pair in train.pairs if parse_objects([pair.response]) is None]
    if broken and len(broken) <= len(train.pairs) * _FEW_BROKEN:
        lines = ", ".join(f"line {pair.line}" for pair in broken[:5])
        raise UserError(
            f"{len(broken)} of {len(train.pairs)} responses are no JSON object: {lines}"
            + (" ..." if len(broken) > 5 else ""),
            where=paths.shown(train.path),
            remedy="mend them, or --metric text where answers need not be JSON",
        )


def _need_numbers(file: TaskFile) -> None:
    without = [pair for pair in file.pairs if not any(map(str.isdecimal, pair.response))]
    if without:
        raise UserError(
            f"metric 'number', but {len(without)} of {len(file.pairs)} responses hold none; the "
            f"first is at line {without[0].line}",
            where=paths.shown(file.path),
            allowed="a response that ends with `#### <number>`, or holds a number",
            remedy="correct the rows, or name another --metric",
        )


def _metric_of(
    args: argparse.Namespace, objects: list[dict[str, Any]] | None, responses: Sequence[str]
) -> str:
    if args.languages:
        return "translation"
    if args.schema or objects is not None:
        return "json"
    if all(_NUMBER.fullmatch(response) for response in responses):
        return "number"
    return "text"


def _languages(text: str | None) -> tuple[str, str]:
    parts = [part.strip() for part in (text or "").split(",")]
    if len(parts) != 2 or not all(parts):
        raise UserError(
            "a translation has two languages" + (f", not '{text}'" if text else ""),
            where="--languages",
            allowed="FROM,TO, in English",
            remedy="--languages Icelandic,English",
        )
    return parts[0], parts[1]


def _brief(schema: dict[str, Any]) -> str:
    parts = []
    for key, value in schema["properties"].items():
        kind = " | ".join(map(repr, value["enum"])) if "enum" in value else str(value["type"])
        parts.append(f"{key}{'' if key in schema['required'] else ' (optional)'}: {kind}")
    return "; ".join(parts)


def _set_anchor(task: Task, args: argparse.Namespace) -> None:
    front = _front([*task.train, *task.test, *task.validation])
    if args.anchor == "inline" or (args.anchor is None and len(front) >= LEAST_FRONT):
        if not front:
            raise UserError(
                "the rows share no text at the front",
                where="--anchor inline",
                remedy="give the anchor's text: --anchor 'TEXT'",
            )
        task.anchor, task.inline = front, True
        task.notes.append(f"the rows begin with the same {len(front)} characters: the anchor")
        _need_more_than(front, task)
        if _front(task.train) != front:  # which is what a card with an inline anchor goes by
            _take_out(front, task)
        return
    if args.anchor is None:
        raise UserError(
            "no anchor, and the rows share none at the front",
            where="--anchor",
            allowed="a text, a file with it, or 'inline'",
            remedy="--anchor 'TEXT' that says what to do and in which form to answer; it stands "
            "in front of every query, in training and at test",
        )
    task.anchor = _anchor_text(args.anchor)
    if len(front) >= LEAST_FRONT:
        task.notes.append(
            f"the rows begin with the same {len(front)} characters already, and --anchor comes in "
            "front of them; --anchor inline takes theirs"
        )


def _front(pairs: Sequence[Pair]) -> str:
    """The text that all queries begin with, "" when there is none."""
    try:
        return shared_front([pair.query for pair in pairs], "")
    except UserError:
        return ""


def _need_more_than(front: str, task: Task) -> None:
    """UserError when a row is the anchor and nothing else."""
    pairs = (*task.train, *task.test, *task.validation)
    bare = [pair.line for pair in pairs if not pair.query.removeprefix(front).strip()]
    if bare:
        raise UserError(
            f"{len(bare)} rows hold nothing but the text that all begin with, first at line "
            f"{bare[0]}",
            where="--anchor",
            remedy="remove these rows, or give the anchor's text: --anchor 'TEXT'",
        )


def _take_out(front: str, task: Task) -> None:
    """Keep the anchor in a file and the rows without it."""

    def without(pairs: Sequence[Pair]) -> list[Pair]:
        return [pair._replace(query=pair.query.removeprefix(front).lstrip()) for pair in pairs]

    task.train, task.test = without(task.train), without(task.test)
    task.validation = without(task.validation)
    task.anchor, task.inline = front.strip(), False


def _anchor_text(given: str) -> str:
    path, text = _file_named(given), given
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(
                "not UTF-8", where=paths.shown(path), remedy="save the anchor as UTF-8"
            ) from None
    elif re.fullmatch(r".+\.(txt|md)", given, re.IGNORECASE):
        raise UserError(
            f"no file '{given}'",
            where="--anchor",
            remedy="correct the path; an anchor that ends so is given in a file",
        )
    if not text.strip():
        raise UserError("the anchor is empty", where="--anchor", remedy="write its text")
    return text.strip()


def _file_named(given: str) -> Path | None:
    """The file that `given` names, None when it is a text."""
    try:
        path = paths.user_path(given)
        return path if path.is_file() else None
    except (OSError, UserError):  # longer than a name may be; "~" of nobody
        return None
