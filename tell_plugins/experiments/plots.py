"""The pictures of a report, with matplotlib: the same bytes every time, on a ground of their own.

A stroke is one seed, a mark all seeds together, a bar or band the 95 % interval over test rows.
Nothing is drawn without it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tell_plugins.evaluation.intervals import Estimate, Rate
from tell_plugins.evaluation.paper_numbers import Point, paper, published
from tell_plugins.experiments.fairness import caveats
from tell_plugins.experiments.measures import BLEED, KL, MAIN, Difference, Judge
from tell_plugins.experiments.results import AS_SAVED, Entry, Study
from tell_plugins.experiments.tables import (
    Group,
    pair_name,
    pairs,
    point_of_pair,
    rival_of,
    same_seeds,
)

# Okabe and Ito's colours, which colour-blind readers tell apart; grey is the base model's
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#8C6BB1", "#A6761D", "#44AA99", "#AA4466", "#999933", "#6E6EFF"),
)
_GREY = "#8a8a8a"
_FRONT, _LINES = "#1d1d1f", "#d9d9de"
_DPI = 110
_ELSEWHERE = ("foreign instructions minus base", KL, "style fit minus base")


@dataclass(frozen=True)
class Picture:
    """A picture: its file name without ending, what it shows, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[], Any]

    def png(self) -> bytes:
        """The picture as PNG, the same bytes every time."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        with style():
            figure = self.draw()
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
            plt.close(figure)
        return _with_palette(buffer)


def _with_palette(png: io.BytesIO) -> bytes:
    """The same picture in 256 colours: a third of the bytes, for a page that holds them all."""
    from PIL import Image

    reduced, result = Image.open(png).convert("RGB"), io.BytesIO()
    reduced.quantize(256, dither=Image.Dither.NONE).save(result, "PNG", optimize=True)
    return result.getvalue()


def style() -> AbstractContextManager[None]:
    """matplotlib's settings, all of them ours: a user's own do not change a picture."""
    import matplotlib

    return matplotlib.rc_context(
        {
            **{k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")},
            "axes.edgecolor": _LINES,
            "axes.labelcolor": _FRONT,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.titlecolor": _FRONT,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": _LINES,
            "grid.linewidth": 0.6,
            "text.color": _FRONT,
            "xtick.color": _FRONT,
            "ytick.color": _FRONT,
            "legend.frameon": False,
            "legend.fontsize": 8,
            "font.size": 9,
            "figure.constrained_layout.use": True,
        }
    )


def colours(study: Study, found: Sequence[Group]) -> dict[str, str]:
    """One colour a series, the reference first, grey for the base model."""
    names = {group.series: group.method for group in found if not group.is_base}
    ordered = sorted(names, key=lambda name: names[name] != study.plot.reference)
    return {
        **{name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(ordered)},
        **{group.series: _GREY for group in found if group.is_base},
    }


def pictures(study: Study, found: Sequence[Group], judge: Judge) -> list[Picture]:
    """The pictures of a study; those for which there is nothing to draw are left out."""
    rows = f"{study.split} rows"
    trained = [group for group in found if not group.is_base]
    possible = {
        "forest": (
            _differences(study, list(pairs(study, found)), judge),  # none for scores as saved
            f"{study.plot.reference} minus each other method over the same {rows}, with 95 % "
            "intervals; first the rival that matters. Inside the pale bar around 0 a true "
            "difference would not have been seen (80 % power). Hollow: no conclusion is drawn.",
            lambda: forest_figure(study, found, judge),
        ),
        "curve": (
            study.axis and trained,
            f"{MAIN[study.metric].capitalize()} and what happened elsewhere, along "
            f"{str(study.axis).replace('_', ' ')}. Bars are 95 % intervals over {rows}, thin lines "
            "over seeds (from three on), strokes single seeds, dashed lines methods without a "
            "place on the axis." + (" Stars are the paper's numbers." if _stars(study) else ""),
            lambda: curve_figure(study, found),
        ),
        "methods": (
            found and not study.axis,
            f"Every method, all seeds together, with 95 % intervals over {rows}, and thin "
            "lines over seeds (from three on); strokes are single seeds, hollow marks runs "
            "that trained nothing or give one and the same label. Adherence is form alone: "
            "read it beside balanced accuracy.",
            lambda: methods_figure(study, found),
        ),
        "training": (
            any(entry.run.logged for group in trained for entry in group.entries),
            "Training loss of task and general rows by optimizer step, mean over seeds; thin "
            "lines are the steps themselves, thick ones their running mean.",
            lambda: training_figure(study, trained),
        ),
    }
    return [
        Picture(f"{study.name}_{name}", caption, draw)
        for name, (drawn, caption, draw) in possible.items()
        if drawn
    ]


def _title(study: Study, axis: Any) -> None:
    axis.figure.suptitle(study.title, x=0.01, ha="left", fontsize=11, fontweight="bold")


def _percent(axis: Any, which: str = "y") -> None:
    from matplotlib.ticker import PercentFormatter

    side = axis.yaxis if which == "y" else axis.xaxis
    side.set_major_formatter(PercentFormatter(1.0, decimals=0))
    (axis.set_ylim if which == "y" else axis.set_xlim)(-0.04, 1.04)


def _logarithmic(axis: Any) -> None:
    """A logarithmic x axis that names more than its decades: 5k, 10k, 20k."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _panels(study: Study, found: Sequence[Group]) -> list[tuple[str, Callable[[Group], Any], bool]]:
    """(title, value of a group, whether it is a share) of each panel that has values."""
    main = MAIN[study.metric]
    panels: list[tuple[str, Callable[[Group], Any], bool]] = [
        (main, lambda g: g.measures.main(study.metric), study.metric not in AS_SAVED),
        ("balanced accuracy", lambda g: g.measures.task.get("balanced accuracy"), True),
        ("bleed", _elsewhere("bleed"), True),
        *((name, _elsewhere(name), False) for name in _ELSEWHERE),
    ]
    panels = [panel for i, panel in enumerate(panels) if i == 0 or panel[0] != main]
    return [panel for panel in panels if any(_has(panel[1](group)) for group in found)]


