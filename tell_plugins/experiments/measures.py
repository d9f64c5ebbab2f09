"""Numbers of one method at one point, over all of its seeds; each with n and a 95 % interval.

Answers of several seeds to the same test row are not independent: rates carry the design effect
of `intervals.rate`, and differences the correlation over test rows. What seeds add to that is shown
by the spread of the seeds themselves, which no interval over rows can tell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import retention, shares
from tell_plugins.evaluation.bleed import format_test, opening_test
from tell_plugins.evaluation.final_number import final_number
from tell_plugins.evaluation.intervals import Estimate, Rate, rate
from tell_plugins.evaluation.json_scorers import card_schema, lenient, strict
from tell_plugins.evaluation.significance import Floats, mean_stats
from tell_plugins.experiments.results import Answers, Entry, References, ReferenceShelf, card_of

# the first measure of each metric: the one that curves and comparisons are about
MAIN = {
    "json": "adherence",
    "number": "exact match",
    "translation": "chrF++",
    "text": "chrF++",
}
AS_SAVED = ("translation", "text")  # metrics whose scores are taken as `eval` saved them
_CONSTANT = 0.95  # a label given at least this often is called a constant answer
LEAST_SEEDS = 3  # from as many on an interval over seeds says anything


@dataclass(frozen=True)
class Judged:
    """Answers and what they came to. All lists have one item an answer.

    Attributes:
        rows: the test row (its id) of each answer.
        hits: adherent, or the right number.
        lenient: adherent to a tolerant reader; empty for numbers.
        given, right: labels, None where an answer is not adherent; empty without labels.
        kinds: kinds of failure.
    """

    rows: list[str]
    hits: list[bool]
    lenient: list[bool]
    given: list[str | None]
    right: list[str]
    kinds: Counter[str]

    def __add__(self, other: Judged) -> Judged:
        return Judged(
            self.rows + other.rows,
            self.hits + other.hits,
            self.lenient + other.lenient,
            self.given + other.given,
            self.right + other.right,
            self.kinds + other.kinds,
        )

    @property
    def places(self) -> list[int]:
        """The rows as numbers, in the order of their ids."""
        order = {row: place for place, row in enumerate(sorted(set(self.rows)))}
        return [order[row] for row in self.rows]


NOTHING = Judged([], [], [], [], [], Counter())


@dataclass(frozen=True)
class Measures:
    """One method at one point of the grid.

    Attributes:
        rates: named rates, the main one first (none for translations).
        estimates: named other numbers (balanced accuracy; all scores of translations).
        seeds: the main measure of each seed, in the order of the entries.
        loss: mean loss per token on held-out general rows; `change` against the base model.
        bleed: general questions answered in the task's format.
        most_frequent: the label given most often and its share of the adherent answers.
        constants: the same of each entry that gives nearly one label only, by its place.
    """

    entries: list[Entry]
    rates: dict[str, Rate]
    estimates: dict[str, Estimate]
    seeds: list[float]
    loss: Estimate | None
    change: Estimate | None
    bleed: Rate | None
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
        if self.rates:
            low, high = max(0.0, low), min(1.0, high)
        return Estimate(middle, low, high, len(self.seeds))

    @property
    def constant(self) -> bool:
        """Whether nearly all adherent answers of every seed carry one and the same label."""
        return len(self.constants) == len(self.entries)

    def main(self, metric: str) -> Rate | Estimate | None:
        name = MAIN[metric]
        return self.rates.get(name) or self.estimates.get(name)


class Judge:
    """Judges the answers of entries and keeps what it found."""

    def __init__(self, shelf: ReferenceShelf) -> None:
        self._shelf = shelf
        self._judged: dict[tuple[str, str], Judged] = {}

    def measures(self, entries: Sequence[Entry], base: Entry | None) -> Measures:
        """The numbers of the entries of one method at one point, pooled over seeds."""
        card = card_of(entries[0])
        metric = str(card.metric)
        pooled = sum((self.judged(entry) for entry in entries), NOTHING)
        rates: dict[str, Rate] = {}
        estimates: dict[str, Estimate] = {}
        seeds: list[float] = []
        frequent = None
        constants: dict[int, tuple[str, Rate]] = {}
        if metric in AS_SAVED:
            saved = _translation if metric == "translation" else _text
            estimates, seeds = saved(entries)
        elif pooled.hits:
            places = pooled.places
            rates[MAIN[metric]] = rate(pooled.hits, places)
            judged = [self.judged(entry) for entry in entries]
            seeds = [_mean(part.hits) for part in judged]
            if pooled.lenient:
                rates["adherence, lenient"] = rate(pooled.lenient, places)
            if pooled.right:
                right = [g == r for g, r in zip(pooled.given, pooled.right, strict=True)]
                rates["accuracy"] = rate(right, places)
                estimates["balanced accuracy"] = shares.mean_share(recalls(pooled))
                frequent = _most_frequent(pooled)
                constants = _constants(judged)
        return Measures(
            entries=list(entries),
            rates=rates,
            estimates=estimates,
            seeds=seeds,
            loss=_loss(entries),
            change=_change(entries, base),
            bleed=self._bleed(entries),
            most_frequent=frequent,
            kinds=pooled.kinds,
            constants=constants,
        )

    def judged(self, entry: Entry) -> Judged:
        """All answers of one entry to its task."""
        key = (entry.run.folder.name, entry.evaluation)
        if key not in self._judged:
            parts = (self._judge(entry, answers) for answers in entry.measured.task)
            self._judged[key] = sum(parts, NOTHING)
        return self._judged[key]

    def _judge(self, entry: Entry, answers: Answers) -> Judged:
        card = card_of(entry)
        if card.metric in AS_SAVED:
            return NOTHING
        truth = self._shelf.get(card.name, answers.settings["split"])
        _check_ids(answers, truth)
        rows = [str(line["id"]) for line in answers.lines]
        if card.metric == "number":
            numbers = [final_number(line["text"]) for line in answers.lines]
            right = [truth.of[row] for row in rows]
            hits = [_same(n, expected) for n, expected in zip(numbers, right, strict=True)]
            kinds = Counter({"wrong_number": hits.count(False)} if not all(hits) else {})
            return Judged(rows, hits, [], [], [], kinds)
        schema = card_schema(card)
        verdicts = [strict(a["text"], a["finish_reason"], schema) for a in answers.lines]
        tolerant = [lenient(a["text"], a["finish_reason"], schema) for a in answers.lines]
        given = [schema.label_of(v.value) if v.adherent else None for v in verdicts]
        return Judged(
            rows=rows,
            hits=[verdict.adherent for verdict in verdicts],
            lenient=[verdict.adherent for verdict in tolerant],
            given=given if truth.labels else [],
            right=[truth.of[row] for row in rows] if truth.labels else [],
            kinds=Counter(verdict.kind for verdict in verdicts if not verdict.adherent),
        )

    def difference(
        self, system: Sequence[Entry], baseline: Sequence[Entry], name: str
    ) -> Difference | None:
        """System minus baseline over the same test rows; None where there is nothing to pair.

        `name` is `balanced accuracy`, or anything else for the main rate.
        """
        mine = sum((self.judged(entry) for entry in system), NOTHING)
        theirs = sum((self.judged(entry) for entry in baseline), NOTHING)
        if not mine.rows or set(mine.rows) != set(theirs.rows):
            return None
        rows = len(set(mine.rows))
        if name != "balanced accuracy":
            stats = (mean_stats(part.hits, part.places) for part in (mine, theirs))
            return Difference(*shares.difference(*stats), rows)
        if not mine.right:
            return None
        parts = zip(recalls(mine), recalls(theirs), strict=True)
        return Difference(*shares.mean_difference(list(parts)), rows)

    def difference_over_seeds(
        self, system: Sequence[Entry], baseline: Sequence[Entry], name: str
    ) -> Difference | None:
        """`difference`, and beside it that of each seed: the entries are paired in their order."""
        found = self.difference(system, baseline, name)
        if found is None or len(system) < 2 or len(system) != len(baseline):
            return found
        each = [
            self.difference([mine], [theirs], name)
            for mine, theirs in zip(system, baseline, strict=True)
        ]
        return replace(found, by_seed=tuple(part.value for part in each if part is not None))

    def _bleed(self, entries: Sequence[Entry]) -> Rate | None:
        card = card_of(entries[0])
        in_format = format_test(card)
        if card.metric in AS_SAVED:
            answers = entries[0].measured.task
            split = answers[0].settings["split"] if answers else "test"
            in_format = opening_test(self._shelf.get(card.name, split).opening)
        lines = [line for entry in entries for line in entry.measured.general]
        if not lines or in_format is None:
            return None
        return rate([in_format(line["text"]) for line in lines], [line["row"] for line in lines])


def t_interval(values: Sequence[float]) -> shares.Interval:
    """The mean of at least two values with its 95 % t-interval."""
    from scipy.stats import t

    middle = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return shares.Interval(middle, middle - half, middle + half)


def _check_ids(answers: Answers, truth: References) -> None:
    strangers = [line["id"] for line in answers.lines if line["id"] not in truth.of]
    if truth.of and strangers:
        raise UserError(
            f"{len(strangers)} of {len(answers.lines)} answers have no row in split "
            f"'{truth.split}' of card '{truth.card}'",
            where=str(answers.folder),
            remedy="the answers belong to other data; run the sweep again",
        )


def _same(number: Fraction | None, right: str) -> bool:
    return number is not None and str(number) == right


def _mean(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")


def _most_frequent(judged: Judged) -> tuple[str, Rate] | None:
    said = [label for label in judged.given if label is not None]
    if not said:
        return None
    places = [p for p, label in zip(judged.places, judged.given, strict=True) if label is not None]
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

    `by_seed` has the difference of each seed where there are several.
    """

    value: float
    low: float
    high: float
    n: int
    by_seed: tuple[float, ...] = ()

    def each_seed(self, factor: float = 1, digits: int = 3) -> str:
        """The differences of the seeds as text; empty for a single one."""
        return ", ".join(f"{factor * value:+.{digits}f}" for value in self.by_seed)

    @property
    def certain(self) -> bool:
        """Whether the interval lies on one side of zero, and the seeds do too."""
        return (self.low > 0 or self.high < 0) and not self.seeds_disagree

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


