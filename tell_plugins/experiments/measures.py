"""Numbers of one method at one point, over all of its seeds; each with n and a 95 % interval.

Answers of several seeds to the same test row are not independent: rates carry the design effect
of `intervals.rate`, and differences the correlation over test rows. What seeds add to that is shown
by the spread of the seeds themselves, which no interval over rows can tell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import elsewhere, scorers, scoring, significance
from tell_plugins.evaluation.bleed import Form
from tell_plugins.evaluation.elsewhere import BLEED, LOSS_FILES, Elsewhere
from tell_plugins.evaluation.intervals import Estimate, Interval, Rate, rate, smallest_shown
from tell_plugins.evaluation.judged import Case, Judged
from tell_plugins.evaluation.scoring import Measure, measure_of
from tell_plugins.experiments.results import AS_SAVED, Answers, Entry, ReferenceShelf

# the first measure of each metric: the one that curves and comparisons are about
MAIN = {
    "json": "adherence",
    "label": "balanced accuracy",
    "number": "exact match",
    "translation": "chrF++",
    "text": "chrF++",
}
KL = elsewhere.KL
LEAST_SEEDS = 3  # from as many on an interval over seeds says anything
_CONSTANT = 0.95  # a label given at least this often is called a constant answer
_TEST = 0.05
Number = Rate | Estimate
Entries = Sequence[Entry]


@dataclass(frozen=True)
class Measures:
    """One method at one point of the grid.

    Attributes:
        task: what the scorers measure, by name, rates in front.
        seeds: the main measure of each seed, in the order of the entries.
        elsewhere: what general questions and texts tell; what is set against the base model is
            paired.
        most_frequent: the label given most often and its share of the adherent answers.
        constants: the same of each entry that gives nearly one label only, by its place.
    """

    entries: list[Entry]
    task: dict[str, Number]
    seeds: list[float]
    elsewhere: Elsewhere
    most_frequent: tuple[str, Rate] | None
    kinds: Counter[str]
    constants: dict[int, tuple[str, Rate]]

    @property
    def over_seeds(self) -> Estimate | None:
        """The seeds' mean with its t-interval, which holds whatever a seed changes.

        None for fewer than `LEAST_SEEDS`, and where all are equal: nothing varied that could tell.
        """
        if len(self.seeds) < LEAST_SEEDS or len(set(self.seeds)) == 1:
            return None
        middle, low, high = t_interval(self.seeds)
        if any(isinstance(value, Rate) for value in self.task.values()):
            low, high = max(0.0, low), min(1.0, high)
        return Estimate(middle, low, high, len(self.seeds))

    @property
    def constant(self) -> bool:
        """Whether nearly all adherent answers of every seed carry one and the same label."""
        return len(self.constants) == len(self.entries)

    def main(self, metric: str) -> Number | None:
        return self.task.get(MAIN[metric])


@dataclass(frozen=True)
class Difference:
    """System minus baseline, with its 95 % interval over `n` rows that both answered.

    `by_seed` has the difference of each seed where there are several, `over_seeds` from three seeds
    on the interval over rows and seeds; `p` is of the paired test by
    randomization (of two runs' shares: McNemar's), None for a loss.
    """

    value: float
    low: float
    high: float
    n: int
    by_seed: tuple[float, ...] = ()
    p: float | None = None
    over_seeds: tuple[float, float] | None = None

    def times(self, factor: float) -> Difference:
        """The same in another unit: 100 for points."""
        value, low, high, *seeds = (
            factor * part for part in (self.value, self.low, self.high, *self.by_seed)
        )
        wide = self.over_seeds and (factor * self.over_seeds[0], factor * self.over_seeds[1])
        return Difference(value, low, high, self.n, tuple(seeds), self.p, wide)

    @property
    def estimate(self) -> Estimate:
        """The difference as a number of a table."""
        return Estimate(self.value, self.low, self.high, self.n)

    def each_seed(self, digits: int) -> str:
        """The differences of the seeds as text; empty for a single one."""
        return ", ".join(f"{value:+.{digits}f}" for value in self.by_seed)

    @property
    def smallest(self) -> float:
        """The smallest true difference that these rows would show, at 80 % power."""
        return smallest_shown(self.low, self.high)

    @property
    def certain(self) -> bool:
        """Whether the interval lies on one side of zero, the test says so, and the seeds do too."""
        apart = (self.low > 0 or self.high < 0) and (self.p is None or self.p < _TEST)
        return apart and not self.seeds_disagree

    @property
    def seeds_disagree(self) -> bool:
        """Whether seeds have differences of both signs, or from three on a t-interval over 0."""
        if len(self.by_seed) < 2:
            return False
        if min(self.by_seed) < 0 < max(self.by_seed) or len(self.by_seed) < LEAST_SEEDS:
            return min(self.by_seed) < 0 < max(self.by_seed)
        _, low, high = t_interval(self.by_seed)
        return low <= 0 <= high


class Judge:
    """Judges the answers of entries and keeps what it found."""

    def __init__(self, shelf: ReferenceShelf) -> None:
        self._shelf = shelf
        self._judged: dict[tuple[str, str], dict[str, Judged]] = {}
        self._places: dict[str, int] = {}  # a number for the id of a test row
        self._differences: dict[tuple[object, ...], Difference | None] = {}

    def measures(self, entries: Entries, base: Entry | None) -> Measures:
        """The numbers of the entries of one method at one point, pooled over seeds."""
        metric = str(load_card(entries[0].card).metric)
        judged = [self.judged(entry) for entry in entries]
        pooled = _pool(judged)
        values, seeds = _values(pooled), [_main_value(part, metric) for part in judged if part]
        if metric in AS_SAVED:
            values, seeds = _as_saved(entries, metric)
        first, parts = _first(pooled), [_first(part) for part in judged]
        labelled = first is not None and "balanced_accuracy" in first.columns
        rates: dict[str, Number] = {n: v for n, v in values.items() if isinstance(v, Rate)}
        return Measures(
            entries=list(entries),
            task=rates | values,
            seeds=seeds,
            elsewhere=elsewhere.elsewhere(
                entries, None if entries[0].is_base else base, self._form(entries[0])
            ),
            most_frequent=_most_frequent(first) if first is not None and labelled else None,
            kinds=Counter(kind for kind in (first.kinds if first else []) if kind is not None),
            constants=_constants([part for part in parts if part is not None]) if labelled else {},
        )

    def judged(self, entry: Entry) -> dict[str, Judged]:
        """All answers of one entry to its task, by reading."""
        key = (entry.run, entry.evaluation)
        if key not in self._judged:
            self._judged[key] = _pool([self._judge(entry, answers) for answers in entry.task])
        return self._judged[key]

    def _judge(self, entry: Entry, answers: Answers) -> dict[str, Judged]:
        card = load_card(entry.card)
        if card.metric in AS_SAVED:
            return {}
        truth = self._shelf.get(card.name, answers.settings.split)
        strangers = sum(line.id not in truth.of for line in answers.lines)
        if truth.of and strangers:
            raise UserError(
                f"{strangers} of {len(answers.lines)} answers have no row in split "
                f"'{truth.split}' of card '{truth.card}'",
                where=str(answers.folder),
                remedy="the answers belong to other data; run the sweep again",
            )
        places = [self._places.setdefault(line.id, len(self._places)) for line in answers.lines]
        found = [
            line.model_copy(update={"row": place})
            for line, place in zip(answers.lines, places, strict=True)
        ]
        right = [truth.of[line.id] for line in answers.lines] if truth.of else []
        readings = ("strict", "lenient")
        return scorers.judge(Case(card, found, right, truth.labels, readings=readings))

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
        pair = elsewhere.paired(name, *(self._measure(side, name) for side in (system, baseline)))
        if pair is None:
            return None
        p = None if math.isnan(pair.p) else pair.p
        found = Difference(pair.value, pair.low, pair.high, pair.n, p=p)
        if len(system) < 2 or len(system) != len(baseline):
            return found
        seeds = list(zip(system, baseline, strict=True))
        each = [self.difference([mine], [theirs], name) for mine, theirs in seeds]
        return replace(
            found,
            by_seed=tuple(part.value for part in each if part is not None),
            over_seeds=self._over_seeds(seeds, name),
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
        return significance.over_seeds(pairs, parts[0].column.score)

    def _measure(self, entries: Entries, name: str) -> Measure | None:
        """A measure of all entries together, row by row; None where they do not have it."""
        if name == BLEED or name in LOSS_FILES:
            return elsewhere.measure(entries, name, self._form(entries[0]))
        judged = _first(_pool([self.judged(entry) for entry in entries]))
        column = judged and judged.columns.get(name.replace(" ", "_"))
        return measure_of(judged.rows, column) if judged and column else None

    def _form(self, entry: Entry) -> Form:
        split = entry.task[0].settings.split if entry.task else "test"
        return self._shelf.get(entry.card, split).form


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of at least two values with its 95 % t-interval."""
    from scipy.stats import t

    middle = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(middle, middle - half, middle + half)


