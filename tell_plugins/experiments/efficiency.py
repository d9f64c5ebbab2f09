"""Token efficiency: how many times the task data another method needs for the same score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tell_plugins.evaluation.intervals import Estimate, Rate


@dataclass(frozen=True)
class CurvePoint:
    """One point of a curve. `x` in tokens or rows."""

    x: float
    value: float
    low: float
    high: float


def curve_point(x: float, measure: Rate | Estimate) -> CurvePoint | None:
    """A measure as a point of a curve; None where it is undefined or has no interval."""
    if measure.value is None or measure.low is None or measure.high is None:
        return None
    return CurvePoint(x, measure.value, measure.low, measure.high)


def efficiency(point: CurvePoint, other: Sequence[CurvePoint], name: str) -> str | None:
    """What the other method's curve says of a score; None without at least two of its points.

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
        at_low = f" (the lower end of its interval it does, with {low:.3g} times)" if low else ""
        return says + at_low
    if point.value <= curve[0].value:
        return f"{name} is as good with {fold:.3g} times the data, the least tried, or less"
    ends = f"{low:.3g}" if low is not None else "?"
    ends += f", {high:.3g}" if high is not None else f", over {most:.3g}"
    return f"{name} needs {fold:.3g} times the data [{ends}; from this score's interval alone]"


def _reaches(curve: Sequence[CurvePoint], level: float) -> float | None:
    """The smallest x at which the curve is at `level` or above; None when it never is."""
    if curve[0].value >= level:
        return curve[0].x
    for left, right in pairwise(curve):
        if left.value < level <= right.value:
            share = (level - left.value) / (right.value - left.value)
            return float(10 ** (math.log10(left.x) + share * math.log10(right.x / left.x)))
    return None
