"""Rules on the steps of a run: learning rates that task rows meet, rows that no step holds."""

from __future__ import annotations

from collections.abc import Iterator

from tell_plugins.core.mixture import Mixture
from tell_plugins.recipe.checked import Checked, Finding, error, warning
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.schedule import (
    Plan,
    Unmodelled,
    exposure,
    plan,
    training_of,
    why_no_op,
)
from tell_plugins.recipe.tables import count_of

_NOTHING = 0.005  # rows at full learning rate
_HIGH_RATE = 5e-3  # beyond what LoRA runs use; a lost minus sign or power is likelier


def check_rate(recipe: Recipe) -> Iterator[Finding]:
    """A learning rate that is hardly meant."""
    rate = recipe.number("learning_rate", 1e-4)
    if rate > _HIGH_RATE:
        found = f"'learning_rate' is {rate:g}; the paper's is 1e-4"
        where, remedy = recipe.where("learning_rate"), "check the exponent's sign"
        yield warning("tell-rate-high", found, where, remedy)


def check_steps(checked: Checked) -> Iterator[Finding]:
    """Lay out the run's steps, and what is wrong with them."""
    if checked.entries is None:
        return
    where, task = checked.recipe.where, checked.is_task
    try:
        steps = checked.plan = plan(sum(checked.entries), training_of(checked.recipe))
    except Unmodelled as problem:
        place = where(problem.where)
        yield warning("tell-schedule-unknown", problem.found, place, problem.remedy)
        return
    if task is not None and task.any():
        checked.exposure = exposure(steps, task)
    yield from _rates(checked, steps)
    if steps.seen < steps.entries:
        yield from _unseen(checked, steps)


def _rates(checked: Checked, steps: Plan) -> Iterator[Finding]:
    """Learning rates under which nothing is learned, or less than was meant."""
    where, rate = checked.recipe.where, steps.training.learning_rate
    reason = why_no_op(steps)
    if reason:
        remedy = "a learning_rate above 0"
        if rate:
            remedy = (
                "more rows, more epochs, a smaller batch, or warmup_ratio: 0 "
                "(the paper's SFT baseline at 15 rows is this very case)"
            )
        yield warning("tell-no-op", f"this run is a no-op: {reason}", where(), remedy)
    elif steps.peak < 1:
        found = f"the learning rate never reaches {rate:g}: at most {steps.peak:.0%} of it"
        yield warning("tell-rate-low", found, where("warmup_ratio"), "fewer warm-up steps")
    elif checked.exposure is not None and checked.exposure.weight < _NOTHING:
        assert checked.is_task is not None  # of these the exposure was told
        yield warning(
            "tell-exposure-zero",
            f"exposure 0.00: the {int(checked.is_task.sum()):,} task rows stand in steps of "
            "learning rate 0, so the run does not learn the task",
            where("dataset"),
            "order=shuffle or order=even, fewer warm-up steps, or more epochs",
        )


def _unseen(checked: Checked, steps: Plan) -> Iterator[Finding]:
    """Rows that no step holds: ms-swift says nothing about them."""
    unseen = steps.entries - steps.seen
    task = checked.exposure.unseen if checked.exposure else 0
    mixture = checked.mixture
    if mixture is not None and mixture.spec.repeat > 1:  # copies may train elsewhere
        unseen, task = _whole_rows_lost(mixture, steps.seen)
    if not unseen:
        return
    ends_early = steps.seen < steps.served
    reason = "dataloader_drop_last is true"
    if ends_early:
        reason = f"{steps.steps} steps end before the mixture does"
    elif steps.training.world > 1:
        reason = f"{steps.training.world} processes each get the same number of rows"
    text = f"{count_of(unseen, 'row')} never trained on, {task} of task data: {reason}"
    where = checked.recipe.where("max_steps" if ends_early else None)
    tell = error if task else warning
    yield tell("tell-rows-unseen", text, where, "more steps, or amounts that fit")


def _whole_rows_lost(mixture: Mixture, seen: int) -> tuple[int, int]:
    """How many rows have no copy among the first `seen` entries: of all rows, of task rows."""
    task = mixture.is_task.tolist()
    rows = list(zip(task, mixture.origin.tolist(), mixture.row.tolist(), strict=True))
    lost = set(rows[seen:]) - set(rows[:seen])
    return len(lost), sum(is_task for is_task, *_ in lost)


RULES = (check_rate,)  # `check_steps` needs the data, see check.py
