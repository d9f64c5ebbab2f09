"""Closed answers (metric `label`): the trimmed answer is one of the labels, and the right one."""

from __future__ import annotations

from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import TaskRows, open_split
from tell_plugins.evaluation import taxonomy
from tell_plugins.evaluation.judged import Case, Column, Judged, share
from tell_plugins.evaluation.labels import Truth
from tell_plugins.evaluation.scored import Answer
from tell_plugins.evaluation.scorers.form import always_most_frequent, judged_form

READING = "label"
MOST_SHOWN = 6  # labels whose recalls are measures of their own; `compare` shows all


def closed_labels(card: Card) -> list[str]:
    """The labels of the card, in its order; without any there, those of the training rows, sorted.

    Raises UserError where the training rows are not on this machine.
    """
    if card.answer is not None and card.answer.labels is not None:
        return list(card.answer.labels)
    return sorted({response.strip() for _, response in open_split(card, "train").all_texts()})


def right(task: TaskRows) -> Truth:
    """The label of each test row. Raises UserError for a response that is no label."""
    allowed = closed_labels(task.card)
    found = [response.strip() for response in task.responses]
    for row, label in enumerate(found):
        if label not in allowed:
            raise UserError(
                f"the response '{label[:60]}' is none of the labels",
                where=task.place(row),
                allowed=", ".join(allowed),
                remedy="correct the row, or name all labels in the card: answer: {labels: [...]}",
            )
    return Truth(found, allowed)


def kind_of(answer: Answer, allowed: list[str]) -> str | None:
    """Why an answer is no label, None where it is one."""
    text = answer.text.strip()
    if text in allowed:
        return None
    if not text:
        return taxonomy.EMPTY
    return taxonomy.TRUNCATED if answer.cut else taxonomy.NO_LABEL


def judge(case: Case) -> dict[str, Judged]:
    kinds = [kind_of(answer, case.labels) for answer in case.answers]
    given = [
        answer.text.strip() if kind is None else None
        for answer, kind in zip(case.answers, kinds, strict=True)
    ]
    truth = Truth(list(case.right), case.labels)
    found = judged_form(case.rows, kinds, given, truth)
    found.columns.update(_recalls(found, case.labels))
    return {READING: found}


def constant(case: Case) -> tuple[str, Judged]:
    return always_most_frequent(case.rows, Truth(case.right, case.labels))


def _recalls(judged: Judged, allowed: list[str]) -> dict[str, Column]:
    """The recall of each label, where these are few enough to be looked at."""
    if len(allowed) > MOST_SHOWN:
        return {}
    hits = [given == right for given, right in zip(judged.given, judged.right, strict=True)]
    counted = {label: [right == label for right in judged.right] for label in allowed}
    return {f"recall_of_{label}": share(hits, mine) for label, mine in counted.items() if any(mine)}


def fits(card: Card) -> bool:
    return card.metric == "label"
