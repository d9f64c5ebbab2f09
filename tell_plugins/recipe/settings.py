"""A recipe's settings as ms-swift resolves them: the value given, else ms-swift's default."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tell_plugins.core.errors import UserError
from tell_plugins.recipe.recipes import Recipe, as_json, as_list
from tell_plugins.recipe.schedule import Training
from tell_plugins.recipe.swift_keys import SwiftKeys

TRUE = ("yes", "true", "t", "y", "1")
FALSE = ("no", "false", "f", "n", "0")
_TARGET_BATCH = 16  # ms-swift accumulates up to this when the recipe does not say


@dataclass(frozen=True)
class Settings:
    """Typed reading of a recipe. Methods raise UserError for a value of another type."""

    recipe: Recipe
    keys: SwiftKeys

    def given(self, key: str) -> bool:
        value = self.recipe.values.get(key)
        return value is not None and value != "None"

    def value(self, key: str) -> Any:
        if key == "tuner_type" and self.given("train_type"):
            key = "train_type"  # its old name, which wins
        return self.recipe.values[key] if self.given(key) else self.keys.default(key)

    def number(self, key: str, default: float = 0.0) -> float:
        return float(self._read(key, default, float, "a number"))

    def integer(self, key: str, default: int = 0) -> int:
        return int(self._read(key, default, lambda value: int(str(value)), "a whole number"))

    def _read(self, key: str, default: float, kind: Callable[[Any], float], allowed: str) -> float:
        value = self.value(key)
        if value is None:
            return default
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = kind(value)
            if math.isfinite(number) and not isinstance(value, bool):
                return number
        raise self._wrong(key, value, allowed)

    def typed(self, key: str) -> Any:
        """The value as the kind that ms-swift has for the key."""
        readers: dict[str, Callable[[str], Any]]
        readers = {"bool": self.flag, "int": self.integer, "float": self.number}
        kind = str(self.keys.keys.get(key, {}).get("type"))
        return None if self.value(key) is None else readers.get(kind, self.value)(key)

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if value is None:
            return False
        text = str(value).lower()
        if text not in TRUE + FALSE:
            raise self._wrong(key, value, "true or false")
        return text in TRUE

    def text(self, key: str, default: str = "") -> str:
        value = self.value(key)
        return default if value is None else str(value)

    def names(self, key: str) -> list[str]:
        return [str(part) for part in as_list(self.value(key))]

    def _wrong(self, key: str, value: Any, allowed: str) -> UserError:
        return UserError(
            f"'{key}' is {value if isinstance(value, str) else as_json(value)}",
            where=self.recipe.where(key),
            allowed=allowed,
            remedy="correct the value",
        )

    @property
    def processes(self) -> int:
        return world_size({**os.environ, **self.recipe.environment})

    @property
    def training(self) -> Training:
        """What decides steps and learning rates."""
        world = self.processes
        per_device = self._count("per_device_train_batch_size", 1)
        accumulation = self._count("gradient_accumulation_steps", 0)
        max_epochs = self.integer("max_epochs") if self.value("max_epochs") is not None else None
        rate = 1e-5 if self.text("tuner_type") == "full" else 1e-4  # ms-swift's defaults
        return Training(
            per_device=per_device,
            accumulation=accumulation or max(1, math.ceil(_TARGET_BATCH / per_device / world)),
            world=world,
            epochs=self.number("num_train_epochs", 3.0),
            max_steps=self.integer("max_steps", -1),
            max_epochs=max_epochs,
            learning_rate=self.number("learning_rate", rate),
            scheduler=self.text("lr_scheduler_type", "cosine"),
            scheduler_kwargs=self.value("lr_scheduler_kwargs"),
            warmup_ratio=self.number("warmup_ratio"),
            warmup_steps=self.integer("warmup_steps"),
            drop_last=self.flag("dataloader_drop_last"),
        )

    def _count(self, key: str, default: int) -> int:
        number = self.integer(key, default)
        if self.value(key) is not None and number < 1:
            raise self._wrong(key, number, "a whole number from 1")
        return number


def world_size(environ: Mapping[str, str]) -> int:
    """Processes that `swift sft` starts: `NPROC_PER_NODE` x `NNODES`; 1 when neither is set.

    Raises UserError for a value that is no number.
    """
    size = 1
    for name in ("NPROC_PER_NODE", "NNODES"):
        text = environ.get(name)
        if not text:
            continue
        if not text.isdigit() or int(text) < 1:
            raise UserError(
                f"${name} is '{text}', so the number of processes is not known",
                where="environment",
                allowed="a whole number from 1",
                remedy=f"{name}=2, or unset it",
            )
        size *= int(text)
    return size
