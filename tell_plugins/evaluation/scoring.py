"""Saved answers joined to what is right for them, judged, and as the scores of a system.

What is right comes from the rows of the card's split, or from what a folder of results keeps of
them. Answers are matched by content: a row that moved in its file is still that row. The same
answers can be scored again at any time; learned metrics are kept as long as the answers are the
same.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import TaskRows, open_task
from tell_plugins.core.state_files import Shape, read_json, write_json
from tell_plugins.evaluation import elsewhere, scorers
from tell_plugins.evaluation.answers import (
    ANSWERS,
    GENERAL,
    Answer,
    Saved,
    read_saved,
    shown_lines,
)
from tell_plugins.evaluation.bleed import Form, form_of
from tell_plugins.evaluation.differences import (
    Difference,
    Measure,
    difference,
    measure_of,
    with_seeds,
)
from tell_plugins.evaluation.elsewhere import General, read_general
from tell_plugins.evaluation.intervals import Estimate, rate
from tell_plugins.evaluation.judged import (
    Column,
    Constant,
    Judged,
    MostFrequent,
    Numbers,
    Scored,
    most_frequent,
    pooled,
)
from tell_plugins.evaluation.paper_numbers import PaperNumber
from tell_plugins.evaluation.scorers import SECOND_READINGS
from tell_plugins.evaluation.scorers.learned import LEARNED, Wanted, score_learned, with_learned
from tell_plugins.evaluation.scorers.translation import SHOWN

_FORMAT = 5
# the measures beside which those of a constant answer stand
_WITH_CONSTANT = {"label": ("accuracy",), "text": ("exact_match", "chrf++")}
_LOST = "restore the file, or remove it where the card's data is on this machine"
_OTHER_ROWS = "these are answers to another card or split, or its file was replaced: restore it"
_JUDGED: dict[tuple[object, ...], dict[str, Judged]] = {}


class References(Shape):
    """What is right for the rows of a split, `references/<card>-<split>.json`.

    Attributes:
        of: row id -> its label or number, or its whole JSON; empty where texts are scored.
        labels: the possible labels in the schema's order; empty where there are none.
        rows: rows in the split.
        form: how the answers are known where they should not be.
    """

    card: str
    split: str
    metric: str
    of: dict[str, str]
    labels: list[str]
    rows: int
    form: Form

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each row, given when an answer to it first comes."""
        return {}


def references(folder: Path, card_name: str, split: str) -> References:
    """The references of a split, as they were collected in `folder`, else from the card's data.

    Raises UserError where neither is on this machine.
    """
    saved = read_json(folder / f"{card_name}-{split}.json", References, _LOST)
    if saved is not None:
        return References(**saved)
    card = load_card(card_name)
    task = open_task(card, split, "none")
    ids = [bytes(row).hex() for row in task.ids]
    truth = None if scorers.reads_texts(card.metric) else scorers.right(task)  # texts are not kept
    return References(
        card=card_name,
        split=split,
        metric=str(card.metric),
        of=dict(zip(ids, truth.of, strict=True)) if truth else {},
        labels=truth.labels if truth else [],
        rows=len(ids),
        form=form_of(card),
    )


# --- joined ---------------------------------------------------------------------------------------


def load_scored(folder: Path) -> Scored:
    """The answers of a folder, joined to the rows of their card and split; see `scored`."""
    return scored(read_saved(folder))


def scored(saved: Saved, known: References | None = None) -> Scored:
    """Saved answers joined to their rows: to those of `known`, unless texts are compared, else to
    the rows of their card and split.

    Raises UserError for answers to no row, and for an answer given twice.
    """
    if not saved.answers:
        raise UserError(
            f"no answer in {ANSWERS}",
            where=paths.shown(saved.folder),
            remedy="./run.sh eval RECIPE writes them",
        )
    if known is not None and known.of:
        return _of_references(saved, known)
    settings = saved.settings
    task = open_task(load_card(settings.card), settings.split, settings.anchor)
    return _of_rows(saved, task, _OTHER_ROWS)


def joined(parts: Sequence[Saved], task: TaskRows, rows: int | None = None) -> Scored:
    """Answers to parts of a task as answers to the rows of `task`, of which `rows` were asked.

    Raises UserError for an answer to a row that is none of them.
    """
    lines = [answer for part in parts for answer in part.answers]
    first, together = parts[0], "".join(part.sha256 for part in parts)
    asked = len({answer.id for answer in lines}) if rows is None else rows
    settings = first.settings.model_copy(update={"card": task.card.name, "rows": asked})
    saved = Saved(first.folder, settings, lines, hashlib.sha256(together.encode()).hexdigest())
    remedy = "the folds are of other rows: write the task and them anew (new --folds K --force)"
    return _of_rows(saved, task, remedy)


