"""Texts against texts: chrF++ and BLEU by sacrebleu, of documents and of aligned lines.

Of translations `raw` is as in the paper: the whole answer against the whole reference, opening
sentence included. `stripped` takes the references' opening sentence off both sides; it is scored by
document and by aligned line, where whole documents exceed what learned metrics read. Nothing is
skipped: an answer with another number of lines is counted and scored.

Of free text (metric `text`) nothing is known but the references, so nothing more is claimed than
exact match and chrF++ of whole answers. Runs of white space count as one blank everywhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import regex

from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation.answers import Answer
from tell_plugins.evaluation.intervals import Floats, Score, counts_of, summed
from tell_plugins.evaluation.judged import Case, Column, Constant, Judged, ratio, share

METRICS = ("chrf++", "bleu")
SHOWN = {"chrf++": "chrF++", "bleu": "BLEU"}
UNITS = ("stripped_segment", "stripped_document", "raw_document")  # the one to go by in front
_SENTENCE_END = re.compile(r"[:.!?]\s+")
_UNSPACED = regex.compile(
    r"[\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Tibetan}\p{Myanmar}\p{Khmer}]"
)
_CHINESE = regex.compile(r"\p{Han}")


def judge(case: Case) -> dict[str, Judged]:
    """Every unit is a reading. Without the rows themselves there are none: lines need sources."""
    if case.task is None:
        return {}
    docs = documents(case)
    found = {}
    for unit in UNITS:
        both = pairs(docs, unit)
        made = {key: part for name in METRICS for key, part in columns(name, both).items()}
        found[unit] = Judged(case.rows, made, notes=[signature(name, both) for name in METRICS])
    lines = found[UNITS[0]]
    lines.kinds.extend(doc.kind for doc in docs)
    lines.columns["alignment_failures"] = share([not doc.aligned for doc in docs], good=-1)
    lines.columns["opened"] = share([doc.opened for doc in docs], good=0, detail=True)
    lines.columns["own_opening"] = share([doc.own_opening for doc in docs], good=0, detail=True)
    lines.notes.append(
        "missing lines are scored as empty, surplus ones as part of the last; an opening, the "
        "references' or one of the answer's own, is stripped"
    )
    return found


def constant(case: Case) -> Constant:
    """The baseline that gives the source back."""
    assert case.task is not None
    copied = case.answered([case.task.plain[row] for row in case.rows])
    return Constant("source copied", judge(copied)[UNITS[0]])


def judge_text(case: Case) -> dict[str, Judged]:
    """Free text: the whole answer against the whole reference."""
    said = [one_line(answer.text) for answer in case.answers]
    right = [one_line(reference) for reference in case.right]
    both = Pairs(said, right, list(range(len(said))))
    found = {
        "exact_match": share([a == b for a, b in zip(said, right, strict=True)]),
        "empty": share([not text for text in said], good=-1, detail=True),
        **columns("chrf++", both),
    }
    return {"text": Judged(case.rows, found, notes=[signature("chrf++", both)])}


# --- answers as documents of lines ----------------------------------------------------------------


@dataclass(frozen=True)
class Document:
    """One answer beside its reference: whole texts, and aligned lines without openings.

    `kind` says how the number of the answer's lines differs, None where it does not. `opened` says
    whether it began with the references' opening sentence, `own_opening` with one of its own.
    """

    row: int
    answer: str
    reference: str
    sources: list[str]
    hypotheses: list[str]
    references: list[str]
    kind: str | None
    opened: bool
    own_opening: bool

    @property
    def aligned(self) -> bool:
        """Whether the answer has as many lines as the reference."""
        return self.kind is None


def documents(case: Case) -> list[Document]:
    """Every answer as a document."""
    assert case.task is not None
    opening = reference_opening(case.task.responses)
    return [_document(answer, case.task, opening) for answer in case.answers]


def _document(answer: Answer, task: TaskRows, opening: str) -> Document:
    """One whose source and reference differ in their number of lines (none in the official data) is
    one segment as a whole."""
    whole = task.responses[answer.row]
    sources = _filled(task.plain[answer.row]) or [""]
    references = _filled(strip_opening(whole, opening)[0]) or [""]
    text, opened = strip_opening(answer.text, opening)
    filled = _filled(text)
    own = 0 if opened else _own_opening(filled, len(references))
    given = filled[own:] if own else lines_of(text)
    if len(sources) != len(references):
        sources, references = [" ".join(sources)], [" ".join(references)]
        given = [" ".join(filled[own:])] if filled else []
    said, kind = align(given, len(references))
    return Document(
        answer.row, answer.text, whole, sources, said, references, kind, opened, own > 0
    )


def reference_opening(references: Sequence[str]) -> str:
    """The opening sentence that all references share at the front, "" when there is none.

    It ends at the last line break of the shared text, or at its last end of a sentence, so words
    that the references happen to share are left to them. One reference alone shows none.
    """
    if len(references) < 2:
        return ""
    shared = os.path.commonprefix([min(references), max(references)])
    ends = [match.end() for match in _SENTENCE_END.finditer(shared)]
    cut = shared.rfind("\n") + 1 or (ends[-1] if ends else 0)
    cut = len(shared) - len(shared[cut:].lstrip())
    return shared[:cut] if shared[:cut].strip() else ""


def strip_opening(text: str, opening: str) -> tuple[str, bool]:
    """`text` without the opening, and whether it had it; white space may differ."""
    words = opening.split()
    match = re.match(r"\s*" + r"\s+".join(map(re.escape, words)) + r"(?:\s+|$)", text)
    return (text[match.end() :], True) if words and match else (text, False)


def lines_of(text: str) -> list[str]:
    """The lines of a text, trimmed, without empty ones at both ends; [] for an empty text."""
    text = text.strip()
    return [line.strip() for line in re.split(r"\r\n?|\n", text)] if text else []


def _filled(text: str) -> list[str]:
    return [line for line in lines_of(text) if line]


def align(answer: Sequence[str], count: int) -> tuple[list[str], str | None]:
    """The lines of an answer brought to `count` lines, and how their number differed.

    Where it does, empty lines between others are first left out. If it still differs, missing lines
    are empty and surplus ones join the last: nothing of an answer is dropped.
    """
    lines = list(answer) if len(answer) == count else [line for line in answer if line]
    if len(lines) == count:
        return lines, None
    if len(lines) > count:
        return [*lines[: count - 1], " ".join(lines[count - 1 :])], "more_lines"
    return lines + [""] * (count - len(lines)), "fewer_lines" if lines else "empty"


def _own_opening(lines: Sequence[str], count: int) -> int:
    """How many leading lines are an opening of the answer's own, such as "Here you are:".

    Only where a line that ends in a colon is followed by exactly `count` lines: left there, it
    would set every line beside the wrong reference. At most two lines, else 0.
    """
    surplus = len(lines) - count
    return surplus if 0 < surplus <= 2 and lines[surplus - 1].endswith(":") else 0


# --- sacrebleu ------------------------------------------------------------------------------------


class Pairs(NamedTuple):
    """Hypotheses and references of one unit, each on one line; `owners` are their answers."""

    hypotheses: list[str]
    references: list[str]
    owners: list[int]


def pairs(docs: Sequence[Document], unit: str) -> Pairs:
    """The hypotheses and references of `docs`, by the unit's kind."""
    made: list[tuple[str, str, int]] = []
    for place, doc in enumerate(docs):
        said, right = doc.hypotheses, doc.references
        if unit == "stripped_document":
            said, right = [" ".join(said)], [" ".join(right)]
        elif unit == "raw_document":
            said, right = [doc.answer], [doc.reference]
        made += [(one_line(a), one_line(b), place) for a, b in zip(said, right, strict=True)]
    return Pairs(*map(list, zip(*made, strict=True)))


