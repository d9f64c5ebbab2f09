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

from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import bleed, retention, scorers, scoring
from tell_plugins.evaluation.answers import Answer
from tell_plugins.evaluation.bleed import Form
from tell_plugins.evaluation.intervals import Estimate, Interval, Rate, rate, smallest_shown
from tell_plugins.evaluation.judged import Case, Judged
from tell_plugins.evaluation.scoring import same_rows_difference
from tell_plugins.experiments.results import (
    AS_SAVED,
    Answers,
    Entry,
    References,
    ReferenceShelf,
    card_of,
)

# the first measure of each metric: the one that curves and comparisons are about
MAIN = {
    "json": "adherence",
    "label": "balanced accuracy",
    "number": "exact match",
    "translation": "chrF++",
    "text": "chrF++",
}
# what is set against the base model, or is a distance to it
BLEED, KL = "bleed minus base", "KL to base"
LOSS_FILES = {
    "foreign instructions minus base": retention.INSTRUCTIONS,
    "prose minus base": retention.PROSE,
    "style fit minus base": retention.LOSSES,
}
ASKED = (bleed.BLEED, bleed.WORDS, bleed.CIRCLES)  # rates over general questions
STYLE_FIT = "style fit"
_CONSTANT = 0.95  # a label given at least this often is called a constant answer
_READINGS = ("strict", "lenient")
_TEST = 0.05
Number = Rate | Estimate
Names = tuple[tuple[str, str], ...]  # a run's folder and its evaluation, of several entries
LEAST_SEEDS = 3  # from as many on an interval over seeds says anything


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
    elsewhere: dict[str, Number | None]
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


