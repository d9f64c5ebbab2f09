"""What a run did to the rest of the model, set against the base model: of one run, or of all seeds
of a method together.

Bleed, the task's words and circles in answers to general questions; losses on text of no source
that trains; divergence from the base model; and loss on held-out rows of the source that trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tell_plugins.core.cards import Card
from tell_plugins.evaluation import bleed, retention
from tell_plugins.evaluation.answers import (
    AGAIN,
    ANSWERS,
    Answer,
    answer_lines,
    differing,
    saved_settings,
)
from tell_plugins.evaluation.bleed import Form, form_of
from tell_plugins.evaluation.differences import Difference, Measure, difference, measure_of
from tell_plugins.evaluation.intervals import Estimate, Rate
from tell_plugins.evaluation.judged import Judged
from tell_plugins.evaluation.retention import Sum

BLEED, KL, STYLE_FIT = "bleed minus base", "KL to base", "style fit"
INSTRUCTIONS, PROSE = "foreign instructions minus base", "prose minus base"
STYLE_CHANGE = "style fit minus base"
# losses that are set against the base model's, and the file of each
LOSS_FILES = {
    INSTRUCTIONS: retention.INSTRUCTIONS,
    PROSE: retention.PROSE,
    STYLE_CHANGE: retention.LOSSES,
}
_FILES = {**LOSS_FILES, KL: retention.KL, STYLE_FIT: retention.LOSSES}
NAMES = (BLEED, *_FILES)
# what two losses must share
_OF_LOSSES = (
    *("model", "model_sha256", "model_files_sha256", "engine"),
    *("prompts_sha256", "rows_sha256"),
)
Elsewhere = dict[str, Rate | Estimate | None]  # by name; what was not measured is None or absent


@dataclass(frozen=True)
class Run:
    """One run's answers to general questions, and the sums in `retention.FILES`."""

    answers: list[Answer]
    sums: dict[str, list[Sum]]


def read(folder: Path, beside: Path | None = None, remedy: str = AGAIN) -> Run:
    """What was measured in a folder; nothing where there is none.

    Its losses are left out unless they are of the same model over the same rows as those in
    `beside`, as far as the settings of both say. Raises UserError, with `remedy`, for files that
    are not readable or not whole.
    """
    answers = answer_lines(folder / ANSWERS, remedy)
    sums = {name: retention.read(folder, name, remedy) for name in retention.FILES}
    if beside is not None:
        mine, theirs = saved_settings(folder), saved_settings(beside)
        if mine is None or theirs is None or differing(mine, theirs, _OF_LOSSES):
            sums = {name: [] for name in retention.FILES}
    return Run(answers, sums)


def read_general(folder: Path, base: Path | None, card: Card) -> General:
    """What was measured in `folder`, set against the base model's folder where there is one."""
    other = None if base is None or base == folder else read(base, folder)
    return General([read(folder)], other, form_of(card))


@dataclass(frozen=True)
class General:
    """What all runs of a system did, each beside the model that it was trained from.

    Attributes:
        form: how the answers of the task are known.
    """

    runs: Sequence[Run] = ()
    base: Run | None = None
    form: Form = field(default_factory=Form)

    @cached_property
    def numbers(self) -> Elsewhere:
        """All measures; without changes where there is no base model to compare with."""
        found: Elsewhere = dict.fromkeys((bleed.BLEED, bleed.WORDS, bleed.CIRCLES))
        asked = self._judged
        if asked.rows:
            found |= {name: column.estimate(asked.rows) for name, column in asked.columns.items()}
        if self.base is not None:
            before = General([self.base], None, self.form)
            for name in (BLEED, *LOSS_FILES):
                if (moved := self.minus(before, name)) is not None:
                    found[name] = moved.estimate
        for name in (KL, STYLE_FIT):
            if (one := self.measure(name)) is not None:
                found[name] = one.column.estimate(one.ids)
        found.setdefault(STYLE_FIT, None)
        return found

    @cached_property
    def _judged(self) -> Judged:
        return bleed.judged([answer for run in self.runs for answer in run.answers], self.form)

    def measure(self, name: str) -> Measure | None:
        """One of `NAMES`, row by row; None where the runs do not have it."""
        if name == BLEED:
            asked = self._judged
            known = asked.rows and bleed.BLEED in asked.columns
            return measure_of(asked.rows, asked.columns[bleed.BLEED]) if known else None
        sums = retention.mean_sums([run.sums[_FILES[name]] for run in self.runs])
        return measure_of(range(len(sums)), retention.column(sums)) if sums else None

    def minus(self, other: General, name: str) -> Difference | None:
        """The paired difference of a measure to another's; None where there is none."""
        return difference(self.measure(name), other.measure(name))
