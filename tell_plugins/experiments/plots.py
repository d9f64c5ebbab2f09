"""The pictures of a report, with matplotlib: the same bytes every time, on a ground of their own.

A stroke is one seed, a mark all seeds together, a bar or band the 95 % interval over test rows.
Nothing is drawn without it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import add, itemgetter
from typing import Any

from tell_plugins.evaluation import scorers
from tell_plugins.evaluation.differences import Difference
from tell_plugins.evaluation.elsewhere import BLEED, KL
from tell_plugins.evaluation.intervals import Interval
from tell_plugins.evaluation.paper_numbers import Point, paper
from tell_plugins.experiments.outcome import Group, Outcome, Pair
from tell_plugins.experiments.tables import CONTENT

# Okabe and Ito's colours, which colour-blind readers tell apart; grey is the base model's
_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#8C6BB1", "#A6761D", "#44AA99", "#AA4466", "#999933", "#6E6EFF"),
)
_GREY = "#8a8a8a"
_FRONT, _LINES = "#1d1d1f", "#d9d9de"
_DPI = 110
FIGURES = ("forest", "trade", "curve", "methods")
_CONTENT = tuple(name for name in CONTENT if name != "exact match")  # F1 says more of fields
_FOREIGN = "foreign instructions minus base"


@dataclass(frozen=True)
class Picture:
    """A picture of a study: one of `FIGURES`, what it shows, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[Outcome], Any]
    outcome: Outcome

    def png(self) -> bytes:
        """The picture as PNG in 256 colours, the same bytes every time."""
        import matplotlib
        from PIL import Image

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        drawn, reduced = io.BytesIO(), io.BytesIO()
        with style():
            figure = self.draw(self.outcome)
            figure.savefig(drawn, format="png", dpi=_DPI, metadata={"Software": None})
            plt.close(figure)
        colours = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        colours.save(reduced, "PNG", optimize=True)
        return reduced.getvalue()


def style() -> AbstractContextManager[None]:
    """matplotlib's settings, all of them ours: a user's own do not change a picture."""
    import matplotlib

    usual = matplotlib.rcParamsDefault.items()
    text = ("axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color")
    return matplotlib.rc_context(
        {
            **{key: value for key, value in usual if not key.startswith("backend")},
            **dict.fromkeys(text, _FRONT),
            **dict.fromkeys(("axes.edgecolor", "grid.color"), _LINES),
            **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
            **{"axes.grid": True, "grid.linewidth": 0.6, "figure.constrained_layout.use": True},
            **{"axes.titlesize": 10, "axes.titlelocation": "left"},
            **{"legend.fontsize": 8, "font.size": 9},
        }
    )


def pictures(outcome: Outcome) -> list[Picture]:
    """The pictures of a study; those for which there is nothing to draw are left out."""
    study, (score, costs) = outcome.study, _trade(outcome)
    rows = f"{study.split} rows"
    possible = {
        "forest": (
            _differences(outcome, outcome.pairs),
            f"{study.plot.reference} minus each other method over the same {rows}, with 95 % "
            "intervals; first the rival that matters. Inside the pale bar around 0 a true "
            "difference would not have been seen (80 % power). Hollow: no conclusion is drawn.",
            forest_figure,
        ),
        "trade": (
            costs,
            f"{score.capitalize()} against what it cost the rest of the model; best is the upper "
            f"left. Bars are 95 % intervals over {rows}, all seeds together; dashed: the base "
            "model's own score.",
            trade_figure,
        ),
        "curve": (
            study.axis and any(not group.is_base for group in outcome.groups),
            f"{outcome.main.capitalize()} and what happened elsewhere, along "
            f"{str(study.axis).replace('_', ' ')}. Bars are 95 % intervals over {rows}, thin lines "
            "over seeds (from three on), strokes single seeds, dashed lines methods without a "
            "place on the axis." + (" Stars are the paper's numbers." if _stars(outcome) else ""),
            curve_figure,
        ),
        "methods": (
            outcome.groups and not study.axis,
            f"Every method, all seeds together, with 95 % intervals over {rows}, and thin "
            "lines over seeds (from three on); strokes are single seeds, hollow marks runs "
            "that trained nothing or give one and the same label. Adherence is form alone: "
            "read it beside balanced accuracy.",
            methods_figure,
        ),
    }
    return [
        Picture(name, caption, draw, outcome)
        for name, (drawn, caption, draw) in possible.items()
        if drawn
    ]


