"""The tables of a report: every number with its n and its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tell_plugins.evaluation.grids import POINTS, Record
from tell_plugins.evaluation.intervals import Estimate
from tell_plugins.evaluation.paper_numbers import paper, published
from tell_plugins.experiments.controls import meaning
from tell_plugins.experiments.fairness import caveats, exposure_of
from tell_plugins.experiments.measures import BLEED, LOSS_FILES, MAIN, Judge, Measures, Number
from tell_plugins.experiments.results import BASE_METHOD, Entry, Study

CONTENT = ("balanced accuracy", "exact match", "field f1")  # compared beside the main measure
# columns for machines, and those that a reader looks at last: what a note says is in the note
HIDDEN = ("run", "dataset string", "mixture hash", "steps as planned", "copies")
ASIDE = (
    *("adherence, lenient", "accuracy", "style fit", "task's words", "bleed minus base"),
    *("lowest seed", "highest seed", "mean over seeds"),
    *("most frequent label", "its share", "seeds", "task tokens", "general tokens"),
)
_OF_MIXTURE = ("rows", "task_rows", "copies", "general_rows", "task_tokens", "general_tokens")


@dataclass(frozen=True)
class Group:
    """The finished entries of one method at one point, over seeds, and their numbers.

    `series` names the curve it belongs to: the method, and what else varies beside the axis.
    """

    method: str
    at: dict[str, Any]
    entries: list[Entry]
    measures: Measures
    series: str

    @property
    def point(self) -> str:
        return self.entries[0].point

    @property
    def name(self) -> str:
        return self.entries[0].name

    @property
    def steps(self) -> list[int]:
        return steps_of(self.entries)

    @property
    def is_base(self) -> bool:
        return self.method == BASE_METHOD

    @property
    def no_op(self) -> bool:
        """Whether all of its runs trained nothing."""
        return all(entry.no_op for entry in self.entries)

    def x(self, axis: str) -> float | None:
        """The mean place on an axis over the seeds; 0 where there is nothing of it."""
        found = [amount for e in self.entries if (amount := e.amount(axis)) is not None]
        return sum(found) / len(found) if found else None


def groups(study: Study, judge: Judge) -> list[Group]:
    """The methods of a study at every point, in the order of the sweep."""
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry in study.done:
        found.setdefault((entry.method, entry.point), []).append(entry)
    return [
        Group(
            method=method,
            at=entries[0].at,
            entries=entries,
            measures=judge.measures(entries, study.base_of(entries[0])),
            series=_series(study, entries[0]),
        )
        for (method, _), entries in found.items()
    ]


def _series(study: Study, entry: Entry) -> str:
    own = (study.axis or "").partition("_")[0]  # the key of the dataset string behind the axis
    rest = [f"{key}={value}" for key, value in entry.at.items() if key != own]
    return entry.method + (f" ({', '.join(rest)})" if rest and study.axis else "")


def _measured(measures: Measures) -> dict[str, Any]:
    record: dict[str, Any] = {**measures.task}
    if measures.most_frequent:
        label, share = measures.most_frequent
        record |= {"most frequent label": label, "its share": share}
    return {**record, **measures.elsewhere}


def runs_table(study: Study, judge: Judge) -> list[Record]:
    """One row a run: what it trained on, how long, and what came out; failed ones too."""
    records: list[Record] = []
    for entry in study.entries:
        failure = entry.failure
        state = f"failed: {failure['step']}, {failure['exit']}" if failure else "not done"
        record = {
            "method": entry.method,
            "point": entry.point,
            "seed": entry.seed,
            "state": "done" if entry.done else state,
            "run": entry.run,
            "dataset string": entry.facts.get("spec", ""),
            **{key.replace("_", " "): entry.amount(key) for key in _OF_MIXTURE},
            "steps": entry.steps,
            "steps as planned": entry.planned("steps"),
            "exposure": entry.planned("exposure"),
            "no-op": "yes" if entry.no_op else "",
            "mixture hash": str((entry.facts.get("mixture") or {}).get("hash", ""))[:16],
        }
        if entry.done:
            record |= _measured(judge.measures([entry], study.base_of(entry)))
        records.append(record)
    return records


def methods_table(study: Study, found: Sequence[Group]) -> list[Record]:
    """One row a method and point, over its seeds."""
    records: list[Record] = []
    for group in found:
        spread, steps = group.measures.seeds, group.steps or [0]
        records.append(
            {
                "method": group.method,
                "point": group.point,
                "seeds": len(group.entries) if not group.is_base else 1,
                "steps": " to ".join(map(str, sorted({min(steps), max(steps)}))),
                "exposure": exposure_of(group.entries),
                **{
                    f"{kind} tokens": None if (x := group.x(f"{kind}_tokens")) is None else round(x)
                    for kind in ("task", "general")
                },
                **_measured(group.measures),
                "lowest seed": min(spread, default=None),
                "highest seed": max(spread, default=None),
                "mean over seeds": group.measures.over_seeds,
                "note": "; ".join(notes(group, study)),
            }
        )
    return records


def notes(group: Group, study: Study) -> list[str]:
    """What a reader must know before taking a group's numbers at their word."""
    found, count, expected = [], len(group.entries), len(study.seeds)

    def some(number: int) -> str:
        return "" if number == count else f" in {number} of {count} seeds"

    no_ops = sum(entry.no_op for entry in group.entries)
    if no_ops:
        found.append(f"no-op{some(no_ops)}: nothing was trained (every LoRA B matrix is zero)")
    if group.measures.constants:
        counts: dict[str, tuple[int, int]] = {}
        for label, share in group.measures.constants.values():
            k, n = counts.get(label, (0, 0))
            counts[label] = (k + share.k, n + share.n)
        said = ", ".join(f"'{label}' in {k} of {n}" for label, (k, n) in counts.items())
        found.append(f"constant{some(len(group.measures.constants))}: {said} adherent answers")
    if not group.is_base and count < expected:
        found.append(f"{count} of {expected} seeds done")
    steps = {entry.run: entry.steps for entry in study.done}
    if any(
        entry.steps != steps.get(entry.equal_steps or "", entry.steps) for entry in group.entries
    ):
        found.append("NOT the steps of the run it must equal")
    return found


