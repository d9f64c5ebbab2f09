"""Which engine answers: ms-swift's own on this machine, or any OpenAI-compatible URL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.protocol import Engine
from tell_plugins.recipe.recipes import Recipe


def make_engine(
    kind: str, recipe: Recipe, adapters: Mapping[str, Path], *, batch_size: int
) -> Engine:
    """The engine of that kind with the recipe's model. Raises UserError for another kind."""
    if kind == "transformers":
        from tell_plugins.bridge.engine import LocalEngine

        return LocalEngine(recipe.values, adapters, batch_size=batch_size)
    raise UserError(
        f"unknown engine '{kind}'",
        where="--engine",
        allowed="transformers",
        remedy="leave the option away",
    )
