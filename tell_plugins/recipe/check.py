"""`./run.sh check RECIPE...`: what would this run do? No GPU, no network, no training."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.mixture import GENERAL, Drawn, Mixture, build_mixture
from tell_plugins.core.spec import Amount, Spec
from tell_plugins.recipe import check_json, check_report
from tell_plugins.recipe.control_rules import control_findings
from tell_plugins.recipe.data_rules import (
    check_files,
    check_patterns,
    check_schema,
)
from tell_plugins.recipe.findings import Finding, as_errors, error, errors_of, warning
from tell_plugins.recipe.lengths import Counted, count, max_length, own_tokenizer
from tell_plugins.recipe.mixture_rules import check_anchor, check_exposure, check_shares
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tell_plugins.recipe.rules import check_recipe
from tell_plugins.recipe.schedule import Exposure, Plan, Unmodelled, exposure, plan, why_no_op
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.shapes import readable_shape
from tell_plugins.recipe.swift_keys import SwiftKeys, swift_keys
from tell_plugins.recipe.tables import count_of


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
        "--tokens-per-second",
        type=float,
        metavar="N",
        help="a rate you measured on your machine; only with it a duration is shown",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, for several recipes a list of them, and nothing else "
        "(its form: tell_plugins/recipe/check.schema.json); exit code 2: could not be judged",
    )
    parser.epilog = "Further --key value pairs are ms-swift's and win over the recipe."
    parser.set_defaults(takes_flags=True)


def run(args: argparse.Namespace) -> int:
    if args.tokens_per_second is not None and not args.tokens_per_second > 0:
        raise UserError(
            f"--tokens-per-second is {args.tokens_per_second:g}",
            where="command line",
            allowed="a number above 0",
            remedy="give the rate you measured, or leave it out",
        )
    if args.json:
        return _print_json(args.recipes, args.flags)
    swift = swift_keys()
    bad = []
    for number, path in enumerate(args.recipes):
        if number:
            print()
        if not _check_one(path, args.flags, swift, args.tokens_per_second):
            bad.append(path)
    count = len(args.recipes)
    if count > 1:
        names = f": {', '.join(bad)}" if bad else ""
        print(f"\n{count} recipes: {count - len(bad)} good, {len(bad)} with errors{names}")
    return 1 if bad else 0


def _check_one(path: str, flags: Sequence[str], swift: SwiftKeys, rate: float | None) -> bool:
    try:
        recipe = load_recipe(path, flags)
    except UserError as problem:
        text = check_report.problems(as_errors("tell-recipe", problem))
        print(f"{path}\n\n{text}")
        return False
    checked = inspect(recipe, swift)
    print(check_report.report(checked, rate))
    return checked.is_good


def _print_json(recipes: Sequence[str], flags: Sequence[str]) -> int:
    swift: SwiftKeys | MachineError
    try:
        swift = swift_keys()
    except MachineError as problem:
        swift = problem
    judged = [_object_of(path, flags, swift) for path in recipes]
    objects = [found for found, _ in judged]
    print(json.dumps(objects if len(objects) > 1 else objects[0], indent=2))
    return max(code for _, code in judged)


def _object_of(
    path: str, flags: Sequence[str], swift: SwiftKeys | MachineError
) -> tuple[dict[str, Any], int]:
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
    return check_json.as_object(checked), 0 if checked.is_good else 1


def inspect(recipe: Recipe, swift: SwiftKeys) -> Checked:
    """Look at a recipe from all sides. Problems are collected, never raised."""
    settings = Settings(recipe, swift)
    spec, findings = check_recipe(recipe, settings)
    checked = Checked(recipe, settings, spec=spec, findings=findings)
    if spec is not None:
        checked.planned = planned_entries(spec)
        checked.findings += check_schema(load_card(spec.card))
        _guard(checked, "tell-data", _look_at_data)
        _look_at_shares(checked)
    _guard(checked, "tell-schedule", _look_at_schedule)
    _guard(checked, "tell-value-type", _look_at_lengths)
    return checked


def _guard(checked: Checked, rule: str, step: Callable[[Checked], None]) -> None:
    """Run one step; its UserError joins the problems, unless a rule named the place already."""
    try:
        step(checked)
    except UserError as problem:
        known = {finding.problem.where for finding in checked.findings}
        checked.findings += [f for f in as_errors(rule, problem) if f.problem.where not in known]


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


def _look_at_data(checked: Checked) -> None:
    assert checked.spec is not None
    missing = check_files(checked.spec)
    checked.findings += missing
    if not missing:
        checked.mixture = build_mixture(checked.spec)
        checked.findings += _data_warnings(checked.mixture, checked.recipe)
        checked.findings += control_findings(checked.mixture, checked.settings.text("model"))
        checked.findings += check_anchor(checked.mixture)
        task = checked.mixture.task
        if task is not None and not any(f.rule == "tell-answer-schema" for f in checked.findings):
            checked.findings += check_patterns(task.card, task.responses)


def _look_at_shares(checked: Checked) -> None:
    counts = checked.planned
    if checked.mixture is not None:
        task = int(checked.mixture.is_task.sum())
        counts = task, len(checked.mixture) - task
    held = checked.spec is not None and checked.spec.kl > 0  # fewer rows hold than teach
    if counts is not None and not held:
        checked.findings += check_shares(*counts, checked.recipe.where("dataset"))


def _data_warnings(mixture: Mixture, recipe: Recipe) -> list[Finding]:
    found = []
    where = recipe.where("dataset")
    for source in mixture.sources:
        if source.duplicates:
            found.append(
                warning(
                    "tell-data-duplicates",
                    f"'{source.card.name}' holds {count_of(source.duplicates, 'duplicate row')}, "
                    "which train as often as they stand there",
                    paths.shown(source.rows.file),
                    "remove the copies, unless they are meant",
                )
            )
        if source.bad:
            found.append(_malformed(source))
    kept = mixture.manifest()["overlap"].get("of_these_used", 0)
    if kept:
        found.append(
            warning(
                "tell-test-rows-train",
                f"{count_of(kept, 'general row')} trained on with a held-out query",
                where,
                "overlap=drop leaves them out",
            )
        )
    if not mixture.overlap_checked and mixture.card.kind != GENERAL:
        found.append(
            warning(
                "tell-test-rows-missing",
                "test rows are not here, so nothing tells whether they are trained on",
                where,
                f"./run.sh data {mixture.card.name}",
            )
        )
    return found


def _malformed(source: Drawn) -> Finding:
    first = ", ".join(str(bad.line) for bad in source.bad[:5])
    more = ", ..." if source.dropped["malformed"] > 5 else ""
    return warning(
        "tell-data-malformed",
        f"{count_of(source.dropped['malformed'], 'malformed row')} of '{source.card.name}' left "
        f"out (lines {first}{more}): {source.bad[0].reason}",
        paths.shown(source.rows.file),
        "mend them, or leave it at that",
    )


def _look_at_schedule(checked: Checked) -> None:
    entries = _entries(checked)
    if entries is None:
        return
    training = checked.settings.training
    try:
        checked.plan = plan(entries, training)
    except Unmodelled as problem:
        checked.findings.append(
            warning(
                "tell-schedule-unknown",
                problem.found,
                checked.recipe.where(problem.where),
                problem.remedy or "",
            )
        )
        return
    task = _is_task(checked, entries)
    if task is not None and task.any():
        checked.exposure = exposure(checked.plan, task)
    reason = why_no_op(checked.plan)
    if reason:
        remedy = (
            "more rows, more epochs, a smaller batch, or warmup_ratio: 0 "
            "(the paper's SFT baseline at 15 rows is this very case)"
        )
        if training.learning_rate == 0:
            remedy = "a learning_rate above 0"
        checked.findings.append(
            warning("tell-no-op", f"this run is a no-op: {reason}", checked.recipe.where(), remedy)
        )
    elif checked.plan.peak < 1:
        checked.findings.append(
            warning(
                "tell-rate-low",
                f"the learning rate never reaches {training.learning_rate:g}: at most "
                f"{checked.plan.peak:.0%} of it",
                checked.recipe.where("warmup_ratio"),
                "fewer warm-up steps",
            )
        )
    elif checked.exposure is not None and task is not None:
        checked.findings += check_exposure(
            checked.exposure.weight, int(task.sum()), checked.recipe.where("dataset")
        )
    checked.findings += _lost_rows(checked, entries)


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


def _lost_rows(checked: Checked, entries: int) -> list[Finding]:
    """Rows that no step holds: ms-swift says nothing about them."""
    plan = checked.plan
    assert plan is not None
    unseen = entries - plan.seen
    if unseen == 0:
        return []
    reason = (
        f"{plan.steps} steps end before the mixture does"
        if plan.seen < plan.served
        else f"{plan.training.world} processes each get the same number of rows"
        if plan.training.world > 1
        else "dataloader_drop_last is true"
    )
    task = checked.exposure.unseen if checked.exposure else 0
    if checked.mixture is not None and checked.mixture.spec.repeat > 1:
        unseen, task = _whole_rows_lost(checked.mixture, plan.seen)
        if unseen == 0:
            return []  # what no step holds are copies of rows that train elsewhere
    text = f"{count_of(unseen, 'row')} never trained on, {task} of task data: {reason}"
    where = checked.recipe.where("max_steps" if plan.seen < plan.served else None)
    remedy = "more steps, or amounts that fit"
    return [
        error("tell-rows-unseen", text, where, remedy)
        if task
        else warning("tell-rows-unseen", text, where, remedy)
    ]


def _whole_rows_lost(mixture: Mixture, seen: int) -> tuple[int, int]:
    """How many rows have no copy among the first `seen` entries: of all rows, of task rows."""
    task = mixture.is_task.tolist()
    entries = mixture.order
    rows = list(zip(task, mixture.origin[entries], mixture.row[entries], strict=True))
    lost = set(rows[seen:]) - set(rows[:seen])
    return len(lost), sum(is_task for is_task, *_ in lost)


def _look_at_lengths(checked: Checked) -> None:
    checked.limit = max_length(checked.settings)
    mixture = checked.mixture
    if mixture is None or (checked.limit is not None and checked.limit < 1):
        return
    counters = {
        counter.sha256: counter
        for counter in (mixture.counter, own_tokenizer(checked.settings.text("model")))
        if counter is not None
    }
    checked.counted = [
        count(mixture, counter, checked.settings, checked.limit) for counter in counters.values()
    ]
    checked.findings += _length_findings(checked)


def _length_findings(checked: Checked) -> list[Finding]:
    found: list[Finding] = []
    where = checked.recipe.where("max_length")
    shape = readable_shape(checked.settings.text("model"))
    positions = shape.positions if shape is not None and shape.positions else math.inf
    cut = checked.settings.text("truncation_strategy") in ("left", "right")
    best = next((c for c in checked.counted if c.own), None)
    for counted in [best] if best else checked.counted:
        by = counted.tokenizer + ("" if counted.exact else "; the model's own may count otherwise")
        # a run is not stopped over what another tokenizer counts
        lost = error if counted.exact and not cut else warning
        if counted.over:
            text = f"{_rows_named(counted.over)} over max_length {checked.limit:,} (by {by})"
            remedy = _longer(counted, positions) + " or shorten the rows"
            fate = "cut" if cut else "lost"
            found.append(lost("tell-row-long", f"{text} and would be {fate}", counted.file, remedy))
        if counted.near:
            found.append(
                warning(
                    "tell-row-near",
                    f"{_rows_named(counted.near)} near max_length {checked.limit:,}: with the chat "
                    f"template around them they may be over it (by {by})",
                    counted.file,
                    _longer(counted, positions) + " to be safe",
                )
            )
        for name, number in counted.general_over.items():
            text = (
                f"{count_of(number, 'general row')} of '{name}' over max_length {checked.limit:,}"
            )
            remedy = f"raise max_length, or give card '{name}' a smaller max_tokens"
            strict = checked.settings.flag("strict") and not cut
            found.append(
                lost(
                    "tell-general-long",
                    f"{text} (by {by}); 'strict: true' stops the run there",
                    where,
                    remedy,
                )
                if strict
                else warning(
                    "tell-general-long",
                    f"{text} (by {by}) and would be cut or dropped",
                    where,
                    remedy,
                )
            )
    return found


def _rows_named(rows: list[tuple[int, int]]) -> str:
    """`2 task rows (line 5: 2,231 tokens, line 9: 2,300 tokens) are`"""
    each = ", ".join(f"line {line}: {tokens:,} tokens" for line, tokens in rows)
    return f"{count_of(len(rows), 'task row')} ({each}) {'are' if len(rows) > 1 else 'is'}"


def _longer(counted: Counted, positions: float) -> str:
    """The remedy for rows over the limit, which must not lead beyond the model's positions."""
    enough = _enough(counted)
    if counted.longest <= positions:
        return f"raise max_length to {min(enough, positions):.0f}"
    return f"take a model with more than {positions:,.0f} positions (max_length {enough})"


def _enough(counted: Counted) -> int:
    """A round limit that holds the longest row, with a margin where the count is not exact."""
    longest = counted.longest * (1.0 if counted.own else 1.1)
    return int(-(-longest // 256) * 256)
