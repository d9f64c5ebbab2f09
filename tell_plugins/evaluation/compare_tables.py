"""What `compare` shows: tables on the terminal, and all numbers as records for CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from string import ascii_uppercase
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from tell_plugins.evaluation.grids import UNBOUNDED, Grid, print_grid, table_console
from tell_plugins.evaluation.intervals import Estimate, Rate, shown
from tell_plugins.evaluation.paper_numbers import is_papers_task
from tell_plugins.evaluation.scorers import SECOND_READINGS
from tell_plugins.evaluation.scorers.learned import LEARNED
from tell_plugins.evaluation.scoring import Numbers, Reading, spaced
from tell_plugins.evaluation.taxonomy import KINDS

if TYPE_CHECKING:
    from tell_plugins.evaluation.compare import Comparison, System

_MOST_SHOWN = 60  # characters of a constant answer
_LONG = 20  # characters of a word in a name that a table of 80 columns has room for
# what is shown under every reading, side by side, by the card's metric
_SIDE_BY_SIDE = {"json": ("adherence",), "translation": ("chrf++", "bleu")}


def show(comparison: Comparison, scorer: str | None = None) -> None:
    """Print all tables; of a JSON task those of one scorer, where one is named."""
    from rich.text import Text

    console = table_console()
    comparison, legend = _lettered(comparison) if console.width < UNBOUNDED else (comparison, [])
    for line in legend:
        console.print(Text(line), soft_wrap=True)
    for grid in grids(comparison, scorer):
        print_grid(grid, console)


def _lettered(comparison: Comparison) -> tuple[Comparison, list[str]]:
    """The comparison with letters for names where one is long, and what each letter stands for."""
    names = [system.name for system in comparison.systems]
    if all(len(word) <= _LONG for name in names for word in name.split()):
        return comparison, []
    letters = ("".join(part) for size in (1, 2) for part in product(ascii_uppercase, repeat=size))
    of = dict(zip(names, letters, strict=False))
    lettered = replace(
        comparison,
        systems=[replace(system, name=of[system.name]) for system in comparison.systems],
        baseline=of[comparison.baseline],
        differences=[
            replace(compared, system=of[compared.system], baseline=of[compared.baseline])
            for compared in comparison.differences
        ],
    )
    return lettered, [*(f"{letter} = {name}" for name, letter in of.items()), ""]


def grids(comparison: Comparison, scorer: str | None = None) -> list[Grid]:
    """The tables of a comparison."""
    systems = comparison.systems
    names = [scorer] if scorer else _readings(systems[0])
    found = [
        _side_by_side(systems, names, measure)
        for measure in _SIDE_BY_SIDE.get(comparison.metric, ())
        if len(names) > 1
    ]
    more = [name for name in names if name not in SECOND_READINGS or name == scorer]
    for name in more:
        found += [_measures_grid(systems, name), *_field_grid(systems, name)]
    found += _failure_grid(systems, names)
    if comparison.differences:
        found.append(difference_grid(comparison, scorer))
    found[0].notes.extend(_notes(systems, names))
    return found


def _readings(system: System) -> list[str]:
    """The readings that are shown; those of the paper's script for the paper's task alone."""
    papers = is_papers_task(system.scored.card)
    return [n for n in system.scores.readings if papers or not n.startswith("official")]


def _title(systems: Sequence[System], what: str) -> str:
    first = systems[0].scores
    return f"{first.card}, {first.split}: {what}"


def _side_by_side(systems: Sequence[System], names: Sequence[str], measure: str) -> Grid:
    """One measure under every reading, and beside JSON adherence the paper's."""
    with_paper = any(system.paper for system in systems)
    percent = systems[0].judged[names[0]].columns[measure].percent
    rows = [
        [
            system.name,
            _rows(system),
            *(_cell(system, name, measure) for name in names),
            *([_paper(system)] if with_paper else []),
        ]
        for system in systems
    ]
    columns = ["system", "rows", *map(spaced, names), *(["paper"] if with_paper else [])]
    title = f"{spaced(measure)}{' in %' if percent else ''} [95 % interval]"
    return Grid(_title(systems, title), columns, rows)