# --- what all figures share -----------------------------------------------------------------------


def _bar(group: Group, name: str) -> Interval | None:
    """A measure of a group; None where it was not measured."""
    number = group.numbers.get(name)
    if number is None or number.value is None:
        return None
    middle = float(number.value)
    low = middle if number.low is None else min(number.low, middle)
    high = middle if number.high is None else max(number.high, middle)
    return Interval(middle, low, high)


def _ends(bars: Sequence[Interval]) -> list[list[float]]:
    """How far the intervals reach below and above their middles."""
    return [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]


def _measured(outcome: Outcome, names: Sequence[str]) -> list[str]:
    """Each of the names once that some group has a number of."""
    return [name for name in dict.fromkeys(names) if any(_bar(g, name) for g in outcome.groups)]


def _panels(outcome: Outcome) -> list[str]:
    """The measures that stand side by side, the main one first."""
    elsewhere = ("bleed", _FOREIGN, KL, "style fit minus base")
    return _measured(outcome, (outcome.main, *_CONTENT, *elsewhere))


def _is_share(outcome: Outcome, name: str) -> bool:
    """Whether a measure runs from 0 to 1."""
    return name in ("bleed", *_CONTENT) or (
        name == outcome.main and not scorers.reads_texts(outcome.study.metric)
    )


