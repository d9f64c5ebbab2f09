"""Translation scores without a learned model: chrF++ and BLEU by sacrebleu.

`raw` is as in the paper: the whole answer against the whole reference, opening sentence included.
`stripped` takes the references' opening sentence off both sides; it is scored by document and by
aligned line. Nothing is skipped: an answer with another number of lines is counted and scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import regex

from tell_plugins.evaluation import significance
from tell_plugins.evaluation.intervals import Estimate, Rate, rate
from tell_plugins.evaluation.learned_scores import LearnedScores
from tell_plugins.evaluation.scored import Scored
from tell_plugins.evaluation.segments import Document, documents
from tell_plugins.evaluation.significance import Floats, Score

METRICS = ("chrf++", "bleu")
UNITS = ("raw_document", "stripped_document", "stripped_segment")


@dataclass(frozen=True)
class MetricScore:
    """One sacrebleu metric, 0 to 100.

    Attributes:
        corpus: the metric over all units at once, as sacrebleu's command line gives it; its
            interval comes from drawing test rows, so lines of a document stay together.
        mean: the mean of the units' own scores (BLEU then with effective order).
        signature: sacrebleu's, of the corpus score.
    """

    corpus: Estimate
    mean: Estimate
    signature: str


@dataclass(frozen=True)
class TranslationScores:
    """Scores of a set of answers.

    Attributes:
        opening: the opening sentence of the references, "" for none.
        opened: answers that begin with it; `own_opening`: with one of their own, also stripped.
        alignment_failures: answers whose number of lines is not the reference's.
        fewer_lines, more_lines, empty: what these failures are; they add up.
        cut: answers that the limit of new tokens ended.
        units: how many units each entry of `scores` is over.
        scores: by unit (`UNITS`), then metric (`METRICS`).
        copied_source: the baseline that gives the source back, over the aligned lines.
        learned: BLEURT and COMET, where they were asked for.
    """

    opening: str
    opened: Rate
    own_opening: Rate
    alignment_failures: Rate
    fewer_lines: int
    more_lines: int
    empty: int
    cut: Rate
    units: dict[str, int]
    scores: dict[str, dict[str, MetricScore]]
    copied_source: dict[str, MetricScore]
    learned: dict[str, LearnedScores]


@dataclass(frozen=True)
class Pairs:
    """Hypotheses and references of one unit, each on one line; `rows` are their test rows."""

    hypotheses: tuple[str, ...]
    references: tuple[str, ...]
    rows: tuple[int, ...]


def score_translation(scored: Scored) -> TranslationScores:
    """All sacrebleu scores of the answers of a translation task."""
    docs, opening = documents(scored)
    rows = [doc.row for doc in docs]
    copied = [_copy_of_source(doc) for doc in docs]
    units = {unit: pairs(docs, unit) for unit in UNITS}
    return TranslationScores(
        opening=opening,
        opened=rate([doc.opened for doc in docs], rows),
        own_opening=rate([doc.own_opening for doc in docs], rows),
        alignment_failures=rate([not doc.aligned for doc in docs], rows),
        fewer_lines=sum(0 < doc.lines < len(doc.references) for doc in docs),
        more_lines=sum(doc.lines > len(doc.references) for doc in docs),
        empty=sum(doc.lines == 0 for doc in docs),
        cut=rate([doc.cut for doc in docs], rows),
        units={unit: len(found.rows) for unit, found in units.items()},
        scores={unit: score_pairs(found) for unit, found in units.items()},
        copied_source=score_pairs(pairs(copied, "stripped_segment")),
        learned={},
    )


def pairs(docs: Sequence[Document], unit: str) -> Pairs:
    """The hypotheses and references of `docs`, by the unit's kind."""
    if unit == "stripped_segment":
        return Pairs(
            tuple(one_line(line) for doc in docs for line in doc.hypotheses),
            tuple(one_line(line) for doc in docs for line in doc.references),
            tuple(doc.row for doc in docs for _ in doc.references),
        )
    rows = tuple(doc.row for doc in docs)
    if unit == "raw_document":
        both = [(doc.answer, doc.reference) for doc in docs]
    else:
        both = [(" ".join(doc.hypotheses), " ".join(doc.references)) for doc in docs]
    return Pairs(
        tuple(one_line(answer) for answer, _ in both),
        tuple(one_line(reference) for _, reference in both),
        rows,
    )


def one_line(text: str) -> str:
    """A text as sacrebleu's files hold it: one line, and nothing that is no Unicode text."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def score_pairs(found: Pairs) -> dict[str, MetricScore]:
    """Every metric over the pairs."""
    return {name: _score(name, found) for name in METRICS}


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


@lru_cache(maxsize=64)
def unit_statistics(name: str, found: Pairs) -> Floats:
    """sacrebleu's sufficient statistics of each unit: (units, s), whose sum is the corpus'."""
    scorer = metric(name, tokenizer=bleu_tokenizer(found.references))
    stats = scorer._extract_corpus_statistics(found.hypotheses, [found.references])
    return np.asarray(stats, float)


def by_row(stats: Floats, rows: Sequence[int]) -> Floats:
    """Statistics summed over the units of each test row, rows in sorted order."""
    distinct, place = np.unique(np.asarray(rows), return_inverse=True)
    sums = np.zeros((len(distinct), stats.shape[1]))
    np.add.at(sums, place, stats)
    return sums


@cache
def corpus_score(name: str) -> Score:
    """A function from summed statistics (r, s) to corpus scores (r,)."""
    return _from_statistics(metric(name))


def _from_statistics(scorer: Any) -> Callable[[Floats], Floats]:
    def scores(sums: Floats) -> Floats:
        whole = [[int(value) for value in row] for row in sums.round()]
        return np.array([scorer._compute_score_from_stats(row).score for row in whole])

    return scores


def _score(name: str, found: Pairs) -> MetricScore:
    stats = unit_statistics(name, found)
    rows = by_row(stats, found.rows)
    score = corpus_score(name)
    value = float(score(stats.sum(axis=0)[None])[0])
    low, high = significance.interval(rows, score, resamples=_RESAMPLES)
    exact = metric(name, tokenizer=bleu_tokenizer(found.references))
    exact.corpus_score(found.hypotheses[:1], [found.references[:1]])  # fills in the signature
    means = _from_statistics(metric(name, by_unit=True))(stats)
    return MetricScore(
        corpus=Estimate(value, low, high, len(found.rows)),
        mean=mean_estimate(means, found.rows),
        signature=str(exact.get_signature()),
    )


_RESAMPLES = 1000  # sacrebleu's own default; one score a draw is computed in Python


def mean_estimate(values: Sequence[float] | Floats, rows: Sequence[int]) -> Estimate:
    """The mean of values and its interval over draws of test rows; nothing for no values."""
    if len(values) == 0:
        return Estimate(None, None, None, 0)
    stats = significance.mean_stats(values, rows)
    low, high = significance.interval(stats, significance.mean_score)
    return Estimate(float(np.mean(values)), low, high, len(values))


def _copy_of_source(doc: Document) -> Document:
    """The document as if the model had given the source back."""
    return Document(
        row=doc.row,
        answer="\n".join(doc.sources),
        reference=doc.reference,
        sources=doc.sources,
        hypotheses=doc.sources,
        references=doc.references,
        lines=len(doc.references),
        opened=False,
        own_opening=False,
        cut=False,
    )