def _measures_grid(systems: Sequence[System], reading: str) -> Grid:
    """Every measure of one reading, and what is worth nothing."""
    found = [_all(system.scores.readings[reading]) for system in systems]
    names = list(dict.fromkeys(name for part in found for name in part if ":" not in name))
    with_most = any(system.scores.readings[reading].most_frequent for system in systems)
    rows = [
        [
            system.name,
            _rows(system),
            *(_cell(system, reading, name) for name in names),
            *([_most_frequent(system, reading)] if with_most else []),
        ]
        for system in systems
    ]
    first = systems[0]
    for system in systems:
        scores = system.scores
        if system is first or scores.constant_measures != first.scores.constant_measures:
            constant = [
                _shown(system, reading, name, scores.constant_measures.get(name)) for name in names
            ]
            name = f"(baseline) {shorten(scores.constant, _MOST_SHOWN)}"
            rows.append([name, _rows(system), *constant, *([""] if with_most else [])])
    columns = ["system", "rows", *map(spaced, names), *(["most frequent"] if with_most else [])]
    notes = first.judged[reading].notes
    title = f"{spaced(reading)}, shares in % [95 % interval]"
    return Grid(_title(systems, title), columns, rows, list(notes))


def _field_grid(systems: Sequence[System], reading: str) -> list[Grid]:
    """Precision, recall and F1 of each key of JSON answers."""
    names = [name for name in systems[0].judged[reading].columns if ":" in name]
    measures = list(dict.fromkeys(name.partition(":")[0] for name in names))
    fields = list(dict.fromkeys(name.partition(":")[2] for name in names))
    rows = [
        [
            system.name if field == fields[0] else "",
            field,
            *(_cell(system, reading, f"{measure}:{field}") for measure in measures),
        ]
        for system in systems
        for field in fields
    ]
    columns = ["system", "field", *map(spaced, measures)]
    title = _title(systems, f"{spaced(reading)}, by field, in % [95 % interval]")
    return [Grid(title, columns, rows)] if rows else []


def _all(reading: Reading) -> Numbers:
    return {**reading.measures, **reading.details}


def _most_frequent(system: System, reading: str) -> str:
    found = system.scores.readings[reading].most_frequent
    if found is None or not found.text:
        return "-"
    return f"{found.text} {shown(found.share, 1, factor=100, interval=False)}"


def _cell(system: System, reading: str, name: str) -> str:
    return _shown(system, reading, name, _all(system.scores.readings[reading]).get(name))


def _shown(system: System, reading: str, name: str, value: Rate | Estimate | None) -> str:
    """A share in per cent, a learned score with four digits, its interval on a line of its own."""
    column = system.judged[reading].columns.get(name)
    if column is None or column.percent:
        return shown(value, 1, factor=100, between="\n")
    return shown(value, 4 if name.startswith(LEARNED) else 2, between="\n")


def _failure_grid(systems: Sequence[System], names: Sequence[str]) -> list[Grid]:
    kept = [name for name in names if name != "official" or len(names) == 1]
    found = [(system, name, system.scores.readings[name]) for system in systems for name in kept]
    kinds = [kind for kind in KINDS if any(kind in part.failures for _, _, part in found)]
    if not kinds:
        return []
    rows = [
        [
            system.name if name == kept[0] else "",
            spaced(name),
            str(sum(part.failures.values())),
            *(str(part.failures.get(kind, 0)) for kind in kinds),
        ]
        for system, name, part in found
    ]
    columns = ["system", "scorer", "failures", *map(spaced, kinds)]
    return [Grid(_title(systems, "why answers fail"), columns, rows)]


