"""A system: what answered a test, its scores as numbers, and its measures to be paired with others.

The same answers can be scored again at any time; learned metrics are kept as long as the answers
are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tell_plugins.core.state_files import write_json
from tell_plugins.evaluation import scorers
from tell_plugins.evaluation.answers import Scored, load_scored
from tell_plugins.evaluation.differences import Measure, measure_of
from tell_plugins.evaluation.elsewhere import Elsewhere
from tell_plugins.evaluation.intervals import Estimate, Rate, rate
from tell_plugins.evaluation.judged import Judged, MostFrequent, Numbers, most_frequent
from tell_plugins.evaluation.paper_numbers import PaperNumber
from tell_plugins.evaluation.scorers import SECOND_READINGS, Constant
from tell_plugins.evaluation.scorers.learned import LEARNED, Wanted, score_learned
from tell_plugins.evaluation.scorers.translation import SHOWN

_FORMAT = 5
# the measures beside which those of a constant answer stand
_WITH_CONSTANT = {"label": ("accuracy",), "text": ("exact_match", "chrf++")}


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
        general: what it did elsewhere, where that was looked at.
        paper: what the paper states of it.
    """

    name: str
    scored: Scored
    general: Elsewhere = field(default_factory=dict)
    paper: PaperNumber | None = None

    @cached_property
    def readings(self) -> dict[str, Judged]:
        """What its answers are, by reading, the one to go by in front."""
        return scorers.judge_saved(self.scored)

    @property
    def first(self) -> Judged:
        return next(iter(self.readings.values()))

    @cached_property
    def measures(self) -> dict[tuple[str, str], Measure]:
        """All measures, by reading and name. A test row that stands in the file twice is one."""
        return {
            (reading, name): measure_of([self.scored.id(row) for row in part.rows], column)
            for reading, part in self.readings.items()
            for name, column in part.columns.items()
        }

    @property
    def rows(self) -> int:
        """How many test rows are answered."""
        return len(set(self.scored.rows))

    @property
    def attempts(self) -> int:
        return len({answer.attempt for answer in self.scored.answers})

    @property
    def complete(self) -> bool:
        return self.rows >= self.scored.expected

    @property
    def cut(self) -> Rate:
        """Answers that the limit of new tokens ended, adherent or not."""
        return rate([answer.cut for answer in self.scored.answers], self.scored.rows)

    @property
    def most_frequent_answer(self) -> MostFrequent:
        return most_frequent([answer.text.strip() for answer in self.scored.answers])

    @cached_property
    def constant(self) -> Constant:
        """What is worth nothing, such as one answer given every time."""
        return scorers.constant(self.scored)

    @property
    def headline(self) -> Numbers:
        """The few numbers to show first, by name, beside those of a constant."""
        metric = str(self.scored.card.metric)
        found = {
            spaced(name): value
            for reading, part in self.readings.items()
            for name, value in part.measures.items()
            if reading not in SECOND_READINGS and not name.startswith("recall_of_")
        }
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
            for measure, value in {**reading.measures, **reading.details}.items():
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
            **{"card": scored.card.name, "split": scored.task.split, "metric": scored.card.metric},
            **{"answers_sha256": scored.sha256, "test_sha256": scored.task.sha256},
            **{"rows": self.rows, "expected": scored.expected, "attempts": self.attempts},
            "settings": scored.settings.model_dump(),
            "numbers": list(self.numbers()),
        }


def _record(scorer: str, measure: str, number: Rate | Estimate, text: str = "") -> dict[str, Any]:
    parts = {key: getattr(number, key, None) for key in ("value", "low", "high", "k", "n")}
    return {"scorer": scorer, "measure": measure, **parts, "text": text}


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
