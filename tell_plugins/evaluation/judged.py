"""The rows table: what a scorer says of each answer, one line an answer, one column a measure.

Everything that is shown of a measure (its value, its interval, its difference to another system) is
made from its column, so that each answer is judged once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tell_plugins.core.cards import Card
from tell_plugins.core.sources import TaskRows
from tell_plugins.core.text import shortened
from tell_plugins.evaluation.answers import Answer, Settings
from tell_plugins.evaluation.intervals import (
    Estimate,
    Floats,
    PairedInterval,
    Score,
    counted,
    interval,
    mean_score,
    rate_of_rows,
    share_difference,
    summed,
)

# why an answer fails: it is counted under the first kind that applies
KINDS = (
    "empty",  # nothing but white space
    "code_fence",  # JSON alone, but inside a Markdown code fence
    "several_values",  # one JSON value after the other
    "text_around",  # a JSON object with other text before or after it
    "truncated",  # an object was begun and the limit of new tokens cut it
    "invalid_json",  # an object was begun, but what stands there is no JSON
    "prose",  # no object was begun
    "duplicate_key",  # JSON in which an object has a key twice
    "not_finite",  # NaN, Infinity, or a number beyond double precision
    "not_object",  # JSON, but an array, a string, a number ...
    "missing_key",
    "extra_key",
    "wrong_type",
    "wrong_enum",  # the right type, but none of the allowed values
    "other_rule",  # any other rule of the schema, such as minLength
    "no_label",  # metric `label`: text that is none of the labels
    "no_number",  # metric `number`, as the next
    "wrong_number",
    "fewer_lines",  # metric `translation`, as the next: other lines than the source's
    "more_lines",
    "crash",  # scorer `official`: the published script stops with a traceback
)


Numbers = dict[str, Estimate]  # by the name of the measure
_KEPT = 203  # characters of a frequent answer, with the dots of one that is cut


@dataclass(frozen=True)
class Column:
    """One measure of every answer.

    Attributes:
        stats: (answers, s); their sum over any answers gives the measure of these, by `score`.
        score: from sums (r, s) to r values.
        value: the measure with its interval, from `stats` summed by test row; a bootstrap over
            test rows where it is None.
        difference: the interval of a paired difference; a bootstrap where it is None.
        percent: whether it is shown in per cent.
        is_loss: whether it is a loss, (sum over tokens, tokens) a row: its differences are of all
            rows, and have no test.
        good: what more of it is: better (1), worse (-1) or neither (0).
        detail: whether `compare` alone shows it.
    """

    stats: Floats
    score: Score = mean_score
    value: Callable[[Floats], Estimate] | None = None
    difference: PairedInterval | None = None
    percent: bool = True
    is_loss: bool = False
    good: int = 1
    detail: bool = False

    @property
    def total(self) -> float:
        """The measure over all answers; NaN where it is undefined."""
        return float(self.score(self.stats.sum(axis=0)[None])[0])

    def estimate(self, rows: npt.ArrayLike) -> Estimate:
        """The measure over all answers with its 95 % interval; `rows` are their test rows."""
        stats = summed(self.stats, rows)
        if self.value is not None:
            return self.value(stats)
        value = self.total
        if np.isnan(value) and not self.is_loss:  # of a run that diverged it is no number
            return Estimate(None, None, None, len(self.stats))
        return Estimate(value, *interval(stats, self.score), len(self.stats))


@dataclass(frozen=True)
class Case:
    """What is to be judged.

    Attributes:
        right: of each answer what `Scorer.right` gave for its row.
        labels: all labels that may be right, in order; empty without labels.
        task: the rows of the split; None where only what is right is known of these.
        readings: of a scorer with several readings those that are wanted; None: all.
    """

    card: Card
    answers: Sequence[Answer]
    right: Sequence[str]
    labels: list[str]
    task: TaskRows | None = None
    readings: Sequence[str] | None = None

    @property
    def rows(self) -> list[int]:
        return [answer.row for answer in self.answers]

    def of(self, places: Sequence[int]) -> Case:
        """The same case of some of its answers alone."""
        answers, right = self.answers, self.right
        return replace(self, answers=[answers[i] for i in places], right=[right[i] for i in places])

    def answered(self, texts: Sequence[str]) -> Case:
        """The same case with these texts for answers."""
        answers = [
            answer.model_copy(update={"text": text, "finish_reason": "stop"})
            for answer, text in zip(self.answers, texts, strict=True)
        ]
        return replace(self, answers=answers)

    @property
    def most_frequent_right(self) -> str:
        return Counter(self.right).most_common(1)[0][0]


@dataclass(frozen=True, kw_only=True)
class Scored(Case):
    """The answers of one folder joined to the rows that they answer.

    Attributes:
        sha256: of `answers.jsonl`, uncompressed.
        test: the rows and the rules of the test: cards that differ in their training share them.
    """

    folder: Path
    settings: Settings
    sha256: str
    test: tuple[object, ...]

    @property
    def asked(self) -> TaskRows:
        """The rows of the split, of answers for which they are at hand."""
        assert self.task is not None
        return self.task

    @property
    def expected(self) -> int:
        """How many rows were asked; the run was interrupted where fewer are answered."""
        return len(self.asked) if self.settings.rows is None else self.settings.rows

    def id(self, row: int) -> Any:
        """What a test row is known by: its content, as it stands in the answers; its number where
        the rows are not at hand."""
        return row if self.task is None else bytes(self.task.ids[row]).hex()


@dataclass(frozen=True)
class MostFrequent:
    """What was given most often, "" for nothing: a model that collapsed repeats itself."""

    text: str
    share: Estimate
    distinct: int


def most_frequent(said: Sequence[str | None]) -> MostFrequent:
    """What was said most often, its share of all answers, and how many differ."""
    texts = Counter(text for text in said if text is not None)
    text, times = texts.most_common(1)[0] if texts else ("", 0)
    return MostFrequent(shortened(text, _KEPT), counted(times, len(said)), len(texts))


class Constant(NamedTuple):
    """What is worth nothing, such as one answer given every time."""

    text: str
    judged: Judged


@dataclass(frozen=True)
class Judged:
    """What one reading of the answers gave. All lists have one item an answer.

    Attributes:
        rows: the test row of each answer.
        columns: the measures by name, the one to look at first in front.
        kinds: why an answer fails, None where it does not; empty where nothing can fail.
        given, right: labels, None where an answer has none; empty without labels.
        notes: what is to be said below a table of these measures.
    """

    rows: list[int]
    columns: dict[str, Column]
    kinds: list[str | None] = field(default_factory=list)
    given: list[str | None] = field(default_factory=list)
    right: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def numbers(self) -> Numbers:
        """The columns as numbers, those that `compare` alone shows at the end."""
        ordered = sorted(self.columns.items(), key=lambda named: named[1].detail)
        return {name: column.estimate(self.rows) for name, column in ordered}

    @property
    def measures(self) -> Numbers:
        """The same without those that `compare` alone shows."""
        return {name: n for name, n in self.numbers.items() if not self.columns[name].detail}

    @property
    def failures(self) -> dict[str, int]:
        """How often each kind of failure occurs, in the order of KINDS, without the absent ones."""
        seen = Counter(self.kinds)
        return {kind: seen[kind] for kind in KINDS if kind in seen}

    @property
    def most_frequent(self) -> MostFrequent | None:
        """The label or number given most often; None where answers carry none."""
        return most_frequent(self.given) if self.given else None


def pooled(parts: Sequence[Mapping[str, Judged]]) -> dict[str, Judged]:
    """Several sets of answers as one, by reading; what not all of them have is left out."""
    first, *others = parts
    if not others:
        return dict(first)
    found = {}
    for name in (name for name in first if all(name in part for part in others)):
        each = [part[name] for part in parts]
        columns = {
            key: replace(column, stats=np.concatenate([part.columns[key].stats for part in each]))
            for key, column in first[name].columns.items()
        }
        found[name] = Judged(
            rows=[row for part in each for row in part.rows],
            columns=columns,
            kinds=[kind for part in each for kind in part.kinds],
            given=[label for part in each for label in part.given],
            right=[label for part in each for label in part.right],
        )
    return found


def share(
    hits: Sequence[bool],
    counted: Sequence[bool] | None = None,
    *,
    good: int = 1,
    detail: bool = False,
) -> Column:
    """The share of hits among the answers that are counted (default: all)."""
    over = np.asarray(hits, float)
    under = np.ones(len(over)) if counted is None else np.asarray(counted, float)
    paired = share_difference if counted is None else None  # else not over the same rows
    stats = np.stack([over * under, under], axis=1)
    return Column(stats, value=rate_of_rows, difference=paired, good=good, detail=detail)


def ratio(
    over: npt.ArrayLike, under: npt.ArrayLike, *, percent: bool = True, detail: bool = False
) -> Column:
    """The sum of `over` divided by that of `under`, as in micro-averaged scores."""
    stats = np.stack([np.asarray(over, float), np.asarray(under, float)], axis=1)
    return Column(stats, percent=percent, detail=detail)


def mean(values: npt.ArrayLike, *, percent: bool = True, detail: bool = False) -> Column:
    """The mean of the answers' values."""
    return ratio(values, np.ones(np.shape(values)), percent=percent, detail=detail)