def _pool(parts: Sequence[Mapping[str, Judged]]) -> dict[str, Judged]:
    """Several sets of answers as one, by reading; what not all of them have is left out."""
    parts = [part for part in parts if part]
    shared = [name for name in (parts[0] if parts else {}) if all(name in p for p in parts)]
    return {name: _joined([part[name] for part in parts]) for name in shared}


def _joined(parts: Sequence[Judged]) -> Judged:
    columns = {
        name: replace(column, stats=np.concatenate([part.columns[name].stats for part in parts]))
        for name, column in parts[0].columns.items()
    }
    return Judged(
        rows=[row for part in parts for row in part.rows],
        columns=columns,
        kinds=[kind for part in parts for kind in part.kinds],
        given=[label for part in parts for label in part.given],
        right=[label for part in parts for label in part.right],
    )


def _first(judged: Mapping[str, Judged]) -> Judged | None:
    """The reading to go by; None where there are no answers to judge."""
    return next(iter(judged.values()), None)


def _values(judged: Mapping[str, Judged]) -> dict[str, Number]:
    """The measures to show, by name: those of every scorer's first reading."""
    found: dict[str, Number] = {}
    for reading, part in judged.items():
        if reading in scorers.SECOND_READINGS:
            continue
        for name, column in part.columns.items():
            if not column.detail:
                found[name.replace("_", " ")] = column.estimate(part.rows)
            if name == "adherence" and "lenient" in judged:
                lenient = judged["lenient"]
                found["adherence, lenient"] = lenient.columns[name].estimate(lenient.rows)
    return found


