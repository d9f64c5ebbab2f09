"""What is known of a run before it runs, and what is wrong with it; rules fill it in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tell_plugins.bridge.embedded_model import is_embedded
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError, UserErrors
from tell_plugins.core.mixture import GENERAL, Mixture
from tell_plugins.core.spec import Amount, Spec
from tell_plugins.recipe.models import Counted
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.schedule import Exposure, Plan

ERROR, WARNING = "error", "warning"
PARTS = ("settings", "data", "held_out_rows", "control_tokens", "schedule", "lengths")


class Finding(UserError):
    """A problem and how much it matters: an `error` stops a run, a `warning` does not.

    `rule` is its id, which stays the same over releases; docs/check.md says what it means.
    """

    def __init__(
        self,
        severity: str,
        rule: str,
        found: str,
        where: str | None,
        remedy: str | None,
        allowed: str | None = None,
    ) -> None:
        super().__init__(found, where=where, allowed=allowed, remedy=remedy)
        self.severity, self.rule = severity, rule


error, warning = partial(Finding, ERROR), partial(Finding, WARNING)
Rule = Callable[[Any], "Iterable[Finding] | None"]  # its UserError is a finding, too


def as_errors(rule: str, problem: UserError) -> list[Finding]:
    """The single problems in an error that may carry several."""
    parts = UserErrors([problem]).problems
    return [error(rule, one.found, one.where, one.remedy, one.allowed) for one in parts]


@dataclass
class Checked:
    """Everything that is known about a run before it runs; what is not known is None."""

    recipe: Recipe
    spec: Spec | None = None  # the dataset string, where it is good
    mixture: Mixture | None = None
    plan: Plan | None = None
    exposure: Exposure | None = None
    counted: Counted | None = None  # by the model's own tokenizer, else by the one at hand
    limit: int | None = None  # of a row's tokens
    own_tokens: list[str] | None = None  # the model's control tokens
    findings: list[Finding] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == ERROR]

    def found(self, rule: str) -> bool:
        """Whether a rule of this id has found something."""
        return any(finding.rule == rule for finding in self.findings)

    @property
    def entries(self) -> tuple[int, int] | None:
        """(task, general) entries of an epoch, by the mixture, else by the dataset string alone."""
        if self.mixture is not None:
            task = int(self.mixture.is_task.sum())
            return task, len(self.mixture) - task
        return None if self.spec is None else planned_entries(self.spec)

    @property
    def is_task(self) -> npt.NDArray[np.bool_] | None:
        """(entries,) in training order: which are task rows; None when that takes the files."""
        if self.mixture is not None:
            return self.mixture.is_task
        if self.entries is None or all(self.entries):
            return None
        return np.full(sum(self.entries), self.entries[0] > 0)

    @property
    def not_checked(self) -> dict[str, str]:
        """The parts that could not be looked at, or not to the end, and why."""
        swift, mixture, found = self.recipe.swift, self.mixture, dict[str, str]()
        if not swift.installed:
            found["settings"] = (
                "ms-swift is not installed: keys, models and templates were compared with a table "
                f"of those of {swift.version}"
            )
        if self.plan is None:
            found["schedule"] = (
                "the number of rows or the learning rates of the steps are not known"
            )
        if mixture is None:
            unread = dict.fromkeys(("held_out_rows", "control_tokens", "lengths"), _UNREAD)
            return {**found, **unread, "data": self._why_no_data()}
        if mixture.card.kind == GENERAL:
            found["held_out_rows"] = "a general card has no held-out rows"
        elif not mixture.overlap_checked:
            found["held_out_rows"] = "not all held-out rows are on this machine"
        if self.own_tokens is None:
            found["control_tokens"] = (
                "the model's tokenizer is not on this machine: only known tokens were looked for"
            )
        why = self._why_not_counted()
        return found | ({"lengths": why} if why else {})

    def _why_no_data(self) -> str:
        if self.spec is None:
            return "the dataset string is not good"
        if self.found("tell-data-missing"):
            return "files of the mixture are not on this machine"
        return "the mixture cannot be built"

    def _why_not_counted(self) -> str | None:
        if self.counted is None:
            name = "smollm2" if is_embedded(self.recipe.text("model")) else "llama2_tokenizer"
            return (
                "rows against max_length: no tokenizer is on this machine (./run.sh data "
                f"{name}), or max_length cannot be used"
            )
        if self.limit is None:
            return "max_length is not named, and the model's context is not known here"
        if not self.counted.own:
            return "rows against max_length: the model's tokenizer is not here, another one counted"
        return None


_UNREAD = "the data was not read"


def planned_entries(spec: Spec) -> tuple[int, int] | None:
    """(task, general) entries that a string asks for, as far as it says so without the files.

    `all` counts what the card says its official file holds; token amounts say nothing.
    """
    card = load_card(spec.card)
    rows = _rows(spec.task, [card.split(name).rows for name in spec.splits])
    if rows is None or card.kind == GENERAL:
        return None if rows is None else (0, rows)
    task = rows * spec.repeat
    amount, names = spec.general_of(card)
    if amount.unit == "x":
        return task, round(amount.number * task)
    general = _rows(amount, [load_card(name).split("train").rows for name in names])
    return None if general is None else (task, general)


def _rows(amount: Amount, in_files: list[int | None]) -> int | None:
    if amount.unit == "all":
        return None if None in in_files else sum(filter(None, in_files))
    return int(amount.number) if amount.unit == "rows" else None
