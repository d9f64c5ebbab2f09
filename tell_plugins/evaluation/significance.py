"""Paired bootstrap: how far a difference of two systems could be chance of the test rows.

Koehn (2004). Test rows are drawn with replacement and both systems are scored on the same draw.
Every score here is a function of sums over rows, so a draw is a vector of counts and all draws
are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
SEED = 42
_CHUNK = 4_000_000  # counts held in memory at once

Floats = npt.NDArray[np.float64]
Score = Callable[[Floats], Floats]  # (r, s) sums -> (r,) scores


@dataclass(frozen=True)
class Difference:
    """System minus baseline over the same rows.

    Attributes:
        value: the difference; `low` and `high` are its 95 % percentile interval.
        p: two-sided bootstrap p-value, never below 2 / (resamples + 1).
        n: how many units were drawn from, `unit` what they are.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    unit: str
    resamples: int
    seed: int

    @property
    def certain(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def resampled_sums(stats: Floats, *, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Sums of `stats` (n, s) over `resamples` draws of n rows with replacement: (resamples, s).

    Rows with equal statistics are drawn as one kind of row, which changes nothing but the speed:
    a thousand test rows of a classification are a handful of kinds.
    """
    if resamples < 1 or len(stats) == 0:
        raise ValueError(f"{resamples} resamples of {len(stats)} rows")
    kinds, counts = np.unique(stats, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(kinds))
    parts = [
        generator.multinomial(
            len(stats), counts / len(stats), size=min(step, resamples - start)
        ).astype(float)
        @ kinds
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def interval(
    stats: Floats, score: Score, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The 95 % percentile interval of `score` over draws of the rows of `stats` (n, s).

    Draws in which the score is undefined (NaN) are left out; NaN when it is in all.
    """
    return percentiles(score(resampled_sums(stats, resamples=resamples, seed=seed)))


def paired(
    system: Floats,
    baseline: Floats,
    score: Score,
    *,
    unit: str,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """The difference in `score` of two systems over the same rows.

    `system` and `baseline` are (n, s): row i of both belongs to the same test row.
    """
    if system.shape != baseline.shape:
        raise ValueError(f"not the same rows: {system.shape} and {baseline.shape}")
    width = system.shape[1]
    sums = resampled_sums(np.hstack([system, baseline]), resamples=resamples, seed=seed)
    draws = score(sums[:, :width]) - score(sums[:, width:])
    value = score(system.sum(axis=0)[None])[0] - score(baseline.sum(axis=0)[None])[0]
    low, high = percentiles(draws)
    tail = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(
        value=float(value),
        low=low,
        high=high,
        p=min(1.0, 2 * (tail + 1) / (resamples + 1)),
        n=len(system),
        unit=unit,
        resamples=resamples,
        seed=seed,
    )


def mean_score(sums: Floats) -> Floats:
    """The mean, where a row's statistics are (sum of its values, number of its values)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])


def mean_stats(values: npt.ArrayLike, rows: npt.ArrayLike) -> Floats:
    """(n, 2) statistics for `mean_score`: values summed and counted by row, rows sorted."""
    numbers = np.asarray(values, float)
    _, place = np.unique(np.asarray(rows), return_inverse=True)
    return np.stack([np.bincount(place, numbers), np.bincount(place)], axis=1).astype(float)


def percentiles(draws: Floats) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of the defined draws; NaN when none is defined."""
    defined = draws[~np.isnan(draws)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
