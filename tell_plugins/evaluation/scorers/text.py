"""Free text (metric `text`): exact match, and chrF++ of whole answers.

Nothing is known of such a task but its references, so nothing more is claimed. Runs of white space
count as one blank everywhere.
"""

from __future__ import annotations

from tell_plugins.evaluation.judged import Case, Judged, share
from tell_plugins.evaluation.scorers import translation


def judge(case: Case) -> dict[str, Judged]:
    said = [translation.one_line(answer.text) for answer in case.answers]
    right = [translation.one_line(reference) for reference in case.right]
    both = translation.Pairs(said, right, list(range(len(said))))
    columns = {
        "exact_match": share([a == b for a, b in zip(said, right, strict=True)]),
        "empty": share([not text for text in said], good=-1, detail=True),
        **translation.columns("chrf++", both),
    }
    return {"text": Judged(case.rows, columns, notes=[translation.signature("chrf++", both)])}
