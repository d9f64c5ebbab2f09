"""What a run did to the rest of the model, set against the base model: of one run, or of all seeds
of a method together.

Bleed, the task's words and circles in answers to general questions; losses on text of no source
that trains; divergence from the base model; and loss on held-out rows of the source that trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tell_plugins.evaluation import bleed, retention
from tell_plugins.evaluation.answers import ANSWERS, Answer, answer_lines, differing, saved_settings
from tell_plugins.evaluation.bleed import Form
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
# what two losses must share
_OF_LOSSES = (
    *("model", "model_sha256", "model_files_sha256", "engine"),
    *("prompts_sha256", "rows_sha256"),
)
Elsewhere = dict[str, Rate | Estimate | None]  # by name; what was not measured is None or absent


class Run(Protocol):
    """The lines of one run's answers to general questions, and the sums in `retention.FILES`."""

    @property
    def general(self) -> list[Answer]: ...

    @property
    def sums(self) -> Mapping[str, list[Sum]]: ...


@dataclass(frozen=True)
class Answered:
    """A run, as `eval` left it in one folder."""

    general: list[Answer]
    sums: dict[str, list[Sum]]


def read(folder: Path, beside: Path | None = None) -> Answered:
    """What was measured in a folder; nothing where there is none.

    Its losses are left out unless they are of the same model over the same rows as those in
    `beside`, as far as the settings of both say. Raises UserError for files that are not readable.
    """
    lines = answer_lines(folder / ANSWERS)
    sums = {name: retention.read(folder, name) for name in retention.FILES}
    if beside is not None:
        mine, theirs = saved_settings(folder), saved_settings(beside)
        if mine is None or theirs is None or differing(mine, theirs, _OF_LOSSES):
            sums = {name: [] for name in retention.FILES}
    return Answered(lines, sums)


def elsewhere(runs: Sequence[Run], base: Run | None, form: Form) -> Elsewhere:
    """What all runs together did; without changes where there is no base model to compare with."""
    found: Elsewhere = dict.fromkeys((bleed.BLEED, bleed.WORDS, bleed.CIRCLES))
    asked = _general(runs, form)
    if asked.rows:
        found |= {name: column.estimate(asked.rows) for name, column in asked.columns.items()}
    for name in (BLEED, *LOSS_FILES):
        moved = change(name, runs, [base], form) if base is not None else None
        if moved is not None:
            found[name] = Estimate(moved.value, moved.low, moved.high, moved.n)
    for name in (KL, STYLE_FIT):
        if (one := measure(runs, name, form)) is not None:
            found[name] = one.column.estimate(one.ids)
    found.setdefault(STYLE_FIT, None)
    return found


def measure(runs: Sequence[Run], name: str, form: Form) -> Measure | None:
    """One measure of all runs together, row by row; None where they do not have it."""
    if name == BLEED:
        asked = _general(runs, form)
        known = asked.rows and bleed.BLEED in asked.columns
        return measure_of(asked.rows, asked.columns[bleed.BLEED]) if known else None
    sums = retention.mean_sums([run.sums[_FILES[name]] for run in runs])
    return measure_of(range(len(sums)), retention.column(sums)) if sums else None


def _general(runs: Sequence[Run], form: Form) -> Judged:
    return bleed.judged([line for run in runs for line in run.general], form)


def change(name: str, runs: Sequence[Run], others: Sequence[Run], form: Form) -> Difference | None:
    """The paired difference of a measure to that of other runs; None where there is none."""
    return difference(*(measure(side, name, form) for side in (runs, others)))
