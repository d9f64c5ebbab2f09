"""The final number of an answer (metric `number`), exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from tell_plugins.core.cards import Card
from tell_plugins.core.numbers import MARKER, final_number, shown_number
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation.final_number import KINDS, NumberScores, kind_of, reference_numbers
from tell_plugins.evaluation.intervals import counted, rate
from tell_plugins.evaluation.labels import Truth
from tell_plugins.evaluation.scored import Answer
from tell_plugins.evaluation.scorers.judged import Case, Judged, share


def right(task: TaskRows) -> Truth:
    """The final number of each test row, as a fraction."""
    return Truth([str(number) for number in reference_numbers(task)], [])


def judge(case: Case) -> dict[str, Judged]:
    numbers = [final_number(answer.text) for answer in case.answers]
    right = [Fraction(text) for text in case.right]
    kinds = [
        kind_of(answer, number, expected)
        for answer, number, expected in zip(case.answers, numbers, right, strict=True)
    ]
    columns = {"exact_match": replace(share([kind is None for kind in kinds]), own_place=True)}
    given = [None if number is None else shown_number(number) for number in numbers]
    return {"number": Judged(case.rows, columns, kinds, given, [shown_number(n) for n in right])}


def summary(answers: Sequence[Answer], judged: Judged) -> NumberScores:
    """Exact match over all answers, and why the others failed."""
    n = len(judged.given)
    frequent = Counter(given for given in judged.given if given is not None).most_common(1)
    guess, times = Counter(judged.right).most_common(1)[0]
    return NumberScores(
        exact=rate([kind is None for kind in judged.kinds], judged.rows),
        failures={kind: judged.kinds.count(kind) for kind in KINDS if kind in judged.kinds},
        marked=rate([MARKER in answer.text for answer in answers], judged.rows),
        most_frequent=frequent[0][0] if frequent else None,
        most_frequent_share=counted(frequent[0][1] if frequent else 0, n),
        baseline_number=guess,
        baseline=counted(times, n),
    )


def fits(card: Card) -> bool:
    return card.metric == "number"