def one_line(text: str) -> str:
    """A text as sacrebleu's files hold it: one line, and nothing that is no Unicode text."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer for the language of these texts, told by their writing.

    `13a` splits at spaces, which Chinese, Japanese, Thai and others do not write. `zh` splits
    Chinese characters; `char` every character, where sacrebleu has no tokenizer of its own.
    """
    letters = "".join(letter for text in references for letter in text if letter.isalpha())
    unspaced, chinese = len(_UNSPACED.findall(letters)), len(_CHINESE.findall(letters))
    if 2 * (unspaced + chinese) <= len(letters):
        return "13a"
    return "char" if 10 * unspaced > len(letters) else "zh"


def _metric(name: str, *, by_unit: bool = False, tokenizer: str = "13a") -> Any:
    """A fresh sacrebleu metric; `by_unit` gives the one whose scores of single units make sense."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if name == "bleu":
        return BLEU(effective_order=by_unit, tokenize=tokenizer)
    return CHRF(word_order=2)


def signature(name: str, both: Pairs) -> str:
    """What sacrebleu calls its settings for a corpus score of these pairs."""
    exact = _metric(name, tokenizer=bleu_tokenizer(both.references))
    exact.corpus_score(both.hypotheses[:1], [both.references[:1]])  # fills the signature in
    return f"{SHOWN[name]}: {exact.get_signature()}"


def columns(name: str, both: Pairs) -> dict[str, Column]:
    """A metric, 0 to 100: of the corpus, as sacrebleu's command line gives it, and the mean of the
    units' own scores (BLEU then with effective order).

    Intervals come from drawing test rows, so lines of a document stay together.
    """
    scorer = _metric(name, tokenizer=bleu_tokenizer(both.references))
    stats = np.asarray(scorer._extract_corpus_statistics(both.hypotheses, [both.references]), float)
    means = counts_of(_from_statistics(_metric(name, by_unit=True))(stats), both.owners)
    return {
        name: Column(summed(stats, both.owners), _from_statistics(_metric(name)), percent=False),
        f"{name}_mean": ratio(*means.T, percent=False, detail=True),
    }


def _from_statistics(scorer: Any) -> Score:
    """A function from summed statistics (r, s) to scores (r,)."""

    def scores(sums: Floats) -> Floats:
        whole = [[int(value) for value in row] for row in sums.round()]
        return np.array([scorer._compute_score_from_stats(row).score for row in whole])

    return scores
