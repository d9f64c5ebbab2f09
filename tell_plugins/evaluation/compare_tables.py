"""What `compare` shows: tables on the terminal, and all numbers as records for CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from tell_plugins.evaluation.final_number import NumberScores
from tell_plugins.evaluation.free_text import TextScores
from tell_plugins.evaluation.grids import UNBOUNDED, Grid, print_grid, table_console
from tell_plugins.evaluation.intervals import Estimate, Rate, counted, shown
from tell_plugins.evaluation.labels import LabelMetrics
from tell_plugins.evaluation.learned_scores import LEARNED
from tell_plugins.evaluation.paper_numbers import is_papers_task
from tell_plugins.evaluation.scoring import SECOND_READINGS, FormScores
from tell_plugins.evaluation.taxonomy import KINDS
from tell_plugins.evaluation.translation import METRICS, UNITS, MetricScore, TranslationScores

if TYPE_CHECKING:
    from tell_plugins.evaluation.compare import Comparison, System

Number = Rate | Estimate
_LONG = 20  # characters of a word in a name that a table of 80 columns has room for
_LABEL_COLUMNS = ("accuracy", "balanced_accuracy", "f1")
_NOTHING = counted(0, 0)


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
    tables = {
        "json": _form_grids,
        "label": _form_grids,
        "translation": _translation_grids,
        "number": _number_grids,
        "text": _text_grids,
    }
    found = tables[comparison.metric](comparison.systems, scorer)
    found += _measure_grids(comparison.systems, scorer)
    if comparison.differences:
        found.append(difference_grid(comparison, scorer))
    return found


def _title(systems: Sequence[System], what: str) -> str:
    first = systems[0].scores
    return f"{first.card}, {first.split}: {what}"


def _form_grids(systems: Sequence[System], scorer: str | None) -> list[Grid]:
    names = [scorer] if scorer else _scorers(systems[0])
    with_paper = any(system.paper for system in systems)
    adherence = Grid(
        _title(systems, "adherence in % [95 % interval]"),
        ["system", "rows", *map(_spaced, names), *(["paper"] if with_paper else [])],
        [
            [
                system.name,
                _rows(system),
                *(percent(_forms(system)[name].adherence) for name in names),
                *([_paper(system)] if with_paper else []),
            ]
            for system in systems
        ],
        _notes(systems, names, with_paper),
    )
    shown = scorer or names[0]
    found = [adherence]
    if _forms(systems[0])[shown].labels is not None:
        found += [_label_grid(systems, shown), _recall_grid(systems, shown)]
    found.append(_failure_grid(systems, names))
    return found


def _label_grid(systems: Sequence[System], scorer: str) -> Grid:
    rows = []
    found = [labels for system in systems if (labels := _forms(system)[scorer].labels) is not None]
    first = found[0]
    for system, scores in zip(systems, found, strict=True):
        rows.append(_label_row(system.name, "all", scores.all))
        rows.append(_label_row("", "adherent", scores.adherent))
        if scores.baseline != first.baseline:
            rows.append(_label_row("", _spaced(scores.baseline.name), scores.baseline.metrics))
    rows.append(_label_row("(baseline)", _spaced(first.baseline.name), first.baseline.metrics))
    of = f" of '{first.positive}'" if first.positive else " (macro)"
    return Grid(
        _title(systems, f"labels under {scorer}, in %"),
        ["system", "over", "n", *map(_spaced, _LABEL_COLUMNS), "most frequent"],
        rows,
        [f"F1{of}; over all: an answer that is not adherent is wrong"],
    )


def _recall_grid(systems: Sequence[System], scorer: str) -> Grid:
    found = [labels for system in systems if (labels := _forms(system)[scorer].labels) is not None]
    names = list(dict.fromkeys(name for labels in found for name in labels.recalls))
    return Grid(
        _title(systems, "recall of each label over all answers, in % [95 % interval]"),
        ["system", *names],
        [
            [system.name, *(percent(labels.recalls.get(name, _NOTHING)) for name in names)]
            for system, labels in zip(systems, found, strict=True)
        ],
    )


def _measure_grids(systems: Sequence[System], scorer: str | None) -> list[Grid]:
    """What scorers measure beyond the tables of the metric."""
    found = [
        (system, reading, measures)
        for system in systems
        for reading, measures in system.scores.measures.items()
        if scorer in (None, reading)
    ]
    names = list(dict.fromkeys(name for _, _, measures in found for name in measures))
    if not names:
        return []
    rows = [
        [
            system.name,
            _spaced(reading),
            *(_cell(system, reading, name, measures.get(name, _NOTHING)) for name in names),
        ]
        for system, reading, measures in found
    ]
    title = _title(systems, "content [95 % interval]")
    return [Grid(title, ["system", "scorer", *map(_spaced, names)], rows)]


def _cell(system: System, reading: str, name: str, value: Number) -> str:
    column = system.judged[reading].columns.get(name)
    return plain(value, 2) if column is not None and not column.percent else percent(value)


def _label_row(system: str, over: str, metrics: LabelMetrics) -> list[str]:
    share = metrics.most_frequent_share
    frequent = f"{metrics.most_frequent} {percent(share, interval=False)}"
    return [
        system,
        over,
        str(metrics.n),
        *(percent(getattr(metrics, name)) for name in _LABEL_COLUMNS),
        frequent if metrics.most_frequent is not None else "-",
    ]


def _failure_grid(systems: Sequence[System], names: Sequence[str]) -> Grid:
    kept = [name for name in names if name != "official" or len(names) == 1]
    found = [(system, name, _forms(system)[name]) for system in systems for name in kept]
    kinds = [kind for kind in KINDS if any(kind in scores.failures for _, _, scores in found)]
    return Grid(
        _title(systems, "why answers fail"),
        ["system", "scorer", "failures", *map(_spaced, kinds)],
        [
            [
                system.name if name == kept[0] else "",
                _spaced(name),
                str(scores.adherence.n - scores.adherence.k),
                *(str(scores.failures.get(kind, 0)) for kind in kinds),
            ]
            for system, name, scores in found
        ],
    )


def _notes(systems: Sequence[System], names: Sequence[str], with_paper: bool) -> list[str]:
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
    if with_paper:
        sources = sorted({system.paper.source for system in systems if system.paper})
        notes.append(
            f"paper: adherence stated in {', '.join(sources)}; counted by a script that is not "
            "the published one"
        )
    return notes


def _translation_grids(systems: Sequence[System], scorer: str | None) -> list[Grid]:
    rows = []
    for system in systems:
        scores = _translation(system)
        for unit in UNITS:
            rows.append(
                [
                    system.name if unit == UNITS[0] else "",
                    _spaced(unit),
                    str(scores.units[unit]),
                    *_metric_cells(scores.scores[unit]),
                ]
            )
        copied = scores.copied_source
        if system is systems[-1] or copied != _translation(systems[-1]).copied_source:
            n = str(scores.units["stripped_segment"])
            rows.append(["(baseline)", "source copied", n, *_metric_cells(copied)])
    signatures = _translation(systems[0]).scores["stripped_segment"]
    first = Grid(
        _title(systems, "corpus score [95 % interval] and mean of units, 0 to 100"),
        ["system", "unit", "n", *(f"{m} {k}" for m in METRICS for k in ("corpus", "mean"))],
        rows,
        [f"{name}: {signatures[name].signature}" for name in METRICS]
        + _notes(systems, [], with_paper=False),
    )
    found = [first, _alignment_grid(systems)]
    learned = _learned_rows(systems)
    if learned:
        found.append(
            Grid(
                _title(systems, "learned metrics [95 % interval]"),
                ["system", "metric", "segments", "documents", "over limit", "raw documents"],
                learned,
                ["over limit: lines scored in parts; raw: whole answers, cut to the limit"],
            )
        )
    return found


def _metric_cells(scores: Mapping[str, MetricScore]) -> list[str]:
    return [
        text
        for name in METRICS
        for text in (plain(scores[name].corpus, 1), plain(scores[name].mean, 1, interval=False))
    ]


def _alignment_grid(systems: Sequence[System]) -> Grid:
    return Grid(
        _title(systems, "lines of the answers"),
        [
            "system",
            "documents",
            "other number of lines",
            "fewer",
            "more",
            "empty",
            "opening",
            "own opening",
        ],
        [
            [
                system.name,
                _rows(system),
                percent(scores.alignment_failures),
                str(scores.fewer_lines),
                str(scores.more_lines),
                str(scores.empty),
                percent(scores.opened, interval=False),
                percent(scores.own_opening, interval=False),
            ]
            for system in systems
            for scores in [_translation(system)]
        ],
        [
            "missing lines are scored as empty, surplus ones as part of the last; an opening, the "
            "references' or one of the answer's own, is stripped"
        ],
    )


def _learned_rows(systems: Sequence[System]) -> list[list[str]]:
    rows = []
    for system in systems:
        for name, scores in _translation(system).learned.items():
            raw = "-"
            if scores.raw_document is not None and scores.raw_cut is not None:
                cut = f"{scores.raw_cut.k} of {scores.raw_cut.n} cut"
                raw = f"{plain(scores.raw_document, 4)} ({cut})"
            rows.append(
                [
                    system.name,
                    f"{name}, {scores.model}",
                    plain(scores.segment, 4),
                    plain(scores.document, 4),
                    str(len(scores.over_limit)),
                    raw,
                ]
            )
    return rows


def _number_grids(systems: Sequence[System], scorer: str | None) -> list[Grid]:
    kinds = sorted({kind for system in systems for kind in _number(system).failures})
    return [
        Grid(
            _title(systems, "exact match of the final number, in % [95 % interval]"),
            ["system", "rows", "exact match", *kinds, "with ####", "most frequent", "baseline"],
            [
                [
                    system.name,
                    _rows(system),
                    percent(scores.exact),
                    *(str(scores.failures.get(kind, 0)) for kind in kinds),
                    percent(scores.marked, interval=False),
                    f"{scores.most_frequent or '-'} "
                    f"{percent(scores.most_frequent_share, interval=False)}",
                    f"{scores.baseline_number} {percent(scores.baseline, interval=False)}",
                ]
                for system in systems
                for scores in [_number(system)]
            ],
            _notes(systems, [], with_paper=False),
        )
    ]


def _text_grids(systems: Sequence[System], scorer: str | None) -> list[Grid]:
    first = _text(systems[0])
    return [
        Grid(
            _title(systems, "free text against its references [95 % interval]"),
            ["system", "rows", "exact match in %", "chrF++ corpus", "chrF++ mean", "empty in %"],
            [
                [
                    system.name,
                    _rows(system),
                    percent(scores.exact),
                    plain(scores.chrf.corpus, 1),
                    plain(scores.chrf.mean, 1),
                    percent(scores.empty, interval=False),
                ]
                for system in systems
                for scores in [_text(system)]
            ]
            + [
                [
                    "(baseline) constant",
                    _rows(systems[0]),
                    percent(first.constant_exact),
                    plain(first.constant_chrf.corpus, 1),
                    plain(first.constant_chrf.mean, 1),
                    percent(counted(0, first.constant_exact.n), interval=False),
                ]
            ],
            [
                f"chrF++: {first.chrf.signature}",
                f"the constant answer is the most frequent reference: {first.constant}",
                *_notes(systems, [], with_paper=False),
            ],
        )
    ]


def difference_grid(comparison: Comparison, scorer: str | None) -> Grid:
    """The paired differences to the baseline, and whether the rows tell the two apart."""
    kept = [
        compared
        for compared in comparison.differences
        if comparison.metric != "json"
        or compared.scorer == scorer
        or (
            scorer is None
            and (compared.measure == "adherence" or compared.scorer not in SECOND_READINGS)
        )
    ]
    rows = []
    last = ""
    for compared in kept:
        found = compared.difference
        scale = 100 if compared.percent else 1
        digits = 4 if compared.measure.startswith(LEARNED) else 2  # learned scores are near 0 to 1
        rows.append(
            [
                compared.system if compared.system != last else "",
                _spaced(compared.scorer),
                _spaced(compared.measure),
                shown(found, digits, factor=scale, sign="+", between="\n"),
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


def percent(number: Number, *, interval: bool = True) -> str:
    """A share as per cent, its interval on a line of its own."""
    return shown(number, 1, factor=100, interval=interval, between="\n")


def plain(number: Number, digits: int, *, interval: bool = True) -> str:
    """A number with its interval, not scaled."""
    return shown(number, digits, interval=interval, between="\n")


def _spaced(name: str) -> str:
    """A name in words, so that a narrow table can break it."""
    return name.replace("_", " ")


def _rows(system: System) -> str:
    scores = system.scores
    text = str(scores.rows) if scores.complete else f"{scores.rows} of {scores.expected}"
    return text if scores.attempts == 1 else f"{text} x {scores.attempts}"


def _paper(system: System) -> str:
    if system.paper is None:
        return "-"
    return ("about " if system.paper.approximate else "") + f"{100 * system.paper.value:g}"


def _forms(system: System) -> dict[str, FormScores]:
    assert system.scores.forms is not None
    return system.scores.forms


def _scorers(system: System) -> list[str]:
    """The scorers shown of a JSON task; those of the paper's script for the paper's task alone."""
    papers = is_papers_task(system.scored.card)
    return [name for name in _forms(system) if papers or not name.startswith("official")]


def _translation(system: System) -> TranslationScores:
    assert system.scores.translation is not None
    return system.scores.translation


def _number(system: System) -> NumberScores:
    assert system.scores.number is not None
    return system.scores.number


def _text(system: System) -> TextScores:
    assert system.scores.text is not None
    return system.scores.text


_FIELDS = ("system", "scorer", "measure", "value", "low", "high", "k", "n", "paper", "paper_source")


def score_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Every score of every system as one flat record."""
    return [record for system in comparison.systems for record in _records(system)]