def _elsewhere(name: str) -> Callable[[Group], Any]:
    return lambda group: group.measures.elsewhere.get(name)


def _has(value: Rate | Estimate | None) -> bool:
    return value is not None and value.value is not None


def _bar(value: Rate | Estimate) -> tuple[float, float, float]:
    """Value and the two lengths of its interval's bar."""
    middle = float(value.value or 0.0)
    low = middle if value.low is None else value.low
    high = middle if value.high is None else value.high
    return middle, max(middle - low, 0.0), max(high - middle, 0.0)


def forest_figure(study: Study, found: Sequence[Group], judge: Judge) -> Any:
    """Paired differences of the reference to every other method, one line each."""
    import matplotlib.pyplot as plt

    rival = rival_of(study, found)
    drawn = sorted(pairs(study, found), key=lambda pair: pair != rival)
    panels = _differences(study, drawn, judge)
    size = (2.6 + 2.5 * len(panels), 1.2 + 0.32 * len(drawn))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        for place, (pair, value) in enumerate(zip(drawn, values, strict=True)):
            if value is not None:
                stopped = any(caveat.stops for caveat in caveats(*same_seeds(*pair)))
                _draw_difference(axis, place, value, hollow=stopped, first=pair == rival)
        axis.axvline(0, color=_GREY, linewidth=1)
        axis.set_title(title)
    names = [_forest_name(pair) for pair in drawn]
    axes[0][0].set_yticks(range(len(drawn)), names)
    axes[0][0].invert_yaxis()
    if rival is not None:
        axes[0][0].get_yticklabels()[0].set_fontweight("bold")
    _title(study, axes[0][0])
    return figure


def _forest_name(pair: tuple[Group, Group]) -> str:
    reference, other = pair
    name = pair_name(reference, other).removeprefix(f"{reference.method} ")
    point = point_of_pair(reference, other)
    return f"{name} ({point})" if point else name


def _differences(
    study: Study, drawn: Sequence[tuple[Group, Group]], judge: Judge
) -> dict[str, list[Difference | None]]:
    """Of each measure that has any: the difference of every pair, shares in points."""
    found: dict[str, list[Difference | None]] = {}
    sides = [same_seeds(*pair) for pair in drawn]
    for name in dict.fromkeys((MAIN[study.metric], "balanced accuracy")):
        values = [judge.difference(*side, name) for side in sides]
        found[f"{name}, points"] = [_times(value, 100) for value in values]
    bleed = [judge.difference(*side, BLEED) for side in sides]
    found["bleed, points"] = [_times(value, 100) for value in bleed]
    for name in _ELSEWHERE[:1]:
        found[name.removesuffix(" minus base") + ", nats"] = [
            judge.difference(*side, name) for side in sides
        ]
    return {name: values for name, values in found.items() if any(values)}


def _times(value: Difference | None, factor: float) -> Difference | None:
    if value is None:
        return None
    return Difference(value.value * factor, value.low * factor, value.high * factor, value.n)


def _draw_difference(
    axis: Any, place: int, value: Difference, *, hollow: bool, first: bool
) -> None:
    colour = _GREY if hollow else _COLOURS[0] if first else _COLOURS[1]
    axis.hlines(place, -value.smallest, value.smallest, color=_GREY, linewidth=7, alpha=0.25)
    axis.hlines(place, value.low, value.high, color=colour, linewidth=1.6)
    face = axis.get_facecolor() if hollow else colour
    axis.plot(value.value, place, "o", color=colour, markerfacecolor=face, markersize=5)