def comparisons_table(study: Study, found: Sequence[Group], judge: Judge) -> list[Record]:
    """The reference method minus every other at the same point and seeds."""
    records: list[Record] = []
    for reference, other in pairs(study, found):
        mine, theirs = same_seeds(reference, other)
        if not mine:
            continue
        record: dict[str, Any] = {
            "comparison": pair_name(reference, other),
            "point": point_of_pair(reference, other),
            "seeds": len({entry.seed for entry in mine}),
            "equal steps": _equal(steps_of(mine), steps_of(theirs)),
            "equal task tokens": _equal(_task(mine), _task(theirs)),
            "exposure": _exposures(mine, theirs),
        }
        for name in dict.fromkeys((MAIN[study.metric], *CONTENT, BLEED, *LOSS_FILES)):
            record |= _difference(name, judge, mine, theirs)
        stops = [caveat.text for caveat in caveats(mine, theirs)]
        record["note"] = "; ".join([*stops, *notes(other, study)])
        records.append(record)
    return records


def _difference(measure: str, judge: Judge, mine: list[Entry], theirs: list[Entry]) -> Record:
    """A difference of shares in points, one of losses in nats."""
    found = judge.difference(mine, theirs, measure)
    if found is None:
        return {}
    name, points = measure.removesuffix(" minus base"), measure not in LOSS_FILES
    found = found.times(100) if points else found
    seeds: dict[str, Any] = {}
    if found.by_seed:
        seeds[f"{name}, by seed"] = found.each_seed(1 if points else 3)
    if found.over_seeds:
        wide = Estimate(found.value, *found.over_seeds, found.n)
        seeds[f"{name}, over rows and seeds{POINTS if points else ''}"] = wide
    return {
        f"{name}{POINTS}" if points else name: found.estimate,
        f"{name}, smallest that shows": found.smallest,
        **seeds,
    }


def _exposures(mine: Sequence[Entry], theirs: Sequence[Entry]) -> str:
    values = [exposure_of(side) for side in (mine, theirs)]
    shown = ["-" if value is None else f"{value:.1f}" for value in values]
    return " against ".join(shown) if shown != ["-", "-"] else ""


def rival_of(study: Study, found: Sequence[Group]) -> tuple[Group, Group] | None:
    """The reference and the rival that matters: task rows alone with as many steps, if there are.

    Else the trained method that comes nearest on the main measure.
    """
    trained = [(ours, other) for ours, other in pairs(study, found) if not other.is_base]
    alone = [pair for pair in trained if _is_alone(pair[1]) and pair[1].steps == pair[0].steps]

    def value(pair: tuple[Group, Group]) -> float:
        measure = pair[1].measures.main(study.metric)
        return float("-inf") if measure is None or measure.value is None else measure.value

    return max(alone or trained, key=value, default=None)


def _is_alone(group: Group) -> bool:
    rows = [entry.amount("general_rows") for entry in group.entries]
    return not any(rows) and all(entry.amount("task_rows") for entry in group.entries)


def pairs(study: Study, found: Sequence[Group]) -> Iterable[tuple[Group, Group]]:
    """(reference, other): at the same point, or where the other has none (base, single runs).

    Along general data every point is also set against the one without any, which is what general
    data adds. Another card's runs are no comparison, nor is a model that it was not trained from.
    """
    general = (study.axis or "").startswith("general")
    for reference in (group for group in found if group.method == study.plot.reference):
        for other in found:
            if other.is_base:
                compared = study.base_of(reference.entries[0]) in other.entries
            elif other.method != reference.method:
                shared = set(reference.at) & set(other.at)
                same_card = other.entries[0].card == reference.entries[0].card
                compared = same_card and all(reference.at[key] == other.at[key] for key in shared)
            else:
                same = other.series == reference.series and other is not reference
                compared = general and same and other.x(study.axis or "") == 0
            if compared:
                yield reference, other


