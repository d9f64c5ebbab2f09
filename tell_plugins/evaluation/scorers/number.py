"""The final number of an answer (metric `number`), exactly (Figure 15); see `core.numbers`."""

from __future__ import annotations

from fractions import Fraction

from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.numbers import MARKER, final_number, shown_number
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation import taxonomy
from tell_plugins.evaluation.answers import Answer
from tell_plugins.evaluation.judged import Case, Judged, share
from tell_plugins.evaluation.scorers.label import Truth


def right(task: TaskRows) -> Truth:
    """The final number of each test row, as a fraction. Raises UserError for a row without one."""
    numbers = []
    for row, response in enumerate(task.responses):
        number = final_number(response)
        if number is None:
            raise UserError(
                "the response holds no number",
                where=task.place(row),
                allowed="a response that ends with `#### <number>`, or holds a number",
                remedy="correct the row, or the card's metric",
            )
        numbers.append(str(number))
    return Truth(numbers, [])


def kind_of(answer: Answer, number: Fraction | None, right: Fraction) -> str | None:
    """The kind of failure of an answer with this final number, or None when it is right."""
    if number == right:
        return None
    if not answer.text.strip():
        return taxonomy.EMPTY
    if answer.cut and MARKER not in answer.text:
        return taxonomy.TRUNCATED
    return taxonomy.NO_NUMBER if number is None else taxonomy.WRONG_NUMBER


def judge(case: Case) -> dict[str, Judged]:
    numbers = [final_number(answer.text) for answer in case.answers]
    right = [Fraction(text) for text in case.right]
    kinds = [
        kind_of(answer, number, expected)
        for answer, number, expected in zip(case.answers, numbers, right, strict=True)
    ]
    columns = {
        "exact_match": share([kind is None for kind in kinds]),
        "with_####": share([MARKER in answer.text for answer in case.answers], detail=True),
    }
    given = [None if number is None else shown_number(number) for number in numbers]
    return {"number": Judged(case.rows, columns, kinds, given, [shown_number(n) for n in right])}


def constant(case: Case) -> tuple[str, Judged]:
    always = case.always_most_frequent()
    return f"always {always.answers[0].text}", judge(always)["number"]


def fits(card: Card) -> bool:
    return card.metric == "number"
