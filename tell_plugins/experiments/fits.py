"""What curves say: whether a rise is an S, where it stands, and how many tokens TELL saves.

Points are (x, value, standard error); the standard error is half the 95 % interval over 1.96. A
curve of a handful of points with wide intervals fits many shapes; so each statement says when the
data do not carry it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tell_plugins.evaluation.intervals import Z95, Estimate, Rate

Floats = npt.NDArray[np.float64]
_LEAST_POINTS = 5  # an S has four parameters
_RESAMPLES = 200
_SEED = 42
_BETTER = 2.0  # AIC by which an S must beat a straight line and a constant
_SMALLEST_ERROR = 1e-4


@dataclass(frozen=True)
class CurvePoint:
    """One point of a curve. `x` in tokens or rows."""

    x: float
    value: float
    low: float
    high: float

    @property
    def error(self) -> float:
        return max((self.high - self.low) / (2 * Z95), _SMALLEST_ERROR)


def curve_point(x: float, measure: Rate | Estimate) -> CurvePoint | None:
    """A measure as a point of a curve; None where it is undefined or has no interval."""
    if measure.value is None or measure.low is None or measure.high is None:
        return None
    return CurvePoint(x, measure.value, measure.low, measure.high)


@dataclass(frozen=True)
class SCurve:
    """A logistic curve in log10(x): `bottom` + (`top` - `bottom`) / (1 + (threshold / x)^slope).

    `threshold_low`, `threshold_high`: 95 % interval by refitting resampled points.
    """

    bottom: float
    top: float
    threshold: float
    threshold_low: float
    threshold_high: float
    slope: float

    def at(self, x: Floats) -> Floats:
        parameters = (self.bottom, self.top, math.log10(self.threshold), self.slope)
        return _logistic(np.log10(x), *parameters)


@dataclass(frozen=True)
class Fit:
    """Whether an S describes a curve; `curve` is None where it does not, and `says` why."""

    curve: SCurve | None
    says: str


def s_curve(points: Sequence[CurvePoint], unit: str) -> Fit:
    """Fit an S to the points with x > 0 and say whether it is one."""
    return _s_curve(tuple(sorted((p for p in points if p.x > 0), key=lambda p: p.x)), unit)


@lru_cache(maxsize=256)
def _s_curve(points: tuple[CurvePoint, ...], unit: str) -> Fit:
    if len(points) < _LEAST_POINTS:
        return Fit(None, f"{len(points)} points are too few for an S ({_LEAST_POINTS} needed)")
    x = np.log10([p.x for p in points])
    y = np.array([p.value for p in points])
    error = np.array([p.error for p in points])
    constant = _chi2(y, np.full_like(y, np.average(y, weights=error**-2)), error) + 2
    line = _chi2(y, np.polyval(np.polyfit(x, y, 1, w=1 / error), x), error) + 4
    best = _fit(x, y, error, _starts(x, y))
    if best is None:
        return Fit(None, "no S: the fit does not converge")
    chi2, parameters = best
    if chi2 + 8 > constant - _BETTER:
        return Fit(None, "no S: within the intervals the points are one constant")
    if chi2 + 8 > line - _BETTER:
        if line - 4 > _chi2_limit(len(points) - 2):
            return Fit(None, "no S, nor a straight line in log(x): the points scatter")
        return Fit(None, "no S told apart from a straight line in log(x)")
    bottom, top, middle, slope = parameters
    if not x[0] <= middle <= x[-1]:
        return Fit(None, "no S: its threshold would lie outside the points")
    if len(points) > 4 and chi2 > _chi2_limit(len(points) - 4):
        return Fit(None, "no S: the points scatter about it by more than their intervals")
    low, high = _threshold_interval(x, y, error, list(parameters))
    curve = SCurve(bottom, top, 10**middle, 10**low, 10**high, slope)
    return Fit(
        curve,
        f"S from {bottom:.2f} to {top:.2f} with its threshold at {_short(curve.threshold)} {unit} "
        f"[{_short(curve.threshold_low)}, {_short(curve.threshold_high)}]",
    )


def _logistic(x: Floats, bottom: float, top: float, middle: float, slope: float) -> Floats:
    return np.asarray(
        bottom + (top - bottom) / (1 + np.exp(-np.clip(slope * (x - middle), -60, 60)))
    )


def _chi2(y: Floats, fitted: Floats, error: Floats) -> float:
    return float((((y - fitted) / error) ** 2).sum())


def _chi2_limit(freedom: int) -> float:
    from scipy.stats import chi2

    return float(chi2.ppf(0.99, freedom))


def _starts(x: Floats, y: Floats) -> list[list[float]]:
    """Where a fit may begin: a flat or a steep rise at each of the points."""
    span, low, high = x[-1] - x[0], float(y.min()), float(y.max())
    return [[low, high, float(middle), steep / span] for middle in x for steep in (4.0, 20.0)]


def _fit(
    x: Floats, y: Floats, error: Floats, starts: Sequence[Sequence[float]]
) -> tuple[float, tuple[float, ...]] | None:
    """The best over the starts: chi-squared and (bottom, top, log10 threshold, slope)."""
    from scipy.optimize import curve_fit

    span, scale = x[-1] - x[0], max(float(np.abs(y).max()), 1.0)
    lower = np.array([-0.05 * scale, -0.05 * scale, x[0] - span, 0.1 / span])
    upper = np.array([1.05 * scale, 1.05 * scale, x[-1] + span, 200 / span])
    best: tuple[float, tuple[float, ...]] | None = None
    for start in starts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a covariance that is not used
                found, _ = curve_fit(
                    _logistic,
                    x,
                    y,
                    p0=np.clip(start, lower, upper),
                    sigma=error,
                    bounds=(lower, upper),
                    max_nfev=400,
                )
        except (RuntimeError, ValueError):
            continue
        chi2 = _chi2(y, _logistic(x, *found), error)
        if found[1] > found[0] and (best is None or chi2 < best[0] - 1e-9):
            best = chi2, tuple(float(value) for value in found)
    return best


def _threshold_interval(
    x: Floats, y: Floats, error: Floats, best: list[float]
) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of log10(threshold) over points drawn within their errors."""
    generator = np.random.default_rng(_SEED)
    draws = []
    for _ in range(_RESAMPLES):
        found = _fit(x, y + generator.normal(0, error), error, [best])
        if found is not None:
            draws.append(min(max(found[1][2], x[0]), x[-1]))
    if len(draws) < _RESAMPLES // 2:
        return float(x[0]), float(x[-1])
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 1000 else f"{value:.1e}".replace("e+0", "e")


