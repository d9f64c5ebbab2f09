"""Means of shares, and differences of shares over the same test rows, with 95 % intervals.

All are put together from Wilson intervals by square-and-add (Newcombe, 1998; Zou and Donner, 2008).
Unlike a bootstrap they do not shrink to nothing where every answer is right, or every one wrong.
Shares come as (n, 2) arrays: of each test row its hits and its answers, as
`significance.mean_stats` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tell_plugins.evaluation.intervals import Estimate, Rate, rate_of_rows
from tell_plugins.evaluation.significance import Floats

_SAME = 1e-9  # shares nearer to each other than this are equal


class Interval(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_share(parts: Sequence[Floats]) -> Estimate:
    """The mean of independent shares, such as the recalls of labels; undefined without any."""
    rates = [rate_of_rows(part) for part in parts]
    n = sum(part.n for part in rates)
    known = [Interval(r.value, r.low, r.high) for r in rates if r.value is not None]
    if not known:
        return Estimate(None, None, None, n)
    value, low, high = _mean(known)
    return Estimate(value, max(0.0, low), min(1.0, high), n)


def difference(mine: Floats, theirs: Floats) -> Interval:
    """A share minus another over the same rows (Newcombe's method 10, uncorrected).

    With 0 of n on both sides the interval still says how far apart the two may be.
    """
    return paired_difference(rate_of_rows(mine), rate_of_rows(theirs), correlation(mine, theirs))


def mean_difference(parts: Sequence[tuple[Floats, Floats]]) -> Interval:
    """The mean of independent paired differences, such as those of the labels' recalls.

    What two systems have in common is taken within each part. Over all rows it would be mostly
    that of the labels: two that always say "no" agree on which rows are right, but not on how
    well they tell the labels apart.
    """
    value, low, high = _mean([difference(mine, theirs) for mine, theirs in parts])
    return Interval(value, max(-1.0, low), min(1.0, high))


def paired_difference(mine: Rate, theirs: Rate, agreement: float) -> Interval:
    """`mine` minus `theirs` by square-and-add; `agreement` is their correlation over the rows."""
    p, q = mine.value or 0.0, theirs.value or 0.0
    below, above = p - mine.low, mine.high - p
    under, over = q - theirs.low, theirs.high - q
    low = below**2 + over**2 - 2 * agreement * below * over
    high = above**2 + under**2 - 2 * agreement * above * under
    return Interval(
        p - q,
        max(-1.0, p - q - math.sqrt(max(low, 0.0))),
        min(1.0, p - q + math.sqrt(max(high, 0.0))),
    )


def correlation(mine: Floats, theirs: Floats) -> float:
    """Pearson's correlation of two shares over test rows; 0 where one of them never varies."""
    x, y = (part[:, 0] / part[:, 1] for part in (mine, theirs))
    if np.ptp(x) < _SAME or np.ptp(y) < _SAME:  # not std() == 0: three thirds are not one
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _mean(parts: Sequence[Interval]) -> Interval:
    value = sum(part.value for part in parts) / len(parts)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, value - below, value + above)
