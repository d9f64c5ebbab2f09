"""Numbers with their 95 % intervals, and how far a difference could be chance of the test rows.

A share has Wilson's interval; means and differences of shares are put together from these by
square-and-add (Newcombe, 1998; Zou and Donner, 2008). Unlike a bootstrap they do not shrink to
nothing where every answer is right, or every one wrong. All else has a bootstrap (Koehn, 2004):
test rows are drawn with replacement, and both systems are scored on the same draw. p-values are by
approximate randomization (Riezler and Maxwell, 2005): where the systems do not differ, swapping
their answers to a row changes nothing but chance.

Every score is a function of sums over rows: of a share, (n, 2) arrays of each row's hits and
answers. So a draw is a vector of counts, and all draws are one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES, SEED = 2000, 42
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
POWER = 2.8  # standard errors that a difference needs to be seen in 80 % of tests at 5 %
_SAME = 1e-9  # shares nearer to each other than this are equal
_EQUAL = 1e-12  # and differences: sums of floats
_CHUNK = 4_000_000  # counts held in memory at once

Floats = npt.NDArray[np.float64]
Score = Callable[[Floats], Floats]  # (r, s) sums -> (r,) scores
PairedInterval = Callable[[Floats, Floats], tuple[float, float, float]]  # value, low, high


@dataclass(frozen=True)
class Estimate:
    """A number of `n` answers with its interval; None where it, or its ends, are undefined.

    A share is `k` of `n`.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    k: int | None = None


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
    numbers = [getattr(number, name, None) for name in ("value", "low", "high")]
    if numbers[0] is None:
        return "-"
    value, *ends = [f"{factor * n:{sign}.{digits}f}" for n in numbers if n is not None]
    return f"{value}{between}[{', '.join(ends)}]" if interval and len(ends) == 2 else value


# --- sums over the answers to each test row -------------------------------------------------------


def summed(stats: Floats, rows: npt.ArrayLike) -> Floats:
    """Statistics summed over the answers to each test row, rows in sorted order."""
    distinct, place = np.unique(np.asarray(rows), return_inverse=True)
    sums = np.zeros((len(distinct), stats.shape[1]))
    np.add.at(sums, place, stats)
    return sums


def counts_of(values: npt.ArrayLike, rows: npt.ArrayLike) -> Floats:
    """(n, 2) statistics for `mean_score`: values summed and counted by row, rows sorted."""
    numbers = np.asarray(values, float)
    return summed(np.stack([numbers, np.ones(len(numbers))], axis=1), rows)


