"""What is asked: the rows of a task split with the anchor as in training, and general questions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

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
    chosen = np.arange(len(task))
    if rows is not None:
        if rows > len(task):
            raise UserError(
                f"{rows} rows asked, split '{split}' has {len(task)}",
                where=f"card '{card.name}'",
                remedy=f"--rows {len(task)} or less",
            )
        chosen = np.sort(draw.ranking(task.ids, seed=_SEED, source=f"{card.name} {split}")[:rows])
    prompts = [Prompt(bytes(task.ids[i]).hex(), int(i), task.queries[i]) for i in chosen]
    return task, prompts


def answer_limit(card: Card, asked: int | None = None) -> int:
    """Tokens that an answer may have: as asked, else the card's, else 512."""
    return asked or card.max_new_tokens or 512


def prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """One hash over the prompts, so that answers to other prompts are told apart."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.id.encode() + prompt.text.encode() + b"\0")
    return digest.hexdigest()


def pairs_sha256(pairs: Iterable[tuple[str, str]]) -> str:
    """One hash over (query, response) pairs."""
    return hashlib.sha256(b"".join(row_id(*pair) for pair in pairs)).hexdigest()


def general_rows(specs: Iterable[Spec], card: Card, rows: int) -> list[tuple[str, str]]:
    """(query, response) of general rows that none of the given mixtures trained on.

    Taken from the first general card's split `heldout`; a card without one gives the rows that a
    draw would take last. Raises UserError when too few were left out of training.
    """
    specs = list(specs)
    name = _general_card_name(specs, card)
    general = load_card(name)
    if HELD_OUT_SPLIT in general.splits:
        held = open_split(general, HELD_OUT_SPLIT)
        return held.texts(np.arange(min(rows, len(held))))
    everything = open_split(general, "train")
    ranked = draw.ranking(everything.ids, seed=_SEED, source=name)[::-1]
    seen = np.isin(everything.keys, everything.keys[_used(specs, name)])  # and what asks the same
    free = ranked[~seen[ranked]][:rows]
    if len(free) < rows:
        raise UserError(
            f"only {len(free)} of its rows were left out of training, {rows} are needed",
            where=f"general card '{name}'",
            remedy=f"give the card a split '{HELD_OUT_SPLIT}', or pass --general-rows {len(free)}",
        )
    return everything.texts(free)


def has_held_out(specs: Sequence[Spec], card: Card) -> bool:
    """Whether general rows are kept out of training by a split, not by what a run left over."""
    return HELD_OUT_SPLIT in load_card(_general_card_name(specs, card)).splits


def _general_card_name(specs: Sequence[Spec], card: Card) -> str:
    for spec in specs:
        if spec.sources:
            return spec.sources[0]
    if card.kind == GENERAL:
        return card.name
    assert card.general is not None
    return card.general.sources[0]


def _used(specs: list[Spec], name: str) -> npt.NDArray[np.int64]:
    """The places of the card's rows that the mixtures hold."""
    used = [
        source.used
        for spec in specs
        for source in build_mixture(spec).sources
        if source.role == GENERAL and source.card.name == name
    ]
    return np.concatenate([np.zeros(0, np.int64), *used])
