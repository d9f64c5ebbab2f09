"""What `compare` shows: tables on the terminal, and all numbers as records for CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation.adapters import BASE
from tell_plugins.evaluation.answers import GENERAL
from tell_plugins.evaluation.bleed import Form
from tell_plugins.evaluation.differences import Difference
from tell_plugins.evaluation.grids import Grid, print_grid, table_console
from tell_plugins.evaluation.intervals import Estimate, Rate, shown
from tell_plugins.evaluation.judged import KINDS
from tell_plugins.evaluation.paper_numbers import is_papers_task
from tell_plugins.evaluation.scorers import SECOND_READINGS
from tell_plugins.evaluation.scorers.learned import LEARNED
from tell_plugins.evaluation.scoring import Reading, System, spaced

if TYPE_CHECKING:
    from tell_plugins.evaluation.compare import Comparison

Row = dict[str, str]  # cells by column
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


def print_verdict(comparison: Comparison) -> None:
    """Print each system's paired differences to the last one, and what they say of each but the
    base model: in what it is better, in what worse, and what is not told apart."""
    if not comparison.differences:
        return
    console = table_console()
    print_grid(difference_grid(comparison), console)
    *others, baseline = comparison.systems
    for own in (system for system in others if system.scored.settings.adapter != BASE):
        said = [*_on_the_task(comparison, own), *_elsewhere(own, baseline)]
        for word in ("better than", "worse than", _UNTOLD, _UNMEASURED):
            if found := [measure for of, measure in said if of == word]:
                text = f"{own.name} is {word} {baseline.name}: {', '.join(found)}"
                console.print(text, highlight=False)


def _on_the_task(comparison: Comparison, own: System) -> Iterator[tuple[str, str]]:
    """What the paired differences of one system say, and of which measure."""
    for one in comparison.differences:
        if one.system == own.name and one.scorer not in SECOND_READINGS and one.column.good:
            yield _word(one.difference, one.column.good), spaced(one.measure)


def _elsewhere(own: System, baseline: System) -> Iterator[tuple[str, str]]:
    """The same of the rest of the model, with the difference, which no table above shows."""
    mine, theirs = (system.scored.folder.parent / GENERAL for system in (own, baseline))
    sides = [elsewhere.read(mine)], [elsewhere.read(theirs, mine)]
    for name, what in _KEPT.items():
        moved = elsewhere.change(name, *sides, Form())
        if moved is not None and math.isnan(moved.value):
            yield _UNMEASURED, f"{what} (no number: a run diverged)"
        elif moved is not None:
            yield _word(moved, -1), f"{what} ({shown(moved, sign='+')} nats a token)"


def _word(found: Difference, good: int) -> str:
    """What a difference says of a measure, of which more is `good` (1) or not (-1)."""
    if not found.told_apart:
        return _UNTOLD
    return "better than" if found.better == (good > 0) else "worse than"


def grids(comparison: Comparison) -> list[Grid]:
    """The tables of a comparison."""
    systems = comparison.systems
    names = _readings(systems[0])
    found = [
        _side_by_side(systems, names, measure)
        for measure in _SIDE_BY_SIDE.get(comparison.metric, ())
        if len(names) > 1
    ]
    for name in names:
        if name not in SECOND_READINGS:
            found += [_measures_grid(systems, name), *_field_grid(systems, name)]
    found += _failure_grid(systems, names)
    if comparison.differences:
        found.append(difference_grid(comparison))
    found[0].notes.extend(_notes(systems, names))
    return found


def _readings(system: System) -> list[str]:
    """The readings that are shown; those of the paper's script for the paper's task alone."""
    papers = is_papers_task(system.scored.card)
    return [n for n in system.scores.readings if papers or not n.startswith("official")]


def _grid(
    systems: Sequence[System], what: str, records: Sequence[Row], notes: Sequence[str] = ()
) -> Grid:
    """A table of all systems; the first record names the columns."""
    first, names = systems[0].scores, list(records[0])
    rows = [[record.get(name, "") for name in names] for record in records]
    return Grid(f"{first.card}, {first.split}: {what}", [*map(spaced, names)], rows, list(notes))


def _side_by_side(systems: Sequence[System], names: Sequence[str], measure: str) -> Grid:
    """One measure under every reading, and beside JSON adherence the paper's."""
    percent = systems[0].judged[names[0]].columns[measure].percent
    paper = any(system.paper for system in systems)
    records = [
        _row(system)
        | {name: _cell(system, name, measure) for name in names}
        | ({"paper": _paper(system)} if paper else {})
        for system in systems
    ]
    return _grid(systems, f"{spaced(measure)}{' in %' if percent else ''} [95 % interval]", records)