def mean_score(sums: Floats) -> Floats:
    """The mean, where a row's statistics are (sum of its values, number of its values)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])


# --- shares ---------------------------------------------------------------------------------------


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


def counted(k: int, n: int) -> Estimate:
    """`k` of `n` as a share."""
    return Estimate(k / n if n else None, *wilson(k, n), n, k)


def rate(hits: Sequence[bool] | Sequence[int], rows: Sequence[int] | None = None) -> Estimate:
    """The share of true entries of `hits`; `rows` names the test row of each entry."""
    return rate_of_rows(counts_of(hits, range(len(hits)) if rows is None else rows))


def rate_of_rows(stats: Floats) -> Estimate:
    """The share of (n, 2) rows.

    Several answers to one row say less than as many answers to different rows, so n is divided by
    the design effect before the interval is taken (k, n and the value stay as they are).
    """
    stats = stats[stats[:, 1] > 0]  # not of rows without an answer that counts
    k, n = (float(part) for part in stats.sum(axis=0))
    if n == 0:
        return counted(0, 0)
    effective = _effective(stats, n, k / n)
    return Estimate(k / n, *wilson(k * effective / n, effective), round(n), round(k))


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
    known = [_ends(part) for part in rates if part.value is not None]
    return Estimate(*_mean(known, 0.0), n) if known else Estimate(None, None, None, n)


def mean_difference(parts: Sequence[tuple[Floats, Floats]]) -> Interval:
    """The mean of independent paired differences, such as those of the labels' recalls.

    What two systems have in common is taken within each part: over all rows it would be mostly
    that of the labels, on which two that always say "no" agree.
    """
    return _mean([share_difference(mine, theirs) for mine, theirs in parts], -1.0)


def _ends(number: Estimate) -> Interval:
    return Interval(number.value or 0.0, number.low or 0.0, number.high or 0.0)


def _mean(parts: Sequence[Interval], least: float) -> Interval:
    """The mean of independent numbers from `least` to 1."""
    value = sum(part.value for part in parts) / len(parts)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, max(least, value - below), min(1.0, value + above))


def share_difference(mine: Floats, theirs: Floats) -> Interval:
    """A share minus another over the same rows (Newcombe's method 10, uncorrected).

    With 0 of n on both sides the interval still says how far apart the two may be.
    """
    return paired_difference(rate_of_rows(mine), rate_of_rows(theirs), correlation(mine, theirs))


def paired_difference(mine: Estimate, theirs: Estimate, agreement: float) -> Interval:
    """`mine` minus `theirs` by square-and-add; `agreement` is their correlation over the rows."""
    p, q = _ends(mine), _ends(theirs)
    below, above = p.value - p.low, p.high - p.value
    under, over = q.value - q.low, q.high - q.value
    low = below**2 + over**2 - 2 * agreement * below * over
    high = above**2 + under**2 - 2 * agreement * above * under
    value = p.value - q.value
    least, most = value - math.sqrt(max(low, 0.0)), value + math.sqrt(max(high, 0.0))
    return Interval(value, max(-1.0, least), min(1.0, most))


def correlation(mine: Floats, theirs: Floats) -> float:
    """Pearson's correlation of two shares over test rows; 0 where one of them never varies."""
    x, y = (part[:, 0] / part[:, 1] for part in (mine, theirs))
    if np.ptp(x) < _SAME or np.ptp(y) < _SAME:  # not std() == 0: three thirds are not one
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def smallest_shown(low: float, high: float) -> float:
    """The smallest true difference that a test with this 95 % interval would show, at 80 % power.

    2.8 standard errors: 1.96 for the test and 0.84 for the power (Cohen, 1988, chapter 2).
    """
    return POWER * (high - low) / (2 * Z95)


# --- draws of rows --------------------------------------------------------------------------------


class Draws(NamedTuple):
    """How often rows are drawn, and the seed of that."""

    resamples: int = RESAMPLES
    seed: int = SEED


USUAL = Draws()


def interval(stats: Floats, score: Score, draws: Draws = USUAL) -> tuple[float, float]:
    """The 95 % percentile interval of `score` over so many draws of the rows of `stats` (n, s),
    without those in which it is undefined; NaN where it never is defined.

    Rows with equal statistics are drawn as one kind of row, which changes nothing but the speed.
    """
    kinds, counts = np.unique(stats, axis=0, return_counts=True)
    generator = np.random.default_rng(draws.seed)
    shares, size = counts / len(stats), draws.resamples
    found = score(_sums(kinds, lambda n: generator.multinomial(len(stats), shares, size=n), size))
    return _middle(found)


def _middle(draws: Floats) -> tuple[float, float]:
    """The ends of the middle 95 %."""
    defined = draws[~np.isnan(draws)]
    low, high = np.percentile(defined, [2.5, 97.5]) if len(defined) else (math.nan, math.nan)
    return float(low), float(high)


def _sums(kinds: Floats, draw: Callable[[int], npt.NDArray[np.int64]], resamples: int) -> Floats:
    """`resamples` draws of how often each kind of row is taken, summed, a part at a time."""
    step = max(1, _CHUNK // len(kinds))
    parts = [
        draw(min(step, resamples - start)).astype(float) @ kinds
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def over_seeds(pairs: Sequence[tuple[Floats, Floats]], score: Score) -> tuple[float, float]:
    """The 95 % interval of a difference over test rows and training seeds.

    Each draw takes seeds and rows with replacement (a hierarchical bootstrap): which task rows a
    seed draws, and in which order, is chance as well. With few seeds it is rather too narrow.

    Args:
        pairs: (system, baseline) of each seed, each (n, s); row i of all belongs to one test row.
    """
    generator = np.random.default_rng(SEED)
    rows, seeds = len(pairs[0][0]), len(pairs)
    counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES).astype(float)
    taken = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    each = [score(counts @ system) - score(counts @ baseline) for system, baseline in pairs]
    draws = (taken * np.stack(each, axis=1)).sum(axis=1)
    return _middle(draws)


def randomized(both: Floats, differences: Score, value: float, draws: Draws) -> float:
    """The p of the difference `value`: how often it is as large when the two answers to half of the
    rows are swapped. `both` (n, 2s) are the rows of both systems side by side."""
    width = both.shape[1] // 2
    kinds, counts = np.unique(both, axis=0, return_counts=True)
    swap = np.hstack([kinds[:, width:], kinds[:, :width]]) - kinds
    generator = np.random.default_rng(draws.seed)
    swapped = _sums(
        swap, lambda n: generator.binomial(counts, 0.5, size=(n, len(counts))), draws.resamples
    )
    found = differences(both.sum(axis=0) + swapped)
    found = found[~np.isnan(found)]
    as_large = int((np.abs(found) >= abs(value) - _EQUAL).sum())
    return (as_large + 1) / (len(found) + 1)
