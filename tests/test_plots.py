"""Pictures: what stands side by side, and lines that can be told apart."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tell_plugins.experiments import plots, tables
from tell_plugins.experiments.measures import Judge
from tell_plugins.experiments.results import ReferenceShelf, load_studies
from tests.made_results import MadeResults


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([5.0], [5.0]),
        ([0.0, 10.0], [0.0, 10.0]),
        ([5.0, 5.0, 5.0], [4.0, 5.0, 6.0]),
        ([5.2, 5.0], [5.6, 4.6]),  # in the order of the places, not of the list
        ([0.0, 0.6, 9.0], [-0.2, 0.8, 9.0]),
        ([0.0, 0.0, 1.0, 1.0], [-1.0, 0.0, 1.0, 2.0]),  # two crowds that touch become one
    ],
)
def test_places_are_moved_apart_and_no_further(places: list[float], expected: list[float]) -> None:
    assert plots.apart(places, 1.0) == pytest.approx(expected)


def test_nearly_equal_steps_stand_in_their_order(tmp_path: Path) -> None:
    """A step less is further left, and marks do not lie on each other."""
    made = MadeResults(tmp_path, rows=20, general=6)
    made.base()
    equal = ["TELL", "TELL, even order", "TELL, task first", "TELL, test queries kept"]
    for method in equal:
        made.run(method, adherent=0.5, steps=26)
    made.run("general only", adherent=0.5, steps=25)
    made.run("SFT", adherent=0.2, steps=1)
    made.index("made", "Made", [42])
    (study,) = load_studies(tmp_path)
    figure = plots.steps_figure(study, tables.groups(study, Judge(ReferenceShelf(tmp_path))))
    figure.canvas.draw()
    axis = figure.axes[0]
    middles = {}
    for bars in axis.containers:
        dot = bars.lines[0]
        middles[bars.get_label()] = dot.get_transform().transform(dot.get_xydata()[0])[0]
    ordered = ["base model", "SFT", "general only", *equal]
    assert sorted(middles, key=middles.__getitem__) == ordered
    mark = plots._MARK / 72 * figure.dpi
    assert all(middles[b] - middles[a] > 0.95 * mark for a, b in pairwise(ordered))
    edges = axis.get_window_extent()
    assert edges.x0 + mark < middles["base model"]
    assert middles["TELL, test queries kept"] < edges.x1 - mark


def test_the_lines_of_many_points_can_be_told_apart() -> None:
    for points in (1, 2, 6, 12):
        shades = [plots.shade(place, points) for place in range(points)]
        assert shades[0] == 1.0
        assert shades[-1] >= 0.3 - 1e-9
        assert all(a - b > 0.05 for a, b in pairwise(shades))
