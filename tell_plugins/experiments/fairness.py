"""What a comparison of two runs cannot say: unequal exposure, a leak of few rows, too few rows.

Exposure is how much learning rate the task rows met, in rows at the full rate. An order that puts
them all into the warm-up's first step trains nothing of them, whatever the order itself is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tell_plugins.experiments.measures import Difference
from tell_plugins.experiments.results import Entry

UNEQUAL = 1.25  # times the exposure of the other, from which on two runs are not equal
LEAST_AFFECTED = 50  # rows that a leak must touch: with fewer it would have to be worth a fifth
LIMIT_POINTS = 10.0  # percentage points, and nats: a test that sees only more has no power
LIMIT_NATS = 0.05


@dataclass(frozen=True)
class Caveat:
    """What is to be said of a comparison; `stops`: then no conclusion is drawn from it."""

    text: str
    stops: bool


def exposure_of(entries: Sequence[Entry]) -> float | None:
    """The mean exposure of runs; None where one has no task rows, or it is not known."""
    found = [entry.run.exposure for entry in entries]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if found and len(known) == len(found) else None


def shown_exposure(entries: Sequence[Entry]) -> str:
    """Exposure as it is read: `5.6`; empty where there is none."""
    value = exposure_of(entries)
    return "" if value is None else f"{value:.1f}"


def caveats(mine: Sequence[Entry], theirs: Sequence[Entry]) -> list[Caveat]:
    """What the runs themselves forbid to conclude, or make to be said."""
    return [*_of_exposure(mine, theirs), *_of_leaks(mine, theirs)]


def _of_exposure(mine: Sequence[Entry], theirs: Sequence[Entry]) -> list[Caveat]:
    first, second = exposure_of(mine), exposure_of(theirs)
    for value, entries in ((first, mine), (second, theirs)):
        if value == 0 or all(entry.run.no_op for entry in entries):
            text = f"the task rows of {entries[0].method} met no learning rate (exposure 0)"
            return [Caveat(text, stops=True)]
    if first is None or second is None or max(first, second) <= UNEQUAL * min(first, second):
        return []
    numbers = f"exposure {first:.1f} against {second:.1f}"
    if _entries(mine) == _entries(theirs) and _steps(mine) == _steps(theirs):
        text = f"the same rows and steps, but {numbers}: a difference may be of learning rate alone"
        return [Caveat(text, stops=True)]
    return [Caveat(f"unequal exposure of the task rows: {numbers}", stops=False)]


def _entries(entries: Sequence[Entry]) -> set[float]:
    return {(e.amount("task_rows") or 0) * (e.amount("copies") or 1) for e in entries}


def _steps(entries: Sequence[Entry]) -> set[int | None]:
    return {entry.steps for entry in entries}


def _of_leaks(mine: Sequence[Entry], theirs: Sequence[Entry]) -> list[Caveat]:
    counts = [max((e.run.leaked or 0 for e in side), default=0) for side in (mine, theirs)]
    affected = abs(counts[0] - counts[1])
    if not affected:
        return []
    text = f"{affected} of the rows asked are among the general rows of one of the two"
    if affected < LEAST_AFFECTED:
        return [Caveat(f"{text}; below {LEAST_AFFECTED} nothing could be seen of it", stops=True)]
    return [Caveat(text, stops=False)]


def without_power(difference: Difference, *, points: bool) -> bool:
    """Whether nothing is told apart, and only a large difference would have been."""
    factor, limit = (100.0, LIMIT_POINTS) if points else (1.0, LIMIT_NATS)
    return not difference.certain and factor * difference.smallest > limit
