"""What `tune` goes by: one measure of content, paired row by row, and how far the model moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tell_plugins.core.files import read_json
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation import retention
from tell_plugins.evaluation.answers import (
    GENERAL,
    SETTINGS,
    SavedSettings,
    Scored,
    joined,
    load_scored,
)
from tell_plugins.evaluation.scorers import judge_saved
from tell_plugins.evaluation.scoring import Measure, difference, measures
from tell_plugins.evaluation.significance import RESAMPLES, SEED, Difference
from tell_plugins.experiments.records import AGAIN

# the measure that settings are chosen by: the first that a card's answers have
CONTENT = (
    ("strict", "balanced_accuracy"),
    ("strict", "field_f1"),
    ("label", "balanced_accuracy"),
    ("number", "exact_match"),
    ("stripped_segment", "chrf++"),
    ("text", "chrf++"),
)


@dataclass(frozen=True)
class Result:
    """What one candidate has shown in its first `parts` runs.

    Attributes:
        name: of the candidate.
        key: the scorer and the name of the measure.
        measure: of all rows that were judged in these runs, each once.
        drift: (sum, tokens) of the divergence from the base model, by row; empty: not measured.
        learned: whether any content is right, and not for one label given all the time.
        scale: what the adapters' weights were multiplied by.
    """

    name: str
    parts: int
    key: tuple[str, str]
    measure: Measure
    drift: list[retention.Sum]
    learned: bool = True
    scale: float = 1.0

    @cached_property
    def score(self) -> float:
        """The measure; minus infinity where it is undefined."""
        found = float(self.measure.column.score(self.measure.stats.sum(axis=0)[None])[0])
        return -math.inf if math.isnan(found) else found

    @cached_property
    def kl(self) -> float:
        """Mean divergence from the base model a token; infinite where none was measured, or it is
        no number."""
        found = retention.retention(self.drift).value if self.drift else None
        return found if found is not None and math.isfinite(found) else math.inf

    @property
    def rank(self) -> tuple[float, float]:
        """The better of two has the larger one."""
        return self.score, -self.kl

    def minus(self, other: Result) -> Difference | None:
        """The paired difference in content; None where there is none."""
        return difference(self.measure, other.measure, resamples=RESAMPLES, seed=SEED)

    def is_better_than(self, other: Result) -> bool:
        """Whether its content is told apart as better."""
        found = self.minus(other)
        return found is not None and found.low > 0

    def moves_less_than(self, other: Result) -> bool:
        """Whether it is told apart as nearer to the base model."""
        if not (math.isfinite(self.kl) and math.isfinite(other.kl)):
            return False
        return retention.difference(self.drift, other.drift).high < 0


def result_of(name: str, evaluations: Sequence[Path], judges: TaskRows, scale: float = 1) -> Result:
    """The result of the runs whose evaluations' folders are given, at one scale of the adapter."""
    task, drift = [], []
    for folder in evaluations:
        for path in sorted(folder.glob(f"*/*/{SETTINGS}")):
            settings = read_json(path, SavedSettings, AGAIN)
            if settings.get("scale", 1.0) != scale:
                continue
            if settings["split"] == GENERAL:
                drift.append(retention.read(path.parent, retention.KL))
            else:
                task.append(path.parent)
    scored = _pooled(task, judges)
    judged = judge_saved(scored)
    found = measures(scored, judged)
    key = next(key for key in CONTENT if key in found)
    given = {label for label in judged[key[0]].given if label is not None}
    result = Result(
        name, len(evaluations), key, found[key], retention.mean_sums(drift), scale=scale
    )
    return replace(result, learned=result.score > 0 and len(given) != 1)


def _pooled(folders: Sequence[Path], judges: TaskRows) -> Scored:
    """The answers of several runs as answers to the rows of the user's own card, a run an attempt.

    Of each part labels could be others; so all are judged by the same rows.
    """
    loaded = [load_scored(folder) for folder in folders]
    runs = [
        replace(scored, answers=[answer._replace(attempt=run) for answer in scored.answers])
        for run, scored in enumerate(loaded)
    ]
    return joined(runs, judges)


def choose(results: Sequence[Result]) -> Result:
    """The result to take; the first is of the recipe's own settings.

    It is the best of those that a paired interval tells apart as better than the first. Where
    there is none: of those that score no lower and are told apart as nearer to the base model, the
    nearest; where nothing is learned this would be the one that trains least. Else the first.
    """
    own, *others = results
    better = [result for result in others if result.is_better_than(own)]
    if better:
        return max(better, key=lambda result: result.rank)
    learned = [r for r in others if r.learned and own.learned]
    lighter = [r for r in learned if r.score >= own.score and r.moves_less_than(own)]
    return min(lighter, key=lambda result: result.kl, default=own)
