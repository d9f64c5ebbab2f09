"""Optimizer steps and learning rates as transformers' Trainer and ms-swift's sampler make them.

From rows, batch, accumulation, processes and epochs to: how many steps there are, the learning
rate of each, which steps hold a task row, and how much learning rate the task rows meet. Nothing
is run; the arithmetic is that of transformers 4.56 (`Trainer.set_initial_training_values`,
`optimization.py`) and of ms-swift's `BatchSamplerShard`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tell_plugins.core.errors import UserError
from tell_plugins.recipe.recipes import Recipe

Rates = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]
_TARGET_BATCH = 16  # ms-swift accumulates up to this when the recipe does not say
_MOST_STEPS = 10**7  # at a step a second, four months


class Unmodelled(UserError):
    """A scheduler, or an argument of one, whose learning rates are not known here."""


@dataclass(frozen=True)
class Training:
    """The settings that decide steps and learning rates; defaults are those of transformers."""

    per_device: int = 1
    accumulation: int = 16
    world: int = 1  # processes, each with its own share of every step
    epochs: float = 3.0
    max_steps: int = -1
    max_epochs: int | None = None  # ms-swift stops here; the schedule is laid out for `epochs`
    learning_rate: float = 1e-4
    scheduler: str = "linear"
    scheduler_kwargs: Any = None
    warmup_ratio: float = 0.0
    warmup_steps: int = 0
    drop_last: bool = False

    @property
    def rows_per_step(self) -> int:
        return self.per_device * self.accumulation * self.world


def training_of(recipe: Recipe) -> Training:
    """What decides the steps of a recipe, read as the installed ms-swift reads it."""
    world = processes_of(recipe)
    per_device = _count(recipe, "per_device_train_batch_size", 1)
    accumulation = _count(recipe, "gradient_accumulation_steps", 0)
    rate = 1e-5 if recipe.text("tuner_type") == "full" else 1e-4  # ms-swift's defaults
    return Training(
        per_device=per_device,
        accumulation=accumulation or max(1, math.ceil(_TARGET_BATCH / per_device / world)),
        world=world,
        epochs=recipe.number("num_train_epochs", 3.0),
        max_steps=recipe.integer("max_steps", -1),
        max_epochs=None if recipe.value("max_epochs") is None else recipe.integer("max_epochs"),
        learning_rate=recipe.number("learning_rate", rate),
        scheduler=recipe.text("lr_scheduler_type", "cosine"),
        scheduler_kwargs=recipe.value("lr_scheduler_kwargs"),
        warmup_ratio=recipe.number("warmup_ratio"),
        warmup_steps=recipe.integer("warmup_steps"),
        drop_last=recipe.flag("dataloader_drop_last"),
    )


def _count(recipe: Recipe, key: str, default: int) -> int:
    number = recipe.integer(key, default)
    if recipe.value(key) is not None and number < 1:
        raise recipe.wrong(key, "a whole number from 1")
    return number


def processes_of(recipe: Recipe) -> int:
    """Processes that `swift sft` starts for a recipe."""
    return world_size({**os.environ, **recipe.environment})


def world_size(environ: Mapping[str, str]) -> int:
    """`NPROC_PER_NODE` x `NNODES`; 1 when neither is set. Raises UserError for no number."""
    size = 1
    for name in ("NPROC_PER_NODE", "NNODES"):
        text = environ.get(name) or "1"
        if not text.isdigit() or int(text) < 1:
            raise UserError(
                f"${name} is '{text}', so the number of processes is not known",
                where="environment",
                allowed="a whole number from 1",
                remedy=f"{name}=2, or unset it",
            )
        size *= int(text)
    return size


@dataclass(frozen=True)
class Plan:
    """What a training of `entries` rows does."""

    training: Training
    entries: int  # rows of one epoch, copies included
    # how many of them, from the front, reach the model: ms-swift gives every process the same
    # number of rows and leaves the rest out
    served: int
    steps_per_epoch: int
    steps: int  # taken in all
    scheduled: int  # what the rates are laid out for; more where `max_epochs` ends the run early
    warmup_steps: int

    def rates_at(self, steps: Steps) -> Rates:
        """(n,) learning rate of each of the given steps, relative to the recipe's.

        Raises Unmodelled for a scheduler that is not modelled here, or one with own arguments.
        """
        scheduler, given = self.training.scheduler, self.training.scheduler_kwargs
        if given or scheduler not in _DECAYS:
            own = " with arguments of its own" if given else ""
            raise Unmodelled(
                f"scheduler '{scheduler}'{own} is not modelled",
                where="lr_scheduler_kwargs" if given else "lr_scheduler_type",
                allowed=", ".join(_DECAYS),
                remedy="its learning rates are not shown",
            )
        warmup, done = self._warmup, steps.astype(np.float64)
        left = max(1, self.scheduled - warmup)
        decayed = _DECAYS[scheduler](np.maximum(done - warmup, 0) / left)
        return np.where(done < warmup, done / max(1, warmup), decayed)

    @property
    def _warmup(self) -> int:
        return 0 if self.training.scheduler == "constant" else self.warmup_steps

    @property
    def landmarks(self) -> dict[int, float]:
        """The first step, that of the highest learning rate, and the last, with their rates.

        The highest is where warm-up ends, or the run. Rates are relative to the recipe's.
        """
        steps = [0, min(self._warmup, self.steps - 1), self.steps - 1]
        return dict(zip(steps, self.rates_at(np.array(steps)).tolist(), strict=True))

    @property
    def peak(self) -> float:
        """The highest learning rate, relative to the recipe's."""
        return max(self.landmarks.values())

    @property
    def is_no_op(self) -> bool:
        """Whether every step's learning rate is 0, so that nothing is trained."""
        return self.training.learning_rate == 0 or self.peak == 0

    @property
    def seen(self) -> int:
        """Entries, from the front, that some step holds."""
        return min(self.served, self.steps * self.training.rows_per_step)

    def by_step(self, numbers: npt.NDArray[Any]) -> Rates:
        """(steps,) the sum, over the entries that each step holds, of a number of each entry."""
        entries = np.arange(self.served) // self.training.rows_per_step
        epoch = np.bincount(entries, numbers[: self.served], self.steps_per_epoch)
        return np.resize(epoch, self.steps)  # each epoch has the same order

    def over_the_run(self, numbers: npt.NDArray[Any]) -> int:
        """The sum, over all entries that steps hold in all epochs, of a number of each entry."""
        return int(self.by_step(numbers).sum())


