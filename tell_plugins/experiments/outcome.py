"""What a study's finished runs amount to: its groups, and the reference beside each other one.

A group is one method at one point, over all of its seeds; each number has its n and a 95 %
interval. Answers of several seeds to the same test row are not independent: rates carry the design
effect of `intervals.rate`, and differences the correlation over test rows. What seeds add to that
is shown by the spread of the seeds themselves, which no interval over rows can tell.

A comparison also knows what it cannot say: unequal exposure, a leak of few rows, too few rows.
Exposure is how much learning rate the task rows met, in rows at the full rate. An order that puts
them all into the warm-up's first step trains nothing of them, whatever the order itself is worth.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

from tell_plugins.evaluation import scorers, scoring
from tell_plugins.evaluation.differences import LEAST_SEEDS, Difference, t_interval
from tell_plugins.evaluation.elsewhere import Elsewhere, General
from tell_plugins.evaluation.intervals import Estimate, rate
from tell_plugins.evaluation.judged import Judged
from tell_plugins.evaluation.scoring import (
    System,
    difference_of,
    references,
    scored,
    together,
)
from tell_plugins.experiments.results import REFERENCES, Entry, Study

UNEQUAL = 1.25  # times the exposure of the other, from which on two runs are not equal
LEAST_AFFECTED = 50  # rows that a leak must touch: with fewer it would have to be worth a fifth
LIMIT_POINTS = 10.0  # a test that sees only more than this has no power
LIMIT_NATS = 0.05
_CONSTANT = 0.95  # a label given at least this often is called a constant answer
Entries = Sequence[Entry]
FrequentLabel = tuple[str, Estimate]  # a label and its share of the adherent answers


class Judge:
    """Judges the answers of the entries of a results folder, each once."""

    def __init__(self, root: Path) -> None:
        folder = root / REFERENCES
        self._known = functools.cache(lambda card, split: references(folder, card, split))
        self._systems: dict[tuple[str, str], System] = {}

    def system(self, entry: Entry) -> System:
        """The answers of an entry, and what was measured elsewhere."""
        key = (entry.run, entry.evaluation)
        if key not in self._systems:
            known = self._known(entry.card, entry.task[0].settings.split)
            first, *others = [scored(saved, known) for saved in entry.task]
            general = General(entry.general, form=known.form)
            self._systems[key] = System(entry.name, first, general, others)
        return self._systems[key]


class Group:
    """The finished entries of one method at one point of the grid, all seeds together.

    Attributes:
        series: the curve it belongs to: the method, and what else varies beside the axis.
        no_op: whether all of its runs trained nothing.
        systems: what each entry answered; `system`: all of them as one.
        task: what the scorers measure, by name, shares in front.
        elsewhere: what general questions and texts tell, paired with the base model.
        numbers: both.
        main: the measure that curves and comparisons are about; `seeds`: of each seed.
        over_seeds: the mean of these with its interval.
        constants: of each entry that gives nearly one label only, that label.
        constant: whether all of them do.
    """

    def __init__(self, judge: Judge, study: Study, entries: Entries) -> None:
        first, main = entries[0], scoring.main_measure(study.metric)
        self.entries, self.series = list(entries), study.series_of(first)
        self.method, self.at, self.point = first.method, first.at, first.point
        self.name, self.is_base = first.name, first.is_base
        self.steps, self.no_op = steps_of(entries), all(entry.no_op for entry in entries)
        self.systems = [judge.system(entry) for entry in entries]
        self.system = together(self.systems)
        self.task = _of_task(self.system)
        base = None if self.is_base else study.base_of(first)
        before = None if base is None else next(iter(base.general), None)
        self.elsewhere = replace(self.system.general, base=before).numbers
        self.numbers: Elsewhere = {**self.elsewhere, **self.task}
        self.main = self.task.get(main)
        measures = [system.measure(main) for system in self.systems]
        self.seeds = [measure.column.total for measure in measures if measure is not None]
        self.over_seeds = over_seeds(self.seeds, share=not scorers.reads_texts(study.metric))
        said = [frequent_label(system.first) for system in self.systems]
        known = [most for most in said if most is not None and most[1].n > 1]
        self.constants = [most for most in known if (most[1].value or 0) >= _CONSTANT]
        self.constant = len(self.constants) == len(self.entries)

    def x(self, axis: str) -> float | None:
        """The mean place on an axis over the seeds; 0 where there is nothing of it."""
        found = [amount for e in self.entries if (amount := e.amount(axis)) is not None]
        return sum(found) / len(found) if found else None


def _of_task(system: System) -> dict[str, Estimate]:
    found, lenient = system.measured, system.readings.get("lenient")
    if lenient is not None:
        both = {"adherence, lenient": lenient.numbers["adherence"]}
        found = {"adherence": found["adherence"]} | both | found
    return {name: number for name, number in found.items() if number.k is not None} | found


def over_seeds(values: Sequence[float], *, share: bool) -> Estimate | None:
    """The mean of seeds with its t-interval, which holds whatever a seed changes.

    None for fewer than `LEAST_SEEDS`, and where all are equal: nothing varied that could tell.
    """
    if len(values) < LEAST_SEEDS or len(set(values)) == 1:
        return None
    middle, low, high = t_interval(values)
    if share:
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(middle, low, high, len(values))


def steps_of(entries: Entries) -> list[int]:
    return sorted({entry.steps for entry in entries if entry.steps is not None})


def exposure_of(entries: Entries) -> float | None:
    """The mean exposure of runs; None where one has no task rows, or it is not known."""
    found = [entry.planned("exposure") for entry in entries]
    return None if not found or None in found else sum(found) / len(found)


def frequent_label(reading: Judged) -> FrequentLabel | None:
    """The label given most often; None where no answer carries one."""
    both = zip(reading.rows, reading.given, strict=False)
    said = [(row, label) for row, label in both if label is not None]
    if not said or "balanced_accuracy" not in reading.columns:
        return None
    label = Counter(label for _, label in said).most_common(1)[0][0]
    return label, rate([other == label for _, other in said], [row for row, _ in said])


class Caveat(NamedTuple):
    """What is to be said of a comparison; `stops`: then no conclusion is drawn from it."""

    text: str
    stops: bool


class Pair:
    """The reference and another group, over the seeds that both have.

    Attributes:
        mine, theirs: the entries of either side, paired in their order. The base model's answers
            stand once for each seed of the other.
        called: how the other one is called; `name`: how the comparison is.
        point: where they are compared: the keys of both; a base model's own say nothing more.
        caveats: what the runs themselves forbid to conclude, or make to be said.
        stops: why no conclusion is drawn; empty where nothing forbids one.
    """

    def __init__(self, judge: Judge, reference: Group, other: Group) -> None:
        self._judge, self.reference, self.other = judge, reference, other
        self._found: dict[str, Difference | None] = {}
        mine, theirs = ({e.seed: e for e in group.entries} for group in (reference, other))
        if other.is_base:
            theirs = dict.fromkeys(mine, other.entries[0])
        self.mine = [entry for seed, entry in mine.items() if seed in theirs]
        self.theirs = [theirs[entry.seed] for entry in self.mine]
        self.steps = steps_of(self.mine), steps_of(self.theirs)
        self.exposures = exposure_of(self.mine), exposure_of(self.theirs)
        self.caveats = [*self._of_exposure(), *self._of_leaks()] if self.mine else []
        self.stops = [caveat.text for caveat in self.caveats if caveat.stops]
        self.called, at = other.series, {**other.at, **reference.at}
        self.name = f"{reference.method} minus {other.method}"
        if other.method == reference.method:  # which differ in general data
            self.called = "the same without general data"
            self.name = f"{reference.series} minus {self.called}"
        if other.is_base or other.method == reference.method:
            at = reference.at
        self.point = ", ".join(f"{key}={value}" for key, value in at.items())

    def difference(self, name: str) -> Difference | None:
        """Reference minus other in a measure; None where there is nothing to pair. Tables,
        sentences and pictures ask for the same: each is made once."""
        if name not in self._found:
            mine, theirs = (
                [self._judge.system(entry) for entry in side] for side in (self.mine, self.theirs)
            )
            self._found[name] = difference_of(mine, theirs, name)
        return self._found[name]

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
        if affected := abs(mine - theirs):
            few = affected < LEAST_AFFECTED
            text = f"{affected} of the rows asked are among the general rows of one of the two"
            text += f"; below {LEAST_AFFECTED} nothing could be seen of it" if few else ""
            yield Caveat(text, stops=few)


def _trained(entries: Entries) -> tuple[set[float], set[int | None]]:
    """How many task rows, copies included, and steps the runs took."""
    rows = {(e.amount("task_rows") or 0) * (e.amount("copies") or 1) for e in entries}
    return rows, {entry.steps for entry in entries}


class Outcome:
    """The finished runs of one study.

    Attributes:
        groups: the methods at every point, in the order of the sweep.
        pairs: the reference and each other group that it is compared with.
        main: the name of the measure that curves and comparisons are about.
    """

    def __init__(self, study: Study, judge: Judge) -> None:
        self.study, self.judge = study, judge
        self.main = scoring.main_measure(study.metric)
        found: dict[tuple[str, str], list[Entry]] = {}
        for entry in study.done:
            found.setdefault((entry.method, entry.point), []).append(entry)
        self.groups = [Group(judge, study, entries) for entries in found.values()]
        pairs = (
            Pair(judge, reference, other)
            for reference, other in product(self.groups, repeat=2)
            if reference.method == study.plot.reference and self._compared(reference, other)
        )
        self.pairs = [pair for pair in pairs if pair.mine]

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

    @cached_property
    def rival(self) -> Pair | None:
        """The comparison that matters: with task rows alone and as many steps, if there are.

        Else with the trained method that comes nearest on the main measure.
        """
        trained = [pair for pair in self.pairs if not pair.other.is_base]
        alone = [
            pair
            for pair in trained
            if pair.other.steps == pair.reference.steps
            and all(entry.amount("task_rows") for entry in pair.other.entries)
            and not any(entry.amount("general_rows") for entry in pair.other.entries)
        ]

        def value(pair: Pair) -> float:
            measure = pair.other.main
            return -math.inf if measure is None or measure.value is None else measure.value

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
            times, answers = Counter[str](), Counter[str]()
            for label, share in group.constants:
                times[label] += share.k or 0
                answers[label] += share.n
            said = ", ".join(f"'{label}' in {times[label]} of {answers[label]}" for label in times)
            found.append(f"constant{some(len(group.constants))}: {said} adherent answers")
        if not group.is_base and count < expected:
            found.append(f"{count} of {expected} seeds done")
        steps = {entry.run: entry.steps for entry in self.study.done}
        if any(e.steps != steps.get(e.equal_steps or "", e.steps) for e in group.entries):
            found.append("NOT the steps of the run it must equal")
        return found


def without_power(difference: Difference) -> bool:
    """Whether nothing is told apart, and only a large difference would have been."""
    limit = LIMIT_NATS if difference.is_loss else LIMIT_POINTS
    return not difference.told_apart and difference.smallest > limit
