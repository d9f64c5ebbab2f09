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
from tell_plugins.core.anchors import shared_front
from tell_plugins.core.cards import fold_name
from tell_plugins.core.errors import UserError
from tell_plugins.core.schemas import read_schema
from tell_plugins.core.text import first_turn
from tell_plugins.preparation import answers, forms, task_split
from tell_plugins.preparation.answers import LONGEST_VALUE, no_json, strict_json
from tell_plugins.preparation.forms import Pair, TaskFile
from tell_plugins.recipe.tables import count_of

FEW_TEST_ROWS = 50  # with fewer, what a test can show is said
SCHEMA_FILE = "answer.schema.json"  # of the card
SPLITS = ("train", "validation", "test")
LEAST_FRONT = 40  # characters that rows must share, where it is no whole line, to be an anchor


@dataclass
class Task:
    """An own task, read and checked, nothing written yet."""

    name: str
    parts: dict[str, list[Pair]]  # the rows of each split there is
    anchor: str = ""
    metric: str = ""
    schema: dict[str, Any] | None = None
    label: str | None = None  # the property of JSON answers that holds it
    card_keys: dict[str, Any] = field(default_factory=dict)  # those that say how to read answers
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
        return [pair for pairs in self.parts.values() for pair in pairs]

    def labels_in(self, split: str) -> list[str] | None:
        """The label of each row of a split, None where the answers have none."""
        responses = [pair.response for pair in self.parts.get(split, [])]
        return answers.labels_of(responses, self.metric, self.label)


def read_task(args: argparse.Namespace) -> Task:
    """The rows, split and checked, with anchor and metric. Raises UserError; writes nothing."""
    task = Task(args.name, {})
    files = {name: _read(args, name, task.notes) for name in SPLITS if getattr(args, name)}
    for held_out, role in (("test", "train"), ("validation", "train"), ("test", "validation")):
        if held_out in files and role in files:  # else the test rows choose the settings
            both = (files[role], files[held_out], held_out)
            said = "training" if role == "train" else role
            files[role] = task_split.without_overlap(*both, args.drop_overlap, said)
    _set_metric(task, args, files)
    task.parts = {name: file.pairs for name, file in files.items()}
    if args.folds is None:
        if "test" not in files:
            file, labels = files["train"], task.labels_in("train")
            task.parts |= task_split.split_off_test(file, labels, args.seed, args.test_rows)
        task.notes += _test_notes(task, None if "test" in files else args.seed)
    _set_anchor(task, args)
    return task


def _read(args: argparse.Namespace, name: str, notes: list[str]) -> TaskFile:
    """The file of a split, with Python's answers as JSON and without broken JSON where asked."""
    reading = forms.Reading(
        columns=forms.parse_columns(args.columns) if args.columns else None,
        labels=forms.parse_labels(args.labels) if args.labels else None,
        last_turn=args.last_turn,
        drop_broken=args.drop_broken,
    )
    file = forms.read_task_file(paths.user_path(getattr(args, name)), reading)
    may_be_json = not args.languages and args.metric in (None, "json")
    if may_be_json and args.repair_json:
        file = answers.with_json(file)
    is_json = args.schema or args.metric or answers.means_json(file)
    if may_be_json and args.drop_broken and is_json:
        file = answers.without_broken_json(file)
    rows = count_of(len(file.pairs), "row")
    notes.append(f"{name}: {rows} of {file.path.name}, read as {file.form}")
    file = task_split.without_duplicates(file)
    notes += (*file.notes, *task_split.other_answers(file))
    return file


def folds_of(task: Task, count: int, seed: int) -> list[Task]:
    """A task for each fold: a part of the rows tests, the others train.

    Notes about them are added to those of `task`. Raises UserError as `split_into_folds` does.
    """
    labels = task.labels_in("train")
    splits = task_split.split_into_folds(task.train, labels, seed, count)
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


def _test_notes(task: Task, seed: int | None) -> list[str]:
    """How the test rows were split off by the seed, if they were, and whether they tell much."""
    notes, test, count = [], Counter(task.labels_in("test") or []), len(task.test)
    if seed is not None:
        shares = f" in the labels' shares ({_counted(test)})" if test else ""
        notes.append(
            f"no --test: {count_of(count, 'row')} split off to test with, chosen by content and "
            f"seed {seed}{shares}; {len(task.train)} train"
        )
    if len(test) == 1:
        notes.append(
            f"WARNING: the label of every test row is {_named(test)}, so a model that always "
            "answers that scores 100 %; give test rows of each label (--test FILE, --test-rows N)"
        )
    if count < FEW_TEST_ROWS:
        notes.append(
            f"only {count_of(count, 'test row')}: one is {100 / count:.0f} points of a score, and "
            f"its 95 % interval is up to {_width(count):.0f} points to either side; give a file of "
            "100 rows or more with --test FILE"
            + (", or let each row test once, with --folds 5" if seed is not None else "")
        )
    return notes


def _width(rows: int) -> float:
    """Points to either side of 50 % that the 95 % interval of a rate over `rows` reaches."""
    return 100 * 1.96 / (2 * math.sqrt(rows + 1.96**2))


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
    task.metric = metric or answers.kind_of(files["train"])
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
            answers.need_numbers(file)
    elif task.metric == "translation":
        source, target = _languages(args.languages)
        task.card_keys = {"translation": {"source": source, "target": target}}


