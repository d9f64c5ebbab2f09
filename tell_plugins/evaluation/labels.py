"""Labels: is the content right, not only the form?

An answer that is not adherent has the wrong label. With two labels F1 is that of the positive one;
with more, a macro average.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation import shares, significance
from tell_plugins.evaluation.intervals import Estimate
from tell_plugins.evaluation.json_scorers import AnswerSchema
from tell_plugins.evaluation.significance import Floats


@dataclass(frozen=True)
class Truth:
    """What is right: `of` each test row or answer, `labels` all possible ones in order."""

    of: Sequence[str]
    labels: list[str]

    @property
    def positive(self) -> str | None:
        """The label that F1 looks at: the schema's first of two, else None."""
        return self.labels[0] if len(self.labels) == 2 else None


def true_labels(task: TaskRows, schema: AnswerSchema) -> Truth:
    """The label of each test row: the response's, be it an object or the bare label.

    Raises UserError for a row whose label is not one that the schema allows.
    """
    labels = [reference_label(response, schema) for response in task.responses]
    allowed = schema.labels or sorted(set(labels))
    for row, label in enumerate(labels):
        if label not in allowed:
            raise UserError(
                f"the response's label is '{label[:60]}'",
                where=task.place(row),
                allowed=", ".join(allowed),
                remedy=f"correct the row, or the values of '{schema.label}' in the schema",
            )
    return Truth(labels, allowed)


def reference_label(response: str, schema: AnswerSchema) -> str:
    """The label of a row's response, be it an object or the bare label."""
    try:
        value = json.loads(response)
    except ValueError:
        return response.strip()
    label = schema.label_of(value) if isinstance(value, dict) else None
    return response.strip() if label is None else label


def has_labels(card: Card) -> bool:
    return card.answer is not None and card.answer.label is not None


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
    return _mean_of_present(_recalls(_tables(sums)), _tables(sums))


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
    return shares.mean_share(by_label(stats))


def _accuracy_difference(system: Floats, baseline: Floats) -> shares.Interval:
    return shares.difference(hits_of(system), hits_of(baseline))


def _balanced_difference(system: Floats, baseline: Floats) -> shares.Interval:
    parts = zip(by_label(system), by_label(baseline), strict=True)
    return shares.mean_difference(list(parts))


# how the difference of two gets its interval, where it is made of shares
DIFFERENCES: dict[str, significance.PairedInterval] = {
    "accuracy": _accuracy_difference,
    "balanced_accuracy": _balanced_difference,
}


def _recalls(tables: Floats) -> Floats:
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
