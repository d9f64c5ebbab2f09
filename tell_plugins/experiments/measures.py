"""Numbers of one method at one point, over all of its seeds; each with n and a 95 % interval.

Answers of several seeds to the same test row are not independent: rates carry the design effect
of `intervals.rate`, and differences the correlation over test rows. What seeds add to that is shown
by the spread of the seeds themselves, which no interval over rows can tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import elsewhere, intervals, scorers, scoring
from tell_plugins.evaluation.answers import load_scored
from tell_plugins.evaluation.bleed import Form
from tell_plugins.evaluation.differences import (
    LEAST_SEEDS,
    Difference,
    Measure,
    difference,
    measure_of,
    t_interval,
)
from tell_plugins.evaluation.elsewhere import BLEED, LOSS_FILES, Elsewhere
from tell_plugins.evaluation.intervals import Estimate, Rate, rate
from tell_plugins.evaluation.judged import Case, Judged, pooled
from tell_plugins.experiments.results import Answers, Entry, ReferenceShelf, Study

_CONSTANT = 0.95  # a label given at least this often is called a constant answer
Number = Rate | Estimate
Entries = Sequence[Entry]
MostFrequent = tuple[str, Rate]  # a label and its share of the adherent answers


@dataclass(frozen=True)
class Group:
    """The finished entries of one method at one point of the grid, all seeds together.

    Attributes:
        series: the curve it belongs to: the method, and what else varies beside the axis.
        task: what the scorers measure, by name, rates in front.
        seeds: the main measure of each seed, in the order of the entries.
        elsewhere: what general questions and texts tell; what is set against the base model is
            paired.
        most_frequent: the label given most often.
        kinds: why answers failed.
        constants: of each entry that gives nearly one label only, that label.
    """

    entries: list[Entry]
    series: str
    task: dict[str, Number]
    seeds: list[float]
    elsewhere: Elsewhere
    most_frequent: MostFrequent | None
    kinds: Counter[str]
    constants: list[MostFrequent]

    @property
    def method(self) -> str:
        return self.entries[0].method

    @property
    def at(self) -> dict[str, Any]:
        return self.entries[0].at

    @property
    def point(self) -> str:
        return self.entries[0].point

    @property
    def name(self) -> str:
        return self.entries[0].name

    @property
    def steps(self) -> list[int]:
        return steps_of(self.entries)

    @property
    def is_base(self) -> bool:
        return self.entries[0].is_base

    @property
    def no_op(self) -> bool:
        """Whether all of its runs trained nothing."""
        return all(entry.no_op for entry in self.entries)

    @property
    def constant(self) -> bool:
        """Whether nearly all adherent answers of every seed carry one and the same label."""
        return len(self.constants) == len(self.entries)

    @property
    def main(self) -> Number | None:
        """The measure that curves and comparisons are about."""
        return self.task.get(scoring.main_measure(self.entries[0].metric))

    def number(self, name: str) -> Number | None:
        """A measure of the task or of what happened elsewhere."""
        return self.task.get(name) or self.elsewhere.get(name)

    def x(self, axis: str) -> float | None:
        """The mean place on an axis over the seeds; 0 where there is nothing of it."""
        found = [amount for e in self.entries if (amount := e.amount(axis)) is not None]
        return sum(found) / len(found) if found else None

    @property
    def over_seeds(self) -> Estimate | None:
        """The seeds' mean with its t-interval, which holds whatever a seed changes.

        None for fewer than `LEAST_SEEDS`, and where all are equal: nothing varied that could tell.
        """
        if len(self.seeds) < LEAST_SEEDS or len(set(self.seeds)) == 1:
            return None
        middle, low, high = t_interval(self.seeds)
        if not scorers.reads_texts(self.entries[0].metric):  # a share
            low, high = max(0.0, low), min(1.0, high)
        return Estimate(middle, low, high, len(self.seeds))


def steps_of(entries: Entries) -> list[int]:
    return sorted({entry.steps for entry in entries if entry.steps is not None})


class Judge:
    """Judges the answers of entries and keeps what it found."""

    def __init__(self, shelf: ReferenceShelf) -> None:
        self._shelf = shelf
        self._judged: dict[tuple[str, str], dict[str, Judged]] = {}
        self._places: dict[str, int] = {}  # a number for the id of a test row
        self._differences: dict[tuple[object, ...], Difference | None] = {}

    def group(self, study: Study, entries: Entries) -> Group:
        """The numbers of the entries of one method at one point, pooled over seeds."""
        first, main = entries[0], scoring.main_measure(entries[0].metric)
        judged = pooled([self.judged(entry) for entry in entries])
        values, reading = _values(judged), _first(judged)
        rates: dict[str, Number] = {n: v for n, v in values.items() if isinstance(v, Rate)}
        seeds = [self._measure([entry], main) for entry in entries]
        said = [_most_frequent(_first(self.judged(entry))) for entry in entries]
        base = None if first.is_base else study.base_of(first)
        return Group(
            entries=list(entries),
            series=study.series_of(first),
            task=rates | values,
            seeds=[measure.column.total for measure in seeds if measure is not None],
            elsewhere=elsewhere.elsewhere(entries, base, self._form(first)),
            most_frequent=_most_frequent(reading),
            kinds=Counter(kind for kind in reading.kinds if kind is not None),
            constants=[most for most in said if most is not None and _is_constant(most[1])],
        )

    def judged(self, entry: Entry) -> dict[str, Judged]:
        """All answers of one entry to its task, by reading."""
        key = (entry.run, entry.evaluation)
        if key not in self._judged:
            self._judged[key] = pooled([self._judge(entry, answers) for answers in entry.task])
        return self._judged[key]

    def _judge(self, entry: Entry, answers: Answers) -> dict[str, Judged]:
        if scorers.reads_texts(entry.metric):
            scored = load_scored(answers.folder)
            return {
                reading: replace(part, rows=[self._place(scored.id(row)) for row in part.rows])
                for reading, part in scorers.judge_saved(scored).items()
            }
        truth = self._shelf.get(entry.card, answers.settings.split)
        strangers = sum(line.id not in truth.of for line in answers.lines)
        if strangers:
            raise UserError(
                f"{strangers} of {len(answers.lines)} answers have no row in split "
                f"'{truth.split}' of card '{truth.card}'",
                where=str(answers.folder),
                remedy="the answers belong to other data; run the sweep again",
            )
        found = [line.model_copy(update={"row": self._place(line.id)}) for line in answers.lines]
        right = [truth.of[line.id] for line in answers.lines]
        readings = ("strict", "lenient")
        case = Case(load_card(entry.card), found, right, truth.labels, readings=readings)
        return scorers.judge(case)

    def _place(self, row: str) -> int:
        return self._places.setdefault(row, len(self._places))

    def difference(self, system: Entries, baseline: Entries, name: str) -> Difference | None:
        """System minus baseline over the same rows, and beside it that of each seed, the entries
        paired in their order; None where there is nothing to pair.

        `name` is a measure of the task, or `BLEED`, or one of `LOSS_FILES`. Tables, sentences and
        pictures ask for the same differences: each is made once.
        """
        sides = ([(entry.run, entry.evaluation) for entry in side] for side in (system, baseline))
        key = (name, *map(tuple, sides))
        if key not in self._differences:
            self._differences[key] = self._made(system, baseline, name)
        return self._differences[key]

    def _made(self, system: Entries, baseline: Entries, name: str) -> Difference | None:
        mine, theirs = (self._measure(side, name) for side in (system, baseline))
        found = difference(mine, theirs)
        if mine is None or found is None:
            return None
        factor = 100 if mine.column.percent else 1
        if len(system) < 2 or len(system) != len(baseline):
            return found.times(factor)
        seeds = list(zip(system, baseline, strict=True))
        each = [self.difference([mine], [theirs], name) for mine, theirs in seeds]
        wide = self._over_seeds(seeds, name)
        return replace(
            found.times(factor),
            by_seed=tuple(part.value for part in each if part is not None),
            over_seeds=None if wide is None else (factor * wide[0], factor * wide[1]),
        )

    def _over_seeds(
        self, seeds: Sequence[tuple[Entry, Entry]], name: str
    ) -> tuple[float, float] | None:
        """The interval over rows and seeds; None for fewer than three, or other rows each."""
        found = [self._measure([entry], name) for pair in seeds for entry in pair]
        parts = [part for part in found if part is not None]
        if len(seeds) < LEAST_SEEDS or len(parts) < len(found):
            return None
        if len({part.stats.shape for part in parts}) > 1:
            return None
        stats = [part.stats for part in parts]
        pairs = list(zip(stats[::2], stats[1::2], strict=True))
        return intervals.over_seeds(pairs, parts[0].column.score)

    def _measure(self, entries: Entries, name: str) -> Measure | None:
        """A measure of all entries together, row by row; None where they do not have it."""
        if name == BLEED or name in LOSS_FILES:
            return elsewhere.measure(entries, name, self._form(entries[0]))
        reading = _first(pooled([self.judged(entry) for entry in entries]))
        columns = {scoring.spaced(key): column for key, column in reading.columns.items()}
        return measure_of(reading.rows, columns[name]) if name in columns else None

    def _form(self, entry: Entry) -> Form:
        split = entry.task[0].settings.split if entry.task else "test"
        return self._shelf.get(entry.card, split).form


def _first(judged: Mapping[str, Judged]) -> Judged:
    """The reading to go by; an empty one where there are no answers to judge."""
    return next(iter(judged.values()), Judged([], {}))


def _values(judged: Mapping[str, Judged]) -> dict[str, Number]:
    """The measures to show, by name: those of every scorer's first reading."""
    found: dict[str, Number] = {}
    for reading, part in judged.items():
        shown = [] if reading in scorers.SECOND_READINGS else part.columns.items()
        for name, column in shown:
            if not column.detail:
                found[scoring.spaced(name)] = column.estimate(part.rows)
            if name == "adherence" and (lenient := judged.get("lenient")):
                found["adherence, lenient"] = lenient.columns[name].estimate(lenient.rows)
    return found


def _most_frequent(reading: Judged) -> MostFrequent | None:
    """The label given most often; None where no answer carries one."""
    both = zip(reading.rows, reading.given, strict=False)
    said = [(row, label) for row, label in both if label is not None]
    if not said or "balanced_accuracy" not in reading.columns:
        return None
    label = Counter(label for _, label in said).most_common(1)[0][0]
    return label, rate([other == label for _, other in said], [row for row, _ in said])


def _is_constant(share: Rate) -> bool:
    return share.n > 1 and (share.value or 0) >= _CONSTANT