def _set_labels(task: Task, args: argparse.Namespace, files: dict[str, TaskFile]) -> None:
    answers.one_spelling(files, None, args.clean_labels)
    counts = Counter(pair.response for pair in files["train"].pairs)
    if len(counts) < 2:
        raise UserError(
            f"all training answers are {_named(counts)}: one label is none to choose",
            where=paths.shown(files["train"].path),
            remedy="give rows of each label, or another --metric",
        )
    labels = sorted({pair.response for file in files.values() for pair in file.pairs})
    task.card_keys = {"answer": {"labels": labels}}
    untrained = [label for label in labels if label not in counts]
    if untrained:
        task.notes.append(f"WARNING: no training row has the label {_named(untrained)}")
    task.notes.append(
        f"the answers are taken for {len(counts)} labels ({_counted(counts)})"
        + ("" if args.metric else "; if they are not: --metric text, or number")
    )


def _set_schema(task: Task, args: argparse.Namespace, files: dict[str, TaskFile]) -> None:
    given = read_schema(paths.user_path(args.schema)) if args.schema else None
    task.label = answers.label_of(_learnt(files) if given is None else given, args.label)
    if task.label is not None:
        answers.one_spelling(files, task.label, args.clean_labels)
    task.schema = _learnt(files) if given is None else given
    if given is None and args.label and task.label is not None:
        trained = [pair.response for pair in files["train"].pairs]
        answers.close_label(task.schema, task.label, trained)
    for file in files.values():
        answers.check_answers(file, task.schema)
    of_label = {} if task.label is None else {"label": task.label}
    task.card_keys = {"answer": {"schema": SCHEMA_FILE} | of_label}
    if given is None:
        task.notes.append(f"schema learnt from the responses: {_brief(task.schema)}")
    if task.label is None:
        task.notes.append("no property is taken for the label; name one with --label")
    elif args.label is None:
        task.notes.append(
            f"'{task.label}' is taken for the label; --label NAME names another, or none"
        )


def _learnt(files: dict[str, TaskFile]) -> dict[str, Any]:
    texts = [pair.response for file in files.values() for pair in file.pairs]
    return answers.infer_schema([strict_json(text) for text in texts if no_json(text) is None])


def _brief(schema: dict[str, Any]) -> str:
    """The fields of a schema in a line, such as `thought: string; label: 'no' | 'yes'`."""
    parts = []
    for key, value in schema.get("properties", {}).items():
        kind = " | ".join(map(repr, value["enum"])) if "enum" in value else str(value["type"])
        parts.append(f"{key}{'' if key in schema['required'] else ' (optional)'}: {kind}")
    return "; ".join(parts) or str(schema["type"])


def _languages(text: str | None) -> tuple[str, str]:
    source, _, target = (part.strip() for part in (text or "").partition(","))
    if not (source and target) or "," in target:
        raise UserError(
            f"a translation has two languages, not '{text or ''}'",
            where="--languages",
            allowed="FROM,TO, in English",
            remedy="--languages Icelandic,English",
        )
    return source, target


# ------------------------------------------------------------------------- the anchor


def _set_anchor(task: Task, args: argparse.Namespace) -> None:
    """The anchor: the rows' system prompt, the instruction or front they share, or as given.

    What stood in the rows is taken off them: the card's anchor comes in front of each.
    """
    system, front = _system(task, args.anchor, args.system), _front(task.pairs)
    shares = front.endswith("\n") or len(front) >= LEAST_FRONT
    if system and args.system == "keep":
        task.system = system
        task.notes.append(f"the rows' system prompt goes into the recipe: {_short(system)}")
    elif system:
        task.anchor = system
        task.notes.append(f"the rows' system prompt is the anchor: {_short(system)}")
        return
    if front and (args.anchor == "inline" or (args.anchor is None and shares)):
        task.notes.append(f"all rows begin with the same text: the anchor, {_short(front)}")
        task.anchor = front.strip()
        task.parts = {name: _without(front, pairs) for name, pairs in task.parts.items()}
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


def _without(front: str, pairs: Sequence[Pair]) -> list[Pair]:
    """The rows without the text that all begin with.

    Raises UserError when a row is that and nothing else.
    """
    found = [pair._replace(query=pair.query.removeprefix(front).lstrip()) for pair in pairs]
    bare = [pair.line for pair in found if not pair.query]
    if bare:
        raise UserError(
            f"nothing but the text that all rows begin with: {forms.lines_named(bare, 5)}",
            where="--anchor",
            remedy="remove these rows, or give the anchor's text: --anchor 'TEXT'",
        )
    return found


def _system(task: Task, anchor: str | None, choice: str | None) -> str:
    """The one system prompt of the rows, "" where they have none.

    Raises UserError where it changes, where some training rows lack it, or where an anchor is
    given as well and nothing says what becomes of it.
    """
    prompts = Counter(pair.system.strip() for pair in task.pairs)
    there = [text for text in prompts if text]
    without = [pair.line for pair in task.train if not pair.system.strip()]
    if not there:
        return ""
    found, remedy = None, "write the same into all rows; what changes belongs into the query"
    if len(there) > 1:
        found = f"{len(there)} system prompts differ: {' and '.join(map(_short, there[:2]))}"
    elif without:
        found = f"training rows without the system prompt {_short(there[0])}: "
        found += forms.lines_named(without, 5)
    elif anchor is not None and choice != "keep":
        found = f"an anchor is given, and the rows have a system prompt: {_short(there[0])}"
        remedy = "leave --anchor out; or --system keep, so that it stays a system prompt, in the "
        remedy += "recipe, beside the anchor"
    if found is not None:
        allowed = "the same system prompt in all rows, which becomes the anchor"
        raise UserError(found, where="--train", allowed=allowed, remedy=remedy)
    return there[0]


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