# after warm-up: the share of the steps that is done, to the factor
_DECAYS: dict[str, Callable[[Rates], Rates]] = {
    "linear": lambda done: np.maximum(0.0, 1.0 - done),
    "cosine": lambda done: np.maximum(0.0, 0.5 * (1.0 + np.cos(math.pi * done))),
    "constant": np.ones_like,
    "constant_with_warmup": np.ones_like,
}


def plan(entries: int, training: Training) -> Plan:
    """Lay out a run over `entries` rows.

    Raises UserError when no step can be taken, Unmodelled for a scheduler that is not modelled.
    """
    per_process = entries // training.world
    if training.drop_last:
        per_process -= per_process % training.per_device
    if per_process == 0:
        raise UserError(
            f"{entries} rows over {training.world} processes leave no batch to train on",
            where="training",
            remedy="more rows, fewer processes, or dataloader_drop_last: false",
        )
    per_epoch = -(-per_process // (training.per_device * training.accumulation))
    steps = scheduled = math.ceil(min(training.epochs, 1e15) * per_epoch)
    if training.max_steps >= 0:
        steps = scheduled = training.max_steps
    if training.max_epochs is not None:
        steps = min(steps, training.max_epochs * per_epoch)
    if not 1 <= steps <= scheduled <= _MOST_STEPS:
        raise UserError(
            f"the run takes {max(0, steps and scheduled):.4g} optimizer steps",
            where="training",
            allowed=f"1 to {_MOST_STEPS:.0e}",
            remedy="correct max_steps, num_train_epochs or max_epochs",
        )
    # a number of steps above 0 wins over the ratio
    warmup = max(training.warmup_steps, 0) or math.ceil(scheduled * training.warmup_ratio)
    served = per_process * training.world
    result = Plan(training, entries, served, per_epoch, steps, scheduled, warmup)
    result.rates_at(np.zeros(1, np.int64))  # a scheduler that is not modelled is told here
    return result


class Exposure(NamedTuple):
    """How the task rows meet the learning rate."""

    steps: int  # that hold at least one task row
    working_steps: int  # those of them whose learning rate is above 0
    weight: float  # sum over task entries of their step's rate / the recipe's learning rate
    relative: float  # over what the same entries would get at the run's mean rate; 1 is even
    unseen: int  # task entries that no step holds


def exposure(plan: Plan, is_task: npt.NDArray[np.bool_]) -> Exposure:
    """How the task entries of a mixture meet the learning rate of `plan`.

    `is_task`: (entries,) in training order, the same in every epoch.
    """
    rates = plan.rates_at(np.arange(plan.steps))
    task, every = plan.by_step(is_task), plan.by_step(np.ones(plan.entries))
    weight = float((rates * task).sum())
    even = float((rates * every).sum() / every.sum() * task.sum())
    return Exposure(
        steps=int((task > 0).sum()),
        working_steps=int(((task > 0) & (rates > 0)).sum()),
        weight=weight,
        relative=weight / even if even else 0.0,
        unseen=int(is_task[plan.seen :].sum()),
    )


def why_no_op(plan: Plan) -> str | None:
    """Why a run trains nothing, or None when it trains something."""
    if not plan.is_no_op:
        return None
    if plan.training.learning_rate == 0:
        return "the learning rate is 0"
    rows, steps = plan.training.rows_per_step, plan.steps
    what = "its only step has" if steps == 1 else f"all {steps} steps have"
    return (
        f"{plan.entries} rows at {rows} rows a step are {steps} optimizer "
        f"step{'s' if steps > 1 else ''}, {plan.warmup_steps} of them warm-up; warm-up begins at "
        f"learning rate 0, so {what} learning rate 0 and the adapter stays as it was initialised"
    )
