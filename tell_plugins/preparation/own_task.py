"""An own task read from the user's files: rows, split, anchor, metric, schema; all checked."""

from __future__ import annotations

import argparse
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.anchors import SEPARATOR, shared_front
from tell_plugins.core.cards import fold_name
from tell_plugins.core.errors import UserError
from tell_plugins.core.schemas import read_schema
from tell_plugins.core.text import MARK, first_turn, found_in
from tell_plugins.preparation.answer_kind import (
    kind_of,
    need_numbers,
    number_hint,
    one_spelling,
    refuse_broken_json,
    with_json,
    without_broken_json,
)
from tell_plugins.preparation.answer_schema import (
    LONGEST_VALUE,
    check_answers,
    close_label,
    infer_schema,
    json_values,
    label_in,
    label_of,
    with_label,
)
from tell_plugins.preparation.forms import (
    Pair,
    Reading,
    TaskFile,
    parse_columns,
    parse_labels,
    read_task_file,
)
from tell_plugins.preparation.task_split import (
    labels_of,
    split_into_folds,
    split_off_test,
    without_duplicates,
    without_overlap,
)

FEW_TEST_ROWS = 50  # with fewer, what a test can show is said
SPLITS = ("train", "validation", "test")
LEAST_FRONT = 40  # characters that rows must share to be taken for an anchor unasked


@dataclass
class Task:
    """An own task, read and checked, nothing written yet."""

    name: str
    parts: dict[str, list[Pair]]  # the rows of each split there is
    anchor: str = ""  # as the model sees it
    inline: bool = False
    metric: str = ""
    schema: dict[str, Any] | None = None
    label: str | None = None  # the property of JSON answers that holds it
    labels: list[str] | None = None  # the answers there are, where they are labels
    languages: tuple[str, str] | None = None
    system: str | None = None  # of the recipe
    notes: list[str] = field(default_factory=list)

    @property
    def train(self) -> list[Pair]:
        return self.parts["train"]

    @property
    def test(self) -> list[Pair]:
        return self.parts.get("test", [])

    @property
    def pairs(self) -> list[Pair]:
        """The rows of all splits."""
        return [pair for pairs in self.parts.values() for pair in pairs]

    @property
    def has_turns(self) -> bool:
        """Whether any row has earlier turns."""
        return any(MARK in pair.query for pair in self.pairs)

    def change_queries(self, change: Callable[[Pair], str]) -> None:
        """Give each row the query that `change` makes of it."""
        self.parts = {
            name: [pair._replace(query=change(pair)) for pair in pairs]
            for name, pairs in self.parts.items()
        }

    def seen(self, pair: Pair) -> str:
        """The query as the model will see it."""
        return pair.query if self.inline else self.anchor + SEPARATOR + pair.query


def read_task(args: argparse.Namespace) -> Task:
    """The rows, split and checked, with anchor and metric. Raises UserError; writes nothing."""
    _refuse_two_tests(args)
    reading = Reading(
        columns=parse_columns(args.columns) if args.columns else None,
        labels=parse_labels(args.labels) if args.labels else None,
        last_turn=args.last_turn,
        drop_broken=args.drop_broken,
    )
    files: dict[str, TaskFile] = {}
    notes: list[str] = []
    for name in SPLITS:
        given = getattr(args, name)
        if given is None:
            continue
        file = _whole_json(read_task_file(paths.user_path(given), reading), args, name)
        notes.append(f"{name}: {len(file.pairs)} rows of the form {file.form} in {file.path.name}")
        notes += file.notes
        files[name], warnings = without_duplicates(file)
        notes += warnings
    for name in ("test", "validation"):
        if name in files:
            files["train"] = without_overlap(files["train"], files[name], name, args.drop_overlap)
    if "test" in files and "validation" in files:  # else the test rows choose the settings
        files["validation"] = without_overlap(
            files["validation"], files["test"], "test", args.drop_overlap, "validation"
        )
    notes += [note for file in files.values() for note in _steering(file)]
    task = Task(args.name, {}, notes=notes)
    _set_metric(task, args, files)
    task.parts = {name: files[name].pairs for name in SPLITS if name in files}
    if args.folds is None and "test" not in files:
        labels = labels_of(task.train, task.metric, task.label)
        split = split_off_test(files["train"], labels, args.seed, args.test_rows)
        task.parts |= split._asdict()
    if args.folds is None:
        notes += _test_notes(task, None if "test" in files else args.seed)
    _set_anchor(task, args)
    return task


