"""Two systems over the same test rows: how far their difference could be chance of those rows.

Intervals are by bootstrap (Koehn, 2004): test rows are drawn with replacement and both systems are
scored on the same draw. p-values are by approximate randomization (Riezler and Maxwell, 2005):
where the systems do not differ, swapping their answers to a row changes nothing but chance.
Every score here is a function of sums over rows, so a draw is a vector of counts and all draws
are one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
SEED = 42
_CHUNK = 4_000_000  # counts held in memory at once
_EQUAL = 1e-12  # differences closer than this are the same: sums of floats

Floats = npt.NDArray[np.float64]
Score = Callable[[Floats], Floats]  # (r, s) sums -> (r,) scores
PairedInterval = Callable[[Floats, Floats], tuple[float, float, float]]  # value, low, high


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


def interval(
    stats: Floats, score: Score, *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The 95 % percentile interval of `score` over draws of the rows of `stats` (n, s).

    Rows with equal statistics are drawn as one kind of row, which changes nothing but the speed.
    Draws in which the score is undefined (NaN) are left out; NaN when it is in all.
    """
    if resamples < 1 or len(stats) == 0:
        raise ValueError(f"{resamples} resamples of {len(stats)} rows")
    kinds, counts = np.unique(stats, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    shares = counts / len(stats)
    sums = _sums(kinds, lambda n: generator.multinomial(len(stats), shares, size=n), resamples)
    draws = score(sums)
    defined = draws[~np.isnan(draws)]
    if len(defined) == 0:
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _sums(kinds: Floats, draw: Callable[[int], npt.NDArray[np.int64]], resamples: int) -> Floats:
    """`resamples` draws of how often each kind of row is taken, summed, a part at a time."""
    step = max(1, _CHUNK // len(kinds))
    parts = [
        draw(min(step, resamples - start)).astype(float) @ kinds
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def over_seeds(
    pairs: Sequence[tuple[Floats, Floats]],
    score: Score,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """The 95 % interval of a difference over test rows and training seeds.

    Each draw takes seeds and rows with replacement (a hierarchical bootstrap): which task rows a
    seed draws, and in which order, is chance as well. With few seeds it is rather too narrow.

    Args:
        pairs: (system, baseline) of each seed, each (n, s); row i of all belongs to one test row.
    """
    generator = np.random.default_rng(seed)
    rows, seeds = len(pairs[0][0]), len(pairs)
    counts = generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(float)
    taken = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    each = [score(counts @ system) - score(counts @ baseline) for system, baseline in pairs]
    low, high = np.nanpercentile((taken * np.stack(each, axis=1)).sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def randomized(both: Floats, differences: Score, value: float, resamples: int, seed: int) -> float:
    """The p of the difference `value`: how often it is as large when the two answers to half of the
    rows are swapped. `both` (n, 2s) are the rows of both systems side by side."""
    width = both.shape[1] // 2
    kinds, counts = np.unique(both, axis=0, return_counts=True)
    swap = np.hstack([kinds[:, width:], kinds[:, :width]]) - kinds
    generator = np.random.default_rng(seed)
    swapped = _sums(
        swap, lambda n: generator.binomial(counts, 0.5, size=(n, len(counts))), resamples
    )
    draws = differences(both.sum(axis=0) + swapped)
    draws = draws[~np.isnan(draws)]
    as_large = int((np.abs(draws) >= abs(value) - _EQUAL).sum())
    return (as_large + 1) / (len(draws) + 1)