class Judge:
    """Judges the answers of entries and keeps what it found."""

    def __init__(self, shelf: ReferenceShelf) -> None:
        self._shelf = shelf
        self._judged: dict[tuple[str, str], dict[str, Judged]] = {}
        self._places: dict[str, int] = {}
        self._differences: dict[tuple[str, Names, Names], Difference | None] = {}

    def measures(self, entries: Sequence[Entry], base: Entry | None) -> Measures:
        """The numbers of the entries of one method at one point, pooled over seeds."""
        metric = str(card_of(entries[0]).metric)
        judged = [self.judged(entry) for entry in entries]
        pooled = pool(judged)
        first = _first(pooled)
        values = _values(pooled)
        seeds = [_main_value(part, metric) for part in judged if part]
        if metric in AS_SAVED:
            values, seeds = _as_saved(entries, metric)
        parts = [_first(part) for part in judged]
        labelled = first is not None and "balanced_accuracy" in first.columns
        rates: dict[str, Number] = {n: v for n, v in values.items() if isinstance(v, Rate)}
        return Measures(
            entries=list(entries),
            task=rates | values,
            seeds=seeds,
            elsewhere=self._elsewhere(entries, base),
            most_frequent=_most_frequent(first) if first is not None and labelled else None,
            kinds=Counter(kind for kind in (first.kinds if first else []) if kind is not None),
            constants=_constants([part for part in parts if part is not None]) if labelled else {},
        )

    def judged(self, entry: Entry) -> dict[str, Judged]:
        """All answers of one entry to its task, by reading."""
        key = (entry.run.folder.name, entry.evaluation)
        if key not in self._judged:
            self._judged[key] = pool(
                [self._judge(entry, answers) for answers in entry.measured.task]
            )
        return self._judged[key]

    def _judge(self, entry: Entry, answers: Answers) -> dict[str, Judged]:
        card = card_of(entry)
        if card.metric in AS_SAVED:
            return {}
        truth = self._shelf.get(card.name, answers.settings["split"])
        _check_ids(answers, truth)
        found = [
            Answer(self._place(line["id"]), 0, line["text"], line["finish_reason"])
            for line in answers.lines
        ]
        right = [truth.of[line["id"]] for line in answers.lines] if truth.of else []
        return scorers.judge(Case(card, found, right, truth.labels, readings=_READINGS))

    def _place(self, row: str) -> int:
        """A number for the id of a test row."""
        return self._places.setdefault(row, len(self._places))

    def difference(
        self, system: Sequence[Entry], baseline: Sequence[Entry], name: str
    ) -> Difference | None:
        """System minus baseline over the same rows, and beside it that of each seed, the entries
        paired in their order; None where there is nothing to pair.

        `name` is a measure of the task, or `BLEED`, or one of `LOSS_FILES`. Tables, sentences and
        pictures ask for the same differences: each is made once.
        """
        found = self._known(system, baseline, name)
        if found is None or len(system) < 2 or len(system) != len(baseline):
            return found
        each = [
            self._known([mine], [theirs], name)
            for mine, theirs in zip(system, baseline, strict=True)
        ]
        return replace(found, by_seed=tuple(part.value for part in each if part is not None))

    def _known(
        self, system: Sequence[Entry], baseline: Sequence[Entry], name: str
    ) -> Difference | None:
        key = (name, _names(system), _names(baseline))
        if key not in self._differences:
            if name in LOSS_FILES:
                self._differences[key] = loss_difference(system, baseline, LOSS_FILES[name])
            else:
                self._differences[key] = self._of_columns(system, baseline, name)
        return self._differences[key]

    def _of_columns(
        self, system: Sequence[Entry], baseline: Sequence[Entry], name: str
    ) -> Difference | None:
        if name == BLEED:
            form = self._form(system[0])
            mine, theirs = (_general(entries, form) for entries in (system, baseline))
            found = same_rows_difference(mine, theirs, bleed.BLEED) if mine.rows else None
        else:
            ours, base = (
                _first(pool([self.judged(entry) for entry in entries]))
                for entries in (system, baseline)
            )
            if ours is None or base is None:
                return None
            found = same_rows_difference(ours, base, name.replace(" ", "_"))
        if found is None:
            return None
        return Difference(found.value, found.low, found.high, found.n, p=found.p)

    def _form(self, entry: Entry) -> Form:
        answers = entry.measured.task
        split = answers[0].settings["split"] if answers else "test"
        return self._shelf.get(entry.card, split).form

    def _elsewhere(self, entries: Sequence[Entry], base: Entry | None) -> dict[str, Number | None]:
        """Rates over general questions, changes to the base model, and divergence from it."""
        asked = _general(entries, self._form(entries[0]))
        found: dict[str, Number | None] = {
            name: asked.columns[name].estimate(asked.rows)
            if asked.rows and name in asked.columns
            else None
            for name in ASKED
        }
        if base is not None and not entries[0].run.is_base:
            for name in (BLEED, *LOSS_FILES):
                change = self.difference(entries, [base], name)
                if change is not None:
                    found[name] = change.estimate()
        kl = _mean_of(entries, retention.KL)
        if kl is not None:
            found[KL] = kl
        return {**found, STYLE_FIT: _mean_of(entries, retention.LOSSES)}


def _general(entries: Sequence[Entry], form: Form) -> Judged:
    lines = [line for entry in entries for line in entry.measured.general]
    return bleed.judged([(line["row"], line["text"]) for line in lines], form)


def _names(entries: Sequence[Entry]) -> Names:
    return tuple((entry.run.folder.name, entry.evaluation) for entry in entries)


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of at least two values with its 95 % t-interval."""
    from scipy.stats import t

    middle = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(middle, middle - half, middle + half)


def _check_ids(answers: Answers, truth: References) -> None:
    strangers = [line["id"] for line in answers.lines if line["id"] not in truth.of]
    if truth.of and strangers:
        raise UserError(
            f"{len(strangers)} of {len(answers.lines)} answers have no row in split "
            f"'{truth.split}' of card '{truth.card}'",
            where=str(answers.folder),
            remedy="the answers belong to other data; run the sweep again",
        )


def pool(parts: Sequence[Mapping[str, Judged]]) -> dict[str, Judged]:
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


def _values(judged: Mapping[str, Judged]) -> dict[str, Rate | Estimate]:
    """The measures to show, by name: those of every scorer's first reading."""
    found: dict[str, Rate | Estimate] = {}
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
    first = _first(judged)
    assert first is not None
    column = first.columns[MAIN[metric].replace(" ", "_")]
    return float(column.score(column.stats.sum(axis=0)[None])[0])


