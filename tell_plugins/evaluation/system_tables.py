"""What `eval` and `compare` print of systems.

`eval`: one line a system, the task beside what the run did elsewhere. `compare`: every measure of
every scorer, the differences, and what these say in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from tell_plugins.core.cards import Card
from tell_plugins.evaluation import bleed, elsewhere
from tell_plugins.evaluation.adapters import BASE
from tell_plugins.evaluation.answers import GENERAL
from tell_plugins.evaluation.differences import Difference
from tell_plugins.evaluation.elsewhere import Elsewhere, General
from tell_plugins.evaluation.grids import Cell, Grid, pivot, print_grid, table_console
from tell_plugins.evaluation.intervals import Estimate, shown, smallest_shown
from tell_plugins.evaluation.judged import KINDS, Judged
from tell_plugins.evaluation.scorers import SECOND_READINGS
from tell_plugins.evaluation.scorers.learned import LEARNED
from tell_plugins.evaluation.scoring import System, spaced, system_of
from tell_plugins.evaluation.system_names import system_names

if TYPE_CHECKING:
    from tell_plugins.evaluation.compare import Comparison

_CAPTION = "[95 % interval]. Accuracies count an answer of the wrong form as wrong."
_CAPTION_ELSEWHERE = (
    "[95 % interval], paired where it is a change.",
    "Bleed: general questions, asked without the anchor, whose answer opens as the task's answers "
    "do; in points, minus the base model's rate.",
    "Words: answers that hold the task's keys, labels or most common sentence.",
    "Circles: answers to the same questions that repeat one piece over and over.",
    "Foreign instructions and prose: change of loss per token to the base model, on text of no "
    "source that trains.",
    "KL: divergence from the base model per token of its own answers.",
    "Style fit: change of loss on held-out rows of the general data that trains; not retention.",
)
_MOST_SHOWN = 60  # characters of a constant answer
_UNTOLD, _UNMEASURED = "not told apart from", "not measured against"
# what is shown under every reading, side by side, by the card's metric
_SIDE_BY_SIDE = {"json": ("adherence",), "translation": ("chrf++", "bleu")}
# what was kept of the rest of the model: less is better
_KEPT = {
    elsewhere.INSTRUCTIONS: "loss on foreign instructions",
    elsewhere.PROSE: "loss on prose",
    elsewhere.KL: "divergence from the base model",
}


def cell(value: Estimate | None) -> str:
    """A number and, on a line of its own, its 95 % interval; a rate as a share of its rows."""
    if value is None or value.value is None or value.k is None:
        return shown(value, between="\n")
    share, _, ends = shown(value, 0, factor=100, between="\n").partition("\n")
    return f"{share}% of {value.n}\n{ends}"


def both_tables(systems: Sequence[System], title: str) -> list[Grid]:
    """What the systems did on the task, and to the rest of the model where that was measured."""
    rest = elsewhere_table(systems)
    return [table(systems, title), *([] if rest is None else [rest])]


def table(systems: Sequence[System], title: str) -> Grid:
    """One row a system: its headline scores on the task."""
    found = [(system.name, system.headline) for system in systems]
    names = list(dict.fromkeys(name for _, numbers in found for name in numbers))
    rows = [[name, *(cell(numbers.get(n)) for n in names)] for name, numbers in found]
    return Grid(title, ["system", *names], rows, [_CAPTION])


def elsewhere_table(systems: Sequence[System]) -> Grid | None:
    """One row a system: what it did to the rest of the model; None where nothing was measured."""
    found = [(system.name, _elsewhere(system.general.numbers)) for system in systems]
    names = [n for n in (found[0][1] if found else ()) if any(row[n] != "-" for _, row in found)]
    if not names:
        return None
    rows = [[label, *(row[name] for name in names)] for label, row in found]
    notes = [*_CAPTION_ELSEWHERE, _power(systems)]
    return Grid("The rest of the model", ["system", *names], rows, notes)


def _elsewhere(general: Elsewhere) -> dict[str, str]:
    rate = cell(general[bleed.BLEED])
    if elsewhere.BLEED in general:
        points = shown(general[elsewhere.BLEED], 0, factor=100, sign="+", between="\n")
        rate = f"{rate.partition(chr(10))[0]}, {points}"
    changes = {
        name: shown(general.get(name), sign="+", between="\n") for name in elsewhere.LOSS_FILES
    }
    style = shown(general[elsewhere.STYLE_FIT], interval=False)
    if elsewhere.STYLE_CHANGE in general:
        style += f", {changes[elsewhere.STYLE_CHANGE]}"
    return {
        "bleed": rate,
        "words": cell(general[bleed.WORDS]),
        "circles": cell(general[bleed.CIRCLES]),
        "foreign instructions": changes[elsewhere.INSTRUCTIONS],
        "prose": changes[elsewhere.PROSE],
        "KL": shown(general.get(elsewhere.KL), 3, between="\n"),
        "style fit": style,
    }


def _power(systems: Sequence[System]) -> str:
    """The smallest differences to the base model that the rows of any system would show."""
    found = []
    for name, key, factor, unit in (
        ("bleed", elsewhere.BLEED, 100, " points"),
        ("instructions", elsewhere.INSTRUCTIONS, 1, " nats"),
        ("prose", elsewhere.PROSE, 1, " nats"),
    ):
        changes = [change for s in systems if (change := s.general.numbers.get(key)) is not None]
        seen = [smallest_shown(c.low or 0, c.high or 0) for c in changes]
        measured = [least for least in seen if math.isfinite(least)]  # not of a run that diverged
        if measured:
            least = max(measured) * factor
            found.append(f"{name} {least:.{0 if factor > 1 else 2}f}{unit}")
    if not found:
        return "Changes need the base model's answers: --adapter none DIR."
    return f"These rows show differences to the base from about {', '.join(found)} on (80 % power)."


def print_summary(out: Path, labels: Sequence[str], answers: Sequence[str], card: Card) -> None:
    """Print the table of the systems of one `eval` call, and why answers failed."""
    console = table_console()
    for name in answers:
        base = out / BASE / GENERAL
        found = [system_of(label, out / label / name, base) for label in labels]
        named = zip(found, system_names([system.scored for system in found]), strict=True)
        systems = [replace(system, name=other) for system, other in named]
        rows = systems[0].rows
        grids = both_tables(systems, f"{card.name}, {name}: {rows} rows")
        for grid in grids if name == answers[-1] else grids[:1]:
            print_grid(grid, console)
        for system in systems:
            kinds = system.first.failures if card.metric == "json" else {}
            if told := ", ".join(f"{count} {kind}" for kind, count in kinds.items()):
                console.print(f"{system.name}: not adherent: {told}", highlight=False)


# --- what `compare` shows -------------------------------------------------------------------------


def grids(comparison: Comparison) -> list[Grid]:
    """The tables of a comparison."""
    systems = comparison.systems
    task, readings = systems[0].scored.asked, systems[0].readings
    tables: list[tuple[str, Iterator[Cell], list[str]]] = []
    for measure in _SIDE_BY_SIDE.get(comparison.metric, ()) if len(readings) > 1 else ():
        unit = " in %" if systems[0].first.columns[measure].percent else ""
        tables.append((f"{spaced(measure)}{unit}", _side_by_side(systems, measure), []))
    for name, reading in readings.items():
        if name not in SECOND_READINGS:
            tables.append((f"{spaced(name)}, shares in %", _measures(systems, name), reading.notes))
            tables.append((f"{spaced(name)}, by field, in %", _fields(systems, name), []))
    tables.append(("why answers fail", _failures(systems), []))
    found = [
        pivot(f"{task.card.name}, {task.split}: {title}", cells, notes)
        for title, cells, notes in tables
    ]
    found[0].notes.extend(["brackets: 95 % intervals", *_notes(systems)])
    if comparison.differences:
        found.append(difference_grid(comparison))
    return [grid for grid in found if grid.rows]


def _side_by_side(systems: Sequence[System], measure: str) -> Iterator[Cell]:
    """One measure under every reading, and beside JSON adherence the paper's."""
    for system in systems:
        for name, reading in system.readings.items():
            yield _row(system), spaced(name), _shown(reading, measure)
        if system.paper is not None:
            about = "about " if system.paper.approximate else ""
            yield _row(system), "paper", f"{about}{100 * system.paper.value:g}"