def _refuse_two_tests(args: argparse.Namespace) -> None:
    """UserError where test rows are asked for in more than one way."""
    ways = ("--test", "--test-rows", "--folds")
    given = [way for way in ways if getattr(args, way[2:].replace("-", "_")) is not None]
    if len(given) > 1:
        raise UserError(
            "test rows in more than one way",
            where=", ".join(given),
            allowed="a file of test rows, rows to split off, or folds",
            remedy=f"leave {' or '.join(given[1:])} out",
        )


def folds_of(task: Task, count: int, seed: int) -> list[Task]:
    """A task for each fold: a part of the rows tests, the others train.

    Notes about them are added to those of `task`. Raises UserError as `split_into_folds` does.
    """
    labels = labels_of(task.train, task.metric, task.label)
    splits = split_into_folds(task.train, labels, seed, count)
    sizes = [len(split.test) for split in splits]
    shares = "" if labels is None else ", in the labels' shares"
    task.notes.append(
        f"--folds {count}: each of the {len(task.train)} rows tests once, for a model that did not "
        f"train on it; {min(sizes)} to {max(sizes)} rows a fold, chosen by content and seed "
        f"{seed}{shares}. Over all folds the 95 % interval of a score is up to "
        f"{_width(len(task.train)):.0f} points to either side"
    )
    once = [label for label, times in sorted(Counter(labels or []).items()) if times == 1]
    if once:
        task.notes.append(
            f"WARNING: one row alone has the label {', '.join(map(_short, once[:5]))}: where it "
            "tests, no row trains it"
        )
    return [
        replace(task, name=fold_name(task.name, number), parts=task.parts | split._asdict())
        for number, split in enumerate(splits, 1)
    ]


def _whole_json(file: TaskFile, args: argparse.Namespace, name: str) -> TaskFile:
    """The file with Python's answers as JSON, and without broken JSON, each where it is asked."""
    if args.languages or args.metric not in (None, "json"):
        return file
    if args.repair_json:
        file = with_json(file)
    if args.drop_broken:
        surely = bool(args.schema or args.metric)
        file = without_broken_json(file, surely=surely, bare_labels=name != "train")
    return file


def _steering(file: TaskFile) -> Iterator[str]:
    """A warning where rows hold tokens that steer a chat model; which model, only `check` knows."""
    found = [
        (pair, token) for pair in file.pairs if (token := found_in(pair.query + pair.response))
    ]
    if found:
        pair, token = found[0]
        yield (
            f"WARNING: {len(found)} rows of {file.path.name} hold control tokens of chat models, "
            f"the first {token} at line {pair.line}: a model that has it reads a turn's end or "
            "beginning there. `check` tells for the recipe's model"
        )


def _test_notes(task: Task, seed: int | None) -> list[str]:
    """How the test rows were split off, None for `seed` when not, and whether they tell much."""
    test, train = (
        Counter(labels_of(pairs, task.metric, task.label) or [])
        for pairs in (task.test, task.train)
    )
    notes = []
    if seed is not None:
        counts = ", ".join(f"{count} {_short(label)}" for label, count in sorted(test.items()))
        notes.append(
            f"no --test: {len(task.test)} rows are split off to test with, chosen by content and "
            f"seed {seed}"
            + (f" in the labels' shares ({counts})" if counts else "")
            + f"; {len(task.train)} train"
        )
        missing = [label for label in sorted(train) if label not in test]
        if missing:
            notes.append(f"no test row has the label {', '.join(map(_short, missing[:5]))}")
    if len(test) == 1:
        [label] = test
        notes.append(
            f"WARNING: the label of every test row is {_short(label)}, so a model that always "
            "answers that scores 100 %; give test rows of each label with --test FILE"
            + (", or split more off with --test-rows N" if seed is not None else "")
        )
    if len(task.test) < FEW_TEST_ROWS:
        count = len(task.test)
        notes.append(
            f"{count} test rows show little: one row is {100 / count:.0f} points of a score, and "
            f"its 95 % interval is up to {_width(count):.0f} points to either side; give a file of "
            "100 rows or more with --test FILE"
            + (", or let each row test once, with --folds 5" if seed is not None else "")
        )
    return notes


