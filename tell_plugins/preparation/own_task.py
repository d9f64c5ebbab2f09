"""An own task read from the user's files: rows, split, anchor, metric, schema; all checked."""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.anchors import SEPARATOR, shared_front
from tell_plugins.core.cards import fold_name
from tell_plugins.core.errors import UserError
from tell_plugins.core.schemas import read_schema
from tell_plugins.core.text import MARK, first_turn
from tell_plugins.preparation.answers import (
    LONGEST_VALUE,
    check_answers,
    close_label,
    infer_schema,
    json_values,
    kind_of,
    label_of,
    labels_of,
    means_json,
    need_numbers,
    one_spelling,
    with_json,
    without_broken_json,
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
    other_answers,
    split_into_folds,
    split_off_test,
    without_duplicates,
    without_overlap,
)
from tell_plugins.recipe.tables import count_of

FEW_TEST_ROWS = 50  # with fewer, what a test can show is said
SPLITS = ("train", "validation", "test")
LEAST_FRONT = 40  # characters that rows must share, where it is no whole line, to be an anchor


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
    split_off: bool = False  # whether the test rows are a part of the file of training rows
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

    def labels_in(self, split: str) -> Counter[str]:
        """How often each label is in a split; empty where answers have none."""
        return Counter(labels_of(self.parts.get(split, []), self.metric, self.label) or [])

    def seen(self, pair: Pair) -> str:
        """The query as the model will see it."""
        return pair.query if self.inline else self.anchor + SEPARATOR + pair.query


def read_task(args: argparse.Namespace) -> Task:
    """The rows, split and checked, with anchor and metric. Raises UserError; writes nothing."""
    _refuse_two_tests(args)
    task = Task(args.name, {})
    files = {name: _read(args, name, task.notes) for name in SPLITS if getattr(args, name)}
    for name in ("test", "validation"):
        if name in files:
            files["train"] = without_overlap(files["train"], files[name], name, args.drop_overlap)
    if "test" in files and "validation" in files:  # else the test rows choose the settings
        files["validation"] = without_overlap(
            files["validation"], files["test"], "test", args.drop_overlap, "validation"
        )
    _set_metric(task, args, files)
    task.parts = {name: file.pairs for name, file in files.items()}
    if args.folds is None:
        task.split_off = "test" not in files
        if task.split_off:
            labels = labels_of(task.train, task.metric, task.label)
            split = split_off_test(files["train"], labels, args.seed, args.test_rows)
            task.parts |= split
        task.notes += _test_notes(task, args.seed)
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


def _read(args: argparse.Namespace, name: str, notes: list[str]) -> TaskFile:
    """The file of a split, with Python's answers as JSON and without broken JSON where asked."""
    reading = Reading(
        columns=parse_columns(args.columns) if args.columns else None,
        labels=parse_labels(args.labels) if args.labels else None,
        last_turn=args.last_turn,
        drop_broken=args.drop_broken,
    )
    file = read_task_file(paths.user_path(getattr(args, name)), reading)
    may_be_json = not args.languages and args.metric in (None, "json")
    if may_be_json and args.repair_json:
        file = with_json(file)
    if may_be_json and args.drop_broken and (args.schema or args.metric or means_json(file)):
        file = without_broken_json(file)
    rows = count_of(len(file.pairs), "row")
    notes.append(f"{name}: {rows} of {file.path.name}, read as {file.form}")
    file = without_duplicates(file)
    notes += (*file.notes, *other_answers(file))
    return file


def folds_of(task: Task, count: int, seed: int) -> list[Task]:
    """A task for each fold: a part of the rows tests, the others train.

    Notes about them are added to those of `task`. Raises UserError as `split_into_folds` does.
    """
    labels = labels_of(task.train, task.metric, task.label)
    splits = split_into_folds(task.train, labels, seed, count)
    sizes = [len(split["test"]) for split in splits]
    shares = "" if labels is None else ", in the labels' shares"
    task.notes.append(
        f"--folds {count}: each of the {len(task.train)} rows tests once, for a model that did not "
        f"train on it; {min(sizes)} to {max(sizes)} rows a fold, chosen by content and seed "
        f"{seed}{shares}. Over all folds the 95 % interval of a score is up to "
        f"{_width(len(task.train)):.0f} points to either side"
    )
    return [
        replace(task, name=fold_name(task.name, number), parts=task.parts | split)
        for number, split in enumerate(splits, 1)
    ]


