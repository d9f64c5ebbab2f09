"""What a run did to the model elsewhere: loss on held-out general rows, and bleed.

Retention is the mean negative log-likelihood per response token on general rows that nobody
trained on; bleed is the share of general questions, asked without the anchor, that are answered
in the task's format. A model that learned the task and forgot the rest is no success.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.progress import tracked
from tell_plugins.core.text import row_id

LOSSES = "losses.jsonl"
_RESAMPLES = 2000


class LossEngine(Protocol):
    """An engine that can also tell how likely a response is to it."""

    def response_losses(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]: ...


@dataclass(frozen=True)
class Retention:
    """Mean loss per token with its interval; against a base: the paired difference."""

    rows: int
    tokens: int
    loss: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def measure(
    engine: LossEngine, pairs: Sequence[tuple[str, str]], folder: Path, *, label: str
) -> Path:
    """Write the loss of every general row to `folder/losses.jsonl`, unless it is there already.

    A line names its row by content: losses on other responses are taken again.
    """
    path = folder / LOSSES
    ids = [row_id(*pair).hex() for pair in pairs]
    if path.is_file() and [line.get("id") for line in _lines(path)] == ids:
        return path
    lines = []
    asked = list(zip(ids, pairs, strict=True))
    for row, pair in tracked(asked, f"{label}, general loss", "rows", len(pairs)):
        ((loss, tokens),) = engine.response_losses([pair])
        lines.append(json.dumps({"id": row, "loss_sum": loss, "tokens": tokens}) + "\n")
    paths.write_text(path, "".join(lines))
    return path


def read_losses(folder: Path) -> list[tuple[float, int]]:
    """(summed loss, tokens) of every general row; empty when nothing was measured."""
    path = folder / LOSSES
    if not path.is_file():
        return []
    return [(line["loss_sum"], line["tokens"]) for line in _lines(path)]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def retention(losses: Sequence[tuple[float, int]]) -> Retention:
    """Mean loss per token, with a 95 % bootstrap interval over rows."""
    sums, tokens = _columns(losses)
    low, high = _interval(lambda rows: sums[rows].sum() / tokens[rows].sum(), len(sums))
    return Retention(len(sums), int(tokens.sum()), float(sums.sum() / tokens.sum()), low, high)


def difference(
    losses: Sequence[tuple[float, int]], base: Sequence[tuple[float, int]]
) -> tuple[float, float, float]:
    """Mean loss per token minus the base's over the same rows: value, low, high (95 %, paired).

    Raises ValueError when the rows are not the same.
    """
    sums, tokens = _columns(losses)
    base_sums, base_tokens = _columns(base)
    if not np.array_equal(tokens, base_tokens):
        raise ValueError("the losses are of other rows than the base's")
    delta = sums - base_sums
    low, high = _interval(lambda rows: delta[rows].sum() / tokens[rows].sum(), len(delta))
    return float(delta.sum() / tokens.sum()), low, high


def _columns(losses: Sequence[tuple[float, int]]) -> tuple[Any, Any]:
    table = np.asarray(losses, dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _interval(statistic: Any, rows: int) -> tuple[float, float]:
    random = np.random.default_rng(0)
    draws = random.integers(0, rows, size=(_RESAMPLES, rows))
    values = [statistic(draw) for draw in draws]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
