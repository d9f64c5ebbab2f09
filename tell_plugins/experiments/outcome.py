"""What a study's finished runs amount to: its groups, and the reference beside each other one.

A comparison also knows what it cannot say: unequal exposure, a leak of few rows, too few rows.
Exposure is how much learning rate the task rows met, in rows at the full rate. An order that puts
them all into the warm-up's first step trains nothing of them, whatever the order itself is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from tell_plugins.evaluation.differences import Difference
from tell_plugins.evaluation.scoring import main_measure
from tell_plugins.experiments.measures import Group, Judge, steps_of
from tell_plugins.experiments.results import Entry, Study

UNEQUAL = 1.25  # times the exposure of the other, from which on two runs are not equal
LEAST_AFFECTED = 50  # rows that a leak must touch: with fewer it would have to be worth a fifth
LIMIT_POINTS = 10.0  # a test that sees only more than this has no power
LIMIT_NATS = 0.05


class Caveat(NamedTuple):
    """What is to be said of a comparison; `stops`: then no conclusion is drawn from it."""

    text: str
    stops: bool


class Pair:
    """The reference and another group, over the seeds that both have.

    Attributes:
        mine, theirs: the entries of either side, paired in their order. The base model's answers
            stand once for each seed of the other.
    """

    def __init__(self, judge: Judge, reference: Group, other: Group) -> None:
        self._judge, self.reference, self.other = judge, reference, other
        if other.is_base:
            self.mine, self.theirs = reference.entries, other.entries * len(reference.entries)
            return
        both = ({entry.seed: entry for entry in group.entries} for group in (reference, other))
        mine, theirs = both
        self.mine = [entry for seed, entry in mine.items() if seed in theirs]
        self.theirs = [theirs[entry.seed] for entry in self.mine]

    @property
    def within(self) -> bool:
        """Whether both are the reference method, the other one without general data."""
        return self.other.method == self.reference.method

    @property
    def called(self) -> str:
        """How the other one is called."""
        return "the same without general data" if self.within else self.other.series

    @property
    def name(self) -> str:
        """How the comparison is called."""
        if self.within:
            return f"{self.reference.series} minus {self.called}"
        return f"{self.reference.method} minus {self.other.method}"

    @property
    def point(self) -> str:
        """Where they are compared: the keys of both; a base model's own say nothing more."""
        mine, theirs = (group.entries[0].at for group in (self.reference, self.other))
        at = mine if self.other.is_base or self.within else {**theirs, **mine}
        return ", ".join(f"{key}={value}" for key, value in at.items())

    @property
    def steps(self) -> tuple[list[int], list[int]]:
        return steps_of(self.mine), steps_of(self.theirs)

    @property
    def exposures(self) -> tuple[float | None, float | None]:
        return exposure_of(self.mine), exposure_of(self.theirs)

    def difference(self, name: str) -> Difference | None:
        """Reference minus other in a measure; None where there is nothing to pair."""
        return self._judge.difference(self.mine, self.theirs, name)

    @cached_property
    def caveats(self) -> list[Caveat]:
        """What the runs themselves forbid to conclude, or make to be said."""
        return [*self._of_exposure(), *self._of_leaks()]

    @property
    def stops(self) -> list[str]:
        """Why no conclusion is drawn; empty where nothing forbids one."""
        return [caveat.text for caveat in self.caveats if caveat.stops]

    def _of_exposure(self) -> Iterator[Caveat]:
        mine, theirs = self.exposures
        for value, entries in ((mine, self.mine), (theirs, self.theirs)):
            if value == 0 or all(entry.no_op for entry in entries):
                text = f"the task rows of {entries[0].method} met no learning rate (exposure 0)"
                yield Caveat(text, stops=True)
                return
        if mine is None or theirs is None or max(mine, theirs) <= UNEQUAL * min(mine, theirs):
            return
        numbers = f"exposure {mine:.1f} against {theirs:.1f}"
        if _trained(self.mine) == _trained(self.theirs):
            text = f"the same rows and steps, but {numbers}: a difference may be of learning rate "
            yield Caveat(text + "alone", stops=True)
        else:
            yield Caveat(f"unequal exposure of the task rows: {numbers}", stops=False)

    def _of_leaks(self) -> Iterator[Caveat]:
        mine, theirs = (
            max(entry.planned("leaked") or 0 for entry in side) for side in (self.mine, self.theirs)
        )
        affected = abs(mine - theirs)
        if affected:
            few = affected < LEAST_AFFECTED
            text = f"{affected} of the rows asked are among the general rows of one of the two"
            text += f"; below {LEAST_AFFECTED} nothing could be seen of it" if few else ""
            yield Caveat(text, stops=few)


