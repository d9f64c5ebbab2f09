"""The pictures of a report, with matplotlib: the same bytes every time, on a ground of their own.

A stroke is one seed, a mark all seeds together, a bar or band the 95 % interval over test rows.
Nothing is drawn without it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from tell_plugins.evaluation.paper_numbers import Point, paper, published
from tell_plugins.experiments.fairness import caveats
from tell_plugins.experiments.measures import BLEED, KL, MAIN, Difference, Judge, Number
from tell_plugins.experiments.results import AS_SAVED, Study
from tell_plugins.experiments.tables import (
    CONTENT,
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
_CONTENT = tuple(name for name in CONTENT if name != "exact match")  # F1 says more of fields
_FOREIGN = "foreign instructions minus base"


@dataclass(frozen=True)
class Picture:
    """A picture: its file name without ending, what it shows, and how it is drawn."""

    name: str
    caption: str
    draw: Callable[[], Any]

    def png(self) -> bytes:
        """The picture as PNG in 256 colours, the same bytes every time."""
        import matplotlib
        from PIL import Image

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        drawn, reduced = io.BytesIO(), io.BytesIO()
        with style():
            figure = self.draw()
            figure.savefig(drawn, format="png", dpi=_DPI, metadata={"Software": None})
            plt.close(figure)
        colours = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        colours.save(reduced, "PNG", optimize=True)
        return reduced.getvalue()


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
    possible = {
        "forest": (
            _differences(study, list(pairs(study, found)), judge),  # none for scores as saved
            f"{study.plot.reference} minus each other method over the same {rows}, with 95 % "
            "intervals; first the rival that matters. Inside the pale bar around 0 a true "
            "difference would not have been seen (80 % power). Hollow: no conclusion is drawn.",
            lambda: forest_figure(study, found, judge),
        ),
        "trade": (
            _trades(study, found),
            f"{_score(study, found).capitalize()} against what it cost the rest of the model; best "
            f"is the upper left. Bars are 95 % intervals over {rows}, all seeds together; dashed: "
            "the base model's own score.",
            lambda: trade_figure(study, found),
        ),
        "curve": (
            study.axis and any(not group.is_base for group in found),
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
    }
    return [
        Picture(f"{study.name}_{name}", caption, draw)
        for name, (drawn, caption, draw) in possible.items()
        if drawn
    ]


def _figure(study: Study, panels: int, width: float, height: float, *, lines: bool) -> Any:
    """A titled figure of panels side by side; `lines`: one line a method, from the top down."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(width, height), sharey=lines, squeeze=False)
    figure.suptitle(study.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure, axes[0]


def _percent(axis: Any, side: str) -> None:
    from matplotlib.ticker import PercentFormatter

    getattr(axis, f"{side}axis").set_major_formatter(PercentFormatter(1.0, decimals=0))
    getattr(axis, f"set_{side}lim")(-0.04, 1.04)


def _logarithmic(axis: Any, least: float) -> None:
    """A logarithmic x axis from `least` on, straight from 0 to it; it names 5k, 10k and 20k."""
    from matplotlib.ticker import EngFormatter, NullFormatter, SymmetricalLogLocator

    axis.set_xscale("symlog", linthresh=least, linscale=0.3)
    axis.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=least, subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())


@dataclass(frozen=True)
class _Panel:
    """One measure of a group. `share`: it runs from 0 to 1; `main`: seeds are drawn one by one."""

    title: str
    of: Callable[[Group], Number | None]
    share: bool
    main: bool = False


def _panels(study: Study, found: Sequence[Group]) -> list[_Panel]:
    """The measures that some group has."""
    main = MAIN[study.metric]
    share = study.metric not in AS_SAVED
    panels = [_Panel(main, lambda g: g.measures.main(study.metric), share, main=True)]
    for name in _CONTENT:
        if name != main:
            panels.append(_Panel(name, lambda g, name=name: g.measures.task.get(name), True))  # type: ignore[misc]
    for name in ("bleed", _FOREIGN, KL, "style fit minus base"):
        panels.append(
            _Panel(name, lambda g, name=name: g.measures.elsewhere.get(name), name == "bleed")  # type: ignore[misc]
        )
    return [panel for panel in panels if any(_has(panel.of(group)) for group in found)]


def _has(value: Number | None) -> bool:
    return value is not None and value.value is not None


def _bar(value: Number | None) -> tuple[float, float, float]:
    """Value and the two lengths of its interval's bar."""
    assert value is not None
    middle = float(value.value or 0.0)
    low = middle if value.low is None else value.low
    high = middle if value.high is None else value.high
    return middle, max(middle - low, 0.0), max(high - middle, 0.0)


