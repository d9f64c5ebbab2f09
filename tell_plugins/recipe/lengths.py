"""Rows against `max_length`: counted with the tokenizer at hand, and the model's own if it is here.

ms-swift encodes a row with the chat template around it, which is not counted here: a row that is
next to the limit is a near miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tell_plugins.bridge.protocol import system_text
from tell_plugins.core.mixture import Mixture
from tell_plugins.core.sources import lengths_of
from tell_plugins.core.tokens import TokenCounter
from tell_plugins.recipe.models import model_folder, shape_of
from tell_plugins.recipe.recipes import Recipe

_RESPONSE_END = 1  # the end-of-turn token carries a label too


@dataclass(frozen=True)
class Counted:
    """The rows of a mixture, counted by one tokenizer, with the recipe's system prompt."""

    tokenizer: str  # how it is called
    own: bool  # whether it is the model's own
    rows: npt.NDArray[np.int64]  # (n, 2) in training order: tokens, and those that carry a label

    @property
    def longest(self) -> int:
        return int(self.rows[:, 0].max())


def own_tokenizer(model: str) -> TokenCounter | None:
    """The tokenizer.json of a model that is a folder."""
    folder = model_folder(model)
    path = folder / "tokenizer.json" if folder else None
    return TokenCounter(path) if path is not None and path.is_file() else None


def max_length(recipe: Recipe) -> int | None:
    """The limit, which is the model's context when the recipe names none; None when unknown."""
    shape = shape_of(recipe.text("model"))
    return recipe.integer("max_length", shape.positions if shape else 0) or None


def count(mixture: Mixture, counter: TokenCounter, recipe: Recipe) -> Counted:
    """Count the used rows of `mixture`."""
    own = own_tokenizer(recipe.text("model"))
    system = int(counter.count([system_text(recipe.value("system")) or ""])[0])
    known = []
    for source in mixture.sources:
        lengths = np.zeros((len(source.rows), 2), np.int64)
        lengths[source.used] = lengths_of(source.rows, counter, source.used)
        known.append(lengths)
    query, response = mixture.of_entries(known).T
    rows = np.column_stack([system + query + response, response + _RESPONSE_END])
    return Counted(counter.name, own is not None and own.sha256 == counter.sha256, rows)


def rows_from(mixture: Mixture, counted: Counted, least: float) -> list[dict[int, int]]:
    """For each source its rows of more than `least` tokens, by position, and their tokens."""
    long = np.flatnonzero(counted.rows[:, 0] > least)
    found: list[dict[int, int]] = [{} for _ in mixture.sources]
    for entry, tokens in zip(long, counted.rows[long, 0].tolist(), strict=True):
        found[mixture.origin[entry]][int(mixture.row[entry])] = tokens
    return [dict(sorted(rows.items())) for rows in found]
