"""What `check --json` prints of a recipe: findings and numbers; its form: check.schema.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.mixture import GENERAL, Mixture
from tell_plugins.recipe.findings import Finding
from tell_plugins.recipe.mixture_rules import own_tokens
from tell_plugins.recipe.schedule import Exposure, Plan

if TYPE_CHECKING:
    from tell_plugins.recipe.check import Checked

PARTS = ("settings", "data", "held_out_rows", "control_tokens", "schedule", "lengths")


def as_object(checked: Checked) -> dict[str, Any]:
    """Everything that is known of a recipe."""
    reasons = _not_checked(checked)
    sources = None if checked.mixture is None else _sources(checked.mixture)
    steps = None if checked.plan is None else _steps(checked.plan, checked.exposure)
    path = paths.shown(checked.recipe.path)
    return _object(path, checked.findings, reasons, sources=sources, steps=steps)


def unjudged(path: str, why: str, findings: Sequence[Finding] = ()) -> dict[str, Any]:
    """The same of a recipe of which nothing could be looked at."""
    return _object(path, findings, dict.fromkeys(PARTS, why))


def _object(
    path: str,
    findings: Sequence[Finding],
    reasons: dict[str, str],
    *,
    sources: list[dict[str, Any]] | None = None,
    steps: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "recipe": path,
        "findings": [_finding(finding) for finding in findings],
        "sources": sources,
        "steps": steps,
        "ran": [part for part in PARTS if part not in reasons],
        "not_checked": [{"part": part, "why": why} for part, why in reasons.items()],
    }


def _finding(finding: Finding) -> dict[str, str | None]:
    problem = finding.problem
    return {
        "id": finding.rule,
        "level": finding.severity,
        "found": problem.found,
        "where": problem.where,
        "allowed": problem.allowed,
        "remedy": problem.remedy,
    }


def _sources(mixture: Mixture) -> list[dict[str, Any]]:
    """The manifest's sources, without the list of malformed rows."""
    return [
        {key: value for key, value in source.items() if key != "malformed_rows"}
        for source in mixture.manifest()["sources"]
    ]


def _steps(plan: Plan, exposure: Exposure | None) -> dict[str, Any]:
    rates = plan.rates_at(np.array([0, plan.peak_step, plan.steps - 1]))
    first, highest, last = (rates * plan.training.learning_rate).tolist()
    return {
        "rows_an_epoch": plan.entries,
        "rows_a_step": plan.training.rows_per_step,
        "optimizer_steps": plan.steps,
        "warmup_steps": plan.warmup_steps,
        "scheduler": plan.training.scheduler,
        "learning_rate": {
            "first": _finite(first), "highest": _finite(highest), "last": _finite(last)
        },
        "trains_nothing": plan.is_no_op,
        "task": None
        if exposure is None
        else {
            "steps": exposure.steps,
            "steps_above_rate_0": exposure.working_steps,
            "rows_at_full_rate": _finite(exposure.weight),
            "of_even_spacing": _finite(exposure.relative),
            "rows_unseen": exposure.unseen,
        },
    }  # fmt: skip


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _not_checked(checked: Checked) -> dict[str, str]:
    """The parts that could not be looked at, or not to the end, and why."""
    unread = "the data was not read" if checked.mixture is None else None
    reasons = {
        "settings": why_not_installed(checked),
        "data": _why_no_data(checked),
        "held_out_rows": unread or _why_not_compared(checked.mixture),
        "control_tokens": unread,
        "schedule": None,
        "lengths": unread or _why_not_counted(checked),
    }
    if not unread and own_tokens(checked.settings.text("model")) is None:
        reasons["control_tokens"] = (
            "the model's tokenizer is not on this machine: only known tokens were looked for"
        )
    if checked.plan is None:
        reasons["schedule"] = "the number of rows or the learning rates of the steps are not known"
    return {part: why for part, why in reasons.items() if why}


def why_not_installed(checked: Checked) -> str | None:
    """Why the settings were compared with a table, and not with ms-swift itself."""
    keys = checked.settings.keys
    if keys.installed:
        return None
    return (
        "ms-swift is not installed: keys, models and templates were compared with a table of "
        f"those of {keys.version}"
    )


def _why_no_data(checked: Checked) -> str | None:
    if checked.mixture is not None:
        return None
    if checked.spec is None:
        return "the dataset string is not good"
    if any(finding.rule == "tell-data-missing" for finding in checked.findings):
        return "files of the mixture are not on this machine"
    return "the mixture cannot be built"


def _why_not_compared(mixture: Mixture | None) -> str | None:
    if mixture is None or mixture.card.kind == GENERAL:
        return "a general card has no held-out rows"
    return None if mixture.overlap_checked else "not all held-out rows are on this machine"


def _why_not_counted(checked: Checked) -> str | None:
    if not checked.counted:
        return "no tokenizer is on this machine, or the recipe's max_length cannot be used"
    if checked.limit is None:
        return "max_length is not named, and the model's context is not known here"
    if not any(counted.exact for counted in checked.counted):
        return "the model's tokenizer is not on this machine: another one counted"
    return None