def forest_figure(study: Study, found: Sequence[Group], judge: Judge) -> Any:
    """Paired differences of the reference to every other method, one line each."""
    rival = rival_of(study, found)
    drawn = sorted(pairs(study, found), key=lambda pair: pair != rival)
    panels = _differences(study, drawn, judge)
    size = (2.6 + 2.5 * len(panels), 1.2 + 0.32 * len(drawn))
    figure, axes = _figure(study, len(panels), *size, lines=True)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        for place, (pair, value) in enumerate(zip(drawn, values, strict=True)):
            if value is not None:
                stopped = any(caveat.stops for caveat in caveats(*same_seeds(*pair)))
                _draw_difference(axis, place, value, hollow=stopped, first=pair == rival)
        axis.axvline(0, color=_GREY, linewidth=1)
        axis.set_title(title)
    axes[0].set_yticks(range(len(drawn)), [_forest_name(pair) for pair in drawn])
    axes[0].invert_yaxis()
    if rival is not None:
        axes[0].get_yticklabels()[0].set_fontweight("bold")
    return figure


def _forest_name(pair: tuple[Group, Group]) -> str:
    name, point = pair_name(*pair).removeprefix(f"{pair[0].method} "), point_of_pair(*pair)
    return f"{name} ({point})" if point else name


def _differences(
    study: Study, drawn: Sequence[tuple[Group, Group]], judge: Judge
) -> dict[str, list[Difference | None]]:
    """Of each measure that has any: the difference of every pair, shares in points."""
    found: dict[str, list[Difference | None]] = {}
    for name in dict.fromkeys((MAIN[study.metric], *_CONTENT, BLEED, _FOREIGN)):
        values = [judge.difference(*same_seeds(*pair), name) for pair in drawn]
        unit, factor = ("nats", 1) if name == _FOREIGN else ("points", 100)
        if any(values):
            title = f"{name.removesuffix(' minus base')}, {unit}"
            found[title] = [value and value.times(factor) for value in values]
    return found


def _draw_difference(
    axis: Any, place: int, value: Difference, *, hollow: bool, first: bool
) -> None:
    colour = _GREY if hollow else _COLOURS[0] if first else _COLOURS[1]
    axis.hlines(place, -value.smallest, value.smallest, color=_GREY, linewidth=7, alpha=0.25)
    axis.hlines(place, value.low, value.high, color=colour, linewidth=1.6)
    face = axis.get_facecolor() if hollow else colour
    axis.plot(value.value, place, "o", color=colour, markerfacecolor=face, markersize=5)


def _trades(study: Study, found: Sequence[Group]) -> list[str]:
    """The costs that at least two trained methods have; none where the score is not a share."""
    if study.metric in AS_SAVED:
        return []
    trained = [group for group in found if not group.is_base]
    measured = {
        cost: sum(_has(group.measures.elsewhere.get(cost)) for group in trained)
        for cost in (_FOREIGN, KL)
    }
    return [cost for cost, methods in measured.items() if methods > 1]


def _score(study: Study, found: Sequence[Group]) -> str:
    """The measure of content if there is one, else the study's main measure."""
    measured = [name for group in found for name in _CONTENT if _has(group.measures.task.get(name))]
    return measured[0] if measured else MAIN[study.metric]


def _score_of(group: Group, study: Study, name: str) -> Number | None:
    if name == MAIN[study.metric]:
        return group.measures.main(study.metric)
    return group.measures.task.get(name)


def trade_figure(study: Study, found: Sequence[Group]) -> Any:
    """The score against each cost: a mark for each method, joined along the axis if any."""
    costs, palette, name = _trades(study, found), colours(study, found), _score(study, found)
    figure, axes = _figure(study, len(costs), 4.6 * len(costs), 3.8, lines=True)
    for axis, cost in zip(axes, costs, strict=True):
        for series, colour in palette.items():
            mine = [group for group in found if group.series == series]
            points = [
                (_bar(price), _bar(score))
                for group in mine
                if not group.is_base
                and _has(price := group.measures.elsewhere.get(cost))
                and _has(score := _score_of(group, study, name))
            ]
            _draw_trade(axis, points, series, colour)
        for base in (group for group in found if group.is_base):
            score = _score_of(base, study, name)
            if _has(score):
                axis.axhline(_bar(score)[0], color=_GREY, linestyle="--", linewidth=1)
        axis.axvline(0, color=_GREY, linewidth=1)
        axis.set_xlabel(f"{cost}, nats a token")
    axes[0].set_ylabel(name)
    _percent(axes[0], "y")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(len(labels), 4))
    return figure


_Bar = tuple[float, float, float]  # a value and the two lengths of its interval


def _draw_trade(axis: Any, points: Sequence[tuple[_Bar, _Bar]], label: str, colour: str) -> None:
    if points:
        x, y = (list(zip(*side, strict=True)) for side in zip(*points, strict=True))
        style = {"fmt": "o-", "color": colour, "capsize": 2, "linewidth": 1, "markersize": 5}
        axis.errorbar(x[0], y[0], xerr=x[1:], yerr=y[1:], label=label, **style)


