"""Pictures: lines that can be told apart."""

from __future__ import annotations

from itertools import pairwise

from tell_plugins.experiments import plots


def test_the_lines_of_many_points_can_be_told_apart() -> None:
    for points in (1, 2, 6, 12):
        shades = [plots.shade(place, points) for place in range(points)]
        assert shades[0] == 1.0
        assert shades[-1] >= 0.3 - 1e-9
        assert all(a - b > 0.05 for a, b in pairwise(shades))
