"""Two systems over the same test rows: their difference in one measure, and what it tells apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tell_plugins.evaluation import intervals
from tell_plugins.evaluation.intervals import (
    USUAL,
    Draws,
    Estimate,
    Floats,
    Interval,
    interval,
    randomized,
    smallest_shown,
    summed,
)
from tell_plugins.evaluation.judged import Column

LEVEL = 0.05  # of the test: p below it
LEAST_SEEDS = 3  # from as many on an interval over seeds says anything


@dataclass(frozen=True)
class Measure:
    """A column whose `stats` (n, s) are summed by test row; `ids` (n,) name the rows."""

    ids: npt.NDArray[Any]
    stats: Floats
    column: Column


def measure_of(ids: Sequence[Any], column: Column) -> Measure:
    """A measure by the ids of the answers' test rows."""
    return Measure(np.unique(ids), summed(column.stats, ids), column)


@dataclass(frozen=True)
class Difference(Estimate):
    """System minus baseline over the same `n` rows, with its 95 % interval.

    Attributes:
        p: two-sided, by approximate randomization (of two shares: McNemar's); never below
            1 / (resamples + 1). None of losses, in nats a token: these have no test.
        resamples, seed: how often rows were drawn, and the seed of that.
        by_seed: that of each seed, where there are several.
        over_seeds: from three seeds on the interval over rows and seeds.
    """

    value: float
    low: float
    high: float
    p: float | None = None
    resamples: int = 0
    seed: int = 0
    by_seed: tuple[float, ...] = ()
    over_seeds: tuple[float, float] | None = None

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out zero, the test says so too, and the seeds agree.

        Of one row, or of a few that all agree, each draw is the same: its interval has no width.
        """
        is_sure = (self.p is None or self.p < LEVEL) and not self.seeds_disagree
        return is_sure and (self.low > 0 or self.high < 0)

    @property
    def better(self) -> bool:
        return self.told_apart and self.low > 0

    @property
    def worse(self) -> bool:
        return self.told_apart and self.high < 0

    @property
    def seeds_disagree(self) -> bool:
        """Whether seeds have differences of both signs, or from three on a t-interval over 0."""
        if len(self.by_seed) < LEAST_SEEDS:
            return bool(self.by_seed) and min(self.by_seed) < 0 < max(self.by_seed)
        _, low, high = t_interval(self.by_seed)
        return low <= 0 <= high or min(self.by_seed) < 0 < max(self.by_seed)

    @property
    def is_loss(self) -> bool:
        return self.p is None

    @property
    def digits(self) -> int:
        """After the point, of a loss or else of percentage points."""
        return 3 if self.is_loss else 1

    @property
    def each_seed(self) -> str:
        """The differences of the seeds as text; empty for a single one."""
        return ", ".join(f"{value:+.{self.digits}f}" for value in self.by_seed)

    @property
    def smallest(self) -> float:
        """The smallest true difference that these rows would show, at 80 % power."""
        return smallest_shown(self.low, self.high)

    def times(self, factor: float) -> Difference:
        """The same in another unit: percentage points of shares."""
        wide = self.over_seeds
        return replace(
            self,
            value=factor * self.value,
            low=factor * self.low,
            high=factor * self.high,
            by_seed=tuple(factor * value for value in self.by_seed),
            over_seeds=wide and (factor * wide[0], factor * wide[1]),
        )


def difference(
    system: Measure | None, baseline: Measure | None, draws: Draws = USUAL
) -> Difference | None:
    """The paired difference over the rows that both answered; None where there is none.

    The interval is the percentile interval of a bootstrap, unless the column has one of its own.
    """
    if system is None or baseline is None:
        return None
    shared, mine, theirs = np.intersect1d(system.ids, baseline.ids, return_indices=True)
    ours, others, column = system.stats[mine], baseline.stats[theirs], system.column
    if len(shared) == 0 or (column.is_loss and not _same_losses(system, baseline)):
        return None
    if column.is_loss:
        moved = replace(column, stats=np.column_stack([ours[:, 0] - others[:, 0], ours[:, 1]]))
        return Difference(moved.total, *interval(moved.stats, moved.score), len(shared))
    both, width = np.hstack([ours, others]), ours.shape[1]

    def differences(sums: Floats) -> Floats:
        return column.score(sums[:, :width]) - column.score(sums[:, width:])

    value = float(differences(both.sum(axis=0)[None])[0])
    if column.difference is not None:
        low, high = column.difference(ours, others)[1:]
    else:
        low, high = interval(both, differences, draws)
    if math.isnan(value) or math.isnan(low):  # nothing to take a share of
        return None
    p = randomized(both, differences, value, draws)
    return Difference(value, low, high, len(shared), p=p, **draws._asdict())


def _same_losses(system: Measure, baseline: Measure) -> bool:
    """Whether two losses are of the very same rows: as many, each with as many tokens."""
    mine, theirs = (np.column_stack([part.ids, part.stats[:, 1]]) for part in (system, baseline))
    return np.array_equal(mine, theirs)


def with_seeds(
    found: Difference, seeds: Sequence[tuple[Measure | None, Measure | None]]
) -> Difference:
    """A difference of several seeds with that of each, and from `LEAST_SEEDS` on, where all
    answered the same rows, the interval over rows and seeds."""
    each = tuple(part.value for pair in seeds if (part := difference(*pair)) is not None)
    pairs = [(a.stats, b.stats) for a, b in seeds if a is not None and b is not None]
    alike = len(pairs) == len(seeds) and len({part.shape for pair in pairs for part in pair}) == 1
    if len(seeds) < LEAST_SEEDS or not alike or seeds[0][0] is None:
        return replace(found, by_seed=each)
    wide = intervals.over_seeds(pairs, seeds[0][0].column.score)
    return replace(found, by_seed=each, over_seeds=wide)


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of at least two values with its 95 % t-interval."""
    from scipy.stats import t

    middle = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Interval(middle, middle - half, middle + half)
