"""Every score as statistics of single test rows, so that two systems can be compared row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tell_plugins.evaluation import free_text, labels, shares, significance, translation
from tell_plugins.evaluation.final_number import judge, reference_numbers
from tell_plugins.evaluation.json_scorers import card_schema
from tell_plugins.evaluation.scored import Scored
from tell_plugins.evaluation.scoring import judged, saved_segments
from tell_plugins.evaluation.segments import documents
from tell_plugins.evaluation.significance import Difference, Floats, PairedInterval, Score

Key = tuple[str, str]  # scorer (or unit), measure
_LABEL_MEASURES = ("accuracy", "balanced_accuracy", "f1", "mcc")


@dataclass(frozen=True)
class Measure:
    """`score` of the summed `stats` (n, s) is the measure; `ids` (n,) name the test rows.

    A test row that stands in the file twice is one row here: its statistics are summed.
    `interval` is how a difference of two gets its interval, by bootstrap where it is None.
    """

    ids: npt.NDArray[np.str_]
    stats: Floats
    score: Score
    interval: PairedInterval | None = None


def measures(scored: Scored) -> dict[Key, Measure]:
    """All measures of a set of answers, by scorer and name."""
    if scored.card.metric == "json":
        return _json(scored)
    if scored.card.metric == "number":
        right = reference_numbers(scored.task)
        hits = [judge(answer, right[answer.row]) is None for answer in scored.answers]
        return {("number", "exact_match"): _share(scored, hits, scored.rows)}
    if scored.card.metric == "text":
        found = free_text.pairs(scored)
        stats = translation.by_row(translation.unit_statistics("chrf++", found), found.rows)
        return {
            ("text", "exact_match"): _share(scored, free_text.hits(found), found.rows),
            ("text", "chrf++"): _measure(
                scored, stats, found.rows, translation.corpus_score("chrf++")
            ),
        }
    return _translation(scored)


def difference(
    system: Measure, baseline: Measure, *, resamples: int, seed: int
) -> Difference | None:
    """The paired difference over the rows that both answered; None where there is none."""
    _, mine, theirs = np.intersect1d(system.ids, baseline.ids, return_indices=True)
    if len(mine) == 0:
        return None
    return significance.paired(
        system.stats[mine],
        baseline.stats[theirs],
        system.score,
        unit="test row",
        resamples=resamples,
        seed=seed,
        interval=system.interval,
    )


def _json(scored: Scored) -> dict[Key, Measure]:
    schema = card_schema(scored.card)
    truth = labels.true_labels(scored.task, schema) if schema.label else None
    found: dict[Key, Measure] = {}
    for name, (answers, verdicts) in judged(scored, schema).items():
        rows = [answer.row for answer in answers]
        found[name, "adherence"] = _share(scored, [v.adherent for v in verdicts], rows)
        if truth is None:
            continue
        said, true = labels.codes(
            [schema.label_of(v.value) if v.adherent else None for v in verdicts],
            [truth.of[row] for row in rows],
            truth,
        )
        stats = labels.joint_counts(said, true, rows, len(truth.labels))
        for measure in _LABEL_MEASURES:
            found[name, measure] = _measure(
                scored, stats, rows, labels.SCORES[measure], labels.DIFFERENCES.get(measure)
            )
    return found


def _translation(scored: Scored) -> dict[Key, Measure]:
    docs, _ = documents(scored)
    found: dict[Key, Measure] = {}
    for unit in translation.UNITS:
        pairs = translation.pairs(docs, unit)
        for name in translation.METRICS:
            stats = translation.by_row(translation.unit_statistics(name, pairs), pairs.rows)
            found[unit, name] = _measure(scored, stats, pairs.rows, translation.corpus_score(name))
    for name, segments in saved_segments(scored).items():
        # the checkpoint is part of the name: scores of two checkpoints are never paired
        found["stripped_segment", f"{name} {segments.model}"] = _mean(
            scored, segments.scores, segments.rows
        )
    return found


def _mean(scored: Scored, values: Sequence[float], rows: Sequence[int]) -> Measure:
    return _measure(scored, significance.mean_stats(values, rows), rows, significance.mean_score)


def _share(scored: Scored, hits: Sequence[bool], rows: Sequence[int]) -> Measure:
    stats = significance.mean_stats(hits, rows)
    return _measure(scored, stats, rows, significance.mean_score, shares.difference)


def _measure(
    scored: Scored,
    stats: Floats,
    rows: Sequence[int],
    score: Score,
    interval: PairedInterval | None = None,
) -> Measure:
    """`stats` has one line for each distinct entry of `rows`, sorted."""
    ids = np.array([scored.id(row) for row in sorted(set(rows))])
    distinct, place = np.unique(ids, return_inverse=True)
    sums = np.zeros((len(distinct), stats.shape[1]))
    np.add.at(sums, place, stats)
    return Measure(distinct, sums, score, interval)