def _test_notes(task: Task, seed: int) -> list[str]:
    """How the test rows were split off, and whether they tell much."""
    notes, test, count = [], task.labels_in("test"), len(task.test)
    if task.split_off:
        notes.append(
            f"no --test: {count_of(count, 'row')} {'is' if count == 1 else 'are'} split off to "
            f"test with, chosen by content and seed {seed}"
            + (f" in the labels' shares ({_counted(test)})" if test else "")
            + f"; {len(task.train)} train"
        )
    if len(test) == 1:
        notes.append(
            f"WARNING: the label of every test row is {_named(test)}, so a model that always "
            "answers that scores 100 %; give test rows of each label with --test FILE"
            + (", or split more off with --test-rows N" if task.split_off else "")
        )
    if count < FEW_TEST_ROWS:
        notes.append(
            f"{shows_little(count)}: one row is {100 / count:.0f} points of a score, and "
            f"its 95 % interval is up to {_width(count):.0f} points to either side; give a file of "
            "100 rows or more with --test FILE"
            + (", or let each row test once, with --folds 5" if task.split_off else "")
        )
    return notes


def shows_little(rows: int) -> str:
    """Of few test rows, as the beginning of a sentence."""
    return f"{count_of(rows, 'test row')} show{'s' if rows == 1 else ''} little"


def _width(rows: int) -> float:
    """Points to either side of 50 % that the 95 % interval of a rate over `rows` reaches."""
    return 100 * 1.96 * math.sqrt(rows + 1.96**2) / (2 * (rows + 1.96**2))


def _short(label: str) -> str:
    """A label quoted on one line, the beginning of a long one."""
    line = " ".join(label.split())
    return f"'{line}'" if len(line) <= LONGEST_VALUE else f"'{line[:LONGEST_VALUE]} ...'"


def _counted(labels: Counter[str]) -> str:
    """The most frequent labels, such as "'no' 12x, 'yes' 5x"."""
    most = sorted(labels.items(), key=lambda each: (-each[1], each[0]))[:6]
    shown = ", ".join(f"{_short(label)} {count}x" for label, count in most)
    return shown + (" ..." if len(labels) > len(most) else "")


def _named(labels: Sequence[str] | Counter[str]) -> str:
    return ", ".join(map(_short, sorted(labels)[:5]))


# ------------------------------------------------------------------------- the answers


def _set_metric(task: Task, args: argparse.Namespace, files: dict[str, TaskFile]) -> None:
    """Metric, labels, schema and languages; labels in `files` are brought to one spelling."""
    metric = args.metric or ("translation" if args.languages else "json" if args.schema else None)
    task.metric = metric or kind_of(files["train"])
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


def _set_labels(task: Task, args: argparse.Namespace, files: dict[str, TaskFile]) -> None:
    one_spelling(files, None, args.clean_labels)
    counts = Counter(pair.response for pair in files["train"].pairs)
    if len(counts) < 2:
        raise UserError(
            f"all training answers are {_named(counts)}: one label is none to choose",
            where=paths.shown(files["train"].path),
            remedy="give rows of each label, or another --metric",
        )
    task.labels = sorted({pair.response for file in files.values() for pair in file.pairs})
    untrained = [label for label in task.labels if label not in counts]
    if untrained:
        task.notes.append(f"WARNING: no training row has the label {_named(untrained)}")
    task.notes.append(
        f"the answers are taken for {len(counts)} labels ({_counted(counts)})"
        + ("" if args.metric else "; if they are not: --metric text, or number")
    )


def _set_schema(task: Task, args: argparse.Namespace, files: dict[str, TaskFile]) -> None:
    given = read_schema(paths.user_path(args.schema)) if args.schema else None
    task.label = label_of(_learnt(files) if given is None else given, args.label)
    if task.label is not None:
        one_spelling(files, task.label, args.clean_labels)
    task.schema = _learnt(files) if given is None else given
    if given is None and args.label and task.label is not None:
        close_label(task.schema, task.label, files["train"].pairs)
    for file in files.values():
        check_answers(file, task.schema)
    if given is None:
        task.notes.append(f"schema learnt from the responses: {_brief(task.schema)}")
    if task.label is None:
        task.notes.append("no property is taken for the label; name one with --label")
    elif args.label is None:
        task.notes.append(
            f"'{task.label}' is taken for the label; --label NAME names another, or none"
        )


def _learnt(files: dict[str, TaskFile]) -> dict[str, Any]:
    return infer_schema([value for file in files.values() for value in json_values(file)])


def _brief(schema: dict[str, Any]) -> str:
    parts = []
    for key, value in schema.get("properties", {}).items():
        kind = " | ".join(map(repr, value["enum"])) if "enum" in value else str(value["type"])
        parts.append(f"{key}{'' if key in schema['required'] else ' (optional)'}: {kind}")
    return "; ".join(parts) or str(schema["type"])


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


