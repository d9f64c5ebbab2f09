"""The scorers: each says which cards it fits, and what it measures of each answer.

A new metric is one file with `judge` (see `../judged.py`), and one line in `SCORERS`. It then
stands in `eval`, `compare`, `report` and the table of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation.judged import Case, Constant, Judged
from tell_plugins.evaluation.scorers import (
    json_answers,
    json_readings,
    label,
    number,
    translation,
)
from tell_plugins.evaluation.scorers.label import Truth


class Scorer(NamedTuple):
    """A scorer of the cards with one metric.

    Attributes:
        judge: what it says of the answers, by the name of the reading; the first is the one to
            look at.
        main: the measure that curves and comparisons are about.
        right: what is right for each test row, as text that `judge` understands; None: the
            responses, whole.
        constant: what is worth nothing, such as the source given back; the most frequent right
            answer every time where it is None.
    """

    metric: str
    judge: Callable[[Case], dict[str, Judged]]
    main: str = ""
    right: Callable[[TaskRows], Truth] | None = None
    constant: Callable[[Case], Constant] | None = None


SCORERS = [
    Scorer("json", json_answers.judge, "adherence", json_answers.right, json_answers.constant),
    Scorer("label", label.judge, "balanced_accuracy", label.right),
    Scorer("number", number.judge, "exact_match", number.right),
    Scorer("translation", translation.judge, "chrf++", constant=translation.constant),
    Scorer("text", translation.judge_text, "chrf++"),
]
# readings beside the one to go by
SECOND_READINGS = (*(r.name for r in json_readings.READINGS[1:]), *translation.UNITS[1:])


def of_metric(metric: str | None) -> list[Scorer]:
    """The scorers of the cards with a metric, the one that knows its main measure in front."""
    return [scorer for scorer in SCORERS if scorer.metric == metric]


def reads_texts(metric: str | None) -> bool:
    """Whether answers are scored against whole texts."""
    return of_metric(metric)[0].right is None


def right(task: TaskRows) -> Truth:
    """What is right for the rows of a split. Raises UserError for an unusable one."""
    find = of_metric(task.card.metric)[0].right
    return Truth(task.responses, []) if find is None else find(task)


def judge(case: Case) -> dict[str, Judged]:
    """What every scorer of the card says of the answers, by reading."""
    found: dict[str, Judged] = {}
    for scorer in of_metric(case.card.metric):
        found |= scorer.judge(case)
    return found
