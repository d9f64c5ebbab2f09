"""Free text (metric `text`): exact match, and chrF++ of whole answers."""

from __future__ import annotations

from dataclasses import replace

from tell_plugins.core.cards import Card
from tell_plugins.evaluation import free_text, translation
from tell_plugins.evaluation.scorers.judged import Case, Column, Judged, share


def judge(case: Case) -> dict[str, Judged]:
    found = free_text.pairs(case.answers, case.right)
    columns = {
        "exact_match": replace(share(free_text.hits(found)), own_place=True),
        "chrf++": sacrebleu_column("chrf++", translation.unit_statistics("chrf++", found)),
    }
    return {"text": Judged(case.rows, columns)}


def sacrebleu_column(name: str, stats: translation.Floats) -> Column:
    """A metric of sacrebleu, 0 to 100, from its statistics of each answer."""
    return Column(stats, translation.corpus_score(name), percent=False, own_place=True)


def fits(card: Card) -> bool:
    return card.metric == "text"
