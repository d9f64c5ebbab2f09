"""Rows against `max_length`: counted with the tokenizer at hand, and the model's own if it is here.

ms-swift encodes a row with the chat template around it, which is not counted here: a row that is
next to the limit is a near miss.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tell_plugins.bridge.protocol import system_text
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import Mixture
from tell_plugins.core.sources import TaskRows, lengths_of
from tell_plugins.core.tokens import TokenCounter
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.shapes import shape_of

Lengths = npt.NDArray[np.int64]
_NEAR = 0.9  # of the limit; from here on the template, or another tokenizer, may go beyond it
_RESPONSE_END = 1  # the end-of-turn token carries a label too


@dataclass
class Counted:
    """The rows of a mixture, counted by one tokenizer, with the recipe's system prompt.

    Attributes:
        tokenizer: how it is called.
        own: whether it is the model's own; Llama-2's is that of every Llama-2 model.
        file: where the task rows are, for messages.
        over: task rows that are longer than the limit: (where in the file, tokens).
        near: task rows that may be, with the template or by another tokenizer's count.
        general_over: general rows that are longer, by card.
        rows: (n, 2) in training order: tokens, and those that carry a label.
    """

    tokenizer: str
    own: bool
    file: str = ""
    over: list[tuple[str, int]] = field(default_factory=list)
    near: list[tuple[str, int]] = field(default_factory=list)
    general_over: dict[str, int] = field(default_factory=dict)
    rows: Lengths = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    @property
    def longest(self) -> int:
        return int(self.rows[:, 0].max())


def own_tokenizer(model: str) -> TokenCounter | None:
    """The tokenizer.json of a model that is a folder."""
    folder = model_folder(model)
    path = folder / "tokenizer.json" if folder else None
    return TokenCounter(path) if path is not None and path.is_file() else None


def max_length(settings: Settings) -> int | None:
    """The limit, which is the model's context when the recipe names none; None when unknown."""
    given = settings.value("max_length")
    if given is not None:
        return settings.integer("max_length")
    shape = shape_of(settings.text("model"))
    return shape.positions if shape is not None and shape.positions else None


def count(
    mixture: Mixture, counter: TokenCounter, settings: Settings, limit: int | None
) -> Counted:
    """Count the used rows of `mixture` and hold them against `limit`."""
    own = own_tokenizer(settings.text("model"))
    is_own = own is not None and own.sha256 == counter.sha256
    result = Counted(counter.name, is_own or _is_llama_2(settings, counter))
    extra = int(counter.count([system_text(settings.value("system")) or ""])[0])
    entries = np.zeros((len(mixture), 2), np.int64)
    for index, source in enumerate(mixture.sources):
        rows = source.rows
        lengths = np.asarray(lengths_of(rows, counter, source.used), np.int64)
        lengths[:, 0] += extra
        sums = lengths.sum(axis=1)
        if limit is not None and isinstance(rows, TaskRows):
            result.file = rows.shown
            for row, tokens in sorted(zip(source.used.tolist(), sums.tolist(), strict=True)):
                if tokens > limit:
                    result.over.append((rows.line(row), tokens))
                elif tokens > _NEAR * limit:
                    result.near.append((rows.line(row), tokens))
        elif limit is not None and (over := int((sums > limit).sum())):
            result.general_over[source.card.name] = over
        entries[mixture.origin == index] = np.tile(lengths, (source.repeat, 1))
    ordered = entries[mixture.order]
    result.rows = np.column_stack([ordered.sum(axis=1), ordered[:, 1] + _RESPONSE_END])
    return result


def _is_llama_2(settings: Settings, counter: TokenCounter) -> bool:
    """Whether a Llama-2 model is counted for with the Llama-2 tokenizer, if not its own copy."""
    shape = shape_of(settings.text("model"))
    named = "llama2" in counter.path.parent.name
    return shape is not None and shape.name.startswith("Llama-2") and named


def worst_case(settings: Settings, limit: int | None) -> Lengths:
    """(1, 2) a row that fills the limit with labels, for an estimate without data.

    Raises UserError when there is no limit to go by.
    """
    if limit is None or limit < 1:
        raise UserError(
            "no row lengths and no max_length to estimate with",
            where=settings.recipe.where("max_length"),
            remedy="name max_length",
        )
    return np.array([[limit, limit]], np.int64)