@dataclass(frozen=True)
class Efficiency:
    """How many times the task data the other method needs to reach TELL's score.

    `low` and `high` come from the interval of TELL's score. None: beyond the other's curve.
    """

    x: float
    value: float
    fold: float | None
    low: float | None
    high: float | None
    says: str


def efficiency(point: CurvePoint, other: Sequence[CurvePoint], name: str) -> Efficiency | None:
    """Read the x-fold off the other method's curve; None without at least two of its points.

    Between points the curve is a straight line in log(x); it is not carried on beyond them.
    """
    curve = sorted((p for p in other if p.x > 0), key=lambda p: p.x)
    if len(curve) < 2 or point.x <= 0:
        return None
    fold, low, high = (
        None if reached is None else reached / point.x
        for reached in (_reaches(curve, level) for level in (point.value, point.low, point.high))
    )
    most = curve[-1].x / point.x
    if fold is None:
        says = f"{name} does not reach it with {most:.3g} times the data, the most tried"
        if low is not None:
            says += f" (the lower end of its interval it does, with {low:.3g} times)"
    elif point.value <= curve[0].value:
        says = f"{name} is as good with {fold:.3g} times the data, the least tried, or less"
    else:
        ends = f"{low:.3g}" if low is not None else "?"
        ends += f", {high:.3g}" if high is not None else f", over {most:.3g}"
        says = f"{name} needs {fold:.3g} times the data [{ends}; from this score's interval alone]"
    return Efficiency(point.x, point.value, fold, low, high, says)


def _reaches(curve: Sequence[CurvePoint], level: float) -> float | None:
    """The smallest x at which the curve is at `level` or above; None when it never is."""
    if curve[0].value >= level:
        return curve[0].x
    for left, right in pairwise(curve):
        if left.value < level <= right.value:
            share = (level - left.value) / (right.value - left.value)
            return float(10 ** (math.log10(left.x) + share * math.log10(right.x / left.x)))
    return None
