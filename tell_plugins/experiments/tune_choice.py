"""What `tune` goes by: the rows that judge, one measure of content over them, paired row by row,
and how far the model moved.

A card's split `validation` judges where it has one: each candidate trains on the recipe's task
rows, with several seeds. Else the task rows are dealt into folds; a candidate trains on all folds
but one and is judged on that one, fold after fold, so that in the end every row has judged it.
Each part is a card of its own, without a split `test`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tell_plugins.core import draw
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import counter_for, draw_task
from tell_plugins.core.sources import TaskRows, open_split, open_task
from tell_plugins.core.spec import NONE
from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation.answers import GENERAL, SETTINGS, read_saved, saved_settings
from tell_plugins.evaluation.differences import Difference, Measure, difference
from tell_plugins.evaluation.elsewhere import KL, General
from tell_plugins.evaluation.scorers import of_metric, right
from tell_plugins.evaluation.scorers.json_readings import has_labels
from tell_plugins.evaluation.scoring import System, joined, spaced
from tell_plugins.experiments.derived_cards import part_of_task
from tell_plugins.experiments.store import AGAIN
from tell_plugins.recipe.recipes import Recipe

Rows = npt.NDArray[np.int64]
PARTS = 4  # folds, or seeds
FEWEST = 8  # rows that judge; of fewer a fold would hold one
MOST_IN_FOLD, MOST_ROWS = 100, 200  # the others of a fold train; of a split, a seeded draw judges
VALIDATION = "validation"
# settings are chosen by the first of these that a card's answers have, else by their main measure
CONTENT = ("balanced_accuracy", "field_f1", "chrf++", "exact_match")


class Parts(NamedTuple):
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
        rows = MOST_ROWS if len(judges) > MOST_ROWS else None
        cards = [_part(card, spec.split, used, VALIDATION, np.arange(len(judges)), folder)]
        text = f"{rows or len(judges)} rows of the split '{VALIDATION}'"
        return Parts(cards, [spec.seed + i for i in range(PARTS)], judges, rows, text)
    keys = task.query_keys
    asked = len(np.unique(keys[used]))
    _refuse_few(card, asked, f"task rows of {spec}, whose card has no split '{VALIDATION}'")
    folds = _folds(task, used.tolist(), spec.seed)
    cards = [
        _part(card, spec.split, used[~np.isin(keys[used], keys[fold])], spec.split, fold, folder)
        for fold in map(np.sort, folds)
    ]
    text = f"{sum(map(len, folds))} task rows, each held out of one of {PARTS} folds"
    return Parts(cards, [spec.seed], task, None, text)


def _part(card: Card, split: str, train: Rows, judging: str, held: Rows, folder: Path) -> str:
    """The card of some rows of a split that train, and others that judge."""
    rows = {"train": open_split(card, split).texts(train)}
    return part_of_task(card, rows | {VALIDATION: open_split(card, judging).texts(held)}, folder)


def _refuse_few(card: Card, found: int, what: str) -> None:
    if found < FEWEST:
        raise UserError(
            f"{found} {what}: too few to tell settings apart",
            where=f"card '{card.name}'",
            allowed=f"{FEWEST} and more",
            remedy="more rows, or validation rows of their own: ./run.sh new ... --validation FILE",
        )


def _folds(task: TaskRows, used: list[int], seed: int) -> list[list[int]]:
    """The rows dealt into `PARTS` folds in seeded order, label by label, so that each fold has
    each label as far as its rows suffice. Rows that ask the same stay together."""
    labelled = task.card.metric == "label" or has_labels(task.card)
    labels = right(task).of if labelled else [""] * len(task)
    ranking = draw.ranking(task.ids, seed=seed, source=f"{task.card.name} folds").tolist()
    wanted = set(used)
    ranked = [row for row in ranking if row in wanted]
    dealt = draw.deal(ranked, task.query_keys.tolist(), labels, PARTS)
    folds: list[list[int]] = [[] for _ in range(PARTS)]
    for row, fold in zip(ranked, dealt, strict=True):
        folds[fold].append(row)
    return [fold[:MOST_IN_FOLD] for fold in folds]


@dataclass(frozen=True)
class Result:
    """What one candidate has shown in its first `parts` runs.

    Attributes:
        name: of the candidate.
        key: the scorer and the name of the measure.
        measure: of all rows that were judged in these runs, each once.
        drift: the divergence from the base model; None where it was not measured.
        learned: whether any content is right, and not for one label given all the time.
        scale: what the adapters' weights were multiplied by.
    """

    name: str
    parts: int
    key: tuple[str, str]
    measure: Measure
    drift: Measure | None
    learned: bool = True
    scale: float = 1.0

    @property
    def what(self) -> str:
        """The measure's name as it is read."""
        return spaced(self.key[1])

    @property
    def digits(self) -> int:
        """Shares have two, scores from 0 to 100 one."""
        return 2 if self.measure.column.percent else 1

    @property
    def score(self) -> float:
        """The measure; minus infinity where it is undefined."""
        found = self.measure.column.total
        return -math.inf if math.isnan(found) else found

    @property
    def kl(self) -> float:
        """Mean divergence from the base model a token; infinite where none was measured, or it is
        no number."""
        found = math.inf if self.drift is None else self.drift.column.total
        return math.inf if math.isnan(found) else found

    @property
    def rank(self) -> tuple[float, float]:
        """The better of two has the larger one."""
        return self.score, -self.kl

    def minus(self, other: Result) -> Difference | None:
        """The paired difference in content; None where there is none."""
        return difference(self.measure, other.measure)

    def is_better_than(self, other: Result) -> bool:
        """Whether its content is told apart as better."""
        found = self.minus(other)
        return found is not None and found.better

    def moves_less_than(self, other: Result) -> bool:
        """Whether it is told apart as nearer to the base model."""
        found = difference(self.drift, other.drift)
        return found is not None and found.worse


