"""Free text (metric `text`): how near answers come to their references, letter by letter.

Nothing is known of such a task but its references, so nothing more is claimed: exact match, and
chrF++ of whole answers. Beside both stands what one constant answer would get.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tell_plugins.evaluation.intervals import Rate, rate
from tell_plugins.evaluation.scored import Answer, Scored
from tell_plugins.evaluation.translation import MetricScore, Pairs, one_line, score_pairs

_SHOWN = 200  # characters of the constant answer that are kept


@dataclass(frozen=True)
class TextScores:
    """Scores of a set of answers; white space runs count as one blank everywhere.

    Attributes:
        exact: answers that equal their reference.
        chrf: chrF++ of whole answers, 0 to 100.
        empty: answers without text.
        constant: the most frequent reference, which the baselines always answer.
    """

    exact: Rate
    chrf: MetricScore
    empty: Rate
    constant: str
    constant_exact: Rate
    constant_chrf: MetricScore


def score_text(scored: Scored) -> TextScores:
    """Exact match and chrF++ of the answers, and of a constant answer."""
    found = pairs(scored.answers, [scored.task.responses[row] for row in scored.rows])
    constant = Counter(found.references).most_common(1)[0][0]
    always = Pairs((constant,) * len(found.rows), found.references, found.rows)
    return TextScores(
        exact=rate(hits(found), found.rows),
        chrf=score_pairs(found)["chrf++"],
        empty=rate([not answer for answer in found.hypotheses], found.rows),
        constant=constant if len(constant) <= _SHOWN else constant[:_SHOWN] + "...",
        constant_exact=rate(hits(always), found.rows),
        constant_chrf=score_pairs(always)["chrf++"],
    )


def pairs(answers: Sequence[Answer], right: Sequence[str]) -> Pairs:
    """Every answer beside its reference, each on one line."""
    return Pairs(
        tuple(one_line(answer.text) for answer in answers),
        tuple(one_line(reference) for reference in right),
        tuple(answer.row for answer in answers),
    )


def hits(found: Pairs) -> Sequence[bool]:
    """Which answers equal their reference."""
    return [a == b for a, b in zip(found.hypotheses, found.references, strict=True)]
