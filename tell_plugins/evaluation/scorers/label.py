"""Closed answers (metric `label`): the trimmed answer is one of the labels, and the right one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import TaskRows, open_split
from tell_plugins.evaluation import significance, taxonomy
from tell_plugins.evaluation.answers import Answer
from tell_plugins.evaluation.intervals import (
    Estimate,
    Interval,
    Rate,
    mean_difference,
    mean_share,
    share_difference,
)
from tell_plugins.evaluation.judged import Case, Column, Judged, rate_of_counted, share
from tell_plugins.evaluation.significance import Floats

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


GIVEN_FORM = "accuracy_given_the_form"


def judged_form(
    rows: list[int], kinds: list[str | None], given: list[str | None], truth: Truth | None
) -> Judged:
    """The measures of answers that fail for `kinds` and carry the labels `given`.

    `truth.of` has one label an answer here. An answer of the wrong form has the wrong label.
    """
    fits = [kind is None for kind in kinds]
    columns = {"adherence": share(fits)}
    if truth is None:
        return Judged(rows, columns, kinds)
    said, true = codes(given, truth.of, truth)
    stats = joint_counts(said, true, range(len(rows)), len(truth.labels))
    hits = [label == right for label, right in zip(given, truth.of, strict=True)]
    columns["accuracy"] = _label_column("accuracy", stats)
    columns[GIVEN_FORM] = share(hits, fits)
    columns |= {name: _label_column(name, stats) for name in ("balanced_accuracy", "f1")}
    of = f" of '{truth.positive}'" if truth.positive else " (macro)"
    note = f"F1{of}; an answer of the wrong form has the wrong label"
    return Judged(rows, columns, kinds, given, list(truth.of), [note])


def always_most_frequent(rows: list[int], truth: Truth) -> tuple[str, Judged]:
    """What the most frequent right label gets when it is given every time."""
    counts = Counter(truth.of)
    label = max(truth.labels, key=lambda label: counts[label])
    return f"always {label}", judged_form(rows, [None] * len(rows), [label] * len(rows), truth)


def _label_column(name: str, stats: Floats) -> Column:
    """A measure of labels; `stats` are the joint counts of each answer."""
    values: dict[str, Callable[[Floats], Rate | Estimate]] = {
        "accuracy": _accuracy,
        "balanced_accuracy": balanced_accuracy_estimate,
    }
    return Column(
        stats,
        SCORES[name],
        values.get(name),
        DIFFERENCES.get(name),
        detail=name not in values,
    )


def _accuracy(stats: Floats) -> Rate:
    return rate_of_counted(hits_of(stats))


@dataclass(frozen=True)
class Truth:
    """What is right: `of` each test row or answer, `labels` all possible ones in order."""

    of: Sequence[str]
    labels: list[str]

    @property
    def positive(self) -> str | None:
        """The label that F1 looks at: the schema's first of two, else None."""
        return self.labels[0] if len(self.labels) == 2 else None


def codes(
    given: Sequence[str | None], right: Sequence[str], truth: Truth
) -> tuple[list[int], list[int]]:
    """Labels as numbers, in the order of `truth.labels`; any other answer is one class more."""
    code = {label: number for number, label in enumerate(truth.labels)}
    other = len(truth.labels)
    said = [other if label is None else code.get(label, other) for label in given]
    return said, [code[label] for label in right]


def joint_counts(
    said: Sequence[int], true: Sequence[int], rows: Sequence[int], labels: int
) -> Floats:
    """How often each (true, given) pair occurs in each test row: (distinct rows, labels * (labels
    + 1)). The last given class is an answer without a usable label."""
    distinct, place = np.unique(np.asarray(rows, np.int64), return_inverse=True)
    width = labels * (labels + 1)
    cells = np.asarray(true, np.int64) * (labels + 1) + np.asarray(said, np.int64)
    flat = np.bincount(place * width + cells, minlength=len(distinct) * width)
    return flat.reshape(len(distinct), width).astype(float)


def _tables(sums: Floats) -> Floats:
    """(r, labels * (labels + 1)) sums as (r, labels, labels + 1) confusion tables."""
    labels = round((np.sqrt(1 + 4 * sums.shape[1]) - 1) / 2)
    return sums.reshape(len(sums), labels, labels + 1)


def accuracy(sums: Floats) -> Floats:
    tables = _tables(sums)
    hits = np.trace(tables[:, :, :-1], axis1=1, axis2=2)
    return np.asarray(hits / sums.sum(axis=1))


def balanced_accuracy(sums: Floats) -> Floats:
    """The mean recall of the labels that occur."""
    return _mean_of_present(_recalls_of(_tables(sums)), _tables(sums))


def f1(sums: Floats) -> Floats:
    tables = _tables(sums)
    hits = np.diagonal(tables[:, :, :-1], axis1=1, axis2=2)
    both: Floats = np.asarray(tables.sum(axis=2) + tables.sum(axis=1)[:, :-1], float)
    return _positive_or_macro(_divide(np.asarray(2 * hits, float), both), tables)


SCORES = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "f1": f1,
}


def by_label(stats: Floats) -> list[Floats]:
    """Of each label that occurs, the hits and the answers of its test rows: (rows, 2) each."""
    tables = _tables(stats)
    answers = tables.sum(axis=2)
    hits = np.diagonal(tables[:, :, :-1], axis1=1, axis2=2)
    parts = np.stack([hits, answers], axis=2).transpose(1, 0, 2)
    return [part[part[:, 1] > 0] for part in parts if part[:, 1].any()]


def hits_of(stats: Floats) -> Floats:
    """Of each test row its right answers and all of them: (rows, 2)."""
    return np.stack([accuracy(stats) * stats.sum(axis=1), stats.sum(axis=1)], axis=1)


def balanced_accuracy_estimate(stats: Floats) -> Estimate:
    """The mean recall of the labels that occur, with its interval."""
    return mean_share(by_label(stats))


def _accuracy_difference(system: Floats, baseline: Floats) -> Interval:
    return share_difference(hits_of(system), hits_of(baseline))


def _balanced_difference(system: Floats, baseline: Floats) -> Interval:
    parts = zip(by_label(system), by_label(baseline), strict=True)
    return mean_difference(list(parts))


# how the difference of two gets its interval, where it is made of shares
DIFFERENCES: dict[str, significance.PairedInterval] = {
    "accuracy": _accuracy_difference,
    "balanced_accuracy": _balanced_difference,
}


def _recalls_of(tables: Floats) -> Floats:
    return _divide(np.diagonal(tables[:, :, :-1], axis1=1, axis2=2), tables.sum(axis=2))


def _positive_or_macro(values: Floats, tables: Floats) -> Floats:
    return values[:, 0] if values.shape[1] == 2 else _mean_of_present(values, tables)


def _mean_of_present(values: Floats, tables: Floats) -> Floats:
    """The mean over the labels that are right for some row; those alone can be found."""
    present = tables.sum(axis=2) > 0
    return np.asarray((values * present).sum(axis=1) / present.sum(axis=1))


def _divide(over: Floats, under: Floats) -> Floats:
    """over / under, and 0 where `under` is 0 (scikit-learn's zero_division=0)."""
    return np.divide(over, under, out=np.zeros_like(over, dtype=float), where=under > 0)
