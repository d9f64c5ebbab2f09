"""GSM8K: is the final number of an answer the right one (Figure 15)? See `core.numbers`."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tell_plugins.core.errors import UserError
from tell_plugins.core.numbers import MARKER, final_number
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation.intervals import Rate
from tell_plugins.evaluation.scored import Answer

EMPTY = "empty"
TRUNCATED = "truncated"  # the limit of new tokens cut the answer before its `####`
NO_NUMBER = "no_number"
WRONG_NUMBER = "wrong_number"
KINDS = (EMPTY, TRUNCATED, NO_NUMBER, WRONG_NUMBER)


@dataclass(frozen=True)
class NumberScores:
    """Exact match of the final number.

    Attributes:
        failures: kinds in the order of KINDS; their sum is exact.n - exact.k.
        marked: answers that hold the `####` of the training answers.
        baseline: always answering the most frequent number of the references.
    """

    exact: Rate
    failures: dict[str, int]
    marked: Rate
    most_frequent: str | None
    most_frequent_share: Rate
    baseline_number: str
    baseline: Rate


def reference_numbers(task: TaskRows) -> list[Fraction]:
    """The final number of each test row. Raises UserError for a row without one."""
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
        numbers.append(number)
    return numbers


def kind_of(answer: Answer, number: Fraction | None, right: Fraction) -> str | None:
    """The kind of failure of an answer with this final number, or None when it is right."""
    if number == right:
        return None
    if not answer.text.strip():
        return EMPTY
    if answer.cut and MARKER not in answer.text:
        return TRUNCATED
    return NO_NUMBER if number is None else WRONG_NUMBER