def _measures_grid(systems: Sequence[System], reading: str) -> Grid:
    """Every measure of one reading, and what is worth nothing."""
    found = [system.scores.readings[reading] for system in systems]
    names = list(dict.fromkeys(name for part in found for name in part.all if ":" not in name))
    most = any(part.most_frequent for part in found)
    records = [
        _row(system)
        | {name: _cell(system, reading, name) for name in names}
        | ({"most_frequent": _most_frequent(part)} if most else {})
        for system, part in zip(systems, found, strict=True)
    ]
    first = systems[0]
    for system in systems:
        constant = system.scores.constant_measures
        if system is first or constant != first.scores.constant_measures:
            name = f"(baseline) {shorten(system.scores.constant, _MOST_SHOWN)}"
            cells = {name: _shown(system, reading, name, constant.get(name)) for name in names}
            records.append(_row(system) | {"system": name} | cells)
    title = f"{spaced(reading)}, shares in % [95 % interval]"
    return _grid(systems, title, records, first.judged[reading].notes)


def _field_grid(systems: Sequence[System], reading: str) -> list[Grid]:
    """Precision, recall and F1 of each key of JSON answers."""
    names = [name.split(":", 1) for name in systems[0].judged[reading].columns if ":" in name]
    fields = list(dict.fromkeys(field for _, field in names))
    records = [
        {
            "system": system.name if field == fields[0] else "",
            "field": field,
            **{measure: _cell(system, reading, f"{measure}:{field}") for measure, _ in names},
        }
        for system in systems
        for field in fields
    ]
    title = f"{spaced(reading)}, by field, in % [95 % interval]"
    return [_grid(systems, title, records)] if records else []


def _row(system: System) -> Row:
    """How each line begins: which system, and how many test rows it answered."""
    scores = system.scores
    rows = str(scores.rows) if scores.complete else f"{scores.rows} of {scores.expected}"
    times = "" if scores.attempts == 1 else f" x {scores.attempts}"
    return {"system": system.name, "rows": rows + times}


def _cell(system: System, reading: str, name: str) -> str:
    return _shown(system, reading, name, system.scores.readings[reading].all.get(name))


def _shown(system: System, reading: str, name: str, value: Rate | Estimate | None) -> str:
    """A share in per cent, a learned score with four digits, its interval on a line of its own."""
    column = system.judged[reading].columns.get(name)
    if column is None or column.percent:
        return shown(value, 1, factor=100, between="\n")
    return shown(value, 4 if name.startswith(LEARNED) else 2, between="\n")


def _most_frequent(reading: Reading) -> str:
    found = reading.most_frequent
    if found is None or not found.text:
        return "-"
    return f"{found.text} {shown(found.share, 1, factor=100, interval=False)}"


def _paper(system: System) -> str:
    if system.paper is None:
        return "-"
    return ("about " if system.paper.approximate else "") + f"{100 * system.paper.value:g}"


def _failure_grid(systems: Sequence[System], names: Sequence[str]) -> list[Grid]:
    kept = [name for name in names if name != "official"]
    found = [(s, name, s.scores.readings[name].failures) for s in systems for name in kept]
    kinds = [kind for kind in KINDS if any(kind in part for _, _, part in found)]
    records = [
        {
            "system": system.name if name == kept[0] else "",
            "scorer": spaced(name),
            "failures": str(sum(part.values())),
            **{kind: str(part.get(kind, 0)) for kind in kinds},
        }
        for system, name, part in found
    ]
    return [_grid(systems, "why answers fail", records)] if kinds else []


