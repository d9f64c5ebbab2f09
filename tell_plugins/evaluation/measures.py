"""Every score as statistics of single test rows, so that two systems can be compared row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tell_plugins.evaluation import scorers, significance
from tell_plugins.evaluation.judged import Column, Judged, summed
from tell_plugins.evaluation.scored import Scored
from tell_plugins.evaluation.significance import Difference, Floats

Key = tuple[str, str]  # scorer (or unit), measure


@dataclass(frozen=True)
class Measure:
    """A column whose `stats` (n, s) are summed by test row; `ids` (n,) name the rows.

    A test row that stands in the file twice is one row here.
    """

    ids: npt.NDArray[np.str_]
    stats: Floats
    column: Column


def measures(scored: Scored, judged: Mapping[str, Judged] | None = None) -> dict[Key, Measure]:
    """All measures of a set of answers, by scorer and name."""
    found: dict[Key, Measure] = {}
    if judged is None:
        judged = scorers.judge_saved(scored)
    for reading, part in judged.items():
        ids = np.array([scored.id(int(row)) for row in part.rows])
        for name, column in part.columns.items():
            found[reading, name] = Measure(np.unique(ids), summed(column.stats, ids), column)
    return found


def difference(
    system: Measure, baseline: Measure, *, resamples: int, seed: int
) -> Difference | None:
    """The paired difference over the rows that both answered; None where there is none."""
    _, mine, theirs = np.intersect1d(system.ids, baseline.ids, return_indices=True)
    if len(mine) == 0:
        return None
    found = significance.paired(
        system.stats[mine],
        baseline.stats[theirs],
        system.column.score,
        resamples=resamples,
        seed=seed,
        interval=system.column.difference,
    )
    return None if np.isnan([found.value, found.low]).any() else found  # nothing to take a share of


def same_rows_difference(mine: Judged, theirs: Judged, name: str) -> Difference | None:
    """The paired difference in one column; None unless both have it, over the same rows (some)."""
    same = bool(mine.rows) and set(mine.rows) == set(theirs.rows)
    if not same or name not in mine.columns or name not in theirs.columns:
        return None
    if not mine.rows:  # nothing was asked
        return None
    column = mine.columns[name]
    found = significance.paired(
        summed(column.stats, mine.rows),
        summed(theirs.columns[name].stats, theirs.rows),
        column.score,
        interval=column.difference,
    )
    return None if np.isnan([found.value, found.low]).any() else found
