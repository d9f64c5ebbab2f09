"""What is asked: the rows of a task split with the anchor as in training, and general questions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from tell_plugins.core import draw
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import GENERAL, build_mixture
from tell_plugins.core.sources import TaskRows, open_split, open_task
from tell_plugins.core.spec import Spec
from tell_plugins.core.text import row_id
from tell_plugins.evaluation.answers import Prompt
from tell_plugins.recipe.recipes import Recipe

HELD_OUT_SPLIT = "heldout"
_SEED = 42  # of the draw of rows to test; never the training seed's business


def task_card(recipe: Recipe, wanted: str = "task", remedy: str | None = None) -> Card:
    """The card of a recipe's task. Raises UserError for general data, which has no such thing."""
    card = load_card(recipe.spec.card)
    if card.kind == GENERAL:
        raise UserError(
            f"'{card.name}' is general data and has no {wanted}",
            where=recipe.where("dataset"),
            remedy=remedy or "name the recipe of a task",
        )
    return card


def task_prompts(
    card: Card, split: str, anchor: str, rows: int | None = None
) -> tuple[TaskRows, list[Prompt]]:
    """The prompts of a split, or of a seeded draw of `rows` of them, in file order.

    A smaller draw is part of a larger one. Raises UserError when there are fewer rows than asked.
    """
    task = open_task(card, split, anchor)
    if rows is not None and rows > len(task):
        raise UserError(
            f"{rows} rows asked, split '{split}' has {len(task)}",
            where=f"card '{card.name}'",
            remedy=f"--rows {len(task)} or less",
        )
    ranked = draw.ranking(task.ids, seed=_SEED, source=f"{card.name} {split}")
    chosen = sorted(ranked[:rows].tolist())
    return task, [Prompt(bytes(task.ids[row]).hex(), row, task.queries[row]) for row in chosen]


def answer_limit(card: Card, asked: int | None = None) -> int:
    """Tokens that an answer may have: as asked, else the card's, else 512."""
    return asked or card.max_new_tokens or 512


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """One hash over the prompts, so that answers to other prompts are told apart."""
    parts = (prompt.id.encode() + prompt.text.encode() + b"\0" for prompt in prompts)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def pairs_sha256(pairs: Iterable[tuple[str, str]]) -> str:
    """One hash over (query, response) pairs."""
    return hashlib.sha256(b"".join(row_id(*pair) for pair in pairs)).hexdigest()


def general_rows(specs: Iterable[Spec], card: Card, rows: int) -> list[tuple[str, str]]:
    """(query, response) of general rows that none of the given mixtures trained on.

    Taken from the first general card's split `heldout`; a card without one gives the rows that a
    draw would take last. Raises UserError when too few were left out of training.
    """
    specs = list(specs)
    general = _general_card(specs, card)
    if HELD_OUT_SPLIT in general.splits:
        held = open_split(general, HELD_OUT_SPLIT)
        return held.texts(np.arange(min(rows, len(held))))
    everything = open_split(general, "train")
    ranked = draw.ranking(everything.ids, seed=_SEED, source=general.name)[::-1]
    used = [
        source.used
        for spec in specs
        for source in build_mixture(spec).sources
        if source.role == GENERAL and source.card.name == general.name
    ]
    trained = everything.keys[np.concatenate([np.zeros(0, np.int64), *used])]
    free = ranked[~np.isin(everything.keys, trained)[ranked]][:rows]  # nor what asks the same
    if len(free) < rows:
        raise UserError(
            f"only {len(free)} of its rows were left out of training, {rows} are needed",
            where=f"general card '{general.name}'",
            remedy=f"give the card a split '{HELD_OUT_SPLIT}', or pass --general-rows {len(free)}",
        )
    return everything.texts(free)


def has_held_out(specs: Iterable[Spec], card: Card) -> bool:
    """Whether general rows are kept out of training by a split, not by what a run left over."""
    return HELD_OUT_SPLIT in _general_card(specs, card).splits


def _general_card(specs: Iterable[Spec], card: Card) -> Card:
    """The first general card of the mixtures, else of the task."""
    named = [source for spec in specs for source in spec.sources or ()]
    named += card.general.sources if card.general is not None else ()
    return load_card(named[0]) if named else card