def methods_figure(study: Study, found: Sequence[Group]) -> Any:
    """One line a method, one panel a measure."""
    import matplotlib.pyplot as plt

    panels, palette = _panels(study, found), colours(study, found)
    height = 1.3 + 0.34 * len(found)
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.3 + 2.3 * len(panels), height), sharey=True, squeeze=False
    )
    for axis, (title, value_of, share) in zip(axes[0], panels, strict=True):
        for place, group in enumerate(found):
            value = value_of(group)
            if not _has(value):
                continue
            middle, below, above = _bar(value)
            colour = palette[group.series]
            of_task = title in (MAIN[study.metric], "balanced accuracy")
            hollow = group.no_op or (of_task and group.measures.constant)
            axis.errorbar(
                middle,
                place,
                xerr=[[below], [above]],
                fmt="o",
                color=colour,
                markerfacecolor="none" if hollow else colour,
                capsize=2,
            )
            if title == MAIN[study.metric]:
                _draw_seeds(axis, group, place, colour, sideways=True)
        axis.set_title(title)
        if share:
            _percent(axis, "x")
        else:
            axis.axvline(0, color=_GREY, linewidth=1)
    axes[0][0].set_yticks(range(len(found)), [_marked(group) for group in found])
    axes[0][0].invert_yaxis()
    _title(study, axes[0][0])
    return figure


def _marked(group: Group) -> str:
    marks = [m for m, on in (("no-op", group.no_op), ("constant", group.measures.constant)) if on]
    count = group.steps[-1] if group.steps and not group.is_base else 0
    steps = f"{count:,} step{'s' if count > 1 else ''}" if count else ""
    inside = ", ".join(part for part in (steps, *marks) if part)
    return f"{group.name}\n({inside})" if inside else group.name


def curve_figure(study: Study, found: Sequence[Group]) -> Any:
    """Measures along the axis, a panel each, with the paper's points."""
    import matplotlib.pyplot as plt

    axis_name = str(study.axis)
    panels, palette = _panels(study, found)[:4], colours(study, found)
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.8), squeeze=False)
    zero = _place_of_zero(study, found)
    for axis, (title, value_of, share) in zip(axes[0], panels, strict=True):
        for series in dict.fromkeys(group.series for group in found):
            mine = [group for group in found if group.series == series and _has(value_of(group))]
            if len({group.x(axis_name) for group in mine if group.at}) > 1:
                _draw_curve(axis, mine, value_of, axis_name, zero, palette[series], title, study)
            else:
                for group in mine:
                    x = group.x(axis_name) if group.at else None
                    _draw_level(axis, group, value_of(group), palette[series], x or zero)
        _logarithmic(axis)
        axis.set_xlabel(axis_name.replace("_", " "))
        axis.set_title(title)
        if share:
            _percent(axis)
        if title == MAIN[study.metric]:
            _draw_published(axis, study, palette)
    if zero is not None:
        for axis in axes[0]:
            _mark_zero(axis, zero)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(len(labels), 5))
    _title(study, axes[0][0])
    return figure


def _place_of_zero(study: Study, found: Sequence[Group]) -> float | None:
    """Where x = 0 is drawn on the logarithmic axis; None when no point of a curve is there."""
    amounts = [x for g in found if g.at and (x := g.x(str(study.axis))) is not None]
    above = [x for x in amounts if x > 0]
    return min(above) / 4 if 0 in amounts and above else None


def _mark_zero(axis: Any, zero: float) -> None:
    end = axis.get_xlim()[1]
    axis.set_xticks([tick for tick in axis.get_xticks() if 2 * zero < tick <= end])  # none at the 0
    axis.axvline(zero, color=_GREY, linewidth=0.6, linestyle=":")
    axis.text(zero, -0.02, "0", transform=axis.get_xaxis_transform(), ha="center", va="top")


def _draw_curve(
    axis: Any,
    mine: Sequence[Group],
    value_of: Callable[[Group], Any],
    axis_name: str,
    zero: float | None,
    colour: str,
    title: str,
    study: Study,
) -> None:
    drawn = sorted(((g.x(axis_name) or zero or 1.0, g) for g in mine), key=lambda pair: pair[0])
    places = [place for place, _ in drawn]
    bars = np.array([_bar(value_of(group)) for _, group in drawn])
    axis.errorbar(
        places,
        bars[:, 0],
        yerr=bars[:, 1:].T,
        fmt="-o",
        color=colour,
        capsize=2,
        label=mine[0].series,
    )
    axis.fill_between(
        places, bars[:, 0] - bars[:, 1], bars[:, 0] + bars[:, 2], color=colour, alpha=0.12, lw=0
    )
    for place, group in drawn:
        if title == MAIN[study.metric]:
            _draw_seeds(axis, group, place, colour, sideways=False)
        if group.no_op:
            face = axis.get_facecolor()
            value = value_of(group).value
            axis.plot(place, value, "o", color=colour, markerfacecolor=face, zorder=5)