def called(reference: Group, other: Group) -> str:
    """How the other one of a comparison is called."""
    return "the same without general data" if other.method == reference.method else other.series


def pair_name(reference: Group, other: Group) -> str:
    """How a comparison is called."""
    if other.method == reference.method:
        return f"{reference.series} minus {called(reference, other)}"
    return f"{reference.method} minus {other.method}"


def same_seeds(first: Group, second: Group) -> tuple[list[Entry], list[Entry]]:
    """The entries of both groups with the seeds that both have; the base model has every seed.

    The base model's answers stand once for each seed of the other.
    """
    if second.is_base:
        return first.entries, second.entries * len(first.entries)
    mine, theirs = ({entry.seed: entry for entry in group.entries} for group in (first, second))
    seeds = [seed for seed in mine if seed in theirs]
    return [mine[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def point_of_pair(reference: Group, other: Group) -> str:
    """Where two groups are compared: the keys of both; a base model's own say nothing more."""
    own = other.is_base or other.method == reference.method
    at = reference.at if own else {**other.at, **reference.at}
    return ", ".join(f"{key}={value}" for key, value in at.items())


def steps_of(entries: Sequence[Entry]) -> list[int]:
    return sorted({entry.steps for entry in entries if entry.steps is not None})


def _task(entries: Sequence[Entry]) -> list[Any]:
    return sorted({e.amount("task_tokens") or e.amount("task_rows") or 0 for e in entries})


def _equal(first: list[Any], second: list[Any]) -> str:
    return "yes" if first == second else "no"


Curve = list[tuple[float, Number]]  # x in tokens or rows, and the main measure there


def curves(study: Study, found: Sequence[Group]) -> dict[str, Curve]:
    """The main measure of each series along the axis; the base model has no place on it."""
    result: dict[str, Curve] = {}
    for group in found:
        x, measure = group.x(str(study.axis)), group.measures.main(study.metric)
        if not group.is_base and group.at and x is not None and measure is not None:
            known = measure.value is not None
            result.setdefault(group.series, []).extend([(x, measure)] if known else [])
    return {name: sorted(points, key=lambda point: point[0]) for name, points in result.items()}


def efficiency_table(study: Study, found: Sequence[Group]) -> list[Record]:
    """How many times the task data each other method needs for the reference's scores."""
    if study.axis is None or not study.axis.startswith("task"):
        return []
    unit, drawn = study.axis.replace("_", " "), curves(study, found)
    ours = {group.series for group in found if group.method == study.plot.reference}
    return [
        {
            "what": f"token efficiency of {name} against {other}",
            "at": f"{x:,.0f} {unit}",
            "says": f"{other} {says}",
        }
        for name in sorted(ours & set(drawn))
        for other, points in drawn.items()
        for x, measure in (drawn[name] if other not in ours else ())
        if (says := efficiency(x, measure.value or 0.0, points)) is not None
    ]


def efficiency(x: float, value: float, other: Curve) -> str | None:
    """What another method's curve says of a score at `x`; None without at least two of its points.

    Between points the curve is a straight line in log(x); it is not carried on beyond them.
    """
    curve = [(math.log10(there), measure.value or 0.0) for there, measure in other if there > 0]
    if len(curve) < 2 or x <= 0:
        return None
    if curve[0][1] >= value:
        fold = 10 ** curve[0][0] / x
        return f"is as good with {fold:.3g} times the data, the least tried, or less"
    for (left, low), (right, high) in pairwise(curve):
        if low < value <= high:
            fold = 10 ** (left + (value - low) / (high - low) * (right - left)) / x
            return f"needs {fold:.3g} times the data"
    most = 10 ** curve[-1][0] / x
    return f"does not reach it with {most:.3g} times the data, the most tried"


def published_table(study: Study) -> list[Record]:
    """The paper's numbers that belong to the study; they are of test rows, as the study's then."""
    found = published(study.plot.paper, study.name) if study.split == "test" else None
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


def failures_table(found: Sequence[Group]) -> list[Record]:
    """Why answers failed: counts by kind, over the seeds."""
    kinds = sorted({kind for group in found for kind in group.measures.kinds})
    return [
        {
            "method": group.method,
            "point": group.point,
            "answers": sum(len(answers.lines) for e in group.entries for answers in e.task),
            **{kind: group.measures.kinds.get(kind, 0) for kind in kinds},
        }
        for group in (found if kinds else ())
    ]


def meanings_table(study: Study) -> list[Record]:
    """What each control tells."""
    told = {name: meaning(name) for name in study.methods}
    return [{"method": name, "tells": text} for name, text in told.items() if text]
