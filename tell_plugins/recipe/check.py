"""`./run.sh check RECIPE...`: what would this run do? No GPU, no network, no training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.recipe import mixture_rules, settings_rules
from tell_plugins.recipe.check_report import object_of, problems, report, unjudged
from tell_plugins.recipe.checked import Checked, Rule, as_errors
from tell_plugins.recipe.recipes import Recipe, load_recipe

_OF_THE_RECIPE = [rule for name, rule in vars(settings_rules).items() if name.startswith("check_")]
# rules of what it trains on, and the id under which an error of theirs is told
_OF_THE_DATA: tuple[tuple[str, Rule], ...] = (
    ("tell-answer-schema", mixture_rules.check_schema),
    ("tell-data-missing", mixture_rules.check_files),
    ("tell-data", mixture_rules.check_mixture),
    ("tell-data", mixture_rules.check_control_tokens),
    ("tell-data", mixture_rules.check_anchor),
    ("tell-data", mixture_rules.check_shares),
    ("tell-pattern-slow", mixture_rules.check_patterns),
    ("tell-schedule", mixture_rules.check_steps),
    ("tell-value-type", mixture_rules.check_lengths),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="recipe files")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, for several recipes a list of them, and nothing else "
        "(its form: tell_plugins/recipe/check.schema.json); exit code 2: could not be judged",
    )
    text = "list what differs from the paper's settings for a task of your own, too"
    parser.add_argument("--verbose", action="store_true", help=text)
    parser.epilog = "Further --key value pairs are ms-swift's and win over the recipe."
    parser.set_defaults(takes_flags=True)


def run(args: argparse.Namespace) -> int:
    codes, objects = [], []
    for number, path in enumerate(args.recipes):
        code, text, found = _judge(path, args.flags, args.verbose)
        codes.append(code)
        objects.append(found)
        if not args.json:
            print(("\n" if number else "") + text)
    if args.json:
        print(json.dumps(objects if len(objects) > 1 else objects[0], indent=2))
    elif len(codes) > 1:
        bad = [path for path, code in zip(args.recipes, codes, strict=True) if code]
        names = f": {', '.join(bad)}" if bad else ""
        good = len(codes) - len(bad)
        print(f"\n{len(codes)} recipes: {good} good, {len(bad)} with errors{names}")
    return max(codes)


def _judge(path: str, flags: Sequence[str], verbose: bool) -> tuple[int, str, dict[str, Any]]:
    """Exit code, text and object of a recipe; 2 where the machine cannot judge it."""
    try:
        checked = inspect(load_recipe(path, flags))
        return int(bool(checked.errors)), report(checked, verbose), object_of(checked)
    except UserError as problem:
        found = as_errors("tell-recipe", problem)
        why = "the recipe cannot be read"
        return 1, f"{path}\n\n{problems(found)}", unjudged(path, found, why)
    except MachineError as problem:
        return 2, f"{path}\n\n{problem}", unjudged(path, [], str(problem))


def inspect(recipe: Recipe, *, data: bool = True) -> Checked:
    """Look at a recipe from all sides; without `data`, at no file but its own.

    Problems are collected, never raised. Raises MachineError where ms-swift cannot be asked.
    """
    checked = Checked(recipe)
    _collect(checked, "tell-dataset", mixture_rules.check_dataset, checked)
    for rule in _OF_THE_RECIPE:
        _collect(checked, "tell-value-type", rule, recipe)
    for fallback, rule in _OF_THE_DATA if data else ():
        _collect(checked, fallback, rule, checked)
    return checked


def _collect(checked: Checked, fallback: str, rule: Rule, what: Any) -> None:
    """Add what a rule finds; its UserError joins them, unless another named the place already."""
    try:
        checked.findings += rule(what) or ()
    except UserError as problem:
        known = {finding.where for finding in checked.findings}
        checked.findings += [e for e in as_errors(fallback, problem) if e.where not in known]
