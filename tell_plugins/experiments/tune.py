"""`./run.sh tune RECIPE`: settings for a task, chosen on validation rows within a time budget.

The candidates are the recipe's own settings, and these with one of them halved or doubled: the
learning rate, the copies of each task row, the amount of general data. All are trained once and
judged on validation rows; the better half goes on to a second part of the rows (or a second seed),
and the best of it, with the recipe's own settings, to all four (`tune_rows`, `tune_rounds`).
Between these a paired interval decides (`tune_choice`). Last, the chosen adapters are judged at
smaller scales of their weights, which needs no training.
"""

from __future__ import annotations

import argparse
import math
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.core.locks import only_one
from tell_plugins.core.spec import parse_amount
from tell_plugins.evaluation.grids import Grid, print_grid, table_console
from tell_plugins.evaluation.intervals import shown, smallest_shown
from tell_plugins.experiments.store import Store
from tell_plugins.experiments.tune_choice import Result, choose
from tell_plugins.experiments.tune_rounds import OWN, Trial, halving
from tell_plugins.experiments.tune_rows import PARTS
from tell_plugins.preparation.method import Method
from tell_plugins.preparation.task_recipe import recipe_text
from tell_plugins.recipe.recipes import TUNED, Recipe, load_recipe

_MARK = "with settings that ./run.sh tune chose"  # in the first line of what is written here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the recipe to start from; its test rows are never read")
    parser.add_argument(
        "--minutes", type=float, default=30, help="time that this call may take (default: 30)"
    )
    parser.add_argument("--out", help="folder of the runs (default: output/tune/<recipe>)")
    parser.epilog = (
        "Candidates that do not fit into the time are left out, which is said. The same command "
        "goes on where it was stopped. It writes <recipe>_tuned.yaml beside the recipe."
    )


def run(args: argparse.Namespace) -> int:
    if not args.minutes > 0:
        raise UserError(
            f"{args.minutes:g} minutes", where="--minutes", allowed="above 0", remedy="30"
        )
    recipe = load_recipe(args.recipe)
    target = _target(recipe)
    folder = paths.user_target(args.out) if args.out else Path("output/tune") / recipe.name
    with only_one(folder, "tune"):
        trial = Trial(recipe, Store(folder), 60 * args.minutes)
        final = halving(trial)
        chosen = choose(final)
        scales = trial.scaled(chosen)
        scale = choose(scales)
    _print_table(trial, chosen, scales)
    said = _said(final, chosen, scale, trial.parts.text)
    print(*said, sep="\n")
    text = _tuned_text(recipe, target, trial.changes[chosen.name], said)
    paths.write_text(target, text)
    _print_next(recipe, target, scale)
    return 0


def _target(recipe: Recipe) -> Path:
    """Where the tuned recipe goes.

    Raises UserError for a file there that was not written here, and for a recipe that cannot be
    rewritten.
    """
    target = recipe.path.with_name(f"{recipe.name}{TUNED}.yaml")
    _tuned_text(recipe, target, {}, [])  # one that cannot be rewritten is told before hours of runs
    if target.is_file() and _MARK not in target.read_text(errors="replace").partition("\n")[0]:
        raise UserError(
            "there is a recipe of that name, which was not written by tune",
            where=paths.shown(target),
            remedy="rename it",
        )
    return target


def _print_table(trial: Trial, chosen: Result, scales: Sequence[Result]) -> None:
    rows = [
        _line(result, trial.result(OWN, result.parts), "chosen" * (name == chosen.name))
        for name, result in trial.measured.items()
    ]
    rows += [
        [name, "0", "", "", "", why]
        for name, why in trial.gone.items()
        if name not in trial.measured
    ]
    rows += [_line(result, chosen) for result in scales[1:]]
    columns = ["settings", "runs", _measure(chosen), "minus own settings", "KL to base", ""]
    notes = ["scale: of the chosen adapters' weights; minus the chosen as they are"]
    title = f"{trial.recipe.name}, judged by {trial.parts.text}"
    print_grid(Grid(title, columns, rows, notes[: len(scales) - 1]), table_console())