def _most_frequent(judged: Judged) -> tuple[str, Rate] | None:
    said = [label for label in judged.given if label is not None]
    if not said:
        return None
    places = [
        row for row, label in zip(judged.rows, judged.given, strict=True) if label is not None
    ]
    label = Counter(said).most_common(1)[0][0]
    return label, rate([other == label for other in said], places)


def _constants(judged: Sequence[Judged]) -> dict[int, tuple[str, Rate]]:
    """Of the parts that give nearly one label only: that label and its share, by their place."""
    found: dict[int, tuple[str, Rate]] = {}
    for place, part in enumerate(judged):
        label, share = _most_frequent(part) or ("", None)
        if share is not None and share.n > 1 and (share.value or 0) >= _CONSTANT:
            found[place] = label, share
    return found


@dataclass(frozen=True)
class Difference:
    """System minus baseline, with its 95 % interval over `n` rows that both answered.

    `by_seed` has the difference of each seed where there are several; `p` is of the paired test by
    randomization (of two runs' shares: McNemar's), None for a loss.
    """

    value: float
    low: float
    high: float
    n: int
    by_seed: tuple[float, ...] = ()
    p: float | None = None

    def estimate(self, factor: float = 1) -> Estimate:
        """The difference as a number of a table, times `factor`."""
        value, low, high = (factor * part for part in (self.value, self.low, self.high))
        return Estimate(value, low, high, self.n)

    def each_seed(self, factor: float = 1, digits: int = 3) -> str:
        """The differences of the seeds as text; empty for a single one."""
        return ", ".join(f"{factor * value:+.{digits}f}" for value in self.by_seed)

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
        if min(self.by_seed) < 0 < max(self.by_seed):
            return True
        if len(self.by_seed) < LEAST_SEEDS:
            return False
        _, low, high = t_interval(self.by_seed)
        return low <= 0 <= high


def mean_sums(entries: Sequence[Entry], name: str) -> list[retention.Sum]:
    """`retention.mean_sums` of the entries, of one of `retention.FILES`."""
    return retention.mean_sums([entry.measured.sums(name) for entry in entries])


def _mean_of(entries: Sequence[Entry], name: str) -> Estimate | None:
    sums = mean_sums(entries, name)
    if not sums:
        return None
    return retention.retention(sums)


def loss_difference(
    system: Sequence[Entry], baseline: Sequence[Entry], name: str = retention.LOSSES
) -> Difference | None:
    """Loss per token on the rows of one of `retention.FILES`, system minus baseline (paired)."""
    mine, theirs = mean_sums(system, name), mean_sums(baseline, name)
    if not mine or [count for _, count in mine] != [count for _, count in theirs]:
        return None
    return Difference(*retention.difference(mine, theirs), len(mine))


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


def _as_saved(
    entries: Sequence[Entry], metric: str
) -> tuple[dict[str, Rate | Estimate], list[float]]:
    """Estimates by name, and the main one of each entry.

    An entry's own sets of answers (decoding seeds) are averaged first: they are no training seeds.
    """
    found: dict[str, list[dict[str, float]]] = {}
    seeds = []
    for entry in entries:
        saved = [_saved_scores(answers) for answers in entry.measured.task if answers.scores]
        for scores in saved:
            for name, value in scores.items():
                found.setdefault(name, []).append(value)
        if saved:
            main = MAIN[metric]
            seeds.append(sum(scores[main]["value"] for scores in saved) / len(saved))
    return {name: _mean_estimate(values) for name, values in found.items()}, seeds


def _mean_estimate(values: list[dict[str, float]]) -> Estimate:
    """The mean, as far from its ends as the widest of the intervals on that side."""
    middle = sum(v["value"] for v in values) / len(values)
    below = max(v["value"] - v["low"] for v in values)
    above = max(v["high"] - v["value"] for v in values)
    return Estimate(middle, middle - below, middle + above, int(values[0]["n"]))
