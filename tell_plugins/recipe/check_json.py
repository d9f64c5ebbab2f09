"""What `check --json` prints of a recipe: findings and numbers; its form: check.schema.json."""

from __future__ import annotations

from typing import Any

from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import Mixture
from tell_plugins.recipe.checked import PARTS, Checked, Finding, Unjudged
from tell_plugins.recipe.schedule import Exposure, Plan


def as_object(judged: Checked | Unjudged) -> dict[str, Any]:
    """Everything that is known of a recipe."""
    sources = steps = None
    if isinstance(judged, Checked):
        sources = None if judged.mixture is None else _sources(judged.mixture)
        steps = None if judged.plan is None else _steps(judged.plan, judged.exposure)
    reasons = judged.not_checked
    return {
        "recipe": judged.path,
        "findings": [_finding(finding) for finding in judged.findings],
        "sources": sources,
        "steps": steps,
        "ran": [part for part in PARTS if part not in reasons],
        "not_checked": [{"part": part, "why": reasons[part]} for part in PARTS if part in reasons],
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
        for source in manifest_of(mixture)["sources"]
    ]


def _steps(plan: Plan, exposure: Exposure | None) -> dict[str, Any]:
    rates = [rate * plan.training.learning_rate for rate in plan.landmarks.values()]
    highest = plan.peak * plan.training.learning_rate
    return {
        "rows_an_epoch": plan.entries,
        "rows_a_step": plan.training.rows_per_step,
        "optimizer_steps": plan.steps,
        "warmup_steps": plan.warmup_steps,
        "scheduler": plan.training.scheduler,
        "learning_rate": {"first": rates[0], "highest": highest, "last": rates[-1]},
        "trains_nothing": plan.is_no_op,
        "task": None
        if exposure is None
        else {
            "steps": exposure.steps,
            "steps_above_rate_0": exposure.working_steps,
            "rows_at_full_rate": exposure.weight,
            "of_even_spacing": exposure.relative,
            "rows_unseen": exposure.unseen,
        },
    }