def _line(result: Result, against: Result, note: str = "") -> list[str]:
    minus = "" if result.name == against.name else _minus(result, against)
    kl = f"{result.kl:.3f}" if math.isfinite(result.kl) else "not known"
    return [result.name, str(result.parts), _number(result.score, result), minus, kl, note]


def _measure(result: Result) -> str:
    return result.key[1].replace("_", " ")


def _digits(result: Result) -> int:
    """Shares have two digits, scores from 0 to 100 one."""
    return 2 if result.measure.column.percent else 1


def _number(value: float, result: Result, sign: str = "") -> str:
    return format(value, f"{sign}.{_digits(result)}f")


def _minus(result: Result, against: Result) -> str:
    found = result.minus(against)
    return "not paired" if found is None else shown(found, _digits(result), sign="+")


def _said(final: Sequence[Result], chosen: Result, scale: Result, judges: str) -> list[str]:
    """What was chosen and why, in sentences."""
    own, measure = final[0], _measure(chosen)
    said = [f"{measure}: nothing is told apart as better than the recipe's own settings"]
    if chosen is own:
        said[0] += "; they stay"
    elif chosen.is_better_than(own):
        said = [f"{measure}: {chosen.name} is better than the recipe's own settings"]
    else:
        said[0] += f"; {chosen.name} scores no lower and stays nearer to the base model"
    for other in [result for result in final if result is not own]:
        found = other.minus(own)
        if found is not None:
            least = _number(smallest_shown(found.low, found.high), other)
            said.append(
                f"{other.name} minus own settings: {_minus(other, own)}, on {found.n} rows, "
                f"which show {least} or more"
            )
    if scale is not chosen:
        said.append(
            f"{scale.name} of the adapter's weights is taken: {_minus(scale, chosen)} to "
            f"the whole, and a KL to the base of {scale.kl:.3f} in place of {chosen.kl:.3f}"
        )
    if not chosen.learned:
        said.append("CONTENT NOT LEARNED: nothing is right, or one label is given all the time")
    runs = f"{own.parts} of {PARTS} runs each"
    return [*said, f"Judged by {judges}; {runs}.", "No test row was read."]


def _tuned_text(recipe: Recipe, target: Path, changes: dict[str, object], said: list[str]) -> str:
    """The recipe with the chosen values; raises UserError for one that cannot be rewritten."""
    values = dict(changes)
    keys = {key: values.pop(key) for key in ("learning_rate",) if key in values}
    if "general" in values:
        values["general"] = parse_amount(str(values["general"]), task=False, where="general")
    origin, shown = paths.shown(recipe.path), shlex.quote(paths.shown(target))
    changed = ", ".join(f"{key}={value}" for key, value in changes.items())
    header = [
        f"{recipe.name}, {_MARK}.",
        f"Launch:  ./run.sh train {shown}",
        f"Needs:   what {origin} needs",
        f"First:   ./run.sh check {shown}",
        "Result:  not measured",
        f"Differs: from {origin} in {changed or 'nothing but its output folder'}",
    ]
    why = [f"What stands above is of {origin}. Chosen on validation rows:"]
    why += [line for text in said for line in textwrap.wrap(text, 96)]
    dataset = str(recipe.spec.with_values(**values))
    method = Method(TUNED, dataset, "", tuple(why), keys)
    return recipe_text(recipe, target.stem, method, header, gone=())


def _print_next(recipe: Recipe, target: Path, scale: Result) -> None:
    shown = shlex.quote(paths.shown(target))
    baseline = recipe.path.with_name(f"{recipe.name}_sft.yaml").is_file()
    print(f"written: {paths.shown(target)}")
    print(f"next: ./run.sh train {shown}")
    print(f"      ./run.sh eval {shown}" + " --against sft" * baseline)
    if scale.scale != 1:
        print(f"      ./run.sh eval {shown} --scales {scale.scale:g},1")
