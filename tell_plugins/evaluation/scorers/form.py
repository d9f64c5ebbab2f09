"""Answers of a fixed form: is the form right, and is the label right that they carry?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tell_plugins.evaluation import labels
from tell_plugins.evaluation.intervals import Estimate, Rate
from tell_plugins.evaluation.labels import Truth
from tell_plugins.evaluation.scorers.judged import Column, Judged, rate_of_counted, share
from tell_plugins.evaluation.significance import Floats

LABEL_MEASURES = ("accuracy", "balanced_accuracy", "f1")
GIVEN_FORM = "accuracy_given_the_form"


def judged_form(
    rows: list[int], kinds: list[str | None], given: list[str | None], truth: Truth | None
) -> Judged:
    """The measures of answers that fail for `kinds` and carry the labels `given`.

    `truth.of` has one label an answer here. An answer of the wrong form has the wrong label.
    """
    fits = [kind is None for kind in kinds]
    columns = {"adherence": replace(share(fits), own_place=True)}
    if truth is None:
        return Judged(rows, columns, kinds)
    said, true = labels.codes(given, truth.of, truth)
    stats = labels.joint_counts(said, true, range(len(rows)), len(truth.labels))
    columns |= {name: _label_column(name, stats) for name in LABEL_MEASURES}
    hits = [label == right for label, right in zip(given, truth.of, strict=True)]
    columns[GIVEN_FORM] = replace(share(hits, fits), own_place=True)
    return Judged(rows, columns, kinds, given, list(truth.of))


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
        own_place=True,
    )


def _accuracy(stats: Floats) -> Rate:
    return rate_of_counted(labels.hits_of(stats))
