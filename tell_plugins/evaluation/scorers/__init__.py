"""The scorers: each says which cards it fits, and what it measures of each answer.

A new metric is one file with `judge` (see `../judged.py`), and one line in `SCORERS`. It then
stands in `eval`, `compare`, `report` and the table of a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tell_plugins.core.cards import Card
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation.answers import Scored
from tell_plugins.evaluation.judged import Case, Judged
from tell_plugins.evaluation.scorers import (
    json_answers,
    json_readings,
    label,
    learned,
    number,
    text,
    translation,
)
from tell_plugins.evaluation.scorers.label import Truth


class Scorer(NamedTuple):
    """A scorer of the cards with one metric.

    Attributes:
        judge: what it says of the answers, by the name of the reading; the first is the one to
            look at.
        right: what is right for each test row, as text that `judge` understands; the responses
            where no scorer of a card has it.
        constant: what is worth nothing, such as the source given back: its name, and what the
            first reading says of it; the most frequent right answer every time where it is None.
    """

    metric: str
    judge: Callable[[Case], dict[str, Judged]]
    right: Callable[[TaskRows], Truth] | None = None
    constant: Callable[[Case], tuple[str, Judged]] | None = None


SCORERS = [
    Scorer(metric, part.judge, getattr(part, "right", None), getattr(part, "constant", None))
    for metric, part in (
        ("json", json_answers),
        ("label", label),
        ("number", number),
        ("translation", translation),
        ("text", text),
    )
]
# readings beside the one to go by
SECOND_READINGS = (*(r.name for r in json_readings.READINGS[1:]), *translation.UNITS[1:])

_JUDGED: dict[tuple[object, ...], dict[str, Judged]] = {}


def _of(card: Card) -> list[Scorer]:
    return [scorer for scorer in SCORERS if scorer.metric == card.metric]


def right(task: TaskRows) -> Truth:
    """What is right for the rows of a split. Raises UserError for an unusable one."""
    for scorer in _of(task.card):
        if scorer.right is not None:
            return scorer.right(task)
    return Truth(task.responses, [])


def judge(case: Case) -> dict[str, Judged]:
    """What every scorer of the card says of the answers, by reading."""
    found: dict[str, Judged] = {}
    for scorer in _of(case.card):
        found |= scorer.judge(case)
    return found


def judge_saved(scored: Scored) -> dict[str, Judged]:
    """`judge` for saved answers; the same answers to the same test are judged once a process."""
    key = (scored.sha256, scored.test, *SCORERS)
    if key not in _JUDGED:
        _JUDGED[key] = judge(_case(scored))
    is_translation = scored.card.metric == "translation"
    return learned.with_learned(scored, _JUDGED[key]) if is_translation else _JUDGED[key]


def _case(scored: Scored) -> Case:
    truth = right(scored.task)
    of = [truth.of[row] for row in scored.rows]
    return Case(scored.card, scored.answers, of, truth.labels, scored.task)


def constant(scored: Scored) -> tuple[str, Judged]:
    """The baseline of the card's metric over the rows answered: its name and its measures."""
    scorer, case = _of(scored.card)[0], _case(scored)
    if scorer.constant is not None:
        return scorer.constant(case)
    text, always = case.always()
    return f"always {' '.join(text.split())}", next(iter(scorer.judge(always).values()))