def _width(rows: int) -> float:
    """Points to either side of 50 % that the 95 % interval of a rate over `rows` reaches."""
    return 100 * 1.96 * math.sqrt(rows + 1.96**2) / (2 * (rows + 1.96**2))


def _short(label: str) -> str:
    """A label quoted on one line, the beginning of a long one."""
    line = " ".join(label.split())
    return f"'{line}'" if len(line) <= LONGEST_VALUE else f"'{line[:LONGEST_VALUE]} ...'"


def _set_metric(task: Task, args: argparse.Namespace, files: dict[str, TaskFile]) -> None:
    """Metric, labels, schema and languages; labels in `files` are brought to one spelling."""
    train = files["train"]
    metric = args.metric or ("translation" if args.languages else "json" if args.schema else None)
    task.metric = metric or kind_of(train)
    if task.metric != "json" and (args.schema or args.label or args.repair_json):
        raise UserError(
            "--schema, --label and --repair-json belong to JSON answers, but the metric is "
            f"'{task.metric}'",
            where="command line",
            remedy="leave them out, or --metric json",
        )
    if task.metric == "json":
        _set_schema(task, args, files)
    elif task.metric == "label":
        _set_labels(task, args, files)
    elif task.metric == "number":
        for file in files.values():
            need_numbers(file)
    elif task.metric == "translation":
        task.languages = _languages(args.languages)
    elif metric is None:
        task.notes += number_hint(train)


def _set_labels(task: Task, args: argparse.Namespace, files: dict[str, TaskFile]) -> None:
    one_spelling(
        files,
        lambda pair: pair.response,
        lambda pair, label: pair._replace(response=label),
        args.clean_labels,
    )
    counts = Counter(pair.response for pair in files["train"].pairs)
    if len(counts) < 2:
        raise UserError(
            f"all training answers are {_short(next(iter(counts)))}: one label is none to choose",
            where=paths.shown(files["train"].path),
            remedy="give rows of each label, or another --metric",
        )
    held_out = {pair.response for file in files.values() for pair in file.pairs} - set(counts)
    unknown_labels = sorted(held_out)
    if unknown_labels:
        task.notes.append(
            f"WARNING: no training row has the label {', '.join(map(_short, unknown_labels[:5]))}"
        )
    task.labels = sorted({*counts, *held_out})
    shown = ", ".join(f"{_short(label)} {count}x" for label, count in counts.most_common(6))
    task.notes.append(
        f"the answers are {len(counts)} labels ({shown}{' ...' if len(counts) > 6 else ''})"
        + ("" if args.metric else "; where they are none: --metric text, or number")
    )


def _set_schema(task: Task, args: argparse.Namespace, files: dict[str, TaskFile]) -> None:
    given = read_schema(paths.user_path(args.schema)) if args.schema else None
    if given is None and json_values(files["train"]) is None:
        refuse_broken_json(files["train"])
        raise UserError(
            "metric 'json', but not all responses are JSON objects",
            where=paths.shown(files["train"].path),
            remedy="mend the responses, give --schema FILE, or another --metric",
        )
    task.schema = _learnt(files) if given is None else given
    task.label = key = label_of(task.schema, args.label)
    if key is not None:
        before = dict(files)
        one_spelling(
            files,
            lambda pair: label_in(pair.response, key),
            lambda pair, label: pair._replace(response=with_label(pair.response, key, label)),
            args.clean_labels,
        )
        if given is None and files != before:
            task.schema = _learnt(files)
        if given is None and args.label:
            close_label(task.schema, key, [p.response for p in files["train"].pairs])
    for name, file in files.items():
        check_answers(file, task.schema, task.label, bare_labels=name != "train")
    if given is None:
        task.notes.append(f"schema learnt from the responses: {_brief(task.schema)}")
    if key is None:
        task.notes.append("no property is taken for the label; name one with --label")
    elif args.label is None:
        task.notes.append(f"'{key}' is taken for the label; --label NAME names another, or none")


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


def _learnt(files: dict[str, TaskFile]) -> dict[str, Any]:
    return infer_schema([value for file in files.values() for value in json_values(file) or []])


