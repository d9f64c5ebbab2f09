"""An own task read from the user's files: rows, split, anchor, metric, schema; all checked.

Nothing stands twice, and nothing that a held-out row asks trains.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tell_plugins.core import draw, paths
from tell_plugins.core.anchors import shared_front
from tell_plugins.core.cards import fold_name
from tell_plugins.core.errors import UserError
from tell_plugins.core.numbers import final_number
from tell_plugins.core.schemas import read_schema
from tell_plugins.core.shown import count_of
from tell_plugins.core.text import comparison_keys, first_turn, normalise, row_ids, shortened
from tell_plugins.preparation import answers, forms
from tell_plugins.preparation.forms import Row

FEW_TEST_ROWS = 50  # with fewer, what a test can show is said
SCHEMA_FILE = "answer.schema.json"  # of the card
# of each split, those whose rows are not to be in it
HELD_OUT = {"train": ("test", "validation"), "validation": ("test",), "test": ()}
LEAST_FRONT = 40  # characters that rows must share, where it is no whole line, to be an anchor
TEST_SHARE, MOST_TEST_ROWS = 0.2, 200
FEWEST_ROWS = 4  # to split a test set off
_LISTED = 10  # reasons, and lines of each, that a message lists


@dataclass
class Task:
    """An own task, read and checked, nothing written yet."""

    name: str
    files: dict[str, Path]  # of the splits that the user gave
    rows: list[Row] = field(default_factory=list)
    anchor: str = ""
    metric: str = ""
    schema: dict[str, Any] | None = None
    label: str | None = None  # the property of JSON answers that holds it
    card_keys: dict[str, Any] = field(default_factory=dict)  # those that say how to read answers
    system: str | None = None  # of the recipe
    notes: list[str] = field(default_factory=list)

    def of(self, split: str) -> list[Row]:
        return [row for row in self.rows if row.split == split]

    def labels_of(self, rows: Sequence[Row]) -> list[str] | None:
        """The label of each row, None where the answers have none."""
        return answers.labels_of([row.response for row in rows], self.metric, self.label)

    def tested_on(self, rows: set[Row]) -> list[Row]:
        """All rows, with these as test rows."""
        return [row._replace(split="test") if row in rows else row for row in self.rows]

    def answered(self, responses: Sequence[str]) -> list[Row]:
        """All rows, with these responses."""
        return [
            row._replace(response=response)
            for row, response in zip(self.rows, responses, strict=True)
        ]

    def sift(self, reason: Callable[[Row], str], *, drop: bool, remedy: str = "") -> None:
        """Leave out the rows that `reason` gives one for ("" else); a note lists them.

        Raises UserError, which lists them too, where they are not to `drop` or no others would
        stay in their split.
        """
        problems: dict[str, list[Row]] = {}
        for row in self.rows:
            problems.setdefault(reason(row), []).append(row)
        kept = problems.pop("", [])
        if not problems:
            return
        may_go = drop and {row.split for row in kept} == {row.split for row in self.rows}
        most = None if may_go else _LISTED
        told = [f"{self.places(rows, most)}: {why}" for why, rows in problems.items()]
        text = "; ".join(told[:most])
        count = count_of(len(self.rows) - len(kept), "row")
        if not may_go:
            where = ", ".join(f"--{split}" for split in self.files)
            raise UserError(f"{count} cannot be used: {text}", where=where, remedy=remedy)
        self.notes.append(f"left out: {count}: {text}")
        self.rows = kept

    def places(self, rows: Sequence[Row], most: int | None = _LISTED) -> str:
        """Where rows stand, such as "rows.csv, lines 2, 50"; at most `most` lines of a file."""
        found = []
        for split, file in self.files.items():
            # rows that were set aside to test with stand in the training file
            own = {split, "test"} if split == "train" and "test" not in self.files else {split}
            lines = [str(row.line) for row in rows if row.split in own]
            more = " ..." if len(lines[:most]) < len(lines) else ""
            plural = "s" if len(lines) > 1 else ""
            found += [f"{file.name}, line{plural} {', '.join(lines[:most])}{more}"] if lines else []
        return " and ".join(found)


def read_task(args: argparse.Namespace) -> Task:
    """The rows, split and checked, with anchor and metric. Raises UserError; writes nothing."""
    given = {split: getattr(args, split) for split in HELD_OUT}
    task = Task(args.name, {split: paths.user_path(file) for split, file in given.items() if file})
    for split, file in task.files.items():
        rows, notes = forms.read_rows(
            file,
            split,
            columns=forms.parse_columns(args.columns) if args.columns else None,
            labels=forms.parse_labels(args.labels) if args.labels else None,
            last_turn=args.last_turn,
        )
        task.rows += rows
        task.notes += notes
    _clean(task, args)
    _set_metric(task, args)
    if args.folds is None:
        _set_test(task, args)
    _set_anchor(task, args)
    return task


def _clean(task: Task, args: argparse.Namespace) -> None:
    """Every row of a split once, and none that a held-out row asks. Raises UserError."""
    task.sift(
        lambda row: row.problem,
        drop=args.drop_broken,
        remedy="mend or remove these rows, or --drop-broken to leave them out",
    )
    if args.repair_json:
        _repair_json(task)
    first = {(row.split, row.query, row.response): row for row in reversed(task.rows)}
    same = {id(row) for row in first.values()}
    task.sift(lambda row: "" if id(row) in same else "repeats an earlier row", drop=True)
    asked = {(row.split, _key(row)): normalise(row.response) for row in reversed(task.rows)}
    others = [r for r in task.rows if asked[r.split, _key(r)] != normalise(r.response)]
    if others:
        note = "rows that ask what an earlier row asks and answer otherwise"
        task.notes.append(f"{note}: {task.places(others)}")

    def overlap(row: Row) -> str:
        found = [held for held in HELD_OUT[row.split] if (held, _key(row)) in asked]
        return f"is a {found[0]} row, which neither trains nor chooses settings" if found else ""

    task.sift(
        overlap,
        drop=args.drop_overlap,
        remedy="remove them from one of the files, or add --drop-overlap to leave them out where "
        "others stay",
    )


def _repair_json(task: Task) -> None:
    """Answers that are Python's dicts and lists are written as JSON; a note says which."""
    found = {
        row: text
        for row in task.rows
        if answers.json_value(row.response) is None
        and (text := answers.json_of_python(row.response))
    }
    task.rows = task.answered([found.get(row, row.response) for row in task.rows])
    places = task.places(list(found), None) or "no answer is a Python dict or list"
    task.notes.append(f"--repair-json wrote Python's answers as JSON: {places}")