def _records(system: System) -> Iterator[dict[str, Any]]:
    def record(scorer: str, measure: str, number: Number, **more: Any) -> dict[str, Any]:
        values = {
            "value": number.value,
            "low": number.low,
            "high": number.high,
            "n": number.n,
            "k": number.k if isinstance(number, Rate) else None,
        }
        filled = {"system": system.name, "scorer": scorer, "measure": measure, **values, **more}
        return {key: filled.get(key) for key in _FIELDS}

    def count(scorer: str, measure: str, value: int, n: int) -> dict[str, Any]:
        return record(scorer, measure, Estimate(value, None, None, n))

    scores = system.scores
    yield record("", "cut_by_limit", scores.cut)
    yield record("", "most_frequent_answer", scores.most_frequent_answer.share)
    for reading, measures in scores.measures.items():
        for measure, value in measures.items():
            yield record(reading, measure, value)
    for name in _scorers(system) if scores.forms else []:
        found = _forms(system)[name]
        paper = system.paper
        yield record(
            name,
            "adherence",
            found.adherence,
            paper=paper.value if paper else None,
            paper_source=paper.source if paper else None,
        )
        for kind, times in found.failures.items():
            yield count(name, f"failures.{kind}", times, found.adherence.n)
        if found.labels is None:
            continue
        parts = {
            "all": found.labels.all,
            "adherent": found.labels.adherent,
            found.labels.baseline.name: found.labels.baseline.metrics,
        }
        for over, metrics in parts.items():
            for measure in (*_LABEL_COLUMNS, "most_frequent_share"):
                yield record(name, f"{over}.{measure}", getattr(metrics, measure))
        for label, recall in found.labels.recalls.items():
            yield record(name, f"recall.{label}", recall)
    if scores.translation is not None:
        for unit, by_metric in scores.translation.scores.items():
            for name, score in by_metric.items():
                yield record(unit, f"{name}.corpus", score.corpus)
                yield record(unit, f"{name}.mean", score.mean)
        for name, score in scores.translation.copied_source.items():
            yield record("stripped_segment", f"source_copied.{name}.corpus", score.corpus)
        for measure in ("alignment_failures", "opened", "own_opening"):
            yield record("", measure, getattr(scores.translation, measure))
        for name, learned in scores.translation.learned.items():
            yield record("stripped_segment", name, learned.segment)
            yield record("stripped_document", name, learned.document)
            yield count("stripped_segment", f"{name}.over_limit", len(learned.over_limit), 0)
            if learned.raw_document is not None:
                yield record("raw_document", name, learned.raw_document)
    if scores.text is not None:
        yield record("text", "exact_match", scores.text.exact)
        yield record("text", "chrf++.corpus", scores.text.chrf.corpus)
        yield record("text", "chrf++.mean", scores.text.chrf.mean)
        yield record("text", "empty", scores.text.empty)
        yield record("text", "constant.exact_match", scores.text.constant_exact)
        yield record("text", "constant.chrf++.corpus", scores.text.constant_chrf.corpus)
    if scores.number is not None:
        yield record("number", "exact_match", scores.number.exact)
        yield record("number", "baseline", scores.number.baseline)
        for kind, times in scores.number.failures.items():
            yield count("number", f"failures.{kind}", times, scores.number.exact.n)