def _measures(systems: Sequence[System], name: str) -> Iterator[Cell]:
    """Every measure of one reading, and what the first system's constant is worth."""
    for system in systems:
        reading = system.readings[name]
        for measure in reading.columns:
            if ":" not in measure:
                yield _row(system), spaced(measure), _shown(reading, measure)
        if (most := reading.most_frequent) is not None:
            share = shown(most.share, 1, factor=100, interval=False)
            yield _row(system), "most frequent", f"{most.text} {share}"
    text, constant = systems[0].constant
    row = _row(systems[0]) | {"system": f"(baseline) {shorten(text, _MOST_SHOWN)}"}
    for measure in constant.measures:
        yield row, spaced(measure), _shown(constant, measure)


def _fields(systems: Sequence[System], name: str) -> Iterator[Cell]:
    """Precision, recall and F1 of each key of JSON answers."""
    for system in systems:
        for measure in system.readings[name].columns:
            of, colon, field = measure.partition(":")
            if colon:
                row = {"system": system.name, "field": field}
                yield row, spaced(of), _shown(system.readings[name], measure)


def _failures(systems: Sequence[System]) -> Iterator[Cell]:
    found = [
        ({"system": system.name, "scorer": spaced(name)}, reading.failures)
        for system in systems
        for name, reading in system.readings.items()
        if name != "official"
    ]
    kinds = [kind for kind in KINDS if any(kind in failures for _, failures in found)]
    for row, failures in found if kinds else []:
        yield row, "failures", str(sum(failures.values()))
        yield from ((row, spaced(kind), str(failures.get(kind, 0))) for kind in kinds)


