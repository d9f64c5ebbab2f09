"""Adherence and content of generated validation answers, while a run trains.

The same strict scorer as in `./run.sh eval`. A recipe switches it on:

    val_dataset: ["tell/<card>:split=validation"]
    predict_with_generate: true
    eval_metric: tell_json          # tell_label for a card with metric `label`
    max_new_tokens: 64
    eval_strategy: epoch
"""

from __future__ import annotations

from collections.abc import Sequence

from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import scorers
from tell_plugins.evaluation.answers import Answer
from tell_plugins.evaluation.judged import Case
from tell_plugins.evaluation.scorers.json_answers import canonical
from tell_plugins.evaluation.scorers.json_readings import card_schema, reference_label, strict
from tell_plugins.evaluation.scorers.label import closed_labels

# metric of a card: what ms-swift calls its scores, and the score that the best checkpoint is chosen
# by unless the recipe says otherwise
NAMES = {"json": ("tell_json", "json_adherence"), "label": ("tell_label", "balanced_accuracy")}
_SCORES = {
    "adherence": "{metric}_adherence",
    "accuracy": "label_accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "exact_match": "exact_match",
    "field_f1": "field_f1",
}


def check_card(card: Card, metric: str = "json") -> None:
    """Raises UserError for a card of another metric, or whose schema is none."""
    if card.metric != metric:
        form = "JSON" if metric == "json" else "a closed label"
        names = " or ".join(f"{name} for metric '{of}'" for of, (name, _) in NAMES.items())
        raise UserError(
            f"card '{card.name}' has metric '{card.metric}', so no answer of it is {form}",
            where=f"eval_metric: {NAMES[metric][0]}",
            allowed=names,
            remedy="name the one for the card, or remove eval_metric and predict_with_generate",
        )
    if metric == "json":
        card_schema(card)


def score_texts(card: Card, answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores of answers against the responses of the rows they answer, as shares of 1.

    Adherence is that of the strict reading; `label_accuracy` and `balanced_accuracy`, or for JSON
    without a label `exact_match` and `field_f1`, count an answer that is not adherent as wrong.
    Rows whose response is no answer to the task, as general rows are, or has a label that is not
    allowed, are left out: `task_rows` says how many were scored.
    """
    right_of = _right_label if card.metric == "label" else _right_json
    right = right_of(card, references)
    kept = [i for i, text in enumerate(right) if text is not None]
    if not kept:
        return {"task_rows": 0.0}
    texts = [text for text in right if text is not None]
    case = Case(
        card=card,
        answers=[Answer(row, 0, answers[i], "") for row, i in enumerate(kept)],
        right=texts,
        labels=_labels(card) or (sorted(set(texts)) if _carries_labels(card) else []),
        readings=("strict",),
    )
    judged = next(iter(scorers.judge(case).values()))
    found = {
        name: float(column.score(column.stats.sum(axis=0)[None])[0])
        for name, column in judged.columns.items()
        if name in _SCORES
    }
    named = {_SCORES[name].format(metric=card.metric): value for name, value in found.items()}
    return {**{name: v for name, v in named.items() if v == v}, "task_rows": float(len(kept))}


def _carries_labels(card: Card) -> bool:
    return card.metric == "label" or (card.answer is not None and card.answer.label is not None)


def _labels(card: Card) -> list[str] | None:
    """The labels that are allowed, None where nothing lists them."""
    return closed_labels(card) if card.metric == "label" else card_schema(card).labels


def _right_label(card: Card, references: Sequence[str]) -> list[str | None]:
    """What is right for each row, None where its response is no answer to the task."""
    allowed = set(closed_labels(card))
    return [text if (text := reference.strip()) in allowed else None for reference in references]


def _right_json(card: Card, references: Sequence[str]) -> list[str | None]:
    """`_right_label` for JSON: the label, or without one the whole response."""
    schema = card_schema(card)
    allowed = schema.labels
    found: list[str | None] = []
    for reference in references:
        verdict = strict(reference, "", schema)
        if schema.label is None:
            found.append(canonical(verdict.value) if verdict.adherent else None)
        else:
            label = reference_label(reference, schema)
            fits = verdict.adherent if allowed is None else label in allowed
            found.append(label if fits else None)
    return found
