"""The demo's picture: form, content, bleed and foreign text, one bar a system."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tell_plugins.core import paths
from tell_plugins.evaluation.intervals import Estimate, Rate
from tell_plugins.evaluation.summary import System

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _OTHER = "#1f6f8b", "#b9c4c9"


def draw(systems: Sequence[System], path: Path) -> None:
    """Draw four panels of horizontal bars with 95 % intervals to `path` (PNG); ours is the last."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [system.label for system in systems]
    colours = [*[_OTHER] * (len(labels) - 1), _OURS]
    figure, (form, content, bleed, rest) = plt.subplots(1, 4, figsize=(14, 3.4), sharey=True)
    headlines = [system.scores.headline for system in systems]
    _rates(form, [scores["adherence"] for scores in headlines], colours)
    form.set_title("Right form\nJSON that obeys the schema (%)", fontsize=10)
    form.set_xlim(0, 100)
    _rates(content, [scores["balanced accuracy"] for scores in headlines], colours)
    content.set_title("Right content\nbalanced accuracy of the label (%)", fontsize=10)
    content.set_xlim(0, 100)
    content.axvline(50, color="#444", linewidth=0.8, linestyle=":")
    content.set_xlabel("dotted: a coin", fontsize=7, color="#444")  # clear of any bar
    _rates(bleed, [system.general.bleed for system in systems], colours)
    bleed.set_title("Bleed (less is better)\ngeneral questions opened as the task (%)", fontsize=10)
    bleed.set_xlim(0, 100)
    _changes(rest, systems, colours)
    rest.set_title(
        "Forgetting (less is better)\nchange of loss on foreign instructions", fontsize=10
    )
    form.set_yticks(range(len(labels)), labels)
    form.invert_yaxis()
    for axis in (form, content, bleed, rest):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    rows = systems[0].scores.rows
    figure.text(
        0.995, 0.01, f"{rows} test rows, one seed, whiskers: 95 % intervals", ha="right", fontsize=7
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    with paths.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=140)
    plt.close(figure)


def _rates(axis: Axes, values: Sequence[Rate | Estimate | None], colours: list[str]) -> None:
    heights = [0.0 if value is None else 100 * (value.value or 0) for value in values]
    axis.barh(range(len(values)), heights, color=colours, height=0.6)
    for place, value in enumerate(values):
        if value is not None and value.low is not None and value.high is not None:
            ends = [value.low * 100, value.high * 100]
            axis.plot(ends, [place, place], color="#333", linewidth=1.2)


def _changes(axis: Axes, systems: Sequence[System], colours: list[str]) -> None:
    for place, system in enumerate(systems):
        change = system.general.instructions
        if change is None:
            continue
        value, low, high = change
        axis.barh(place, value, color=colours[place], height=0.6)
        axis.plot([low, high], [place, place], color="#333", linewidth=1.2)
    axis.axvline(0, color="#444", linewidth=0.8)
