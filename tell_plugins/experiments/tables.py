"""The tables of a report: every number with its n and its 95 % interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from tell_plugins.evaluation.elsewhere import BLEED, LOSS_FILES
from tell_plugins.evaluation.grids import POINTS, Record
from tell_plugins.evaluation.intervals import Estimate
from tell_plugins.evaluation.paper_numbers import paper
from tell_plugins.experiments.outcome import (
    Group,
    Outcome,
    Pair,
    exposure_of,
    frequent_label,
)
from tell_plugins.experiments.results import Entry

CONTENT = ("balanced accuracy", "exact match", "field f1")  # compared beside the main measure
# columns for machines, and those that a reader looks at last: what a note says is in the note
HIDDEN = ("run", "dataset string", "mixture hash", "steps as planned", "copies")
ASIDE = (
    *("adherence, lenient", "accuracy", "style fit", "task's words", "bleed minus base"),
    *("lowest seed", "highest seed", "mean over seeds"),
    *("most frequent label", "its share", "seeds", "task tokens", "general tokens"),
)
_OF_MIXTURE = ("rows", "task_rows", "copies", "general_rows", "task_tokens", "general_tokens")
Curve = list[tuple[float, Estimate]]  # x in tokens or rows, and the main measure there


def _measured(group: Group) -> Record:
    most = frequent_label(group.system.first)
    label = {"most frequent label": most[0], "its share": most[1]} if most else {}
    return {**group.task, **label, **group.elsewhere}


def runs_table(outcome: Outcome) -> list[Record]:
    """One row a run: what it trained on, how long, and what came out; failed ones too."""
    return [
        {
            "method": entry.method,
            "point": entry.point,
            "seed": entry.seed,
            "state": _state(entry),
            "run": entry.run,
            "dataset string": entry.facts.get("spec", ""),
            **{key.replace("_", " "): entry.amount(key) for key in _OF_MIXTURE},
            "steps": entry.steps,
            "steps as planned": entry.planned("steps"),
            "exposure": entry.planned("exposure"),
            "no-op": "yes" if entry.no_op else "",
            "mixture hash": (entry.amount("hash") or "")[:16],
            **(_measured(Group(outcome.judge, outcome.study, [entry])) if entry.done else {}),
        }
        for entry in outcome.study.entries
    ]


def _state(entry: Entry) -> str:
    failure = entry.failure
    if entry.done:
        return "done"
    return f"failed: {failure['step']}, {failure['exit']}" if failure else "not done"


def methods_table(outcome: Outcome) -> list[Record]:
    """One row a method and point, over its seeds."""
    return [
        {
            "method": group.method,
            "point": group.point,
            "seeds": len(group.entries) if not group.is_base else 1,
            "steps": " to ".join(map(str, sorted({*group.steps[:1], *group.steps[-1:]}))) or "0",
            "exposure": exposure_of(group.entries),
            **{
                key.replace("_", " "): None if (mean := group.x(key)) is None else round(mean)
                for key in ("task_tokens", "general_tokens")
            },
            **_measured(group),
            "lowest seed": min(group.seeds, default=None),
            "highest seed": max(group.seeds, default=None),
            "mean over seeds": group.over_seeds,
            "note": "; ".join(outcome.notes(group)),
        }
        for group in outcome.groups
    ]


def comparisons_table(outcome: Outcome) -> list[Record]:
    """The reference method minus every other at the same point and seeds."""
    records: list[Record] = []
    for pair in outcome.pairs:
        sides = (pair.mine, pair.theirs)
        task = [[e.amount("task_tokens") or e.amount("task_rows") or 0 for e in s] for s in sides]
        exposures = ["-" if value is None else f"{value:.1f}" for value in pair.exposures]
        record: dict[str, Any] = {
            "comparison": pair.name,
            "point": pair.point,
            "seeds": len({entry.seed for entry in pair.mine}),
            "equal steps": _equal(pair.steps),
            "equal task tokens": _equal(task),
            "exposure": "" if exposures == ["-", "-"] else " against ".join(exposures),
        }
        for name in dict.fromkeys((outcome.main, *CONTENT, BLEED, *LOSS_FILES)):
            record |= _difference(pair, name)
        caveats = [caveat.text for caveat in pair.caveats]
        record["note"] = "; ".join([*caveats, *outcome.notes(pair.other)])
        records.append(record)
    return records


def _equal(sides: Sequence[Iterable[float]]) -> str:
    first, second = map(set, sides)
    return "yes" if first == second else "no"


def _difference(pair: Pair, measure: str) -> Record:
    """A difference of shares in points, one of losses in nats."""
    found = pair.difference(measure)
    if found is None:
        return {}
    name, unit = measure.removesuffix(" minus base"), "" if found.is_loss else POINTS
    record: dict[str, Any] = {
        f"{name}{unit}": found,
        f"{name}, smallest that shows": found.smallest,
    }
    if found.by_seed:
        record[f"{name}, by seed"] = found.each_seed
    if found.over_seeds:
        wide = Estimate(found.value, *found.over_seeds, found.n)
        record[f"{name}, over rows and seeds{unit}"] = wide
    return record


def curves(outcome: Outcome) -> dict[str, Curve]:
    """The main measure of each series along the axis; the base model has no place on it."""
    result: dict[str, Curve] = {}
    for group in outcome.groups:
        x, measure = group.x(str(outcome.study.axis)), group.main
        if not group.is_base and group.at and x is not None and measure is not None:
            known = measure.value is not None
            result.setdefault(group.series, []).extend([(x, measure)] if known else [])
    return {name: sorted(points, key=lambda point: point[0]) for name, points in result.items()}


def efficiency_table(outcome: Outcome) -> list[Record]:
    """How many times the task data each other method needs for the reference's scores."""
    study = outcome.study
    if study.axis is None or not study.axis.startswith("task"):
        return []
    unit, drawn = study.axis.replace("_", " "), curves(outcome)
    ours = {group.series for group in outcome.groups if group.method == study.plot.reference}
    return [
        {
            "what": f"token efficiency of {name} against {other}",
            "at": f"{x:,.0f} {unit}",
            "says": f"{other} {says}",
        }
        for name in sorted(ours & set(drawn))
        for other, points in drawn.items()
        for x, measure in (drawn[name] if other not in ours else ())
        if (says := efficiency(x, measure, points)) is not None
    ]


