"""Translations: chrF++ and BLEU of documents and of aligned lines."""

from __future__ import annotations

import numpy as np

from tell_plugins.core.cards import Card
from tell_plugins.evaluation import translation
from tell_plugins.evaluation.scorers.judged import Case, Judged, summed
from tell_plugins.evaluation.scorers.text import sacrebleu_column
from tell_plugins.evaluation.segments import documents


def judge(case: Case) -> dict[str, Judged]:
    """Every unit is a reading. Without the rows themselves there are none: lines need sources."""
    if case.scored is None:
        return {}
    docs, _ = documents(case.scored)
    lines = np.repeat(np.arange(len(docs)), [len(doc.references) for doc in docs])
    found = {}
    for unit in translation.UNITS:
        pairs = translation.pairs(docs, unit)
        answer_of = lines if unit == "stripped_segment" else np.arange(len(docs))
        columns = {
            name: sacrebleu_column(
                name, summed(translation.unit_statistics(name, pairs), answer_of)
            )
            for name in translation.METRICS
        }
        found[unit] = Judged(case.rows, columns)
    return found


def fits(card: Card) -> bool:
    return card.metric == "translation"
