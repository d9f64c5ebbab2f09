"""All rules that need no data: what `check` begins with, and what `train` looks at before a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tell_plugins.core.errors import UserError
from tell_plugins.core.spec import Spec
from tell_plugins.recipe.data_rules import (
    check_dataset,
    check_keeping,
    check_order,
    check_plugin,
    check_validation,
)
from tell_plugins.recipe.findings import Finding, as_errors
from tell_plugins.recipe.key_rules import (
    check_keys,
    check_texts,
    check_values,
    check_variables,
)
from tell_plugins.recipe.loss_rules import check_loss
from tell_plugins.recipe.model_rules import check_cpu, check_kind, check_positions, check_template
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.run_rules import (
    check_model,
    check_near_misses,
    check_packages,
    check_resumed,
    check_targets,
)
from tell_plugins.recipe.settings import Settings


def check_recipe(recipe: Recipe, settings: Settings) -> tuple[Spec | None, list[Finding]]:
    """The dataset string when it is good, and every problem that shows without reading data."""
    spec, dataset = check_dataset(recipe)
    findings = [
        *check_keys(recipe, settings.keys),
        *check_values(recipe, settings.keys),
        *check_texts(recipe, settings.keys),
        *check_variables(recipe),
        *dataset,
        *check_plugin(recipe),
        *check_order(recipe, settings),
        *check_model(recipe),
        *check_validation(recipe),
    ]
    rules: list[Callable[[Recipe, Settings], Iterable[Finding]]] = [
        check_keeping,
        check_loss,
        check_kind,
        check_template,
        check_targets,
        check_cpu,
        check_positions,
        check_packages,
        check_near_misses,
        check_resumed,
    ]
    for rule in rules:
        try:
            findings += rule(recipe, settings)
        except UserError as problem:  # an unreadable value; the rule on values may have named it
            if problem.where not in {finding.problem.where for finding in findings}:
                findings += as_errors("tell-value-type", problem)
    return spec, findings
