"""Adherence and content of generated validation answers, while a run trains.

The same strict scorer as in `./run.sh eval`. A recipe switches it on:

    val_dataset: ["tell/<card>:split=validation"]
    predict_with_generate: true
    eval_metric: tell_json          # tell_label for a card with metric `label`
    max_new_tokens: 64
    eval_strategy: epoch
"""

from __future__ import annotations

import math
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
    right, labels = _right(card, references)
    kept = [(said, text) for said, text in zip(answers, right, strict=True) if text is not None]
    if not kept:
        return {"task_rows": 0.0}
    lines = [Answer(id="", row=n, text=said, finish_reason="") for n, (said, _) in enumerate(kept)]
    case = Case(card, lines, [text for _, text in kept], labels, readings=("strict",))
    columns = next(iter(scorers.judge(case).values())).columns
    found = {shown: columns[name].total for name, shown in _SCORES.items() if name in columns}
    known = {n.format(metric=card.metric): v for n, v in found.items() if not math.isnan(v)}
    return {**known, "task_rows": float(len(kept))}


def _right(card: Card, references: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """What is right for each row, None where its response is no answer to the task: the label, for
    JSON without one the whole response. And all labels."""
    if card.metric == "label":
        allowed = closed_labels(card)
        return [text if text in allowed else None for text in map(str.strip, references)], allowed
    schema = card_schema(card)
    verdicts = [strict(reference, "", schema) for reference in references]
    if schema.label is None:
        return [canonical(v.value) if v.adherent else None for v in verdicts], []
    found = [reference_label(reference, schema) for reference in references]
    fits = [v.adherent for v in verdicts]
    if schema.labels is not None:
        fits = [label in schema.labels for label in found]
    right = [label if fit else None for label, fit in zip(found, fits, strict=True)]
    return right, schema.labels or sorted({label for label in right if label is not None})