def _brief(schema: dict[str, Any]) -> str:
    parts = []
    for key, value in schema.get("properties", {}).items():
        kind = " | ".join(map(repr, value["enum"])) if "enum" in value else str(value["type"])
        parts.append(f"{key}{'' if key in schema['required'] else ' (optional)'}: {kind}")
    return "; ".join(parts) or str(schema["type"])


def _set_anchor(task: Task, args: argparse.Namespace) -> None:
    system, lead = _system(task, args.anchor, args.system), _constant_lead(task)
    if system and args.system != "keep":
        task.anchor = system
        task.notes.append(f"the rows' system prompt is the anchor: {_short(system)}")
        return
    if system:
        task.system = system
        task.notes.append(f"the rows' system prompt goes into the recipe: {_short(system)}")
    if lead and args.anchor in (None, "inline"):
        task.notes.append(f"all rows hold the same instruction: the anchor, {_short(lead)}")
        task.anchor = lead
        task.change_queries(lambda pair: pair.query[len(pair.lead) :].removeprefix("\n"))
        return
    front = _front(task.pairs)
    if args.anchor == "inline" or (args.anchor is None and _letters(front) >= LEAST_FRONT):
        if not front:
            raise UserError(
                "the rows share no text at the front",
                where="--anchor inline",
                remedy="give the anchor's text: --anchor 'TEXT'",
            )
        task.anchor, task.inline = front, True
        task.notes.append(f"the rows begin with the same {len(front)} characters: the anchor")
        _need_more_than(front, task)
        # what a card with an inline anchor goes by; each fold would have its own
        if args.folds is not None or _front(task.train) != front:
            task.change_queries(lambda pair: pair.query.removeprefix(front).lstrip())
            task.anchor, task.inline = front.strip(), False
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
    if _letters(front) >= LEAST_FRONT:
        task.notes.append(
            f"the rows begin with the same {len(front)} characters already, and --anchor comes in "
            "front of them; --anchor inline takes theirs"
        )


def _letters(text: str) -> int:
    """The length of a text; a character of Chinese, Japanese or Korean says as much as three."""
    return sum(3 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _constant_lead(task: Task) -> str:
    """The instruction that all rows hold in a column of its own, "" where there is none."""
    leads = {pair.lead.strip() for pair in task.pairs}
    in_front = all(pair.query.startswith(pair.lead) for pair in task.pairs)
    return leads.pop() if in_front and len(leads) == 1 else ""


def _system(task: Task, anchor: str | None, choice: str | None) -> str:
    """The one system prompt of the rows, "" where they have none.

    Raises UserError where it changes, where some training rows lack it, or where an anchor is
    given as well and nothing says what becomes of it.
    """
    systems = Counter(pair.system for pair in task.pairs)
    prompts = [text for text in systems if text.strip()]
    if not prompts:
        return ""
    without = [pair.line for pair in task.train if not pair.system.strip()]
    if len(prompts) > 1 or without:
        shown = " and ".join(_short(text) for text in prompts[:2])
        raise UserError(
            f"{len(prompts)} system prompts differ: {shown}"
            if len(prompts) > 1
            else f"{len(without)} training rows lack the system prompt {shown}, the first at line "
            f"{without[0]}",
            where="--train",
            allowed="one system prompt in all rows, which becomes the anchor",
            remedy="put what changes into the query, or give all rows the same prompt",
        )
    if anchor is not None and choice != "keep":
        raise UserError(
            f"an anchor is given, and the rows have a system prompt: {_short(prompts[0])}",
            where="--anchor",
            remedy="leave --anchor out, so that the system prompt becomes the anchor; or --system "
            "keep, so that it stays one, in the recipe, beside the anchor",
        )
    return prompts[0].strip()


def _front(pairs: Sequence[Pair]) -> str:
    """The text that all queries begin with, "" when there is none."""
    try:
        return shared_front([first_turn(pair.query) for pair in pairs], "")
    except UserError:
        return ""


def _need_more_than(front: str, task: Task) -> None:
    """UserError when a row is the anchor and nothing else."""
    bare = [pair.line for pair in task.pairs if not pair.query.removeprefix(front).strip()]
    if bare:
        raise UserError(
            f"{len(bare)} rows hold nothing but the text that all begin with, first at line "
            f"{bare[0]}",
            where="--anchor",
            remedy="remove these rows, or give the anchor's text: --anchor 'TEXT'",
        )


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