def _figure(outcome: Outcome, panels: int, width: float, height: float, *, lines: bool) -> Any:
    """A titled figure of panels side by side; `lines`: one line a method, from the top down."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(width, height), sharey=lines, squeeze=False)
    figure.suptitle(outcome.study.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure, axes[0]


def _legend(figure: Any, axis: Any, columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(len(labels), columns))


def _percent(axis: Any, side: str) -> None:
    from matplotlib.ticker import PercentFormatter

    getattr(axis, f"{side}axis").set_major_formatter(PercentFormatter(1.0, decimals=0))
    getattr(axis, f"set_{side}lim")(-0.04, 1.04)


def _logarithmic(axis: Any, least: float) -> None:
    """A logarithmic x axis from `least` on, straight from 0 to it; it names 5k, 10k and 20k."""
    from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter

    named = (digit * 10**power for power in range(13) for digit in (1, 2, 5))
    axis.set_xscale("symlog", linthresh=least, linscale=0.3)
    axis.xaxis.set_major_locator(FixedLocator([0, *(place for place in named if place >= least)]))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _palette(outcome: Outcome) -> dict[str, str]:
    """One colour a series, the reference first, grey for the base model."""
    names = {group.series: group.method for group in outcome.groups if not group.is_base}
    reference = outcome.study.plot.reference
    ordered = sorted(names, key=lambda name: names[name] != reference)
    return {
        **{name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(ordered)},
        **{group.series: _GREY for group in outcome.groups if group.is_base},
    }


def _draw_seeds(axis: Any, group: Group, place: float, colour: str, *, sideways: bool) -> None:
    """A stroke for each seed, and the interval over them as a thin line."""
    spread, seeds = group.over_seeds, group.seeds
    places = [place] * len(seeds)
    if spread is not None:
        line = axis.hlines if sideways else axis.vlines
        line(place, spread.low, spread.high, color=colour, linewidth=0.8)
    if len(seeds) > 1:
        points = (seeds, places, "|") if sideways else (places, seeds, "_")
        axis.plot(*points, color=colour, markersize=11)


# --- differences ----------------------------------------------------------------------------------


def forest_figure(outcome: Outcome) -> Any:
    """Paired differences of the reference to every other method, one line each."""
    rival = outcome.rival
    drawn = sorted(outcome.pairs, key=lambda pair: pair is not rival)
    panels = _differences(outcome, drawn)
    size = (2.6 + 2.5 * len(panels), 1.2 + 0.32 * len(drawn))
    figure, axes = _figure(outcome, len(panels), *size, lines=True)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        for place, (pair, value) in enumerate(zip(drawn, values, strict=True)):
            if value is not None:
                colour = _GREY if pair.stops else _COLOURS[0] if pair is rival else _COLOURS[1]
                face = axis.get_facecolor() if pair.stops else colour
                unseen = {"color": _GREY, "linewidth": 7, "alpha": 0.25}
                axis.hlines(place, -value.smallest, value.smallest, **unseen)
                axis.hlines(place, value.low, value.high, color=colour, linewidth=1.6)
                axis.plot(value.value, place, "o", color=colour, markerfacecolor=face, markersize=5)
        axis.axvline(0, color=_GREY, linewidth=1)
        axis.set_title(title)
    names = [pair.name.removeprefix(f"{pair.reference.method} ") for pair in drawn]
    points = [f" ({pair.point})" if pair.point else "" for pair in drawn]
    axes[0].set_yticks(range(len(names)), list(map(add, names, points)))
    axes[0].invert_yaxis()
    if rival is not None:
        axes[0].get_yticklabels()[0].set_fontweight("bold")
    return figure


def _differences(outcome: Outcome, drawn: Sequence[Pair]) -> dict[str, list[Difference | None]]:
    """Of each measure that has any: the difference of every pair."""
    found: dict[str, list[Difference | None]] = {}
    for name in dict.fromkeys((outcome.main, *_CONTENT, BLEED, _FOREIGN)):
        values = [pair.difference(name) for pair in drawn]
        if any(values):
            unit = "nats" if name == _FOREIGN else "points"
            found[f"{name.removesuffix(' minus base')}, {unit}"] = values
    return found


# --- the score against its cost -------------------------------------------------------------------


def _trade(outcome: Outcome) -> tuple[str, list[str]]:
    """The measure of content if there is one, else the main measure; and the costs that at least
    two trained methods have, none where the score is not a share."""
    score = next(iter(_measured(outcome, _CONTENT)), outcome.main)
    trained = [group for group in outcome.groups if not group.is_base]
    costs = [c for c in (_FOREIGN, KL) if sum(_bar(g, c) is not None for g in trained) > 1]
    return score, costs if _is_share(outcome, score) else []


def trade_figure(outcome: Outcome) -> Any:
    """The score against each cost: a mark for each method, joined along the axis if any."""
    name, costs = _trade(outcome)
    figure, axes = _figure(outcome, len(costs), 4.6 * len(costs), 3.8, lines=True)
    for axis, cost in zip(axes, costs, strict=True):
        for series, colour in _palette(outcome).items():
            mine = [g for g in outcome.groups if g.series == series and not g.is_base]
            mine.sort(key=lambda group: group.x(str(outcome.study.axis)) or 0)
            both = [(_bar(group, cost), _bar(group, name)) for group in mine]
            points = [(price, score) for price, score in both if price and score]
            if points:
                x, y = zip(*points, strict=True)
                look = {"fmt": "o-", "capsize": 2, "linewidth": 1, "markersize": 5}
                places = [[bar.value for bar in side] for side in (x, y)]
                ends = {"xerr": _ends(x), "yerr": _ends(y)}
                axis.errorbar(*places, **ends, label=series, color=colour, **look)
        for base in (group for group in outcome.groups if group.is_base):
            if score := _bar(base, name):
                axis.axhline(score.value, color=_GREY, linestyle="--", linewidth=1)
        axis.axvline(0, color=_GREY, linewidth=1)
        axis.set_xlabel(f"{cost}, nats a token")
    axes[0].set_ylabel(name)
    _percent(axes[0], "y")
    _legend(figure, axes[0], 4)
    return figure


# --- methods --------------------------------------------------------------------------------------


def methods_figure(outcome: Outcome) -> Any:
    """One line a method, one panel a measure."""
    panels, palette, groups = _panels(outcome), _palette(outcome), outcome.groups
    size = (2.3 + 2.3 * len(panels), 1.3 + 0.34 * len(groups))
    figure, axes = _figure(outcome, len(panels), *size, lines=True)
    for axis, name in zip(axes, panels, strict=True):
        of_task = name in (outcome.main, *_CONTENT)
        for place, group in enumerate(groups):
            bar, colour = _bar(group, name), palette[group.series]
            if bar is None:
                continue
            hollow = group.no_op or (of_task and group.constant)
            face = "none" if hollow else colour
            mark = {"fmt": "o", "color": colour, "markerfacecolor": face, "capsize": 2}
            axis.errorbar(bar.value, place, xerr=_ends([bar]), **mark)
            if name == outcome.main:
                _draw_seeds(axis, group, place, colour, sideways=True)
        axis.set_title(name)
        if _is_share(outcome, name):
            _percent(axis, "x")
        else:
            axis.axvline(0, color=_GREY, linewidth=1)
    axes[0].set_yticks(range(len(groups)), [_marked(group) for group in groups])
    axes[0].invert_yaxis()
    return figure


def _marked(group: Group) -> str:
    marks = [m for m, on in (("no-op", group.no_op), ("constant", group.constant)) if on]
    count = group.steps[-1] if group.steps and not group.is_base else 0
    steps = f"{count:,} step{'s' if count > 1 else ''}" if count else ""
    inside = ", ".join(part for part in (steps, *marks) if part)
    return f"{group.name}\n({inside})" if inside else group.name


# --- curves ---------------------------------------------------------------------------------------


def curve_figure(outcome: Outcome) -> Any:
    """Measures along the axis, a panel each, with the paper's points."""
    x = str(outcome.study.axis)
    panels, palette = _panels(outcome)[:4], _palette(outcome)
    figure, axes = _figure(outcome, len(panels), 4.4 * len(panels), 3.8, lines=False)
    trained = [group for group in outcome.groups if not group.is_base]
    places = [place for group in trained if group.at and (place := group.x(x))]
    for axis, name in zip(axes, panels, strict=True):
        for group in outcome.groups:
            bar = _bar(group, name) if group.is_base or not group.at else None
            if bar is not None:  # it has no place on the axis
                colour, line = palette[group.series], {"linestyle": "--", "linewidth": 1.2}
                axis.axhline(bar.value, color=colour, label=group.series, **line)
                axis.axhspan(bar.low, bar.high, color=colour, alpha=0.08, lw=0)
        for series in dict.fromkeys(group.series for group in trained):
            mine = [(g.x(x), g) for g in trained if g.series == series and g.at]
            points = [(place, g) for place, g in mine if place is not None and _bar(g, name)]
            if points:
                points.sort(key=itemgetter(0))
                _draw_curve(axis, points, name, palette[series], seeds=name == outcome.main)
        _logarithmic(axis, min(places, default=1.0))
        axis.set_xlabel(x.replace("_", " "))
        axis.set_title(name)
        if _is_share(outcome, name):
            _percent(axis, "y")
        for number, star in enumerate(_stars(outcome) if name == outcome.main else ()):
            label = f"paper ({paper().model.split(',')[0]})" if number == 0 else None
            colour, look = palette.get(star.method, _GREY), {"markersize": 10, "alpha": 0.55}
            axis.plot(star.x, star.value, "*", color=colour, label=label, **look)
    _legend(figure, axes[0], 5)
    return figure


def _draw_curve(
    axis: Any, points: Sequence[tuple[float, Group]], name: str, colour: str, *, seeds: bool
) -> None:
    places = [place for place, _ in points]
    bars = [bar for _, group in points if (bar := _bar(group, name))]
    line = {"fmt": "-o", "color": colour, "capsize": 2, "label": points[0][1].series}
    middle, low, high = zip(*bars, strict=True)
    axis.errorbar(places, middle, yerr=_ends(bars), **line)
    axis.fill_between(places, low, high, color=colour, alpha=0.12, lw=0)
    for (place, group), bar in zip(points, bars, strict=True):
        if seeds:
            _draw_seeds(axis, group, place, colour, sideways=False)
        if group.no_op:
            face = axis.get_facecolor()
            axis.plot(place, bar.value, "o", color=colour, markerfacecolor=face, zorder=5)


def _stars(outcome: Outcome) -> list[Point]:
    """The paper's points that have a place on the axis."""
    study = outcome.study
    fits = paper().metric == outcome.main and str(study.axis).endswith("_tokens")
    if study.published is None or not fits:
        return []
    return [point for point in study.published.points if point.x is not None]
