"""What learned metrics leave behind; light, so that saved scores can be read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tell_plugins.core.errors import unknown
from tell_plugins.core.files import Shape, cached_json
from tell_plugins.evaluation.judged import Judged, mean, ratio, summed
from tell_plugins.evaluation.scored import Scored
from tell_plugins.evaluation.segments import documents
from tell_plugins.evaluation.translation import UNITS, pairs

LEARNED = ("bleurt", "comet")


@dataclass(frozen=True)
class LearnedScores:
    """Scores by one learned metric of the answers to a translation task, as they are kept.

    Attributes:
        model: the checkpoint, as it was named.
        answers_sha256: of the answers; scores of others never pass as these.
        limit: tokens that the metric reads at once.
        segments: the score of each aligned line, answer after answer.
        over_limit: the lines longer than `limit`, which were cut to it.
        raw: BLEURT of each whole answer against its whole reference, opening included, cut to
            `limit` as BLEURT's own scorer does it: the paper's way. Empty for COMET.
        raw_cut: how many of these lost text by that.
    """

    metric: str
    model: str
    answers_sha256: str
    limit: int
    segments: list[float]
    over_limit: list[str]
    raw: list[float]
    raw_cut: int

    @property
    def note(self) -> str:
        """What is to be said below its scores."""
        text = (
            f"{self.metric}: {self.model}; {len(self.over_limit)} lines cut to {self.limit} tokens"
        )
        return f"{text}, {self.raw_cut} of {len(self.raw)} raw documents cut" if self.raw else text


def learned_file(folder: Path, name: str) -> Path:
    """Where the scores of a folder's answers by a learned metric are kept."""
    return folder / f"scores.{name}.json"


class _Saved(Shape):
    answers_sha256: str
    segments: list[float]
    raw: list[float]


def saved_learned(scored: Scored) -> dict[str, LearnedScores]:
    """Learned scores saved earlier for the same answers, by metric."""
    found = {}
    for name in LEARNED:
        saved = cached_json(learned_file(scored.folder, name), _Saved)
        if saved is not None and saved["answers_sha256"] == scored.sha256:
            found[name] = LearnedScores(**saved)
    return found


def with_learned(scored: Scored, judged: Mapping[str, Judged]) -> dict[str, Judged]:
    """The readings of a translation with what learned metrics said of the same answers.

    The checkpoint is part of a measure's name: scores of two checkpoints are never paired.
    """
    found = dict(judged)
    for name, scores in saved_learned(scored).items():
        owners = pairs(documents(scored)[0], UNITS[0]).owners
        lines = np.stack([scores.segments, np.ones(len(owners))], axis=1)
        over, under = summed(lines, owners).T
        parts = {
            UNITS[0]: ratio(over, under, percent=False),
            UNITS[1]: mean(over / under, percent=False),
            UNITS[2]: mean(scores.raw, percent=False) if scores.raw else None,
        }
        for unit, column in parts.items():
            part, key = found[unit], f"{name} {scores.model}"
            if column is not None:
                columns, notes = {**part.columns, key: column}, [*part.notes, scores.note]
                found[unit] = replace(part, columns=columns, notes=notes)
    return found


def metric_names(text: str) -> list[str]:
    """The learned metrics that `--learned` names. UserError for an unknown one."""
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in LEARNED:
            raise unknown("learned metric", name, LEARNED, "--learned")
    return list(dict.fromkeys(names))