def _key(row: Row) -> int:
    """What a row asks, as it is compared."""
    return int(comparison_keys([row.query])[0])


# ------------------------------------------------------------------------- test rows


def _set_test(task: Task, args: argparse.Namespace) -> None:
    """Set test rows aside where there are none, and say whether they tell much."""
    if "test" not in task.files:
        rows = task.of("train")
        labels = task.labels_of(rows)
        test = split_off_test(rows, labels, args.seed, args.test_rows)
        task.rows = task.tested_on(test)
        shares = ", in the labels' shares" if labels else ""
        task.notes.append(
            f"no --test: {count_of(len(test), 'row')} split off to test with, chosen by content "
            f"and seed {args.seed}{shares}; {len(rows) - len(test)} train"
        )
    labels, count = task.labels_of(task.of("test")) or [], len(task.of("test"))
    if len(set(labels)) == 1:
        task.notes.append(
            f"WARNING: the label of every test row is {_named(labels)}, so a model that always "
            "answers that scores 100 %; give test rows of each label (--test FILE, --test-rows N)"
        )
    if count < FEW_TEST_ROWS:
        task.notes.append(
            f"only {count_of(count, 'test row')}: {_width(count)}; give 100 or more with --test "
            "FILE, or let each row test once, with --folds 5"
        )


