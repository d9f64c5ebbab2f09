"""Intervals of shares, of means and differences: against published values and by simulation."""

import math

import numpy as np
import pytest

from tell_plugins.evaluation import intervals
from tell_plugins.evaluation.differences import Difference, difference, measure_of
from tell_plugins.evaluation.intervals import (
    POWER,
    Z95,
    Floats,
    counts_of,
    interval,
    mean_score,
    over_seeds,
    smallest_shown,
)
from tell_plugins.evaluation.judged import Column, mean, share
from tests.saved_answers import judged_labels


def _once(hits: object) -> Floats:
    """One answer to each test row."""
    values = np.asarray(hits, float)
    return counts_of(values, np.arange(len(values)))


def _compared(system: Column, baseline: Column) -> Difference:
    """The difference of two systems that answered each row once."""
    sides = (measure_of(range(len(column.stats)), column) for column in (system, baseline))
    found = difference(*sides)
    assert found is not None
    return found


def test_difference_of_nothing_and_nothing_has_an_interval():
    """0 of 50 against 0 of 50: how far apart they may be is not nothing."""
    found = intervals.share_difference(_once([0] * 50), _once([0] * 50))
    assert found.value == 0
    assert (found.low, found.high) == pytest.approx((-0.0713, 0.0713), abs=1e-3)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [((59, 6, 16, 80), -0.1186, -0.0046), ((1, 1, 7, 12), -0.507, -0.026)],
)
def test_paired_difference_is_newcombes(table, low, high):
    """Two examples of Fagerland, Lydersen and Laake (2017), chapter 8, with their correlation,
    which has a continuity correction: both right, only the first, only the second, none."""
    both, first, second, none = table
    total = sum(table)
    spread = (both + first) * (second + none) * (both + second) * (first + none)
    corrected = max(both * none - first * second - total / 2, 0) / math.sqrt(spread)
    found = intervals.paired_difference(
        intervals.counted(both + first, total), intervals.counted(both + second, total), corrected
    )
    assert found.value == pytest.approx((first - second) / total)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)


def test_few_discordant_rows_are_not_certain():
    """5 rows right against 5 wrong; 4 of 100; 5 of 1,506: McNemar's exact p is above 0.06."""
    for better, total in ((5, 5), (4, 100), (5, 1506)):
        sides = ([1] * total, [0] * better + [1] * (total - better))
        found = _compared(*(share(list(map(bool, side))) for side in sides))
        exact = 2 * 0.5**better
        assert found.p == pytest.approx(exact, abs=0.02)
        assert found.low < found.value


def test_balanced_accuracy_of_all_wrong_has_an_interval():
    found = _balanced([None] * 200, ["yes"] * 38 + ["no"] * 162).estimate(range(200))
    assert (found.value, found.low, found.n) == (0, 0, 200)
    assert found.high == pytest.approx(0.0475, abs=1e-3)


def _balanced(given: list[str | None], right: list[str]) -> Column:
    return judged_labels(given, right, ["yes", "no"]).columns["balanced_accuracy"]


def test_the_balanced_difference_covers_the_truth():
    """Two equal systems, independent within each label. What they share is the labels alone: taken
    over all rows it would make the interval far too narrow where the recalls differ."""
    generator = np.random.default_rng(5)
    inside = 0
    for _ in range(1000):
        parts = [
            (_once(generator.random(n) < recall), _once(generator.random(n) < recall))
            for n, recall in ((162, 0.95), (38, 0.3))
        ]
        found = intervals.mean_difference(parts)
        inside += found.low <= 0 <= found.high
    assert inside / 1000 > 0.92


def test_two_constant_systems_are_not_told_apart():
    """Both say "no" nearly always, one of them in the right form more often."""
    right = ["no"] * 162 + ["yes"] * 38
    first: list[str | None] = ["no"] * 200
    second: list[str | None] = ["no"] * 146 + [None] * 16 + ["no"] * 38
    first[199] = "yes"
    mine, theirs = (_balanced(given, right) for given in (first, second))
    assert mine.difference is not None
    value, low, _ = mine.difference(mine.stats, theirs.stats)
    assert value == pytest.approx((16 / 162 + 1 / 38) / 2)
    assert low > 0  # the form alone makes "no" right more often


@pytest.mark.parametrize(("rows", "told"), [(1, False), (4, False), (40, True)])
def test_a_few_rows_that_all_agree_tell_nothing_apart(rows, told):
    """An interval of draws that are all the same has no width."""
    right, wrong = (mean([value] * rows) for value in (1.0, 0.0))
    found = _compared(right, wrong)
    assert found.low == found.high == 1
    assert found.better == told
    assert found.p == pytest.approx(0.5 ** (rows - 1), abs=0.02)
    assert _compared(wrong, right).worse == told


def test_three_seeds_of_thirds_do_not_vary():
    """1/3 is no binary fraction: its standard deviation over rows is not quite zero."""
    mine, theirs = (np.tile([hits, 3.0], (200, 1)) for hits in (1.0, 2.0))
    assert intervals.correlation(mine, theirs) == 0
    found = intervals.share_difference(mine, theirs)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("by_seed", "certain"),
    [
        *(((), True), ((0.1, 0.3), True), ((0.0, 0.3), True), ((-0.01, 0.3), False)),
        ((0.18, 0.2, 0.22), True),
        ((0.01, 0.02, 0.6), False),  # a t-interval over the seeds holds 0
    ],
)
def test_a_difference_is_told_apart_when_rows_and_seeds_agree(by_seed, certain):
    assert Difference(0.2, 0.1, 0.3, 100, by_seed=by_seed).told_apart == certain
    assert not Difference(0.2, -0.1, 0.3, 100, by_seed=by_seed).told_apart


def test_an_interval_over_rows_and_seeds_sees_seeds_that_differ():
    """Each seed alone is sure of its difference; they are of both signs."""
    rng = np.random.default_rng(0)
    half, *others = (_once(rng.random(400) < share) for share in (0.5, 0.6, 0.6, 0.6, 0.3, 0.9))
    alike = [(other, half) for other in others[:3]]
    apart = [(other, half) for other in others[2:]]
    (low, high), (lower, higher) = (over_seeds(pairs, mean_score) for pairs in (alike, apart))
    assert 0.03 < low < high < 0.23
    assert lower < -0.05
    assert higher > 0.25
    one = over_seeds(alike[:1], mean_score)  # of one seed it is the bootstrap over rows
    both = np.hstack(alike[0])
    rows_alone = interval(both, lambda sums: mean_score(sums[:, :2]) - mean_score(sums[:, 2:]))
    assert one == pytest.approx(rows_alone, abs=0.01)


def test_a_known_difference_is_seen_as_often_as_the_power_says():
    """The smallest difference of a test of n paired values is found in four of five repetitions."""
    random, n, spread = np.random.default_rng(0), 60, 0.3
    error = spread / np.sqrt(n)
    smallest = smallest_shown(-Z95 * error, Z95 * error)
    assert smallest == pytest.approx(POWER * error)
    means = random.normal(smallest, spread, size=(4000, n)).mean(axis=1)
    assert np.mean(means > Z95 * error) == pytest.approx(0.8, abs=0.02)