def _of_references(saved: Saved, known: References) -> Scored:
    """By the two readings that need no more than what is right."""
    what = f"split '{known.split}' of card '{known.card}'"
    remedy = "the answers belong to other data; run the sweep again"
    _refuse_strangers(saved, known.of, what, remedy)
    lines, numbers = saved.answers, known.numbers
    rows = [numbers.setdefault(line.id, len(numbers)) for line in lines]
    return Scored(
        load_card(known.card),
        [line.model_copy(update={"row": row}) for line, row in zip(lines, rows, strict=True)],
        [known.of[line.id] for line in lines],
        known.labels,
        readings=("strict", "lenient"),
        test=(known.card, known.split, *known.of.items()),
        **saved.origin,
    )


def _of_rows(saved: Saved, task: TaskRows, remedy: str) -> Scored:
    answers, truth, card = _numbered(saved, task, remedy), scorers.right(task), task.card
    schema = card.schema_path().read_bytes() if card.metric == "json" else b""
    rules = (card.metric, str(card.answer), schema, *truth.labels)
    right = [truth.of[answer.row] for answer in answers]
    test = (task.split, task.sha256, *rules)
    return Scored(card, answers, right, truth.labels, task, test=test, **saved.origin)


def _numbered(saved: Saved, task: TaskRows, remedy: str) -> list[Answer]:
    """The answers by test row, those to equal test rows in their order.

    Raises UserError, with `remedy`, for answers to no row, and for an answer given twice.
    """
    places = defaultdict(list)
    for row, content in enumerate(task.ids):
        places[bytes(content).hex()].append(row)
    what = f"split '{task.split}' of card '{task.card.name}' ({task.shown})"
    _refuse_strangers(saved, places, what, remedy)
    given = Counter[tuple[str, int]]()
    found, surplus = [], []
    for number, line in enumerate(saved.answers, 1):
        rows, place = places[line.id], given[line.id, line.attempt]
        given[line.id, line.attempt] += 1
        if place < len(rows):
            found.append(line.model_copy(update={"row": rows[place]}))
        else:
            surplus.append(number)
    if surplus:
        raise UserError(
            f"{len(surplus)} answers are given to a row that has one: {shown_lines(surplus)}",
            where=saved.where,
            remedy="each row is answered once an attempt; remove the surplus lines",
        )
    return sorted(found, key=lambda answer: (answer.row, answer.attempt))


def _refuse_strangers(saved: Saved, rows: Container[str], what: str, remedy: str) -> None:
    lines = [number for number, line in enumerate(saved.answers, 1) if line.id not in rows]
    if lines:
        raise UserError(
            f"{len(lines)} of {len(saved.answers)} answers have no row in {what}: "
            f"{shown_lines(lines)}",
            where=saved.where,
            remedy=remedy,
        )


# --- judged ---------------------------------------------------------------------------------------


def judged(answers: Scored) -> dict[str, Judged]:
    """What the scorers say of answers, by reading; the same answers to the same test are judged
    once a process."""
    key = (answers.sha256, answers.test, *scorers.SCORERS)
    if key not in _JUDGED:
        _JUDGED[key] = scorers.judge(answers)
    is_translation = answers.card.metric == "translation"
    return with_learned(answers, _JUDGED[key]) if is_translation else _JUDGED[key]


# --- systems -------------------------------------------------------------------------------------


def spaced(name: str) -> str:
    """A measure's name as it is read; of a learned metric without its checkpoint."""
    first = name.partition(" ")[0]
    return first.upper() if first in LEARNED else SHOWN.get(name, name).replace("_", " ")


def main_measure(metric: str) -> str:
    """The measure of a metric that curves and comparisons are about, as it is read."""
    return spaced(scorers.of_metric(metric)[0].main)