def _main_value(judged: Mapping[str, Judged], metric: str) -> float:
    column = next(iter(judged.values())).columns[MAIN[metric].replace(" ", "_")]
    return float(column.score(column.stats.sum(axis=0)[None])[0])


def _most_frequent(judged: Judged) -> tuple[str, Rate] | None:
    both = zip(judged.rows, judged.given, strict=True)
    said = [(row, label) for row, label in both if label is not None]
    if not said:
        return None
    label = Counter(label for _, label in said).most_common(1)[0][0]
    return label, rate([other == label for _, other in said], [row for row, _ in said])


def _constants(judged: Sequence[Judged]) -> dict[int, tuple[str, Rate]]:
    """Of the parts that give nearly one label only: that label and its share, by their place."""
    found = {place: _most_frequent(part) for place, part in enumerate(judged)}
    return {
        place: most
        for place, most in found.items()
        if most is not None and most[1].n > 1 and (most[1].value or 0) >= _CONSTANT
    }


def _saved_scores(answers: Answers) -> dict[str, dict[str, float]]:
    """The measures of answers whose scores are taken as `eval` saved them."""
    saved = answers.scores
    if saved is not None and saved.get("format") != scoring.FORMAT:  # of an earlier release
        saved = scoring.score(answers.folder).to_dict()
    return {
        scoring.spaced(name): value
        for reading, part in (saved or {}).get("readings", {}).items()
        if reading not in scorers.SECOND_READINGS
        for name, value in part["measures"].items()
    }


def _as_saved(entries: Entries, metric: str) -> tuple[dict[str, Number], list[float]]:
    """Estimates by name, and the main one of each entry.

    An entry's own sets of answers (decoding seeds) are averaged first: they are no training seeds.
    """
    found: dict[str, list[dict[str, float]]] = {}
    seeds = []
    for entry in entries:
        saved = [scores for answers in entry.task if (scores := _saved_scores(answers))]
        for name, value in (item for scores in saved for item in scores.items()):
            found.setdefault(name, []).append(value)
        if saved:
            seeds.append(sum(scores[MAIN[metric]]["value"] for scores in saved) / len(saved))
    return {name: _mean_estimate(values) for name, values in found.items()}, seeds


def _mean_estimate(values: list[dict[str, float]]) -> Estimate:
    """The mean, as far from its ends as the widest of the intervals on that side."""
    middle = sum(v["value"] for v in values) / len(values)
    below = max(v["value"] - v["low"] for v in values)
    above = max(v["high"] - v["value"] for v in values)
    return Estimate(middle, middle - below, middle + above, int(values[0]["n"]))
