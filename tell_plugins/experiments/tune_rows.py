"""Which rows judge the settings that `tune` tries, and which rows those train on.

A card's split `validation` judges where it has one: each candidate trains on the recipe's task
rows, with several seeds. Else the task rows are dealt into folds; a candidate trains on all folds
but one and is judged on that one, fold after fold, so that in the end every row has judged it.
Each part is a card of its own, without a split `test`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tell_plugins.core import draw
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import counter_for, draw_task
from tell_plugins.core.sources import TaskRows, open_split, open_task
from tell_plugins.core.spec import NONE
from tell_plugins.evaluation.scorers.json_readings import card_schema, has_labels, reference_label
from tell_plugins.experiments.derived_cards import Pair, part_of_task
from tell_plugins.recipe.recipes import Recipe

PARTS = 4  # folds, or seeds
FEWEST = 8  # rows that judge; of fewer a fold would hold one
MOST_IN_FOLD, MOST_ROWS = 100, 200  # the others of a fold train; of a split, a seeded draw judges
VALIDATION = "validation"


@dataclass(frozen=True)
class Parts:
    """How the candidates are trained and judged.

    Attributes:
        cards, seeds: one run a pair; one of them holds `PARTS`, the other a single one.
        judges: the rows of the user's card among which those stand that judge.
        rows: how many of a split are drawn, None: all.
        text: which rows judge, in words.
    """

    cards: list[str]
    seeds: list[int]
    judges: TaskRows
    rows: int | None
    text: str


def parts_of(recipe: Recipe, folder: Path) -> Parts:
    """Write the parts' cards into `folder`. Reads no row of the split `test`.

    Raises UserError for a recipe without task rows, and for too few of them.
    """
    spec = recipe.spec
    card = load_card(spec.card)
    if card.kind == "general" or spec.task == NONE:
        raise UserError(
            "the recipe trains no task row, so there is nothing to tune",
            where=recipe.where("dataset"),
            remedy="name a recipe that trains a task",
        )
    task = open_task(card, spec.split, spec.anchor)
    used = draw_task(task, spec, counter_for(spec, [spec.task], [])).used
    if VALIDATION in card.splits:
        judges = open_task(card, VALIDATION, spec.anchor)
        _refuse_few(card, len(judges), f"validation rows of card '{card.name}'")
        held = _pairs(card, VALIDATION, np.arange(len(judges)))
        name = part_of_task(
            card, {"train": _pairs(card, spec.split, used), VALIDATION: held}, folder
        )
        rows = MOST_ROWS if len(judges) > MOST_ROWS else None
        text = f"{rows or len(judges)} rows of the split '{VALIDATION}'"
        return Parts([name], [spec.seed + i for i in range(PARTS)], judges, rows, text)
    keys = task.query_keys
    asked = len(np.unique(keys[used]))
    _refuse_few(card, asked, f"task rows of {spec}, whose card has no split '{VALIDATION}'")
    names, count = [], 0
    for fold in _folds(task, used.tolist(), spec.seed):
        kept = used[~np.isin(keys[used], keys[fold])]
        splits = {
            "train": _pairs(card, spec.split, kept),
            VALIDATION: _pairs(card, spec.split, sorted(fold)),
        }
        names.append(part_of_task(card, splits, folder))
        count += len(fold)
    text = f"{count} task rows, each held out of one of {PARTS} folds"
    return Parts(names, [spec.seed], task, None, text)


def _refuse_few(card: Card, found: int, what: str) -> None:
    if found < FEWEST:
        raise UserError(
            f"{found} {what}: too few to tell settings apart",
            where=f"card '{card.name}'",
            allowed=f"{FEWEST} and more",
            remedy="more rows, or validation rows of their own: ./run.sh new ... --validation FILE",
        )


def _pairs(card: Card, split: str, rows: npt.ArrayLike) -> list[Pair]:
    return open_split(card, split).texts(np.asarray(rows, np.int64)).pairs()


def _folds(task: TaskRows, used: list[int], seed: int) -> list[list[int]]:
    """The rows dealt into `PARTS` folds in seeded order, label by label, so that each fold has
    each label as far as its rows suffice. Rows that ask the same stay together."""
    ranking = draw.ranking(task.ids, seed=seed, source=f"{task.card.name} folds").tolist()
    wanted = set(used)
    ranked = [row for row in ranking if row in wanted]
    dealt = draw.deal(ranked, task.query_keys.tolist(), _labels(task), PARTS)
    folds: dict[int, list[int]] = defaultdict(list)
    for row, fold in zip(ranked, dealt, strict=True):
        folds[fold].append(row)
    return [folds[fold][:MOST_IN_FOLD] for fold in range(PARTS)]


def _labels(task: TaskRows) -> list[str]:
    """The label of each row, "" where the task has none."""
    if task.card.metric == "label":
        return [response.strip() for response in task.responses]
    if has_labels(task.card):
        schema = card_schema(task.card)
        return [reference_label(response, schema) for response in task.responses]
    return [""] * len(task)
