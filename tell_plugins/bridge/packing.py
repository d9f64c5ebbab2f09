"""Rows in one forward pass, without padding, and what they have in common computed once.

    A A A q           A A A q q' q'    q: behind the shared beginning A of both rows
    A A A q' q'  ->   one line, with a mask in which each token sees its own row alone

Rows of one task begin alike: system prompt, anchor. Of a batch of short rows that is more than
half of all tokens. Each token keeps its place within its row, and a token that several rows begin
with has the gradient of all of them: losses and gradients are those of the rows one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# plain decoders of transformers' own that take a mask of four dimensions as it is given
_MODELS = ("llama", "qwen2", "qwen3")
_ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class Row:
    """The tokens of a row, and of each whether it is asked; the first never is."""

    ids: list[int]
    asked: list[bool]


@dataclass(frozen=True)
class Line:
    """Rows in one line.

    Attributes:
        inputs: of the model; it gives the logits before each asked token, row by row.
        targets: (asked,) the asked tokens.
        row_of: (asked,) the row that each belongs to, counted from 0.
    """

    rows: Sequence[Row]
    inputs: dict[str, Any]
    targets: Tensor
    row_of: Tensor


def fits(model: Any) -> bool:
    """Whether the model sees a line as it would see its rows."""
    config = model.config
    windows = getattr(config, "use_sliding_window", False)
    attention = getattr(config, "_attn_implementation", None)
    return config.model_type in _MODELS and not windows and attention in _ATTENTION


def line_of(rows: Sequence[Row], device: Any = "cpu") -> Line:
    """Put rows into one line; what they begin with alike stands there once."""
    places: dict[tuple[int, int], int] = {}  # (place of the token before, token) -> place
    depths: list[int] = []
    kept, targets, row_of = [], [], []
    for number, row in enumerate(rows):
        place = -1
        for depth, (token, asked) in enumerate(zip(row.ids, row.asked, strict=True)):
            if asked:
                kept.append(place)
                targets.append(token)
                row_of.append(number)
            place = places.setdefault((place, token), len(places))
            if place == len(depths):
                depths.append(depth)
    parents, tokens = zip(*places, strict=True)
    inputs: dict[str, Any] = {
        "input_ids": torch.tensor([tokens], device=device),
        "logits_to_keep": torch.tensor(kept, dtype=torch.long, device=device),
    }
    if depths != list(range(len(depths))):  # one row alone needs no mask
        inputs["position_ids"] = torch.tensor([depths], device=device)
        inputs["attention_mask"] = _mask(parents).to(device)
    return Line(
        rows, inputs, torch.tensor(targets, device=device), torch.tensor(row_of, device=device)
    )


def _mask(parents: Sequence[int]) -> Tensor:
    """(1, 1, tokens, tokens): 0 where a token sees another, itself included, else far below 0."""
    seen = torch.eye(len(parents), dtype=torch.bool)
    for place, parent in enumerate(parents):
        if parent >= 0:
            seen[place] |= seen[parent]
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