def result_of(name: str, evaluations: Sequence[Path], judges: TaskRows, scale: float = 1) -> Result:
    """The result of the runs whose evaluations' folders are given, at one scale of the adapter.

    Their answers count as answers to the rows of the user's own card, a run an attempt: of each
    part labels could be others, so all are judged by the same rows.
    """
    parts, general = [], []
    for run, folder in enumerate(evaluations):
        for path in sorted(folder.glob(f"*/*/{SETTINGS}")):
            settings = saved_settings(path.parent, AGAIN)
            if settings is None or settings.scale != scale:
                continue
            if settings.split == GENERAL:
                general.append(elsewhere.read(path.parent))
            else:
                part = read_saved(path.parent)
                answers = [a.model_copy(update={"attempt": run}) for a in part.answers]
                parts.append(part._replace(answers=answers))
    pooled = System(name, joined(parts, judges))
    first = {name: (reading, name) for reading, name in reversed(pooled.measures)}
    names = (*CONTENT, of_metric(pooled.scored.card.metric)[0].main)
    key = next(first[name] for name in names if name in first)
    given = {label for label in pooled.readings[key[0]].given if label is not None}
    drift = General(general).measure(KL)
    result = Result(name, len(evaluations), key, pooled.measures[key], drift, scale=scale)
    return replace(result, learned=result.score > 0 and len(given) != 1)


def choose(results: Sequence[Result]) -> Result:
    """The result to take; the first is of the recipe's own settings.

    It is the best of those that a paired interval tells apart as better than the first. Where
    there is none: of those that score no lower and are told apart as nearer to the base model, the
    nearest; where nothing is learned this would be the one that trains least. Else the first.
    """
    own, *others = results
    better = [result for result in others if result.is_better_than(own)]
    if better:
        return max(better, key=lambda result: result.rank)
    learned = [r for r in others if r.learned and own.learned]
    lighter = [r for r in learned if r.score >= own.score and r.moves_less_than(own)]
    return min(lighter, key=lambda result: result.kl, default=own)
