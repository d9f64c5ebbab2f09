"""JSON answers under every reading: form, label, and the content of those without a label.

Content is compared as pairs of a path and a value: `{"a": {"b": 1}, "c": [2, 2]}` has the pairs
`a.b = 1`, `c[] = 2` and `c[] = 2`. The order of a list does not count there; in the exact match,
which compares canonical JSON, it does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import TaskRows
from tell_plugins.evaluation.judged import Case, Column, Constant, Judged, ratio, share
from tell_plugins.evaluation.paper_numbers import is_papers_task
from tell_plugins.evaluation.scorers.json_readings import (
    READINGS,
    AnswerSchema,
    Reading,
    card_schema,
    read_whole,
    reference_label,
)
from tell_plugins.evaluation.scorers.label import Truth, checked, judged_form

Pairs = Counter[tuple[str, str]]
MOST_FIELDS = 20  # keys whose content is measured one by one


def right(task: TaskRows) -> Truth:
    """The label of each test row; without labels, its whole response as canonical JSON.

    Raises UserError for a response that is no JSON, or whose label is not allowed.
    """
    schema = card_schema(task.card)
    if schema.label:
        found = [reference_label(response, schema) for response in task.responses]
        remedy = f"correct the row, or the values of '{schema.label}' in the schema"
        return checked(Truth(found, schema.labels or sorted(set(found))), task, remedy)
    read = [read_whole(response) for response in task.responses]
    if None in read:
        raise UserError(
            "the response is no JSON, so no answer can be compared with it",
            where=task.place(read.index(None)),
            remedy="correct the row, or the card's metric",
        )
    return Truth([canonical(parsed.value) for parsed in read if parsed], [])


def judge(case: Case) -> dict[str, Judged]:
    """What each reading says of the answers; those of the paper's script for its own task alone."""
    schema, wanted = card_schema(case.card), case.readings
    if wanted is None:
        papers = is_papers_task(case.card)
        wanted = [r.name for r in READINGS if papers or not r.name.startswith("official")]
    return {r.name: _judged(case, r, schema) for r in READINGS if r.name in wanted}


def _judged(case: Case, reading: Reading, schema: AnswerSchema) -> Judged:
    if reading.limit is not None:
        first = set(sorted(set(case.rows))[: reading.limit])
        case = case.of([place for place, row in enumerate(case.rows) if row in first])
    verdicts = [reading.judge(a.text, a.finish_reason, schema) for a in case.answers]
    kinds = [None if verdict.adherent else verdict.kind for verdict in verdicts]
    values = [verdict.value for verdict in verdicts]
    found = judged_form(case, kinds, [schema.label_of(value) for value in values])
    if not case.labels:
        found.columns.update(_content(values, case.right))
    return found


def constant(case: Case) -> Constant:
    """The most frequent label, or without labels the most frequent response, every time."""
    right, answers = case.most_frequent_right, len(case.answers)
    found = judged_form(case, [None] * answers, [right] * answers)
    if not case.labels:
        found.columns.update(_content([json.loads(right)] * answers, case.right))
    return Constant(f"always {right}", found)


def _content(given: Sequence[Any], right: Sequence[str]) -> dict[str, Column]:
    """Exact match and fields, and these of each key of the whole object where it has few; an
    answer of the wrong form gives nothing."""
    fits = [value is not None for value in given]
    said = [canonical(value) if value is not None else None for value in given]
    exact = [one == whole for one, whole in zip(said, right, strict=True)]
    mine = [Counter() if value is None else pairs(value) for value in given]
    theirs = [pairs(json.loads(whole)) for whole in right]
    found = {
        "exact_match": share(exact),
        "exact_match_given_the_form": share(exact, fits),
        **_ratios(mine, theirs),
    }
    fields = list(dict.fromkeys(_field(path) for pairs in theirs for path, _ in pairs))
    for field in fields if 1 < len(fields) <= MOST_FIELDS else []:
        parts = ([_only(field, one) for one in side] for side in (mine, theirs))
        of_field = {f"{name}:{field}": column for name, column in _ratios(*parts).items()}
        found |= {name: replace(column, detail=True) for name, column in of_field.items()}
    return found


def _ratios(mine: Sequence[Pairs], theirs: Sequence[Pairs]) -> dict[str, Column]:
    """Precision, recall and F1 of pairs, over all answers at once."""
    hits = np.array([(a & b).total() for a, b in zip(mine, theirs, strict=True)], float)
    said, true = (np.array([one.total() for one in side], float) for side in (mine, theirs))
    return {
        "field_precision": ratio(hits, said),
        "field_recall": ratio(hits, true),
        "field_f1": ratio(2 * hits, said + true),
    }


def _field(path: str) -> str:
    return path.partition(".")[0].partition("[")[0]


def _only(field: str, found: Pairs) -> Pairs:
    return Counter({pair: count for pair, count in found.items() if _field(pair[0]) == field})


def canonical(value: Any) -> str:
    """A JSON value as text that is equal for equal values: keys sorted, 1.0 as 1."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def pairs(value: Any) -> Pairs:
    """The (path, value) pairs of a JSON value, with how often each stands there."""
    return Counter(_pairs(value, ""))


def _pairs(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _pairs(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _pairs(inner, f"{path}[]")
    else:
        yield path, canonical(value)