class Outcome:
    """The finished runs of one study.

    Attributes:
        groups: the methods at every point, in the order of the sweep.
        pairs: the reference and each other group that it is compared with.
    """

    def __init__(self, study: Study, judge: Judge) -> None:
        self.study, self.judge = study, judge
        found: dict[tuple[str, str], list[Entry]] = {}
        for entry in study.done:
            found.setdefault((entry.method, entry.point), []).append(entry)
        self.groups = [judge.group(study, entries) for entries in found.values()]
        possible = (
            Pair(judge, reference, other)
            for reference in self.groups
            for other in self.groups
            if reference.method == study.plot.reference and self._compared(reference, other)
        )
        self.pairs = [pair for pair in possible if pair.mine]

    def _compared(self, reference: Group, other: Group) -> bool:
        """Whether two groups stand at the same point, or the other has none (base, single runs).

        Along general data every point is also set against the one without any, which is what
        general data adds. Another card's runs are no comparison, nor is a model that it was not
        trained from.
        """
        mine, theirs = reference.entries[0], other.entries[0]
        if other.is_base:
            return self.study.base_of(mine) in other.entries
        if other.method != reference.method:
            shared = set(mine.at) & set(theirs.at)
            return theirs.card == mine.card and all(mine.at[k] == theirs.at[k] for k in shared)
        axis = self.study.axis or ""
        same = other.series == reference.series and other is not reference
        return axis.startswith("general") and same and other.x(axis) == 0

    @property
    def main(self) -> str:
        """The name of the measure that curves and comparisons are about."""
        return main_measure(self.study.metric)

    @cached_property
    def rival(self) -> Pair | None:
        """The comparison that matters: with task rows alone and as many steps, if there are.

        Else with the trained method that comes nearest on the main measure.
        """
        trained = [pair for pair in self.pairs if not pair.other.is_base]
        alone = [p for p in trained if _is_alone(p.other) and p.other.steps == p.reference.steps]

        def value(pair: Pair) -> float:
            measure = pair.other.main
            return float("-inf") if measure is None or measure.value is None else measure.value

        return max(alone or trained, key=value, default=None)

    def notes(self, group: Group) -> list[str]:
        """What a reader must know before taking a group's numbers at their word."""
        found, count, expected = [], len(group.entries), len(self.study.seeds)

        def some(number: int) -> str:
            return "" if number == count else f" in {number} of {count} seeds"

        no_ops = sum(entry.no_op for entry in group.entries)
        if no_ops:
            found.append(f"no-op{some(no_ops)}: nothing was trained (every LoRA B matrix is zero)")
        if group.constants:
            counts: dict[str, tuple[int, int]] = {}
            for label, share in group.constants:
                k, n = counts.get(label, (0, 0))
                counts[label] = (k + share.k, n + share.n)
            said = ", ".join(f"'{label}' in {k} of {n}" for label, (k, n) in counts.items())
            found.append(f"constant{some(len(group.constants))}: {said} adherent answers")
        if not group.is_base and count < expected:
            found.append(f"{count} of {expected} seeds done")
        steps = {entry.run: entry.steps for entry in self.study.done}
        if any(e.steps != steps.get(e.equal_steps or "", e.steps) for e in group.entries):
            found.append("NOT the steps of the run it must equal")
        return found


def exposure_of(entries: Sequence[Entry]) -> float | None:
    """The mean exposure of runs; None where one has no task rows, or it is not known."""
    found = [entry.planned("exposure") for entry in entries]
    return None if None in found else sum(found) / len(found)


def _trained(entries: Sequence[Entry]) -> tuple[set[float], set[int | None]]:
    """How many task rows, copies included, and steps the runs took."""
    rows = {(e.amount("task_rows") or 0) * (e.amount("copies") or 1) for e in entries}
    return rows, {entry.steps for entry in entries}


def _is_alone(group: Group) -> bool:
    rows = [entry.amount("general_rows") for entry in group.entries]
    return not any(rows) and all(entry.amount("task_rows") for entry in group.entries)


def without_power(difference: Difference) -> bool:
    """Whether nothing is told apart, and only a large difference would have been."""
    limit = LIMIT_NATS if difference.is_loss else LIMIT_POINTS
    return not difference.told_apart and difference.smallest > limit
