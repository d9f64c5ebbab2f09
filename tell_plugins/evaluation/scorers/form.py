"""Answers of a fixed form: is the form right, and is the label right that they carry?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tell_plugins.evaluation import labels
from tell_plugins.evaluation.intervals import Estimate, Rate
from tell_plugins.evaluation.judged import Column, Judged, rate_of_counted, share
from tell_plugins.evaluation.labels import Truth
from tell_plugins.evaluation.significance import Floats

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
    said, true = labels.codes(given, truth.of, truth)
    stats = labels.joint_counts(said, true, range(len(rows)), len(truth.labels))
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
        "balanced_accuracy": labels.balanced_accuracy_estimate,
    }
    return Column(
        stats,
        labels.SCORES[name],
        values.get(name),
        labels.DIFFERENCES.get(name),
        detail=name not in values,
    )


def _accuracy(stats: Floats) -> Rate:
    return rate_of_counted(labels.hits_of(stats))
