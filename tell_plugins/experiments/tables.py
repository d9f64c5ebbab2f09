"""The tables of a report: every number with its n and its 95 % interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tell_plugins.evaluation.grids import POINTS, Record
from tell_plugins.evaluation.paper_numbers import paper, published
from tell_plugins.experiments.controls import meaning
from tell_plugins.experiments.efficiency import CurvePoint, curve_point, efficiency
from tell_plugins.experiments.fairness import caveats, exposure_of, shown_exposure
from tell_plugins.experiments.measures import (
    BLEED,
    LOSS_FILES,
    MAIN,
    Difference,
    Judge,
    Measures,
)
from tell_plugins.experiments.results import BASE_METHOD, Entry, Study

CONTENT = ("balanced accuracy", "exact match", "field f1")  # compared beside the main measure


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
    def no_ops(self) -> int:
        """How many of its runs trained nothing."""
        return sum(entry.run.no_op for entry in self.entries)

    @property
    def no_op(self) -> bool:
        """Whether all of them did."""
        return self.no_ops == len(self.entries)

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


_OF_MIXTURE = ("rows", "task_rows", "copies", "general_rows", "task_tokens", "general_tokens")


def runs_table(study: Study, judge: Judge) -> list[Record]:
    """One row a run: what it trained on, how long, and what came out; failed ones too."""
    records: list[Record] = []
    for entry in study.entries:
        mixture = entry.run.facts.get("mixture", {})
        record = {
            "method": entry.method,
            "point": entry.point,
            "seed": entry.seed,
            "state": _state(entry),
            "run": entry.run.folder.name,
            "dataset string": entry.run.facts.get("spec", ""),
            **{key.replace("_", " "): mixture.get(key) for key in _OF_MIXTURE},
            "steps": entry.steps,
            "steps as planned": entry.run.facts.get("planned", {}).get("steps"),
            "exposure": entry.run.exposure,
            "no-op": "yes" if entry.run.no_op else "",
            "mixture hash": str(mixture.get("hash", ""))[:16],
        }
        if entry.done:
            record |= _measured(judge.measures([entry], study.base_of(entry)))
        records.append(record)
    return records


def _state(entry: Entry) -> str:
    if entry.done:
        return "done"
    failure = entry.run.failure(entry.evaluation)
    return f"failed: {failure['step']}, {failure['exit']}" if failure else "not done"


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
    found = []
    count = len(group.entries)
    if group.no_ops:
        some = "" if group.no_op else f" in {group.no_ops} of {count} seeds"
        found.append(f"no-op{some}: nothing was trained (every LoRA B matrix is zero)")
    if group.measures.constants:
        few = len(group.measures.constants)
        some = "" if few == count else f" in {few} of {count} seeds"
        found.append(f"constant{some}: {_said(group)} adherent answers")
    expected = len(study.index["seeds"])
    if not group.is_base and len(group.entries) < expected:
        found.append(f"{len(group.entries)} of {expected} seeds done")
    wrong = [entry for entry in group.entries if unequal_steps(entry, study)]
    if wrong:
        found.append("NOT the steps of the run it must equal")
    return found


def _said(group: Group) -> str:
    """The labels that constant seeds give, each with its counts over those seeds."""
    counts: dict[str, tuple[int, int]] = {}
    for label, share in group.measures.constants.values():
        k, n = counts.get(label, (0, 0))
        counts[label] = (k + share.k, n + share.n)
    return ", ".join(f"'{label}' in {k} of {n}" for label, (k, n) in counts.items())


def unequal_steps(entry: Entry, study: Study) -> bool:
    """Whether an entry that must equal another's optimizer steps took others."""
    other = next((e for e in study.done if e.run.folder.name == entry.equal_steps), None)
    return other is not None and entry.steps != other.steps


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
            "exposure": _against(shown_exposure(mine), shown_exposure(theirs)),
        }
        for name in dict.fromkeys((MAIN[study.metric], *CONTENT, BLEED, *LOSS_FILES)):
            record |= _difference(name, judge.difference(mine, theirs, name))
        stops = [caveat.text for caveat in caveats(mine, theirs)]
        record["note"] = "; ".join([*stops, *notes(other, study)])
        records.append(record)
    return records


