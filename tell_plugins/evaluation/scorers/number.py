"""The final number of an answer (metric `number`), exactly (Figure 15); see `core.numbers`."""

from __future__ import annotations

from fractions import Fraction

from tell_plugins.core.errors import UserError
from tell_plugins.core.numbers import MARKER, final_number, shown_number
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation.answers import Answer
from tell_plugins.evaluation.judged import Case, Judged, share
from tell_plugins.evaluation.scorers.label import Truth


def right(task: TaskRows) -> Truth:
    """The final number of each test row, as a fraction. Raises UserError for a row without one."""
    numbers = [final_number(response) for response in task.responses]
    if None in numbers:
        raise UserError(
            "the response holds no number",
            where=task.place(numbers.index(None)),
            allowed="a response that ends with `#### <number>`, or holds a number",
            remedy="correct the row, or the card's metric",
        )
    return Truth([str(number) for number in numbers], [])


def judge(case: Case) -> dict[str, Judged]:
    numbers = [final_number(answer.text) for answer in case.answers]
    right = [Fraction(text) for text in case.right]
    kinds = [
        None if number == expected else _why_wrong(answer, number)
        for answer, number, expected in zip(case.answers, numbers, right, strict=True)
    ]
    columns = {
        "exact_match": share([kind is None for kind in kinds]),
        "with_####": share([MARKER in answer.text for answer in case.answers], good=0, detail=True),
    }
    given = [None if number is None else shown_number(number) for number in numbers]
    return {"number": Judged(case.rows, columns, kinds, given, [shown_number(n) for n in right])}


def _why_wrong(answer: Answer, number: Fraction | None) -> str:
    if not answer.text.strip():
        return "empty"
    if answer.cut and MARKER not in answer.text:
        return "truncated"
    return "no_number" if number is None else "wrong_number"
