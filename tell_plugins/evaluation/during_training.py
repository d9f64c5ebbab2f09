"""JSON adherence and label scores of generated validation answers, while a run trains.

The same strict scorer as in `./run.sh eval`. A recipe switches it on:

    val_dataset: ["tell/<card>:split=validation"]
    predict_with_generate: true
    eval_metric: tell_json
    max_new_tokens: 64
    eval_strategy: epoch
"""

from __future__ import annotations

from collections.abc import Sequence

from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.json_scorers import AnswerSchema, card_schema, strict
from tell_plugins.evaluation.labels import Truth, reference_label, score_labels

NAME = "tell_json"
BEST = "json_adherence"  # what the best checkpoint is chosen by, unless the recipe says otherwise


def check_card(card: Card) -> None:
    """Raises UserError for a card whose answers are not JSON, or whose schema is none."""
    if card.metric != "json":
        raise UserError(
            f"card '{card.name}' has metric '{card.metric}', so no answer of it is JSON",
            where=f"eval_metric: {NAME}",
            allowed="task cards with metric 'json'",
            remedy="remove eval_metric and predict_with_generate from the recipe",
        )
    card_schema(card)


def score_texts(card: Card, answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores of answers against the responses of the rows they answer, as shares of 1.

    `json_adherence` is that of the strict scorer; `label_accuracy` and `balanced_accuracy` count
    an answer that is not adherent as wrong, and are absent where the card names no label. Rows
    whose response is no answer to the task, as general rows are, or has a label that the schema
    does not allow, are left out: `task_rows` says how many were scored.
    """
    schema = card_schema(card)
    pairs = [(a, r) for a, r in zip(answers, references, strict=True) if _is_task(r, schema)]
    if not pairs:
        return {"task_rows": 0.0}
    verdicts = [strict(answer, "", schema) for answer, _ in pairs]
    adherent = sum(verdict.adherent for verdict in verdicts)
    scores = {BEST: adherent / len(pairs), "task_rows": float(len(pairs))}
    if schema.label is not None:
        right = [reference_label(reference, schema) for _, reference in pairs]
        given = [schema.label_of(v.value) if v.adherent else None for v in verdicts]
        labels = score_labels(
            given, list(range(len(pairs))), Truth(right, schema.labels or sorted(set(right)))
        ).all
        scores["label_accuracy"] = labels.accuracy.value or 0.0
        scores["balanced_accuracy"] = labels.balanced_accuracy.value or 0.0
    return scores


def _is_task(reference: str, schema: AnswerSchema) -> bool:
    if schema.labels is None:
        return strict(reference, "", schema).adherent
    return reference_label(reference, schema) in schema.labels
