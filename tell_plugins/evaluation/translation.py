"""Translation scores without a learned model: chrF++ and BLEU by sacrebleu.

`raw` is as in the paper: the whole answer against the whole reference, opening sentence included.
`stripped` takes the references' opening sentence off both sides; it is scored by document and by
aligned line. Nothing is skipped: an answer with another number of lines is counted and scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import regex

from tell_plugins.evaluation.judged import Column, ratio, summed
from tell_plugins.evaluation.segments import Document
from tell_plugins.evaluation.significance import Floats, Score

METRICS = ("chrf++", "bleu")
SHOWN = {"chrf++": "chrF++", "bleu": "BLEU"}
UNITS = ("stripped_segment", "stripped_document", "raw_document")  # the one to go by in front


@dataclass(frozen=True)
class Pairs:
    """Hypotheses and references of one unit, each on one line; `owners` are their answers."""

    hypotheses: tuple[str, ...]
    references: tuple[str, ...]
    owners: tuple[int, ...]


def pairs(docs: Sequence[Document], unit: str) -> Pairs:
    """The hypotheses and references of `docs`, by the unit's kind."""
    parts: list[tuple[Sequence[str], Sequence[str]]]
    if unit == "stripped_segment":
        parts = [(doc.hypotheses, doc.references) for doc in docs]
    elif unit == "raw_document":
        parts = [([doc.answer], [doc.reference]) for doc in docs]
    else:
        parts = [([" ".join(doc.hypotheses)], [" ".join(doc.references)]) for doc in docs]
    return Pairs(
        tuple(one_line(text) for said, _ in parts for text in said),
        tuple(one_line(text) for _, right in parts for text in right),
        tuple(place for place, (_, right) in enumerate(parts) for _ in right),
    )


def one_line(text: str) -> str:
    """A text as sacrebleu's files hold it: one line, and nothing that is no Unicode text."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def bleu_tokenizer(references: Sequence[str]) -> str:
    """sacrebleu's tokenizer for the language of these texts, told by their writing.

    `13a` splits at spaces, which Chinese, Japanese, Thai and others do not write: it would take a
    line for one word. `zh` splits Chinese characters; `char` every character, where sacrebleu has
    no tokenizer of its own (Japanese has `ja-mecab`, which needs MeCab).
    """
    letters = "".join(letter for text in references for letter in text if letter.isalpha())
    unspaced, chinese = len(_UNSPACED.findall(letters)), len(_CHINESE.findall(letters))
    if 2 * (unspaced + chinese) <= len(letters):
        return "13a"
    return "char" if 10 * unspaced > len(letters) else "zh"


_UNSPACED = regex.compile(
    r"[\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Tibetan}\p{Myanmar}\p{Khmer}]"
)
_CHINESE = regex.compile(r"\p{Han}")


def metric(name: str, *, by_unit: bool = False, tokenizer: str = "13a") -> Any:
    """A fresh sacrebleu metric; `by_unit` gives the one whose scores of single units make sense."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if name == "bleu":
        return BLEU(effective_order=by_unit, tokenize=tokenizer)
    return CHRF(word_order=2)


def signature(name: str, both: Pairs) -> str:
    """What sacrebleu calls its settings for a corpus score of these pairs."""
    exact = metric(name, tokenizer=bleu_tokenizer(both.references))
    exact.corpus_score(both.hypotheses[:1], [both.references[:1]])  # fills the signature in
    return f"{SHOWN[name]}: {exact.get_signature()}"


def columns(name: str, both: Pairs) -> dict[str, Column]:
    """A metric, 0 to 100: of the corpus, as sacrebleu's command line gives it, and the mean of the
    units' own scores (BLEU then with effective order).

    Intervals come from drawing test rows, so lines of a document stay together.
    """
    scorer = metric(name, tokenizer=bleu_tokenizer(both.references))
    stats = np.asarray(scorer._extract_corpus_statistics(both.hypotheses, [both.references]), float)
    means = _from_statistics(metric(name, by_unit=True))(stats)
    ones = np.ones(len(means))
    of_answers = summed(np.stack([means, ones], axis=1), both.owners)
    return {
        name: Column(summed(stats, both.owners), corpus_score(name), percent=False),
        f"{name}_mean": ratio(*of_answers.T, percent=False, detail=True),
    }


@cache
def corpus_score(name: str) -> Score:
    """A function from summed statistics (r, s) to corpus scores (r,)."""
    return _from_statistics(metric(name))


def _from_statistics(scorer: Any) -> Callable[[Floats], Floats]:
    def scores(sums: Floats) -> Floats:
        whole = [[int(value) for value in row] for row in sums.round()]
        return np.array([scorer._compute_score_from_stats(row).score for row in whole])

    return scores