def _difference(measure: str, difference: Difference | None) -> Record:
    """A difference of shares in points, one of losses in nats."""
    if difference is None:
        return {}
    name = measure.removesuffix(" minus base")
    points = measure not in LOSS_FILES
    factor, digits = (100, 1) if points else (1, 3)
    record: dict[str, Any] = {
        f"{name}{POINTS}" if points else name: difference.estimate(factor),
        f"{name}, smallest that shows": factor * difference.smallest,
    }
    if difference.by_seed:
        record[f"{name}, by seed"] = difference.each_seed(factor, digits)
    return record


def _against(first: str, second: str) -> str:
    return f"{first or '-'} against {second or '-'}" if first or second else ""


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
    for reference in found:
        if reference.method != study.plot.reference:
            continue
        for other in found:
            shared = set(reference.at) & set(other.at)
            if other.is_base:
                if study.base_of(reference.entries[0]) in other.entries:
                    yield reference, other
            elif other.method != reference.method:
                same_card = other.entries[0].card == reference.entries[0].card
                if same_card and all(reference.at[key] == other.at[key] for key in shared):
                    yield reference, other
            elif _is_without(study, reference, other):
                yield reference, other


def _is_without(study: Study, group: Group, other: Group) -> bool:
    """Whether `other` is the point of the same series that has no general data."""
    axis = study.axis or ""
    if not axis.startswith("general") or other.series != group.series or other is group:
        return False
    return other.x(axis) == 0


def pair_name(reference: Group, other: Group) -> str:
    """How a comparison is called."""
    if other.method == reference.method:
        return f"{reference.series} minus the same without general data"
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
    at = reference.at if other.is_base else {**other.at, **reference.at}
    if other.method == reference.method:
        at = reference.at
    return ", ".join(f"{key}={value}" for key, value in at.items())


def steps_of(entries: Sequence[Entry]) -> list[int]:
    return sorted({entry.steps for entry in entries if entry.steps is not None})


def _task(entries: Sequence[Entry]) -> list[Any]:
    return sorted({e.amount("task_tokens") or e.amount("task_rows") or 0 for e in entries})


def _equal(first: list[Any], second: list[Any]) -> str:
    return "yes" if first == second else "no"


def curves(study: Study, found: Sequence[Group]) -> dict[str, list[CurvePoint]]:
    """The main measure of each series along the axis; the base model has no place on it."""
    result: dict[str, list[CurvePoint]] = {}
    for group in found:
        x, measure = group.x(str(study.axis)), group.measures.main(study.metric)
        if not group.is_base and group.at and x is not None and measure is not None:
            point = curve_point(x, measure)
            result.setdefault(group.series, []).extend([point] if point else [])
    return {name: sorted(points, key=lambda p: p.x) for name, points in result.items()}


def efficiency_table(study: Study, found: Sequence[Group]) -> list[Record]:
    """How many times the task data each other method needs for the reference's scores."""
    if study.axis is None or not study.axis.startswith("task"):
        return []
    unit, drawn = study.axis.replace("_", " "), curves(study, found)
    ours = {group.series for group in found if group.method == study.plot.reference}
    return [
        {
            "what": f"token efficiency of {name} against {other}",
            "at": f"{point.x:,.0f} {unit}",
            "says": says,
        }
        for name in sorted(ours & set(drawn))
        for other, points in drawn.items()
        for point in (drawn[name] if other not in ours else ())
        if (says := efficiency(point, points, other)) is not None
    ]


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
    if not kinds:
        return []
    return [
        {
            "method": group.method,
            "point": group.point,
            "answers": sum(len(a.lines) for e in group.entries for a in e.measured.task),
            **{kind: group.measures.kinds.get(kind, 0) for kind in kinds},
        }
        for group in found
    ]


def meanings_table(study: Study) -> list[Record]:
    """What each control tells."""
    told = {name: meaning(name) for name in study.methods}
    return [{"method": name, "tells": text} for name, text in told.items() if text]


# columns for machines, and those that a reader looks at last: what a note says is in the note
HIDDEN = ("run", "dataset string", "mixture hash", "steps as planned", "copies")
ASIDE = (
    *("adherence, lenient", "accuracy", "style fit", "task's words", "bleed minus base"),
    *("lowest seed", "highest seed", "mean over seeds"),
    *("most frequent label", "its share", "seeds", "task tokens", "general tokens"),
)