def recalls(judged: Judged) -> list[Floats]:
    """Of each label that occurs, in order: the hits and the answers of its test rows."""
    places = judged.places
    found = []
    for name in sorted(set(judged.right)):
        mine = [i for i, right in enumerate(judged.right) if right == name]
        found.append(mean_stats([judged.given[i] == name for i in mine], [places[i] for i in mine]))
    return found


def mean_losses(entries: Sequence[Entry]) -> list[tuple[float, int]]:
    """(summed loss, tokens) of each held-out general row, the mean over the entries.

    Empty where nothing was measured, or not over the same rows.
    """
    found = [losses for entry in entries if (losses := entry.measured.losses)]
    if not found or len(found) < len(entries):
        return []
    tokens = [count for _, count in found[0]]
    if any([count for _, count in losses] != tokens for losses in found):
        return []
    sums = np.mean([[loss for loss, _ in losses] for losses in found], axis=0)
    return list(zip(sums.tolist(), tokens, strict=True))


def _loss(entries: Sequence[Entry]) -> Estimate | None:
    losses = mean_losses(entries)
    if not losses:
        return None
    found = retention.retention(losses)
    return Estimate(found.loss, found.low, found.high, found.rows)


def _change(entries: Sequence[Entry], base: Entry | None) -> Estimate | None:
    if base is None or entries[0].run.is_base:
        return None
    found = loss_difference(entries, [base])
    return None if found is None else Estimate(found.value, found.low, found.high, found.n)


