"""Translations: chrF++ and BLEU of documents and of aligned lines, and how lines align."""

from __future__ import annotations

from tell_plugins.core.cards import Card
from tell_plugins.evaluation import taxonomy, translation
from tell_plugins.evaluation.judged import Case, Judged, share
from tell_plugins.evaluation.segments import Document, documents


def judge(case: Case) -> dict[str, Judged]:
    """Every unit is a reading. Without the rows themselves there are none: lines need sources."""
    if case.scored is None:
        return {}
    docs, _ = documents(case.scored)
    found = {}
    for unit in translation.UNITS:
        both = translation.pairs(docs, unit)
        columns = {
            key: column
            for name in translation.METRICS
            for key, column in translation.columns(name, both).items()
        }
        notes = [translation.signature(name, both) for name in translation.METRICS]
        found[unit] = Judged(case.rows, columns, notes=notes)
    lines = found[translation.UNITS[0]]
    lines.kinds.extend(_kind_of(doc) for doc in docs)
    lines.columns["alignment_failures"] = share([not doc.aligned for doc in docs])
    lines.columns["opened"] = share([doc.opened for doc in docs], detail=True)
    lines.columns["own_opening"] = share([doc.own_opening for doc in docs], detail=True)
    lines.notes.append(
        "missing lines are scored as empty, surplus ones as part of the last; an opening, the "
        "references' or one of the answer's own, is stripped"
    )
    return found


def _kind_of(doc: Document) -> str | None:
    """How the number of an answer's lines differs from its reference's; None where it does not."""
    if doc.aligned:
        return None
    if doc.lines == 0:
        return taxonomy.EMPTY
    few = doc.lines < len(doc.references)
    return taxonomy.FEWER_LINES if few else taxonomy.MORE_LINES


def constant(case: Case) -> tuple[str, Judged]:
    """The baseline that gives the source back."""
    assert case.scored is not None
    sources = case.scored.task.plain
    copied = case.answered([sources[row] for row in case.rows])
    return "source copied", judge(copied)[translation.UNITS[0]]


def fits(card: Card) -> bool:
    return card.metric == "translation"
