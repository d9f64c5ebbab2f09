"""Numbers with their 95 % intervals, those of shares in closed form.

A share has Wilson's interval; means and differences of shares are put together from these by
square-and-add (Newcombe, 1998; Zou and Donner, 2008). Unlike a bootstrap they do not shrink to
nothing where every answer is right, or every one wrong. Shares come as (n, 2) arrays: of each test
row its hits and its answers, see `significance.summed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tell_plugins.evaluation.significance import Floats, counts_of

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
POWER = 2.8  # standard errors that a difference needs to be seen in 80 % of tests at 5 %
_SAME = 1e-9  # shares nearer to each other than this are equal


@dataclass(frozen=True)
class Rate:
    """`k` of `n`, as a share with its interval; `value` is None when n is 0."""

    k: int
    n: int
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A number that is no plain share; None where it, or its interval, is undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class Interval(NamedTuple):
    """A number with its interval."""

    value: float
    low: float
    high: float


def shown(
    number: object | None,
    digits: int = 2,
    *,
    factor: float = 1,
    sign: str = "",
    interval: bool = True,
    between: str = " ",
) -> str:
    """Anything with `value`, `low` and `high` as it is read: `0.71 [0.62, 0.80]`, or `-`.

    `sign="+"` is for differences. `between` a line break puts the interval on a line of its own.
    """
    value, low, high = (getattr(number, name, None) for name in ("value", "low", "high"))
    if value is None:
        return "-"
    text = f"{factor * value:{sign}.{digits}f}"
    if not interval or low is None or high is None:
        return text
    ends = [f"{factor * end:{sign}.{digits}f}" for end in (low, high)]
    return f"{text}{between}[{ends[0]}, {ends[1]}]"


def wilson(k: float, n: float) -> tuple[float, float]:
    """The Wilson score interval (1927) of k successes in n trials; (0, 1) when n is 0."""
    if n <= 0:
        return 0.0, 1.0
    share, z2 = k / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if k <= 0 else max(0.0, centre - half)
    high = 1.0 if k >= n else min(1.0, centre + half)
    return low, high


def counted(k: int, n: int) -> Rate:
    """`k` of `n` as a rate."""
    return Rate(k, n, k / n if n else None, *wilson(k, n))


def rate(hits: Sequence[bool] | Sequence[int], rows: Sequence[int] | None = None) -> Rate:
    """The share of true entries of `hits`; `rows` names the test row of each entry."""
    return rate_of_rows(counts_of(hits, range(len(hits)) if rows is None else rows))


def rate_of_rows(stats: Floats) -> Rate:
    """The rate of (n, 2) rows.

    Several answers to one row say less than as many answers to different rows, so n is divided by
    the design effect before the interval is taken (k, n and the value stay as they are).
    """
    k, n = (float(part) for part in stats.sum(axis=0))
    if n == 0:
        return counted(0, 0)
    effective = _effective(stats, n, k / n)
    return Rate(round(k), round(n), k / n, *wilson(k * effective / n, effective))


def _effective(stats: Floats, n: float, share: float) -> float:
    """How many independent answers `stats` is worth, between the number of rows and n."""
    count = len(stats)
    if count == n:
        return n
    if share in (0.0, 1.0) or count < 2:
        return float(count)
    deviation = stats[:, 0] - share * stats[:, 1]  # summed within each row
    variance = count / (count - 1) * float(deviation @ deviation) / n**2
    return min(n, max(float(count), share * (1 - share) / max(variance, 1e-12)))


def mean_share(parts: Sequence[Floats]) -> Estimate:
    """The mean of independent shares, such as the recalls of labels; undefined without any."""
    rates = [rate_of_rows(part) for part in parts]
    n = sum(part.n for part in rates)
    known = [Interval(r.value, r.low, r.high) for r in rates if r.value is not None]
    if not known:
        return Estimate(None, None, None, n)
    value, low, high = _mean(known)
    return Estimate(value, max(0.0, low), min(1.0, high), n)


def share_difference(mine: Floats, theirs: Floats) -> Interval:
    """A share minus another over the same rows (Newcombe's method 10, uncorrected).

    With 0 of n on both sides the interval still says how far apart the two may be.
    """
    return paired_difference(rate_of_rows(mine), rate_of_rows(theirs), correlation(mine, theirs))


def mean_difference(parts: Sequence[tuple[Floats, Floats]]) -> Interval:
    """The mean of independent paired differences, such as those of the labels' recalls.

    What two systems have in common is taken within each part: over all rows it would be mostly
    that of the labels, on which two that always say "no" agree.
    """
    value, low, high = _mean([share_difference(mine, theirs) for mine, theirs in parts])
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


def smallest_shown(low: float, high: float) -> float:
    """The smallest true difference that a test with this 95 % interval would show, at 80 % power.

    2.8 standard errors: 1.96 for the test and 0.84 for the power (Cohen, 1988, chapter 2).
    """
    return POWER * (high - low) / (2 * Z95)
