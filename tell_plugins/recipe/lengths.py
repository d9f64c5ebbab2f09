"""Rows against `max_length`: counted with the tokenizer at hand, and the model's own if it is here.

ms-swift encodes a row with the chat template around it. What the template adds is known for the
templates of the recipes; a row that is only over the limit with it is a near miss.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import Mixture
from tell_plugins.core.rows import Rows
from tell_plugins.core.sources import TaskRows, lengths_of
from tell_plugins.core.tokens import TokenCounter
from tell_plugins.core.turns import MARK
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.shapes import shape_of

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TemplateCost:
    """Tokens that a chat template adds to a row: its markers, and its default system prompt.

    Attributes:
        markers: around query and response; around each earlier pair of turns as many.
        system_markers: around a system prompt, if there is one.
        system: Llama-2 tokens of the prompt that the template brings, 0 for none.
    """

    markers: int
    system_markers: int = 0
    system: int = 0


TEMPLATES = {
    "chatml": TemplateCost(10, 5),
    "qwen": TemplateCost(10, 5, system=6),
    "gemma": TemplateCost(10, 6),
    "llama": TemplateCost(10, 12, system=112),
}
_TEMPLATE_OF_MODEL = {
    "Qwen-7B-Chat": "qwen",
    "gemma-7b-it": "gemma",
    "Llama-2-7b-chat": "llama",
}


@dataclass
class Counted:
    """The rows of a mixture, counted by one tokenizer.

    Attributes:
        tokenizer: how it is called.
        own: whether it is the model's own.
        exact: whether the model counts as it does: its own, or Llama-2's for a Llama-2 model.
        template: tokens that the chat template adds, None when they are not known.
        a_turn: tokens that it adds for each earlier pair of turns, 0 where no row has any.
        file: where the task rows are, for messages.
        over: task rows that are longer than the limit: (line, tokens).
        near: task rows that may be, with the template or by another tokenizer's count.
        general_over: general rows that are longer, by card.
        longest: tokens of the longest row, template included.
        rows: (n, 2) in training order: tokens with template, and those that carry a label.
    """

    tokenizer: str
    own: bool
    exact: bool
    template: int | None
    a_turn: int = 0
    file: str = ""
    over: list[tuple[int, int]] = field(default_factory=list)
    near: list[tuple[int, int]] = field(default_factory=list)
    general_over: dict[str, int] = field(default_factory=dict)
    rows: Lengths = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    @property
    def longest(self) -> int:
        return int(self.rows[:, 0].max())

    @property
    def tokens(self) -> int:
        """All tokens of one epoch."""
        return int(self.rows[:, 0].sum())


_DOUBT = 0.9  # another model's tokenizer: rows from this share of the limit on are near misses
_RESPONSE_END = 1  # the end-of-turn token carries a label too
_COUNTED = 2  # of an earlier pair's markers: the counter takes a line break for each MARK


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
    exact = is_own or _is_llama_2(settings, counter)
    extra = template_tokens(settings, counter)
    result = Counted(counter.name, is_own, exact, extra)
    a_turn = 0 if extra is None else TEMPLATES[str(template_name(settings))].markers - _COUNTED
    entries = np.zeros((len(mixture), 2), np.int64)
    for index, source in enumerate(mixture.sources):
        rows = source.rows
        lengths = np.asarray(lengths_of(rows, counter, source.used), np.int64)
        if source.card.columns_of(source.split).history:
            earlier = _earlier_pairs(rows, source.used)
            result.a_turn = max(result.a_turn, a_turn * int(earlier.any()))
            lengths[:, 0] += a_turn * earlier
        sums = lengths.sum(axis=1)
        if limit is not None and isinstance(rows, TaskRows):
            _hold(result, rows, source.used, sums, limit, 1.0 if exact else _DOUBT)
        elif limit is not None:
            over = int((sums + (extra or 0) > limit).sum())
            if over:
                result.general_over[source.card.name] = over
        place = np.full(len(rows), -1, np.int64)
        place[source.used] = np.arange(len(source.used))
        mine = mixture.origin == index
        entries[mine] = lengths[place[mixture.row[mine]]]
    ordered = entries[mixture.order]
    result.rows = np.column_stack(
        [ordered.sum(axis=1) + (extra or 0), ordered[:, 1] + _RESPONSE_END]
    )
    return result


def _earlier_pairs(rows: TaskRows | Rows, used: npt.NDArray[np.int64]) -> Lengths:
    """(n,) how many pairs of turns stand before the query of each row."""
    marks = [query.count(MARK) for query, _ in rows.texts(used).pairs()]
    return np.array(marks, np.int64) // 2


def _is_llama_2(settings: Settings, counter: TokenCounter) -> bool:
    """Whether a Llama-2 model is counted for with the Llama-2 tokenizer, if not its own copy."""
    shape = shape_of(settings.text("model"))
    named = "llama2" in counter.path.parent.name
    return shape is not None and shape.name.startswith("Llama-2") and named


def _hold(
    result: Counted,
    rows: TaskRows,
    used: npt.NDArray[np.int64],
    sums: Lengths,
    limit: int,
    doubt: float,
) -> None:
    result.file = paths.shown(rows.file)
    for row, tokens in sorted(zip(used.tolist(), sums.tolist(), strict=True)):
        line = int(rows.lines[row])
        reach = tokens + (result.template or 0)
        surely = reach > limit if result.own else tokens > limit
        if surely:
            result.over.append((line, tokens))
        elif reach > doubt * limit:
            result.near.append((line, tokens))


def template_name(settings: Settings) -> str | None:
    """The chat template a recipe trains with, None when only ms-swift knows."""
    given = settings.value("template")
    if given is not None:
        return str(given)
    shape = shape_of(settings.text("model"))
    return _TEMPLATE_OF_MODEL.get(shape.name) if shape is not None else None


def template_tokens(settings: Settings, counter: TokenCounter) -> int | None:
    """Tokens that the chat template adds to a row, the system prompt included."""
    name = template_name(settings)
    if name not in TEMPLATES:
        return None
    cost = TEMPLATES[name]
    system = cost.system
    given: Any = settings.value("system")
    if given is not None:
        system = int(counter.count([str(given)])[0])
    return cost.markers + (cost.system_markers + system if system else 0)


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
