"""Scores of one folder of saved answers, by the card's metric.

`score` reads `answers.jsonl` and `settings.json`; `write` saves `scores.json` beside them. The
same answers can be scored again at any time; learned metrics are kept as long as the answers are
the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import Shape, cached_json, write_json
from tell_plugins.evaluation import free_text, json_scorers, labels, scorers, taxonomy
from tell_plugins.evaluation.final_number import NumberScores
from tell_plugins.evaluation.free_text import TextScores
from tell_plugins.evaluation.intervals import Estimate, Rate, counted, rate
from tell_plugins.evaluation.labels import LabelScores
from tell_plugins.evaluation.learned_scores import LearnedScores, SegmentScores
from tell_plugins.evaluation.scored import Answer, Scored, load_scored
from tell_plugins.evaluation.scorers import label, number
from tell_plugins.evaluation.scorers.judged import Judged
from tell_plugins.evaluation.translation import TranslationScores, score_translation

FORMAT = 3
SCORES = "scores.json"
_SETTINGS = ("recipe", "adapter", "anchor", "decoding", "seed", "model", "engine", "max_new_tokens")
# metrics of a fixed form: readings
FORMS = {"json": tuple(s.name for s in json_scorers.SCORERS), "label": (label.READING,)}
SECOND_READINGS = FORMS["json"][1:]
_SHOWN_ANSWER = 200  # characters of the most frequent answer that are kept


@dataclass(frozen=True)
class FormScores:
    """One reading of answers of a fixed form: JSON, or one of some labels.

    Attributes:
        failures: kinds of failure; their sum is adherence.n - adherence.k.
        labels: None where there are none.
    """

    scorer: str
    adherence: Rate
    failures: dict[str, int]
    labels: LabelScores | None


@dataclass(frozen=True)
class MostFrequent:
    """The whole answer text given most often: a model that collapsed repeats itself."""

    text: str
    share: Rate
    distinct: int


@dataclass(frozen=True)
class Scores:
    """All scores of one folder, those of the card's metric set: `json`, `translation` ...

    Attributes:
        rows: test rows answered; `expected` as many as were asked; `answers` with all attempts.
        cut: answers that the limit of new tokens ended, adherent or not.
        measures: by reading, what a scorer measures beyond the scores of the metric.
    """

    format: int
    card: str
    split: str
    metric: str
    settings: dict[str, Any]
    answers_sha256: str
    test_sha256: str
    rows: int
    expected: int
    answers: int
    attempts: int
    cut: Rate
    most_frequent_answer: MostFrequent
    measures: dict[str, dict[str, Rate | Estimate]] = field(default_factory=dict)
    json: dict[str, FormScores] | None = None
    label: dict[str, FormScores] | None = None
    translation: TranslationScores | None = None
    number: NumberScores | None = None
    text: TextScores | None = None

    @property
    def complete(self) -> bool:
        return self.rows >= self.expected

    @property
    def forms(self) -> dict[str, FormScores] | None:
        """The readings of answers of a fixed form, the one to go by in front; else None."""
        return self.json or self.label

    @property
    def headline(self) -> dict[str, Rate | Estimate]:
        """The few numbers to show first, by name; none of them stands alone."""
        more = {
            name.replace("_", " "): value
            for reading, measures in self.measures.items()
            if reading not in SECOND_READINGS
            for name, value in measures.items()
        }
        return {**self._headline, **more}

    @property
    def _headline(self) -> dict[str, Rate | Estimate]:
        found: dict[str, Rate | Estimate]
        if self.forms is not None:
            first = next(iter(self.forms.values()))
            found = {"adherence": first.adherence}
            if first.labels is not None:
                found["accuracy"] = first.labels.all.accuracy
                found["accuracy given the form"] = first.labels.adherent.accuracy
                found["balanced accuracy"] = first.labels.all.balanced_accuracy
                found["most frequent label"] = first.labels.all.most_frequent_share
            if self.label is not None and first.labels is not None:
                found["accuracy of a constant"] = first.labels.baseline.metrics.accuracy
            return found
        if self.translation is not None:
            segment = self.translation.scores["stripped_segment"]
            found = {"chrF++": segment["chrf++"].corpus, "BLEU": segment["bleu"].corpus}
            for name, learned in self.translation.learned.items():
                found[name.upper()] = learned.segment
            return {**found, "alignment failures": self.translation.alignment_failures}
        if self.text is not None:
            return {
                "exact match": self.text.exact,
                "exact match of a constant answer": self.text.constant_exact,
                "most frequent answer": self.most_frequent_answer.share,
                "chrF++": self.text.chrf.corpus,
                "chrF++ of a constant answer": self.text.constant_chrf.corpus,
            }
        assert self.number is not None
        return {
            "exact match": self.number.exact,
            "most frequent number": self.number.most_frequent_share,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return asdict(self)


def score(
    folder: Path, *, learned: Sequence[str] = (), models: Mapping[str, str] | None = None
) -> Scores:
    """Score the answers of `folder`.

    `learned` names BLEURT and COMET where they are wanted (they need their checkpoints), `models`
    their checkpoints where not the default; what they give is kept beside the answers.
    Raises UserError as `load_scored` does.
    """
    return score_loaded(load_scored(folder), learned=learned, models=models)


def score_loaded(
    scored: Scored,
    *,
    judged: Mapping[str, Judged] | None = None,
    learned: Sequence[str] = (),
    models: Mapping[str, str] | None = None,
) -> Scores:
    """`score` for answers that are loaded already; `judged` where they are judged too."""
    metric = scored.card.metric
    assert metric is not None  # the card checks it
    need_translation(scored.card, learned)
    if judged is None:
        judged = scorers.judge_saved(scored)
    scores = Scores(
        format=FORMAT,
        card=scored.card.name,
        split=scored.task.split,
        metric=metric,
        settings={key: scored.settings.get(key) for key in _SETTINGS},
        answers_sha256=scored.sha256,
        test_sha256=scored.task.sha256,
        rows=scored.distinct_rows,
        expected=scored.expected,
        answers=len(scored.answers),
        attempts=len({answer.attempt for answer in scored.answers}),
        cut=rate([answer.cut for answer in scored.answers], scored.rows),
        most_frequent_answer=most_frequent_answer(scored.answers),
        measures=_measures(judged),
    )
    if metric in FORMS:
        possible = scorers.right(scored.task).labels
        forms = {
            name: form_scores(name, part, possible)
            for name, part in judged.items()
            if name in FORMS[metric]
        }
        return replace(scores, json=forms) if metric == "json" else replace(scores, label=forms)
    if metric == "number":
        return replace(scores, number=number.summary(scored.answers, judged["number"]))
    if metric == "text":
        return replace(scores, text=free_text.score_text(scored))
    translation = score_translation(scored)
    translation = replace(translation, learned=_learned(scored, learned, models or {}))
    return replace(scores, translation=translation)


def _measures(judged: Mapping[str, Judged]) -> dict[str, dict[str, Rate | Estimate]]:
    """The measures that have no place of their own, by reading."""
    found = {
        reading: {
            name: column.estimate(part.rows)
            for name, column in part.columns.items()
            if not column.own_place
        }
        for reading, part in judged.items()
    }
    return {reading: measures for reading, measures in found.items() if measures}


def need_translation(card: Card, learned: Sequence[str]) -> None:
    """Raise UserError when learned metrics are asked for a card that is no translation task."""
    if learned and card.metric != "translation":
        raise UserError(
            f"{', '.join(learned)} score translations; card '{card.name}' has "
            f"metric '{card.metric}'",
            where="--learned",
            remedy="leave it out",
        )


def write(
    folder: Path, *, learned: Sequence[str] = (), models: Mapping[str, str] | None = None
) -> Scores:
    """Score the answers of `folder`, save `scores.json` there in one piece, and return them."""
    scores = score(folder, learned=learned, models=models)
    write_json(folder / SCORES, scores.to_dict(), allow_nan=False)
    return scores


def most_frequent_answer(answers: Sequence[Answer]) -> MostFrequent:
    """The answer text (trimmed) given most often, its share, and how many differ."""
    texts = Counter(answer.text.strip() for answer in answers)
    text, times = texts.most_common(1)[0]
    shown = text if len(text) <= _SHOWN_ANSWER else text[:_SHOWN_ANSWER] + "..."
    return MostFrequent(shown, counted(times, len(answers)), len(texts))


def form_scores(name: str, judged: Judged, possible: list[str]) -> FormScores:
    """The scores of one reading of answers of a fixed form; `possible` are the labels."""
    truth = labels.Truth(judged.right, possible)
    return FormScores(
        scorer=name,
        adherence=rate([kind is None for kind in judged.kinds], judged.rows),
        failures=taxonomy.count_kinds(kind for kind in judged.kinds if kind is not None),
        labels=labels.score_labels(judged.given, judged.rows, truth) if judged.right else None,
    )


def _learned(
    scored: Scored, names: Sequence[str], models: Mapping[str, str]
) -> dict[str, LearnedScores]:
    """Learned scores: those saved earlier over the very same answers, and those asked for, which
    are computed unless the same checkpoint gave them already."""
    kept = saved_learned(scored)
    if not names:
        return kept
    from tell_plugins.evaluation.learned_metrics import chosen_model, load_metric, score_documents
    from tell_plugins.evaluation.segments import documents

    for name in names:
        model = chosen_model(name, models.get(name))
        if name in kept and kept[name].model == model:
            continue
        metric = load_metric(name, model)
        kept[name], values, rows = score_documents(metric, documents(scored)[0])
        segments = SegmentScores(name, metric.model_name, scored.sha256, rows, values)
        saved = {"summary": asdict(kept[name]), "segments": asdict(segments)}
        write_json(learned_file(scored.folder, name), saved)
    return kept


def learned_file(folder: Path, name: str) -> Path:
    """Where the scores of single segments by a learned metric are kept."""
    return folder / f"scores.{name}.json"


def saved_learned(scored: Scored) -> dict[str, LearnedScores]:
    """Learned scores saved earlier for the same answers, by metric."""
    found = {}
    for name, saved in _saved(scored).items():
        summary = dict(saved["summary"])
        for key in ("segment", "document", "raw_document"):
            summary[key] = Estimate(**summary[key]) if summary[key] else None
        summary["raw_cut"] = Rate(**summary["raw_cut"]) if summary["raw_cut"] else None
        found[name] = LearnedScores(**summary)
    return found


def saved_segments(scored: Scored) -> dict[str, SegmentScores]:
    """Scores of single segments saved earlier for the same answers, by metric."""
    return {name: SegmentScores(**saved["segments"]) for name, saved in _saved(scored).items()}


class _Segments(Shape):
    answers_sha256: str


class _Learned(Shape):
    segments: _Segments


def _saved(scored: Scored) -> dict[str, Any]:
    from tell_plugins.evaluation.learned_scores import LEARNED

    found = {}
    for name in LEARNED:
        path = learned_file(scored.folder, name)
        saved = cached_json(path, _Learned)
        if saved is not None and saved["segments"]["answers_sha256"] == scored.sha256:
            found[name] = saved
    return found