def methods_figure(study: Study, found: Sequence[Group]) -> Any:
    """One line a method, one panel a measure."""
    panels, palette = _panels(study, found), colours(study, found)
    size = (2.3 + 2.3 * len(panels), 1.3 + 0.34 * len(found))
    figure, axes = _figure(study, len(panels), *size, lines=True)
    for axis, panel in zip(axes, panels, strict=True):
        for place, group in enumerate(found):
            if not _has(panel.of(group)):
                continue
            middle, below, above = _bar(panel.of(group))
            colour = palette[group.series]
            of_task = panel.main or panel.title in _CONTENT
            hollow = group.no_op or (of_task and group.measures.constant)
            face = "none" if hollow else colour
            ends = [[below], [above]]
            mark = {"fmt": "o", "color": colour, "markerfacecolor": face, "capsize": 2}
            axis.errorbar(middle, place, xerr=ends, **mark)
            if panel.main:
                _draw_seeds(axis, group, place, colour, sideways=True)
        axis.set_title(panel.title)
        if panel.share:
            _percent(axis, "x")
        else:
            axis.axvline(0, color=_GREY, linewidth=1)
    axes[0].set_yticks(range(len(found)), [_marked(group) for group in found])
    axes[0].invert_yaxis()
    return figure


def _marked(group: Group) -> str:
    marks = [m for m, on in (("no-op", group.no_op), ("constant", group.measures.constant)) if on]
    count = group.steps[-1] if group.steps and not group.is_base else 0
    steps = f"{count:,} step{'s' if count > 1 else ''}" if count else ""
    inside = ", ".join(part for part in (steps, *marks) if part)
    return f"{group.name}\n({inside})" if inside else group.name


def curve_figure(study: Study, found: Sequence[Group]) -> Any:
    """Measures along the axis, a panel each, with the paper's points."""
    name = str(study.axis)
    panels, palette = _panels(study, found)[:4], colours(study, found)
    figure, axes = _figure(study, len(panels), 4.4 * len(panels), 3.8, lines=False)
    least = min((x for group in found if group.at and (x := group.x(name))), default=1.0)
    for axis, panel in zip(axes, panels, strict=True):
        for group in found:
            if _has(panel.of(group)) and (group.is_base or not group.at):
                _draw_level(axis, group, panel, palette[group.series])
        for series in dict.fromkeys(group.series for group in found if not group.is_base):
            mine = [
                (group.x(name), group) for group in found if group.series == series and group.at
            ]
            points = [(x, g) for x, g in mine if x is not None and _has(panel.of(g))]
            if points:
                _draw_curve(axis, sorted(points, key=itemgetter(0)), panel, palette[series])
        _logarithmic(axis, least)
        axis.set_xlabel(name.replace("_", " "))
        axis.set_title(panel.title)
        if panel.share:
            _percent(axis, "y")
        if panel.main:
            _draw_published(axis, study, palette)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(len(labels), 5))
    return figure


def _draw_level(axis: Any, group: Group, panel: _Panel, colour: str) -> None:
    """A method without a place on the axis: a dashed line with its interval."""
    middle, below, above = _bar(panel.of(group))
    axis.axhline(middle, color=colour, linestyle="--", linewidth=1.2, label=group.series)
    axis.axhspan(middle - below, middle + above, color=colour, alpha=0.08, lw=0)


def _draw_curve(
    axis: Any, points: Sequence[tuple[float, Group]], panel: _Panel, colour: str
) -> None:
    places = [place for place, _ in points]
    middle, below, above = zip(*(_bar(panel.of(group)) for _, group in points), strict=True)
    line = {"fmt": "-o", "color": colour, "capsize": 2, "label": points[0][1].series}
    axis.errorbar(places, middle, yerr=[below, above], **line)
    low = [value - length for value, length in zip(middle, below, strict=True)]
    high = [value + length for value, length in zip(middle, above, strict=True)]
    axis.fill_between(places, low, high, color=colour, alpha=0.12, lw=0)
    for (place, group), value in zip(points, middle, strict=True):
        if panel.main:
            _draw_seeds(axis, group, place, colour, sideways=False)
        if group.no_op:
            face = axis.get_facecolor()
            axis.plot(place, value, "o", color=colour, markerfacecolor=face, zorder=5)


def _draw_seeds(axis: Any, group: Group, place: float, colour: str, *, sideways: bool) -> None:
    """A stroke for each seed, and the interval over them as a thin line."""
    spread, seeds = group.measures.over_seeds, group.measures.seeds
    places = [place] * len(seeds)
    if spread is not None:
        line = axis.hlines if sideways else axis.vlines
        line(place, spread.low, spread.high, color=colour, linewidth=0.8)
    if len(seeds) > 1:
        points = (seeds, places, "|") if sideways else (places, seeds, "_")
        axis.plot(*points, color=colour, markersize=11)


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
