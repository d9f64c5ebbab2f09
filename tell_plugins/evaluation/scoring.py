"""Scores of one folder of saved answers, and differences of two: the rows table in numbers.

The same answers can be scored again at any time; learned metrics are kept as long as the answers
are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tell_plugins.core.state_files import write_json
from tell_plugins.evaluation import scorers
from tell_plugins.evaluation.answers import Scored, load_scored
from tell_plugins.evaluation.differences import Measure, measure_of
from tell_plugins.evaluation.elsewhere import Elsewhere
from tell_plugins.evaluation.intervals import Estimate, Rate, counted, rate
from tell_plugins.evaluation.judged import Judged, count_kinds
from tell_plugins.evaluation.paper_numbers import PaperNumber
from tell_plugins.evaluation.scorers import SECOND_READINGS
from tell_plugins.evaluation.scorers.learned import Wanted, score_learned
from tell_plugins.evaluation.scorers.translation import SHOWN

FORMAT = 4
SCORES = "scores.json"
_SETTINGS = ("recipe", "adapter", "anchor", "decoding", "seed", "model", "engine", "max_new_tokens")
_SHOWN_ANSWER = 200  # characters of a frequent or constant answer that are kept
# the measures beside which those of a constant answer stand
_WITH_CONSTANT = {"label": ("accuracy",), "text": ("exact_match", "chrf++")}
Numbers = dict[str, Rate | Estimate]
Key = tuple[str, str]  # scorer (or unit), measure


@dataclass(frozen=True)
class MostFrequent:
    """What was given most often, "" for nothing: a model that collapsed repeats itself."""

    text: str
    share: Rate
    distinct: int


@dataclass(frozen=True)
class Reading:
    """What one reading of the answers gave.

    Attributes:
        measures: every column of the rows table; `details`: those that `compare` alone shows.
        failures: kinds of failure, in the order of `judged.KINDS`.
        most_frequent: the label or number given most often; None where answers carry none.
    """

    measures: Numbers
    details: Numbers
    failures: dict[str, int]
    most_frequent: MostFrequent | None

    @property
    def all(self) -> Numbers:
        return {**self.measures, **self.details}


@dataclass(frozen=True)
class Scores:
    """All scores of one folder.

    Attributes:
        rows: test rows answered; `expected` as many as were asked; `answers` with all attempts.
        cut: answers that the limit of new tokens ended, adherent or not.
        readings: by name, the one to go by in front.
        constant: what is worth nothing, and `constant_measures` what the first reading gives it.
    """

    format: int
    card: str
    split: str
    metric: str
    settings: dict[str, Any]
    answers_sha256: str
    test_sha256: str
    rows: int
    expected: int
    answers: int
    attempts: int
    cut: Rate
    most_frequent_answer: MostFrequent
    readings: dict[str, Reading]
    constant: str
    constant_measures: Numbers

    @property
    def complete(self) -> bool:
        return self.rows >= self.expected

    @property
    def first(self) -> Reading:
        """The reading to go by."""
        return next(iter(self.readings.values()))

    @property
    def headline(self) -> Numbers:
        """The few numbers to show first, by name: the measures of every scorer's first reading."""
        found = {
            spaced(name): value
            for reading, part in self.readings.items()
            if reading not in SECOND_READINGS
            for name, value in part.measures.items()
            if not name.startswith("recall_of_")
        }
        kind = {"number": "number", "text": "answer"}.get(self.metric, "label")
        frequent = self.most_frequent_answer if kind == "answer" else self.first.most_frequent
        if frequent is not None:
            found[f"most frequent {kind}"] = frequent.share
        for name in _WITH_CONSTANT.get(self.metric, ()):
            found[f"{spaced(name)} of a constant"] = self.constant_measures[name]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return asdict(self)


def spaced(name: str) -> str:
    """A measure's name as it is read; of a learned metric without its checkpoint."""
    first, space, _ = name.partition(" ")
    return first.upper() if space else SHOWN.get(name, name).replace("_", " ")


def main_measure(metric: str) -> str:
    """The measure of a metric that curves and comparisons are about, as it is read."""
    return spaced(scorers.of_metric(metric)[0].main)


def score(folder: Path, learned: Wanted | None = None) -> Scores:
    """Score the answers of `folder`, by learned metrics too where they are wanted: what these give
    is kept beside the answers. Raises UserError as `load_scored` does."""
    scored = load_scored(folder)
    score_learned(scored, learned or {})
    return scores_of(scored, scorers.judge_saved(scored))


def write(folder: Path, learned: Wanted | None = None) -> Scores:
    """Score the answers of `folder`, save `scores.json` there in one piece, and return them."""
    scores = score(folder, learned)
    write_json(folder / SCORES, scores.to_dict(), allow_nan=False)
    return scores


def scores_of(scored: Scored, judged: Mapping[str, Judged]) -> Scores:
    """The scores of answers that are judged."""
    name, constant = scorers.constant(scored)
    return Scores(
        format=FORMAT,
        card=scored.card.name,
        split=scored.task.split,
        metric=str(scored.card.metric),
        settings={key: getattr(scored.settings, key) for key in _SETTINGS},
        answers_sha256=scored.sha256,
        test_sha256=scored.task.sha256,
        rows=len(set(scored.rows)),
        expected=scored.expected,
        answers=len(scored.answers),
        attempts=len({answer.attempt for answer in scored.answers}),
        cut=rate([answer.cut for answer in scored.answers], scored.rows),
        most_frequent_answer=_most_frequent([a.text.strip() for a in scored.answers]),
        readings={
            name: Reading(
                measures=_numbers(part, detail=False),
                details=_numbers(part, detail=True),
                failures=count_kinds(part.kinds),
                most_frequent=_most_frequent(part.given) if part.given else None,
            )
            for name, part in judged.items()
        },
        constant=_cut(name),
        constant_measures=_numbers(constant, detail=False),
    )


def _numbers(judged: Judged, *, detail: bool) -> Numbers:
    return {
        name: column.estimate(judged.rows)
        for name, column in judged.columns.items()
        if column.detail == detail
    }


def _most_frequent(said: Sequence[str | None]) -> MostFrequent:
    """What was said most often, its share of all answers, and how many differ."""
    texts = Counter(text for text in said if text is not None)
    text, times = texts.most_common(1)[0] if texts else ("", 0)
    return MostFrequent(_cut(text), counted(times, len(said)), len(texts))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_ANSWER else f"{text[:_SHOWN_ANSWER]}..."


@dataclass(frozen=True)
class System:
    """What answered a test, by the name that tells it from the others.

    Attributes:
        general: what it did elsewhere, where that was looked at.
        paper: what the paper states of it.
    """

    name: str
    scored: Scored
    general: Elsewhere = field(default_factory=dict)
    paper: PaperNumber | None = None

    @cached_property
    def judged(self) -> dict[str, Judged]:
        return scorers.judge_saved(self.scored)

    @cached_property
    def scores(self) -> Scores:
        return scores_of(self.scored, self.judged)

    @cached_property
    def measures(self) -> dict[Key, Measure]:
        """All measures, by scorer and name. A test row that stands in the file twice is one row."""
        return {
            (reading, name): measure_of([self.scored.id(row) for row in part.rows], column)
            for reading, part in self.judged.items()
            for name, column in part.columns.items()
        }