def loss_difference(system: Sequence[Entry], baseline: Sequence[Entry]) -> Difference | None:
    """Loss on held-out general rows, system minus baseline over the same rows (paired)."""
    mine, theirs = mean_losses(system), mean_losses(baseline)
    if not mine or [count for _, count in mine] != [count for _, count in theirs]:
        return None
    value, low, high = retention.difference(mine, theirs)
    each: list[Difference | None] = []
    if len(system) == len(baseline) > 1:
        each = [loss_difference([s], [b]) for s, b in zip(system, baseline, strict=True)]
    by_seed = tuple(part.value for part in each if part is not None)
    return Difference(value, low, high, len(mine), by_seed)


def _translation(entries: Sequence[Entry]) -> tuple[dict[str, Estimate], list[float]]:
    """Scores of translations as `eval` saved them; those of each entry, averaged."""
    return _as_saved(entries, "chrF++", "translation", _translation_scores)


def _translation_scores(scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    segment = scores["scores"]["stripped_segment"]
    learned = {name.upper(): v["segment"] for name, v in scores.get("learned", {}).items()}
    return {"chrF++": segment["chrf++"]["corpus"], "BLEU": segment["bleu"]["corpus"], **learned}


def _text(entries: Sequence[Entry]) -> tuple[dict[str, Estimate], list[float]]:
    """Scores of free text as `eval` saved them; those of each entry, averaged."""
    return _as_saved(
        entries,
        "chrF++",
        "text",
        lambda scores: {"chrF++": scores["chrf"]["corpus"], "exact match": scores["exact"]},
    )


def _as_saved(
    entries: Sequence[Entry],
    main: str,
    kind: str,
    read: Callable[[dict[str, Any]], dict[str, dict[str, float]]],
) -> tuple[dict[str, Estimate], list[float]]:
    """Estimates by name, and the main one of each entry.

    An entry's own sets of answers (decoding seeds) are averaged first: they are no training seeds.
    """
    found: dict[str, list[dict[str, float]]] = {}
    seeds = []
    for entry in entries:
        saved = [read(a.scores[kind]) for a in entry.measured.task if a.scores]
        for scores in saved:
            for name, value in scores.items():
                found.setdefault(name, []).append(value)
        if saved:
            seeds.append(sum(scores[main]["value"] for scores in saved) / len(saved))
    return {name: _mean_estimate(values) for name, values in found.items()}, seeds


def _mean_estimate(values: list[dict[str, float]]) -> Estimate:
    """The mean, as far from its ends as the widest of the intervals on that side."""
    middle = sum(v["value"] for v in values) / len(values)
    below = max(v["value"] - v["low"] for v in values)
    above = max(v["high"] - v["value"] for v in values)
    return Estimate(middle, middle - below, middle + above, int(values[0]["n"]))
