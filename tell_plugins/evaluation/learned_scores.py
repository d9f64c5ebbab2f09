"""What learned metrics leave behind; light, so that saved scores can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from tell_plugins.core.errors import unknown
from tell_plugins.evaluation.intervals import Estimate, Rate

LEARNED = ("bleurt", "comet")


@dataclass(frozen=True)
class LearnedScores:
    """Scores of one learned metric over the answers of a translation task.

    Attributes:
        model: the checkpoint, as it was named.
        limit: tokens that the metric reads at once.
        segment: mean over the aligned lines. document: mean over documents of their lines' mean.
        over_limit: the lines longer than `limit`; each was scored in equal parts that fit, and
            counts as the mean of its parts.
        raw_document: BLEURT of whole answers against whole references, opening included, each
            pair cut to `limit` as BLEURT's own scorer does it: the paper's way. None for COMET.
        raw_cut: how many of those pairs lost text by that.
    """

    metric: str
    model: str
    limit: int
    segment: Estimate
    document: Estimate
    over_limit: list[str]
    raw_document: Estimate | None
    raw_cut: Rate | None


@dataclass(frozen=True)
class SegmentScores:
    """The scores of single segments, kept for paired comparison: `rows` are their test rows."""

    metric: str
    model: str
    answers_sha256: str
    rows: list[int]
    scores: list[float]


def metric_names(text: str) -> list[str]:
    """The learned metrics that `--learned` names. UserError for an unknown one."""
    names = [part.strip().lower() for part in text.split(",") if part.strip()]
    for name in names:
        if name not in LEARNED:
            raise unknown("learned metric", name, LEARNED, "--learned")
    return list(dict.fromkeys(names))