def _notes(systems: Sequence[System], names: Sequence[str]) -> list[str]:
    repeated, incomplete, cut = [], [], []
    for system in systems:
        scores, share = system.scores, system.scores.most_frequent_answer.share
        if share.n > 1 and (share.value or 0) > 0.5:
            same = f"{100 * (share.value or 0):.0f} % of the answers are one and the same text"
            repeated.append(f"{system.name}: {same}")
        if not scores.complete:
            rows = f"{scores.rows} of {scores.expected} rows"
            incomplete.append(f"{system.name}: incomplete, {rows}")
        if scores.cut.k:
            found = f"{scores.cut.k} of {scores.cut.n} answers"
            cut.append(f"{system.name}: {found} were cut by the limit of new tokens")
    notes = [*repeated, *incomplete, *cut]
    if "official" in names:
        notes.append("official: the published script's behaviour; it fails a perfect model too")
    sources = sorted({system.paper.source for system in systems if system.paper})
    if sources:
        notes.append(
            f"paper: adherence stated in {', '.join(sources)}; counted by a script that is not "
            "the published one"
        )
    return notes


def difference_grid(comparison: Comparison) -> Grid:
    """The paired differences to the baseline, and whether the rows tell the two apart."""
    main = _SIDE_BY_SIDE.get(comparison.metric, ())
    rows: list[list[str]] = []
    last = ""
    for compared in comparison.differences:
        if compared.measure not in main and compared.scorer in SECOND_READINGS:
            continue
        digits = 4 if compared.measure.startswith(LEARNED) else 2  # learned scores are near 0 to 1
        factor = 100.0 if compared.column.percent else 1.0
        rows.append(
            [
                compared.system if compared.system != last else "",
                spaced(compared.scorer),
                spaced(compared.measure),
                shown(compared.difference, digits, factor=factor, sign="+", between="\n"),
                f"{compared.difference.p:.4f}",
                str(compared.difference.n),
            ]
        )
        last = compared.system
    first = comparison.differences[0].difference
    units = {"translation": "points", "text": "points (exact match: percentage points)"}
    unit = units.get(comparison.metric, "percentage points")
    return Grid(
        f"difference to {comparison.baseline}, in {unit}",
        ["system", "scorer", "measure", "difference", "p", "shared rows"],
        rows,
        [
            "intervals over test rows: of shares and of their means by square-and-add, else by "
            f"paired bootstrap; p by approximate randomization, two-sided, {first.resamples} "
            f"draws, seed {first.seed}, not corrected for the number of comparisons"
        ],
    )


def score_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Every score of every system as one flat record."""
    records = []
    for system in comparison.systems:
        for scorer, measure, number in _numbers(system):
            paper = system.paper if measure == "adherence" else None
            records.append(
                {
                    **{"system": system.name, "scorer": scorer, "measure": measure},
                    **{k: getattr(number, k, None) for k in ("value", "low", "high", "k", "n")},
                    **{"paper": paper and paper.value, "paper_source": paper and paper.source},
                }
            )
    return records


def _numbers(system: System) -> Iterator[tuple[str, str, Rate | Estimate]]:
    """All numbers of a system: reading, measure, value."""
    scores, shown_readings = system.scores, _readings(system)
    yield "", "cut_by_limit", scores.cut
    yield "", "most_frequent_answer", scores.most_frequent_answer.share
    for name in shown_readings:
        reading = scores.readings[name]
        for measure, value in reading.all.items():
            yield name, measure, value
        if reading.most_frequent is not None:
            yield name, "most_frequent_share", reading.most_frequent.share
        for kind, times in reading.failures.items():
            yield name, f"failures.{kind}", Estimate(times, None, None, scores.answers)
    for measure, value in scores.constant_measures.items():
        yield shown_readings[0], f"constant.{measure}", value
