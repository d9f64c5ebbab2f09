"""`./run.sh check RECIPE...`: what would this run do? No GPU, no network, no training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.mixture import GENERAL, Mixture, build_mixture
from tell_plugins.core.spec import Amount, Spec
from tell_plugins.recipe import check_json, check_report, data_rules, key_rules, model_rules
from tell_plugins.recipe import mixture_rules as on_mixture
from tell_plugins.recipe.findings import Finding, as_errors, errors_of, warning
from tell_plugins.recipe.lengths import Counted, count, max_length, own_tokenizer
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tell_plugins.recipe.schedule import Exposure, Plan, Unmodelled, exposure, plan, why_no_op
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.swift_keys import SwiftKeys, swift_keys


@dataclass
class Checked:
    """Everything that is known about a run before it runs; what is not known is None.

    Attributes:
        planned: (task, general) entries by the dataset string alone, without the files.
        counted: the rows by each tokenizer, the counting one first.
    """

    recipe: Recipe
    settings: Settings
    spec: Spec | None = None
    mixture: Mixture | None = None
    planned: tuple[int, int] | None = None
    plan: Plan | None = None
    exposure: Exposure | None = None
    counted: list[Counted] = field(default_factory=list)
    limit: int | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not errors_of(self.findings)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="recipe files")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, for several recipes a list of them, and nothing else "
        "(its form: tell_plugins/recipe/check.schema.json); exit code 2: could not be judged",
    )
    parser.epilog = "Further --key value pairs are ms-swift's and win over the recipe."
    parser.set_defaults(takes_flags=True)


def run(args: argparse.Namespace) -> int:
    judge = _judge_as_json if args.json else _judge
    swift: SwiftKeys | MachineError
    try:
        swift = swift_keys()
    except MachineError as problem:
        if not args.json:
            raise
        swift = problem
    codes: dict[str, int] = {}
    objects = []
    for path in args.recipes:
        shown, codes[path] = judge(path, args.flags, swift)
        if args.json:
            objects.append(shown)
        else:
            print(shown if len(codes) == 1 else f"\n{shown}")
    if args.json:
        print(json.dumps(objects if len(objects) > 1 else objects[0], indent=2))
    elif len(args.recipes) > 1:
        bad = [path for path in args.recipes if codes[path]]
        names = f": {', '.join(bad)}" if bad else ""
        good = len(args.recipes) - len(bad)
        print(f"\n{len(args.recipes)} recipes: {good} good, {len(bad)} with errors{names}")
    return max(codes.values())


def _judge(path: str, flags: Sequence[str], swift: Any) -> tuple[str, int]:
    """The report of a recipe, and the exit code."""
    try:
        checked = inspect(load_recipe(path, flags), swift)
    except UserError as problem:
        return f"{path}\n\n{check_report.problems(as_errors('tell-recipe', problem))}", 1
    return check_report.report(checked), int(not checked.is_good)


def _judge_as_json(path: str, flags: Sequence[str], swift: Any) -> tuple[dict[str, Any], int]:
    """What is known of a recipe, and the exit code: 0 good, 1 errors, 2 not to be judged."""
    try:
        recipe = load_recipe(path, flags)
        if isinstance(swift, MachineError):
            raise swift
        checked = inspect(recipe, swift)
    except UserError as problem:
        findings = as_errors("tell-recipe", problem)
        return check_json.unjudged(path, "the recipe cannot be read", findings), 1
    except MachineError as problem:
        return check_json.unjudged(path, str(problem)), 2
    return check_json.as_object(checked), int(not checked.is_good)


def inspect(recipe: Recipe, swift: SwiftKeys) -> Checked:
    """Look at a recipe from all sides. Problems are collected, never raised."""
    settings = Settings(recipe, swift)
    spec, findings = check_recipe(recipe, settings)
    checked = Checked(recipe, settings, spec=spec, findings=findings)
    if spec is not None:
        checked.planned = planned_entries(spec)
        findings += data_rules.check_schema(load_card(spec.card))
        _collect(findings, "tell-data", partial(_look_at_data, checked))
        findings += _look_at_shares(checked, spec)
    _collect(findings, "tell-schedule", partial(_look_at_schedule, checked))
    _collect(findings, "tell-value-type", partial(_look_at_lengths, checked))
    return checked


def check_recipe(recipe: Recipe, settings: Settings) -> tuple[Spec | None, list[Finding]]:
    """The dataset string when it is good, and every problem that shows without reading data."""
    spec, findings = data_rules.check_dataset(recipe)
    rules: list[Callable[[Recipe, Settings], Iterable[Finding]]] = [
        key_rules.check_keys,
        key_rules.check_values,
        key_rules.check_texts,
        key_rules.check_variables,
        data_rules.check_plugin,
        data_rules.check_uses,
        data_rules.check_validation,
        data_rules.check_keeping,
        model_rules.check_model,
        model_rules.check_kind,
        model_rules.check_template,
        model_rules.check_targets,
        model_rules.check_cpu,
        model_rules.check_positions,
        model_rules.check_near_misses,
        model_rules.check_resumed,
    ]
    for rule in rules:
        _collect(findings, "tell-value-type", partial(rule, recipe, settings))
    return spec, findings


def _collect(findings: list[Finding], rule: str, step: Callable[[], Iterable[Finding]]) -> None:
    """Add what a step finds; its UserError joins them, unless a rule named the place already."""
    try:
        findings += step()
    except UserError as problem:
        known = {finding.problem.where for finding in findings}
        findings += [f for f in as_errors(rule, problem) if f.problem.where not in known]


def planned_entries(spec: Spec) -> tuple[int, int] | None:
    """(task, general) entries that a string asks for, as far as it says so without the files.

    `all` counts what the card says its official file holds; token amounts say nothing.
    """
    card = load_card(spec.card)
    rows = _rows(spec.task, card.split(spec.split).rows)
    if rows is None:
        return None
    if card.kind == GENERAL:
        return 0, rows
    amount, names = spec.general_of(card)
    task = rows * spec.repeat
    if not names:
        return task, 0
    if amount.unit == "x":
        return task, round(amount.number * task)
    if amount.unit == "all":
        counts = [load_card(name).split("train").rows for name in names]
        return None if None in counts else (task, sum(filter(None, counts)))
    general = _rows(amount, None)
    return None if general is None else (task, general)


def _rows(amount: Amount, available: int | None) -> int | None:
    if amount.unit == "all":
        return available
    return int(amount.number) if amount.unit == "rows" else None


def _look_at_data(checked: Checked) -> Iterator[Finding]:
    assert checked.spec is not None
    missing = data_rules.check_files(checked.spec)
    yield from missing
    if missing:
        return
    mixture = checked.mixture = build_mixture(checked.spec)
    yield from on_mixture.check_sources(mixture, checked.recipe.where("dataset"))
    yield from on_mixture.check_control_tokens(mixture, checked.settings.text("model"))
    yield from on_mixture.check_anchor(mixture)
    task = mixture.task
    if task is not None and not any(f.rule == "tell-answer-schema" for f in checked.findings):
        yield from data_rules.check_patterns(task.card, task.responses)


def _look_at_shares(checked: Checked, spec: Spec) -> Iterable[Finding]:
    counts = checked.planned
    if checked.mixture is not None:
        task = int(checked.mixture.is_task.sum())
        counts = task, len(checked.mixture) - task
    if counts is None or spec.kl:  # fewer rows hold than teach
        return ()
    return on_mixture.check_shares(*counts, checked.recipe.where("dataset"))


def _look_at_schedule(checked: Checked) -> Iterator[Finding]:
    entries = _entries(checked)
    if entries is None:
        return
    where = checked.recipe.where
    try:
        checked.plan = plan(entries, checked.settings.training)
    except Unmodelled as problem:
        found, remedy = problem.found, problem.remedy or ""
        yield warning("tell-schedule-unknown", found, where(problem.where), remedy)
        return
    task = _is_task(checked, entries)
    if task is not None and task.any():
        checked.exposure = exposure(checked.plan, task)
    yield from _rate_findings(checked, 0 if task is None else int(task.sum()))
    if checked.plan.seen < entries:
        unseen = checked.exposure.unseen if checked.exposure else 0
        reason = where("max_steps" if checked.plan.seen < checked.plan.served else None)
        yield from on_mixture.check_unseen(checked.plan, checked.mixture, unseen, reason)


def _rate_findings(checked: Checked, task: int) -> list[Finding]:
    """Learning rates under which nothing is learned, or less than was meant."""
    plan, where = checked.plan, checked.recipe.where
    assert plan is not None
    rate = plan.training.learning_rate
    reason = why_no_op(plan)
    if reason:
        remedy = (
            "more rows, more epochs, a smaller batch, or warmup_ratio: 0 "
            "(the paper's SFT baseline at 15 rows is this very case)"
        )
        remedy = remedy if rate else "a learning_rate above 0"
        return [warning("tell-no-op", f"this run is a no-op: {reason}", where(), remedy)]
    if plan.peak < 1:
        found = f"the learning rate never reaches {rate:g}: at most {plan.peak:.0%} of it"
        return [warning("tell-rate-low", found, where("warmup_ratio"), "fewer warm-up steps")]
    if checked.exposure is None:
        return []
    return list(on_mixture.check_exposure(checked.exposure.weight, task, where("dataset")))


def _entries(checked: Checked) -> int | None:
    if checked.mixture is not None:
        return len(checked.mixture)
    return sum(checked.planned) if checked.planned is not None else None


def _is_task(checked: Checked, entries: int) -> npt.NDArray[np.bool_] | None:
    """Which entries are task rows, in training order; None when that takes the files."""
    if checked.mixture is not None:
        return checked.mixture.is_task
    if checked.planned is None or (checked.planned[0] and checked.planned[1]):
        return None
    return np.full(entries, checked.planned[0] > 0)


def _look_at_lengths(checked: Checked) -> Iterable[Finding]:
    settings, mixture = checked.settings, checked.mixture
    limit = checked.limit = max_length(settings)
    if mixture is None or (limit is not None and limit < 1):
        return ()
    found = (mixture.counter, own_tokenizer(settings.text("model")))
    counters = {counter.sha256: counter for counter in found if counter is not None}
    checked.counted = [count(mixture, counter, settings, limit) for counter in counters.values()]
    return () if limit is None else on_mixture.check_lengths(checked.counted, settings, limit)