# ------------------------------------------------------------------------- the anchor


def _set_anchor(task: Task, args: argparse.Namespace) -> None:
    """The anchor: the rows' system prompt, the instruction or front they share, or as given."""
    system, front = _system(task, args.anchor, args.system), _front(task.pairs)
    shares = front.endswith("\n") or len(front) >= LEAST_FRONT
    if system and args.system != "keep":
        task.anchor = system
        task.notes.append(f"the rows' system prompt is the anchor: {_short(system)}")
        return
    if system:
        task.system = system
        task.notes.append(f"the rows' system prompt goes into the recipe: {_short(system)}")
    if front and (args.anchor == "inline" or (args.anchor is None and shares)):
        task.notes.append(f"all rows begin with the same text: the anchor, {_short(front)}")
        _set_front(task, front, inline=args.folds is None and _front(task.train) == front)
    elif args.anchor in (None, "inline"):
        raise UserError(
            "no anchor, and the rows share none at the front",
            where="--anchor",
            allowed="a text, a file with it, or 'inline' where the rows begin with it",
            remedy="--anchor 'TEXT' that says what to do and in which form to answer; it stands "
            "in front of every query, in training and at test",
        )
    else:
        task.anchor = _anchor_text(args.anchor)
        if shares:
            task.notes.append(
                f"all rows begin with the same text already, and --anchor comes in front of it "
                f"({_short(front)}); --anchor inline takes theirs"
            )


def _set_front(task: Task, front: str, inline: bool) -> None:
    """The text that all rows begin with is the anchor.

    A card with an inline anchor goes by what its training rows share, which may be more. Raises
    UserError when a row is the anchor and nothing else.
    """
    bare = [pair.line for pair in task.pairs if not pair.query.removeprefix(front).strip()]
    if bare:
        raise UserError(
            f"{len(bare)} rows hold nothing but the text that all begin with, first at line "
            f"{bare[0]}",
            where="--anchor",
            remedy="remove these rows, or give the anchor's text: --anchor 'TEXT'",
        )
    task.anchor, task.inline = front, inline
    if not inline:
        task.anchor = front.strip()
        task.parts = {
            name: [pair._replace(query=pair.query.removeprefix(front).lstrip()) for pair in pairs]
            for name, pairs in task.parts.items()
        }


def _system(task: Task, anchor: str | None, choice: str | None) -> str:
    """The one system prompt of the rows, "" where they have none.

    Raises UserError where it changes, where some training rows lack it, or where an anchor is
    given as well and nothing says what becomes of it.
    """
    prompts = [text for text in Counter(pair.system for pair in task.pairs) if text.strip()]
    without = [pair.line for pair in task.train if not pair.system.strip()]
    shown = " and ".join(_short(text) for text in prompts[:2])
    found = None
    remedy = "put what changes into the query"
    if len(prompts) > 1:
        found = f"{len(prompts)} system prompts differ: {shown}"
    elif prompts and without:
        found = f"{count_of(len(without), 'training row')} without the system prompt {shown}, "
        found += f"the first at line {without[0]}"
        remedy = "write it into these rows, too, or remove them"
    elif prompts and anchor is not None and choice != "keep":
        found = f"an anchor is given, and the rows have a system prompt: {shown}"
        remedy = "leave --anchor out; or --system keep, so that it stays a system prompt, in the "
        remedy += "recipe, beside the anchor"
    if found is not None:
        raise UserError(
            found,
            where="--train",
            allowed="the same system prompt in all rows, which becomes the anchor",
            remedy=remedy,
        )
    return prompts[0].strip() if prompts else ""


def _front(pairs: Sequence[Pair]) -> str:
    """The text that all queries begin with, "" when there is none."""
    try:
        return shared_front([first_turn(pair.query) for pair in pairs], "")
    except UserError:
        return ""


def _anchor_text(given: str) -> str:
    """The text of `--anchor`, or of the file that it names."""
    try:
        path = paths.user_path(given)
        is_file = path.is_file()
    except (OSError, UserError):  # longer than a name may be; "~" of nobody: a text
        is_file = False
    if not is_file and re.fullmatch(r".+\.(txt|md)", given, re.IGNORECASE):
        raise UserError(
            f"no file '{given}'",
            where="--anchor",
            remedy="correct the path; an anchor that ends so is given in a file",
        )
    text = paths.read_user_text(path) if is_file else given
    if not text.strip():
        raise UserError("the anchor is empty", where="--anchor", remedy="write its text")
    return text.strip()