def _row(system: System) -> dict[str, str]:
    """How a line begins: which system, and how many test rows it answered."""
    rows = str(system.rows) if system.complete else f"{system.rows} of {system.scored.expected}"
    times = "" if system.attempts == 1 else f" x {system.attempts}"
    return {"system": system.name, "rows": rows + times}


def _shown(reading: Judged, measure: str) -> str:
    """A share in per cent, a learned score with four digits, its interval on a line of its own."""
    value = reading.numbers[measure]
    if reading.columns[measure].percent:
        return shown(value, 1, factor=100, between="\n")
    return shown(value, 4 if measure.startswith(LEARNED) else 2, between="\n")


def _notes(systems: Sequence[System]) -> Iterator[str]:
    for system in systems:
        same, cut = system.most_frequent_answer.share, system.cut
        if same.n > 1 and (same.value or 0) > 0.5:
            share = shown(same, 0, factor=100, interval=False)
            yield f"{system.name}: {share} % of the answers are one and the same text"
        if cut.k:
            found = f"{cut.k} of {cut.n} answers"
            yield f"{system.name}: {found} were cut by the limit of new tokens"
    if "official" in systems[0].readings:
        yield "official: the published script's behaviour; it fails a perfect model too"
    if sources := sorted({system.paper.source for system in systems if system.paper}):
        yield (
            f"paper: adherence stated in {', '.join(sources)}; counted by a script that is not "
            "the published one"
        )


def difference_grid(comparison: Comparison) -> Grid:
    """The paired differences to the baseline, and whether the rows tell the two apart."""
    main = _SIDE_BY_SIDE.get(comparison.metric, ())
    rows = []
    for one in comparison.differences:
        if one.measure in main or one.scorer not in SECOND_READINGS:
            digits = 4 if one.measure.startswith(LEARNED) else 2  # learned scores are near 0 to 1
            factor = 100.0 if one.column.percent else 1.0
            value = shown(one.difference, digits, factor=factor, sign="+", between="\n")
            names = [one.system, spaced(one.scorer), spaced(one.measure)]
            rows.append([*names, value, f"{one.difference.p:.4f}", str(one.difference.n)])
    first = comparison.differences[0].difference
    units = {"translation": "points", "text": "points (exact match: percentage points)"}
    return Grid(
        f"difference to {comparison.baseline}, in "
        + units.get(comparison.metric, "percentage points"),
        ["system", "scorer", "measure", "difference", "p", "shared rows"],
        rows,
        [
            "intervals over test rows: of shares and of their means by square-and-add, else by "
            f"paired bootstrap; p by approximate randomization, two-sided, {first.resamples} "
            f"draws, seed {first.seed}, not corrected for the number of comparisons"
        ],
    )


# --- in words -------------------------------------------------------------------------------------


def print_verdict(comparison: Comparison) -> None:
    """Print each system's paired differences to the first one, and what they say of each but the
    base model: in what it is better, in what worse, and what is not told apart."""
    if not comparison.differences:
        return
    console = table_console()
    print_grid(difference_grid(comparison), console)
    baseline, *others = comparison.systems
    for own in (system for system in others if system.scored.settings.adapter != BASE):
        said = list(_said(comparison, own, baseline))
        for word in ("better than", "worse than", _UNTOLD, _UNMEASURED):
            if found := [measure for of, measure in said if of == word]:
                text = f"{own.name} is {word} {baseline.name}: {', '.join(found)}"
                console.print(text, highlight=False)


def _said(comparison: Comparison, own: System, baseline: System) -> Iterator[tuple[str, str]]:
    """What the differences of one system say, and of which measure: of the task's, and of the rest
    of the model with the difference itself, which no table above shows."""
    for one in comparison.differences:
        if one.system == own.name and one.scorer not in SECOND_READINGS and one.column.good:
            yield _word(one.difference, one.column.good), spaced(one.measure)
    here, there = (system.scored.folder.parent / GENERAL for system in (own, baseline))
    mine, theirs = General([elsewhere.read(here)]), General([elsewhere.read(there, here)])
    for name, what in _KEPT.items():
        moved = mine.minus(theirs, name)
        if moved is not None and math.isnan(moved.value):
            yield _UNMEASURED, f"{what} (no number: a run diverged)"
        elif moved is not None:
            yield _word(moved, -1), f"{what} ({shown(moved, sign='+')} nats a token)"


def _word(found: Difference, good: int) -> str:
    """What a difference says of a measure, of which more is `good` (1) or not (-1)."""
    if not found.told_apart:
        return _UNTOLD
    return "better than" if found.better == (good > 0) else "worse than"