@dataclass(frozen=True)
class System:
    """What answered a test, by the name that tells it from the others.

    Attributes:
        general: what it did elsewhere.
        others: answers of the same method by other seeds, which count as its own.
        paper: what the paper states of it.
    """

    name: str
    scored: Scored
    general: General = field(default_factory=General)
    others: Sequence[Scored] = ()
    paper: PaperNumber | None = None

    @cached_property
    def readings(self) -> dict[str, Judged]:
        """What its answers are, by reading, the one to go by in front."""
        return pooled([judged(part) for part in (self.scored, *self.others)])

    @property
    def first(self) -> Judged:
        """The reading to go by."""
        return next(iter(self.readings.values()))

    @cached_property
    def measures(self) -> dict[tuple[str, str], Measure]:
        """All measures, by reading and name. A test row that stands in the file twice is one."""
        return {
            (reading, name): self._measure(part, column)
            for reading, part in self.readings.items()
            for name, column in part.columns.items()
        }

    def _measure(self, part: Judged, column: Column) -> Measure:
        return measure_of([self.scored.id(row) for row in part.rows], column)

    def measure(self, name: str) -> Measure | None:
        """A measure as it is read, of the first reading or of what was measured elsewhere; None
        where there is none."""
        if name in elsewhere.NAMES:
            return self.general.measure(name)
        columns = {spaced(key): column for key, column in self.first.columns.items()}
        return self._measure(self.first, columns[name]) if name in columns else None

    @property
    def rows(self) -> int:
        """How many test rows are answered."""
        return len(set(self.scored.rows))

    @property
    def complete(self) -> bool:
        return self.rows >= self.scored.expected

    @property
    def attempts(self) -> int:
        return len({answer.attempt for answer in self.scored.answers})

    @property
    def cut(self) -> Estimate:
        """Answers that the limit of new tokens ended, adherent or not."""
        return rate([answer.cut for answer in self.scored.answers], self.scored.rows)

    @property
    def most_frequent_answer(self) -> MostFrequent:
        return most_frequent([answer.text.strip() for answer in self.scored.answers])

    @cached_property
    def constant(self) -> Constant:
        """What is worth nothing over the rows answered, such as one answer given every time."""
        scorer = scorers.of_metric(self.scored.card.metric)[0]
        if scorer.constant is not None:
            return scorer.constant(self.scored)
        text = self.scored.most_frequent_right
        always = scorer.judge(self.scored.answered([text] * len(self.scored.answers)))
        return Constant(f"always {' '.join(text.split())}", next(iter(always.values())))

    @property
    def measured(self) -> Numbers:
        """The measures of every scorer's first reading, by name."""
        return {
            spaced(name): value
            for reading, part in self.readings.items()
            for name, value in part.measures.items()
            if reading not in SECOND_READINGS
        }

    @property
    def headline(self) -> Numbers:
        """The few numbers to show first, by name, beside those of a constant."""
        metric = str(self.scored.card.metric)
        found = {n: v for n, v in self.measured.items() if not n.startswith("recall of ")}
        kind = {"number": "number", "text": "answer"}.get(metric, "label")
        frequent = self.most_frequent_answer if kind == "answer" else self.first.most_frequent
        if frequent is not None:
            found[f"most frequent {kind}"] = frequent.share
        for name in _WITH_CONSTANT.get(metric, ()):
            found[f"{spaced(name)} of a constant"] = self.constant.judged.measures[name]
        return found

    def numbers(self) -> Iterator[dict[str, Any]]:
        """All its numbers, a flat record each; `text` is what a share is the share of."""
        most, answers = self.most_frequent_answer, len(self.scored.answers)
        yield _record("", "cut_by_limit", self.cut)
        yield _record("", "most_frequent_answer", most.share, most.text)
        for name, reading in self.readings.items():
            for measure, value in reading.numbers.items():
                yield _record(name, measure, value)
            if (label := reading.most_frequent) is not None:
                yield _record(name, "most_frequent_share", label.share, label.text)
            for kind, times in reading.failures.items():
                yield _record(name, f"failures.{kind}", Estimate(times, None, None, answers))
        first, constant = next(iter(self.readings)), self.constant
        for measure, value in constant.judged.measures.items():
            yield _record(first, f"constant.{measure}", value, constant.text)

    def to_dict(self) -> dict[str, Any]:
        """What `scores.json` holds."""
        scored = self.scored
        return {
            "format": _FORMAT,
            "card": scored.card.name,
            "split": scored.asked.split,
            "metric": scored.card.metric,
            "answers_sha256": scored.sha256,
            "test_sha256": scored.asked.sha256,
            "rows": self.rows,
            "expected": scored.expected,
            "attempts": self.attempts,
            "settings": scored.settings.model_dump(),
            "numbers": list(self.numbers()),
        }


def _record(scorer: str, measure: str, number: Estimate, text: str = "") -> dict[str, Any]:
    parts = {key: getattr(number, key) for key in ("value", "low", "high", "k", "n")}
    return {"scorer": scorer, "measure": measure, **parts, "text": text}


def together(systems: Sequence[System]) -> System:
    """One method's systems of several seeds as one."""
    first = systems[0]
    others = [part for system in systems for part in (system.scored, *system.others)][1:]
    runs = [run for system in systems for run in system.general.runs]
    return replace(first, others=others, general=replace(first.general, runs=runs))


def difference_of(mine: Sequence[System], theirs: Sequence[System], name: str) -> Difference | None:
    """One method minus another over the same rows, in percentage points of a share, and beside it
    the difference of each seed, paired in their order; None where there is nothing to pair."""
    first, second = (together(side).measure(name) for side in (mine, theirs))
    found = difference(first, second)
    if first is None or found is None:
        return None
    if len(mine) > 1:
        seeds = zip(mine, theirs, strict=True)
        found = with_seeds(found, [(a.measure(name), b.measure(name)) for a, b in seeds])
    return found.times(100 if first.column.percent else 1)


def system_of(name: str, answers: Path, base: Path) -> System:
    """One system from the folder of its answers to the task, and the base model's to general
    questions."""
    scored = load_scored(answers)
    return System(name, scored, read_general(answers.parent / GENERAL, base, scored.card))


def score(folder: Path, learned: Wanted | None = None) -> System:
    """Score the answers of `folder`, by learned metrics too where they are wanted: what these give
    is kept beside the answers. Raises UserError as `load_scored` does."""
    scored = load_scored(folder)
    score_learned(scored, learned or {})
    system = System(folder.name, scored)
    system.readings  # noqa: B018 - what cannot be scored raises here
    return system


def write(folder: Path, learned: Wanted | None = None) -> System:
    """Score the answers of `folder`, and save `scores.json` there in one piece."""
    system = score(folder, learned)
    write_json(folder / "scores.json", system.to_dict(), allow_nan=False)
    return system
