"""What a comparison of two runs cannot say: unequal exposure, a leak of few rows, too few rows.

Exposure is how much learning rate the task rows met, in rows at the full rate. An order that puts
them all into the warm-up's first step trains nothing of them, whatever the order itself is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tell_plugins.experiments.measures import Difference
from tell_plugins.experiments.results import Entry

UNEQUAL = 1.25  # times the exposure of the other, from which on two runs are not equal
LEAST_AFFECTED = 50  # rows that a leak must touch: with fewer it would have to be worth a fifth
LIMIT_POINTS = 10.0  # percentage points, and nats: a test that sees only more has no power
LIMIT_NATS = 0.05


class Caveat(NamedTuple):
    """What is to be said of a comparison; `stops`: then no conclusion is drawn from it."""

    text: str
    stops: bool


def exposure_of(entries: Sequence[Entry]) -> float | None:
    """The mean exposure of runs; None where one has no task rows, or it is not known."""
    found = [entry.planned("exposure") for entry in entries]
    return None if None in found else sum(found) / len(found)


def caveats(mine: Sequence[Entry], theirs: Sequence[Entry]) -> Iterator[Caveat]:
    """What the runs themselves forbid to conclude, or make to be said."""
    if not (mine and theirs):
        return
    first, second = exposure_of(mine), exposure_of(theirs)
    for value, entries in ((first, mine), (second, theirs)):
        if value == 0 or all(entry.no_op for entry in entries):
            text = f"the task rows of {entries[0].method} met no learning rate (exposure 0)"
            yield Caveat(text, stops=True)
            break
    else:
        if first is not None and second is not None:
            yield from _of_exposure(mine, theirs, first, second)
    leaks = [max((e.planned("leaked") or 0 for e in side), default=0) for side in (mine, theirs)]
    affected = abs(leaks[0] - leaks[1])
    if affected:
        few = affected < LEAST_AFFECTED
        text = f"{affected} of the rows asked are among the general rows of one of the two"
        text += f"; below {LEAST_AFFECTED} nothing could be seen of it" if few else ""
        yield Caveat(text, stops=few)


def _of_exposure(
    mine: Sequence[Entry], theirs: Sequence[Entry], first: float, second: float
) -> Iterator[Caveat]:
    if max(first, second) <= UNEQUAL * min(first, second):
        return
    numbers = f"exposure {first:.1f} against {second:.1f}"
    rows, steps = zip(*(_trained(side) for side in (mine, theirs)), strict=True)
    if rows[0] == rows[1] and steps[0] == steps[1]:
        text = f"the same rows and steps, but {numbers}: a difference may be of learning rate alone"
        yield Caveat(text, stops=True)
    else:
        yield Caveat(f"unequal exposure of the task rows: {numbers}", stops=False)


def _trained(entries: Sequence[Entry]) -> tuple[set[float], set[int | None]]:
    """How many task rows, copies included, and steps the runs took."""
    rows = {(e.amount("task_rows") or 0) * (e.amount("copies") or 1) for e in entries}
    return rows, {entry.steps for entry in entries}


def without_power(difference: Difference, *, points: bool) -> bool:
    """Whether nothing is told apart, and only a large difference would have been.

    `points`: the difference is in percentage points, not in nats.
    """
    limit = LIMIT_POINTS if points else LIMIT_NATS
    return not difference.certain and difference.smallest > limit