def _width(rows: int) -> str:
    """How far the 95 % interval of a rate over `rows` reaches at most, around 50 %."""
    points = 100 * 1.96 / (2 * math.sqrt(rows + 1.96**2))
    return f"the 95 % interval of a score is up to {points:.0f} points to either side"


def split_off_test(
    rows: Sequence[Row], labels: Sequence[str] | None, seed: int, wanted: int | None = None
) -> set[Row]:
    """The rows to test with; they, and the others, keep the shares of `labels`, one a row.

    Which rows test depends on their content and the seed alone. Rows that ask the same stay
    together. Of few rows more are taken, so that each label tests. Raises UserError for too few
    rows, or fewer than one test row wanted.
    """
    total = len(rows)
    strata = dict(zip(rows, labels or [""] * total, strict=True))
    several = sum(count > 1 for count in Counter(strata.values()).values())
    share = max(1, round(TEST_SHARE * total), min(several, total // 3))
    count = min(MOST_TEST_ROWS, share) if wanted is None else wanted
    test: set[Row] = set()
    if total >= FEWEST_ROWS and count <= total - 2:
        for unit in _by_shares(rows, strata, seed):
            if len(test) + len(unit) <= count:
                test.update(unit)
    if not test:
        raise UserError(
            f"of {total} rows {count} cannot be split off to test with",
            where="--train",
            allowed=f"1 row or more, of {FEWEST_ROWS} at least; two train, and rows that ask the "
            "same stay together",
            remedy="give test rows of their own with --test FILE, or more rows",
        )
    return test


def _by_shares(rows: Sequence[Row], strata: dict[Row, str], seed: int) -> list[list[Row]]:
    """Rows, those that ask the same as one unit, in an order whose beginning has the strata's
    shares, and one unit of each where it is long enough; the last of each is not in it."""
    units: dict[int, list[Row]] = {}
    for row in _ranked(rows, seed, "test split"):
        units.setdefault(_key(row), []).append(row)
    groups: dict[str, list[list[Row]]] = {}
    for unit in units.values():
        groups.setdefault(strata[unit[0]], []).append(unit)
    placed = [
        (place > 0, (place + 0.5) / len(group), unit)
        for group in groups.values()
        for place, unit in enumerate(group[:-1])
    ]
    return [unit for _, _, unit in sorted(placed, key=lambda each: each[:2])]


def _ranked(rows: Sequence[Row], seed: int, purpose: str) -> list[Row]:
    """The rows in an order that depends on their content, the seed and the purpose alone."""
    ids = row_ids((row.query, row.response) for row in rows)
    return [rows[place] for place in draw.ranking(ids, seed=seed, source=purpose)]


def split_into_folds(
    rows: Sequence[Row], labels: Sequence[str] | None, seed: int, count: int
) -> list[set[Row]]:
    """The test rows of each of `count` folds; each row tests once. `labels` are one a row.

    Which row falls where depends on the rows' content and the seed alone, see `draw.deal`. Raises
    UserError for fewer than two folds, or rows too few.
    """
    keys = {row: _key(row) for row in rows}
    asked = len(set(keys.values()))
    if not 2 <= count <= asked or len(rows) < FEWEST_ROWS:
        raise UserError(
            f"{count} folds of {len(rows)} rows that ask {asked} things",
            where="--folds",
            allowed=f"2 to {asked}, of {FEWEST_ROWS} rows or more",
            remedy="name fewer folds, or give more rows",
        )
    strata = dict(zip(rows, labels or [""] * len(rows), strict=True))
    ranked = _ranked(rows, seed, "folds")
    places = range(len(ranked))
    dealt = draw.deal(places, [keys[r] for r in ranked], [strata[r] for r in ranked], count)
    return [
        {row for row, fold in zip(ranked, dealt, strict=True) if fold == number}
        for number in range(count)
    ]


def folds_of(task: Task, count: int, seed: int) -> list[Task]:
    """A task for each fold: a part of the rows tests, the others train.

    A note about them is added to those of `task`. Raises UserError as `split_into_folds` does.
    """
    rows = task.of("train")
    folds = split_into_folds(rows, task.labels_of(rows), seed, count)
    task.notes.append(
        f"--folds {count}: each of the {len(rows)} rows tests once, for a model that did not train "
        f"on it, chosen by content and seed {seed}; over all folds {_width(len(rows))}"
    )
    return [
        replace(task, name=fold_name(task.name, number), rows=task.tested_on(test))
        for number, test in enumerate(folds, 1)
    ]


# ------------------------------------------------------------------------- the answers


def _set_metric(task: Task, args: argparse.Namespace) -> None:
    """Metric, labels, schema and languages; labels are brought to one spelling."""
    metric = args.metric or ("translation" if args.languages else "json" if args.schema else None)
    task.metric = metric or answers.kind_of([row.response for row in task.of("train")])
    if task.metric != "json" and (args.schema or args.label or args.repair_json):
        raise UserError(
            "--schema, --label and --repair-json belong to JSON answers, but the metric is "
            f"'{task.metric}'",
            where="command line",
            remedy="leave them out, or --metric json",
        )
    if task.metric == "json":
        _set_schema(task, args)
    elif task.metric == "label":
        _set_labels(task, args)
    elif task.metric == "translation":
        source, target = _languages(args.languages)
        task.card_keys = {"translation": {"source": source, "target": target}}
    elif task.metric == "number":
        task.sift(
            lambda row: "" if final_number(row.response) is not None else "ends with no number",
            drop=args.drop_broken,
            remedy="let each response end with `#### <number>`, or a number with a decimal point "
            "(12.5 or 1,234.5); or name another --metric",
        )


def _spell(task: Task, clean: bool) -> None:
    responses = [row.response for row in task.rows]
    task.rows = task.answered(answers.one_spelling(responses, task.label, clean))


def _set_labels(task: Task, args: argparse.Namespace) -> None:
    _spell(task, args.clean_labels)
    trained = {row.response for row in task.of("train")}
    if len(trained) < 2:
        raise UserError(
            f"all training answers are {_named(trained)}: one label is none to choose",
            where="--train",
            remedy="give rows of each label, or another --metric",
        )
    labels = {row.response for row in task.rows}
    task.card_keys = {"answer": {"labels": sorted(labels)}}
    if labels > trained:
        task.notes.append(f"WARNING: no training row has the label {_named(labels - trained)}")
    times = Counter(row.response for row in task.of("train"))
    counts = ", ".join(f"{_short(label)} {count}x" for label, count in sorted(times.items())[:6])
    task.notes.append(
        f"the answers are taken for {len(trained)} labels ({counts}); if they are not: "
        "--metric text, or number"
    )


def _set_schema(task: Task, args: argparse.Namespace) -> None:
    given = read_schema(paths.user_path(args.schema)) if args.schema else None
    task.label = answers.label_of(_learnt(task) if given is None else given, args.label)
    if task.label is not None:
        _spell(task, args.clean_labels)
    task.schema = _learnt(task) if given is None else given
    if given is None and args.label and task.label is not None:
        _close_label(task, task.schema["properties"][task.label])
    fits = answers.fits(task.schema)
    task.sift(
        lambda row: fits(row.response),
        drop=args.drop_broken,
        remedy="mend the rows, or give the right schema with --schema FILE; --repair-json writes "
        "Python's dicts as JSON, --drop-broken leaves the rows out, and --metric text takes "
        "answers as they are",
    )
    label = {} if task.label is None else {"label": task.label}
    task.card_keys = {"answer": {"schema": SCHEMA_FILE} | label}
    if given is None:
        fields = task.schema.get("properties", {}).items()
        told = "; ".join(f"{key}: {_brief(rule)}" for key, rule in fields) or _brief(task.schema)
        task.notes.append(f"schema learnt from the responses: {told}")
    taken = "no property" if task.label is None else f"'{task.label}'"
    task.notes.append(f"{taken} is taken for the label; --label NAME names another, or none")


def _close_label(task: Task, rule: dict[str, Any]) -> None:
    """A text that the user calls the label has the trained values alone."""
    if rule.get("type") == "string":
        labels = {answers.label_in(row.response, task.label) for row in task.of("train")}
        rule.clear()
        rule["enum"] = sorted(label for label in labels if label is not None)


def _brief(rule: dict[str, Any]) -> str:
    """What a rule of a learnt schema allows: `'no' | 'yes'`, `string`, `array or null`."""
    types = rule.get("type", [])
    listed = [types] if isinstance(types, str) else types
    return " | ".join(map(_short, rule.get("enum", []))) or " or ".join(listed)


def _learnt(task: Task) -> dict[str, Any]:
    values = [answers.json_value(row.response) for row in task.rows]
    return answers.infer_schema([value for value in values if value is not None])


def _languages(text: str | None) -> list[str]:
    names = [name.strip() for name in (text or "").split(",")]
    if len(names) != 2 or not all(names):
        raise UserError(
            f"a translation has two languages, not '{text or ''}'",
            where="--languages",
            allowed="FROM,TO, in English",
            remedy="--languages Icelandic,English",
        )
    return names


def _short(label: str) -> str:
    """A label quoted on one line, the beginning of a long one."""
    return f"'{shortened(' '.join(label.split()), answers.LONGEST_VALUE)}'"


def _named(labels: Iterable[str]) -> str:
    return ", ".join(map(_short, sorted(set(labels))[:6]))


# ------------------------------------------------------------------------- the anchor


def _set_anchor(task: Task, args: argparse.Namespace) -> None:
    """The anchor: the rows' system prompt, the instruction or front they share, or as given.

    What stood in the rows is taken off them: the card's anchor comes in front of each.
    """
    system, front = _system(task, args), _front(task.rows)
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
        task.rows = [r._replace(query=r.query.removeprefix(front).lstrip()) for r in task.rows]
        task.sift(
            lambda row: "" if row.query else "nothing but the text that all rows begin with",
            drop=False,
            remedy="remove these rows, or give the anchor's text: --anchor 'TEXT'",
        )
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
                "all rows begin with the same text already, and --anchor comes in front of it "
                f"({_short(front)}); --anchor inline takes theirs"
            )


def _system(task: Task, args: argparse.Namespace) -> str:
    """The one system prompt of the rows, which held-out rows may lack; "" where they have none.

    Raises UserError for rows with another, or where an anchor is given as well and nothing says
    what becomes of it.
    """
    prompts = Counter(row.system.strip() for row in task.rows)
    prompt = next((text for text, _ in prompts.most_common() if text), "")
    if prompt and args.anchor is not None and args.system != "keep":
        raise UserError(
            f"an anchor is given, and the rows have a system prompt: {_short(prompt)}",
            where="--anchor",
            remedy="leave --anchor out; or --system keep, so that the system prompt stays one, in "
            "the recipe",
        )

    def other(row: Row) -> str:
        wanted = [prompt] if row.split == "train" else [prompt, ""]
        is_other = row.system.strip() not in wanted
        return f"has not the system prompt {_short(prompt)}" if is_other else ""

    remedy = "write the same into all rows; what changes belongs into the query"
    task.sift(other, drop=False, remedy=remedy)
    return prompt


def _front(rows: Sequence[Row]) -> str:
    """The text that all queries begin with, "" when there is none."""
    try:
        return shared_front([first_turn(row.query) for row in rows], "")
    except UserError:
        return ""


def _anchor_text(given: str) -> str:
    """The text of `--anchor`, or of the file that it names."""
    file: Path | None = None
    with suppress(OSError, UserError):  # longer than a name may be; "~" of nobody: a text
        path = paths.user_path(given)
        file = path if path.is_file() else None
    if file is None and re.fullmatch(r".+\.(txt|md)", given, re.IGNORECASE):
        raise UserError(
            f"no file '{given}'",
            where="--anchor",
            remedy="correct the path; an anchor that ends so is given in a file",
        )
    text = given if file is None else paths.read_user_text(file)
    if not text.strip():
        raise UserError("the anchor is empty", where="--anchor", remedy="write its text")
    return text.strip()