def _draw_seeds(axis: Any, group: Group, place: float, colour: str, *, sideways: bool) -> None:
    """A stroke for each seed, and the interval over them as a thin line."""
    spread, seeds = group.measures.over_seeds, group.measures.seeds
    if len(seeds) > 1 and not sideways:
        axis.plot([place] * len(seeds), seeds, "_", color=colour, markersize=12)
    if spread is not None:
        line = axis.hlines if sideways else axis.vlines
        line(place, spread.low, spread.high, color=colour, linewidth=0.8)
    if len(seeds) > 1 and sideways:
        axis.plot(seeds, [place] * len(seeds), "|", color=colour, markersize=11)


def _draw_level(axis: Any, group: Group, value: Any, colour: str, x: float | None) -> None:
    """A method without a place on the axis: a dashed line with its interval.

    A series of which only one point is finished has a place: a mark at `x`.
    """
    middle, below, above = _bar(value)
    if x is not None and group.at and not group.is_base:
        bars = [[below], [above]]
        axis.errorbar(x, middle, yerr=bars, fmt="o", color=colour, capsize=2, label=group.series)
        return
    axis.axhline(middle, color=colour, linestyle="--", linewidth=1.2, label=group.series)
    axis.axhspan(middle - below, middle + above, color=colour, alpha=0.08, lw=0)


def _draw_published(axis: Any, study: Study, palette: dict[str, str]) -> None:
    for place, (model, point) in enumerate(_stars(study)):
        colour = palette.get(point.method, _GREY)
        label = None if place else f"paper ({model})"
        axis.plot(point.x, point.value, "*", color=colour, markersize=10, alpha=0.55, label=label)


def _stars(study: Study) -> list[tuple[str, Point]]:
    """The paper's points that have a place on the axis, each with its model."""
    found = published(study.plot.paper, study.name) if study.split == "test" else None
    if found is None or paper().metric != MAIN[study.metric]:
        return []
    if not str(study.axis).endswith("_tokens"):
        return []
    return [(paper().model.split(",")[0], point) for point in found.points if point.x is not None]


def training_figure(study: Study, trained: Sequence[Group]) -> Any:
    """Task loss left, general loss right; one line a method and point."""
    import matplotlib.pyplot as plt

    palette = colours(study, trained)
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.0), sharey=False)
    points = Counter(group.series for group in trained)
    shades: Counter[str] = Counter()
    order = list(palette)
    for group in sorted(trained, key=lambda g: order.index(g.series)):
        alpha = shade(shades[group.series], points[group.series])
        shades[group.series] += 1
        for axis, key in zip(axes, ("loss_task", "loss_general"), strict=True):
            steps, losses = mean_losses_by_step(group.entries, key)
            if len(steps) == 0:
                continue
            colour = palette[group.series]
            axis.plot(steps, losses, color=colour, linewidth=0.5, alpha=0.35 * alpha)
            marker = "o" if len(steps) == 1 else None
            axis.plot(
                steps,
                running_mean(losses),
                color=colour,
                alpha=alpha,
                label=group.name,
                marker=marker,
            )
    for axis, rows in zip(axes, ("task", "general"), strict=True):
        axis.set_title(f"training loss, {rows} rows")
        axis.set_xlabel("optimizer step")
        _logarithmic(axis)
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    _title(study, axes[0])
    return figure


def shade(place: int, points: int) -> float:
    """How solid a line of one of several points of a series is: all of them can be told apart."""
    return 1.0 - min(0.18, 0.7 / max(1, points - 1)) * place


def mean_losses_by_step(entries: Sequence[Entry], key: str) -> tuple[list[int], list[float]]:
    """The mean over the entries of a logged loss, at the steps that logged it.

    `loss_general` covers every general card (`loss_general_<card>`), each counted once.
    """
    by_step: dict[int, list[float]] = {}
    for entry in entries:
        for record in entry.run.logged:
            values = [
                value
                for name, value in record.items()
                if (name == key or name.startswith(f"{key}_")) and isinstance(value, (int, float))
            ]
            by_step.setdefault(record["step"], []).extend(values)
    filled = {step: values for step, values in sorted(by_step.items()) if values}
    return list(filled), [sum(values) / len(values) for values in filled.values()]


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a window of about a tenth of the run, centred."""
    half = max(0, len(values) // 20)
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]
