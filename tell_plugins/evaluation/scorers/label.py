"""Closed answers (metric `label`), and the labels that answers of any form carry.

An answer of the wrong form has the wrong label. With two labels F1 is that of the first, the
positive one; with more, a macro average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import TaskRows, open_split
from tell_plugins.evaluation.answers import Answer
from tell_plugins.evaluation.intervals import (
    Estimate,
    Floats,
    Interval,
    mean_difference,
    mean_share,
)
from tell_plugins.evaluation.judged import Case, Column, Judged, share

READING = "label"
MOST_SHOWN = 6  # labels whose recalls are measures of their own; `compare` shows all


@dataclass(frozen=True)
class Truth:
    """What is right: `of` each test row, `labels` all possible ones in order."""

    of: Sequence[str]
    labels: list[str]


def closed_labels(card: Card) -> list[str]:
    """The labels of the card, in its order; without any there, those of the training rows, sorted.

    Raises UserError where the training rows are not on this machine.
    """
    if card.answer is not None and card.answer.labels is not None:
        return list(card.answer.labels)
    return sorted({response.strip() for _, response in open_split(card, "train").all_texts()})


def right(task: TaskRows) -> Truth:
    """The label of each test row. Raises UserError for a response that is no label."""
    remedy = "correct the row, or name all labels in the card: answer: {labels: [...]}"
    found = [response.strip() for response in task.responses]
    return checked(Truth(found, closed_labels(task.card)), task, remedy)


def checked(truth: Truth, task: TaskRows, remedy: str) -> Truth:
    """The same. Raises UserError for a row whose label is none of those that are allowed."""
    for row, label in enumerate(truth.of):
        if label not in truth.labels:
            raise UserError(
                f"the response's label is '{label[:60]}'",
                where=task.place(row),
                allowed=", ".join(truth.labels),
                remedy=remedy,
            )
    return truth


def judge(case: Case) -> dict[str, Judged]:
    kinds = [_kind_of(answer, case.labels) for answer in case.answers]
    said = [answer.text.strip() for answer in case.answers]
    given = [text if kind is None else None for text, kind in zip(said, kinds, strict=True)]
    found = judged_form(case, kinds, given)
    hits = [one == right for one, right in zip(given, case.right, strict=True)]
    for label in case.labels if len(case.labels) <= MOST_SHOWN else []:
        if label in case.right:
            found.columns[f"recall_of_{label}"] = share(hits, [r == label for r in case.right])
    return {READING: found}


def _kind_of(answer: Answer, allowed: list[str]) -> str | None:
    text = answer.text.strip()
    if text in allowed:
        return None
    return "empty" if not text else "truncated" if answer.cut else "no_label"


def judged_form(case: Case, kinds: list[str | None], given: list[str | None]) -> Judged:
    """The measures of answers that fail for `kinds` and, where there are labels, carry `given`."""
    fits = [kind is None for kind in kinds]
    columns = {"adherence": share(fits)}
    if not case.labels:
        return Judged(case.rows, columns, kinds)
    hits = [said == right for said, right in zip(given, case.right, strict=True)]
    stats = _label_stats(given, case)
    columns["accuracy"] = share(hits)
    columns["accuracy_given_the_form"] = share(hits, fits)
    columns["balanced_accuracy"] = Column(
        stats, balanced_accuracy, _balanced_estimate, _balanced_difference
    )
    columns["f1"] = Column(stats, f1, detail=True)
    of = f" of '{case.labels[0]}'" if len(case.labels) == 2 else " (macro)"
    note = f"F1{of}; an answer of the wrong form has the wrong label"
    return Judged(case.rows, columns, kinds, given, list(case.right), [note])


def _label_stats(given: Sequence[str | None], case: Case) -> Floats:
    """(answers, 3 * labels): for each label whether it is right, was said, and was found."""
    labels = np.array(case.labels, object)
    true, said = (np.array(side, object)[:, None] == labels for side in (case.right, given))
    return np.hstack([true, said, true & said]).astype(float)


def balanced_accuracy(sums: Floats) -> Floats:
    """The mean recall of the labels that occur."""
    true, _, hits = np.split(sums, 3, axis=1)
    return _mean_of_present(_divide(hits, true), true)


def f1(sums: Floats) -> Floats:
    true, said, hits = np.split(sums, 3, axis=1)
    values = _divide(2 * hits, true + said)
    return values[:, 0] if values.shape[1] == 2 else _mean_of_present(values, true)


def _mean_of_present(values: Floats, true: Floats) -> Floats:
    """The mean over the labels that are right for some row; those alone can be found."""
    present = true > 0
    return np.asarray((values * present).sum(axis=1) / present.sum(axis=1))


def _divide(over: Floats, under: Floats) -> Floats:
    """over / under, and 0 where `under` is 0 (scikit-learn's zero_division=0)."""
    return np.divide(over, under, out=np.zeros_like(over, dtype=float), where=under > 0)


def _by_label(stats: Floats) -> list[Floats]:
    """Of each label that occurs, the hits and the answers of its test rows: (rows, 2) each."""
    true, _, hits = np.split(stats, 3, axis=1)
    parts = [np.stack(pair, axis=1) for pair in zip(hits.T, true.T, strict=True)]
    return [part[part[:, 1] > 0] for part in parts if part[:, 1].any()]


def _balanced_estimate(stats: Floats) -> Estimate:
    return mean_share(_by_label(stats))


def _balanced_difference(system: Floats, baseline: Floats) -> Interval:
    return mean_difference(list(zip(_by_label(system), _by_label(baseline), strict=True)))