def _notes(systems: Sequence[System], names: Sequence[str]) -> list[str]:
    notes = [
        f"{system.name}: {100 * share.value:.0f} % of the answers are one and the same text"
        for system in systems
        if (share := system.scores.most_frequent_answer.share).value is not None
        and share.value > 0.5
        and share.n > 1
    ]
    notes += [
        f"{system.name}: incomplete, {system.scores.rows} of {system.scores.expected} rows"
        for system in systems
        if not system.scores.complete
    ]
    notes += [
        f"{system.name}: {system.scores.cut.k} of {system.scores.cut.n} answers were cut by the "
        "limit of new tokens"
        for system in systems
        if system.scores.cut.k
    ]
    if "official" in names:
        notes.append("official: the published script's behaviour; it fails a perfect model too")
    sources = sorted({system.paper.source for system in systems if system.paper})
    if sources:
        notes.append(
            f"paper: adherence stated in {', '.join(sources)}; counted by a script that is not "
            "the published one"
        )
    return notes


def difference_grid(comparison: Comparison, scorer: str | None) -> Grid:
    """The paired differences to the baseline, and whether the rows tell the two apart."""
    main = _SIDE_BY_SIDE.get(comparison.metric, ())
    kept = [
        compared
        for compared in comparison.differences
        if compared.scorer == scorer
        or (scorer is None and (compared.measure in main or compared.scorer not in SECOND_READINGS))
    ]
    rows = []
    last = ""
    for compared in kept:
        found = compared.difference
        digits = 4 if compared.measure.startswith(LEARNED) else 2  # learned scores are near 0 to 1
        rows.append(
            [
                compared.system if compared.system != last else "",
                spaced(compared.scorer),
                spaced(compared.measure),
                shown(found, digits, factor=compared.factor, sign="+", between="\n"),
                f"{found.p:.4f}",
                str(found.n),
            ]
        )
        last = compared.system
    first = comparison.differences[0].difference
    unit = {"translation": "points", "text": "points (exact match: percentage points)"}
    return Grid(
        f"difference to {comparison.baseline}, in "
        + unit.get(comparison.metric, "percentage points"),
        ["system", "scorer", "measure", "difference", "p", "shared rows"],
        rows,
        [
            "intervals over test rows: of shares and of their means by square-and-add, else by "
            f"paired bootstrap; p by approximate randomization, two-sided, {first.resamples} "
            f"draws, seed {first.seed}, not corrected for the number of comparisons"
        ],
    )


def _rows(system: System) -> str:
    scores = system.scores
    text = str(scores.rows) if scores.complete else f"{scores.rows} of {scores.expected}"
    return text if scores.attempts == 1 else f"{text} x {scores.attempts}"


def _paper(system: System) -> str:
    if system.paper is None:
        return "-"
    return ("about " if system.paper.approximate else "") + f"{100 * system.paper.value:g}"


_FIELDS = ("system", "scorer", "measure", "value", "low", "high", "k", "n", "paper", "paper_source")


def score_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Every score of every system as one flat record."""
    return [
        dict(zip(_FIELDS, (system.name, *record), strict=True))
        for system in comparison.systems
        for record in _records(system)
    ]


def _records(system: System) -> Iterator[tuple[Any, ...]]:
    def record(scorer: str, measure: str, number: Rate | Estimate, *paper: Any) -> tuple[Any, ...]:
        k = number.k if isinstance(number, Rate) else None
        paper = paper or (None, None)
        return scorer, measure, number.value, number.low, number.high, k, number.n, *paper

    scores = system.scores
    yield record("", "cut_by_limit", scores.cut)
    yield record("", "most_frequent_answer", scores.most_frequent_answer.share)
    shown_readings = _readings(system)
    for name in shown_readings:
        reading = scores.readings[name]
        for measure, value in _all(reading).items():
            stated = system.paper if measure == "adherence" else None
            yield record(name, measure, value, *((stated.value, stated.source) if stated else ()))
        if reading.most_frequent is not None:
            yield record(name, "most_frequent_share", reading.most_frequent.share)
        for kind, times in reading.failures.items():
            yield record(name, f"failures.{kind}", Estimate(times, None, None, scores.answers))
    for measure, value in scores.constant_measures.items():
        yield record(shown_readings[0], f"constant.{measure}", value)