def efficiency(x: float, measure: Estimate, other: Curve) -> str | None:
    """What another method's curve says of a score at `x`, and of the ends of its interval; None
    without at least two of its points. That the curve itself is measured is not in the interval."""
    curve = [(there, score.value or 0.0) for there, score in other if there > 0]
    if len(curve) < 2 or x <= 0:
        return None
    ends = [end for end in (measure.low, measure.high) if end is not None]
    value, *around = (_times(x, score, curve) for score in (measure.value or 0.0, *ends))
    interval = f" [{', '.join(around)}]" if set(around) - {value} else ""
    return f"needs {value} times the data{interval}"


def _times(x: float, score: float, curve: Sequence[tuple[float, float]]) -> str:
    """How many times `x` a curve takes to a score.

    Between points it is a straight line in log(x); it is not carried on beyond them.
    """
    if score <= curve[0][1]:
        return f"at most {curve[0][0] / x:.3g}"
    for (left, low), (right, high) in pairwise(curve):
        if low < score <= high:
            return f"{left * (right / left) ** ((score - low) / (high - low)) / x:.3g}"
    return f"more than {curve[-1][0] / x:.3g}"


def published_table(outcome: Outcome) -> list[Record]:
    """The paper's numbers that belong to the study."""
    found = outcome.study.published
    if found is None:
        return []
    return [
        {
            "what": point.what,
            "measure": paper().metric,
            "value": point.value,
            "model and task": paper().model,
            "source": found.source,
        }
        for point in found.points
    ]


def failures_table(outcome: Outcome) -> list[Record]:
    """Why answers failed: counts by kind, over the seeds."""
    failed = [Counter(filter(None, group.system.first.kinds)) for group in outcome.groups]
    kinds = sorted(set().union(*failed))
    return [
        {
            "method": group.method,
            "point": group.point,
            "answers": sum(len(answers.answers) for e in group.entries for answers in e.task),
            **{kind: counts[kind] for kind in kinds},
        }
        for group, counts in zip(outcome.groups, failed, strict=True)
        if kinds
    ]


# in the order of their files
TABLES: dict[str, Callable[[Outcome], list[Record]]] = {
    "methods": methods_table,
    "comparisons": comparisons_table,
    "efficiency": efficiency_table,
    "published": published_table,
    "failures": failures_table,
    "runs": runs_table,
}
