"""`./run.sh anchors2x2`: anchor in training x anchor at test, in one table (Figures 5 and 6).

A sweep: one recipe is trained twice, unless the runs are there already, as it is and with
`anchor=none`. Both are tested with the anchor and without it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.state_files import write_json
from tell_plugins.evaluation.differences import Difference, difference
from tell_plugins.evaluation.grids import Grid, print_grid, table_console, to_csv
from tell_plugins.evaluation.intervals import Estimate, Rate, shown
from tell_plugins.evaluation.options import add_some, given
from tell_plugins.evaluation.scorers import SECOND_READINGS
from tell_plugins.evaluation.scoring import System
from tell_plugins.evaluation.summary import elsewhere_table, table
from tell_plugins.experiments import sweep_verb
from tell_plugins.experiments.results import load_studies, systems_of
from tell_plugins.experiments.runner import add_jobs, check_jobs
from tell_plugins.experiments.store import Store
from tell_plugins.experiments.sweep import Sweep, make_sweep
from tell_plugins.recipe.recipes import Recipe, load_recipe, parse_flags

WITH, WITHOUT = "with", "without"
_STEM = "anchors2x2"
_ASKED = ("split", "rows", "batch_size", "max_new_tokens", "general_rows", "retention_rows")
# the measures whose differences are shown, of each scorer's first reading
_SHOWN = ("adherence", "balanced_accuracy", "exact_match", "field_f1", "chrf++", "bleu")
Cell = tuple[str, str]  # anchor in training, anchor at test
Effects = dict[tuple[str, str], Difference]  # by the place of the anchor, and the measure
CELLS: list[Cell] = [(a, b) for a in (WITH, WITHOUT) for b in (WITH, WITHOUT)]
_EFFECTS: tuple[tuple[str, Cell, Cell], ...] = (
    ("at test, trained with it", (WITH, WITH), (WITH, WITHOUT)),
    ("at test, trained without", (WITHOUT, WITH), (WITHOUT, WITHOUT)),
    ("in training, tested with it", (WITH, WITH), (WITHOUT, WITH)),
    ("in training, tested without", (WITH, WITHOUT), (WITHOUT, WITHOUT)),
    ("in both, against in neither", (WITH, WITH), (WITHOUT, WITHOUT)),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    parser.add_argument("recipe", help="the recipe, with its anchor")
    add_some(parser, _ASKED)
    add_jobs(parser)
    parser.add_argument("--out", help="folder of the runs (default: output/sweeps, shared)")
    parser.epilog = (
        "Further --key value pairs are ms-swift's and hold for both runs. The two runs are those "
        "of a sweep: killed, it goes on, and ./run.sh report shows it. The table goes beside them, "
        "as anchors2x2_<recipe>.json and .csv."
    )


def run(args: argparse.Namespace) -> int:
    check_jobs(args.jobs)
    recipe = load_recipe(args.recipe, args.flags)
    _need_anchor(recipe)
    store = Store(paths.user_target(args.out) if args.out else sweep_verb.DEFAULT_ROOT)
    sweep = _sweep(args, recipe)
    command = shlex.join(["./run.sh", "anchors2x2", paths.shown(recipe.path), *args.flags])
    code = sweep_verb.do(sweep, store, command, jobs=args.jobs, retry_failed=True)
    if code:
        return code
    study = next(study for study in load_studies(store.root) if study.name == sweep.name)
    systems = dict(zip(CELLS, systems_of(study)[1:], strict=True))
    found = effects(systems)
    show(systems, found, f"{recipe.spec.card}, {recipe.name}: anchor in training, at test")
    files = write(systems, found, store.root / sweep.name)
    print("saved " + " and ".join(paths.shown(file) for file in files))
    return 0


def _need_anchor(recipe: Recipe) -> None:
    """Raise UserError where there is no anchor to be left out."""
    if load_card(recipe.spec.card).kind == "general" or recipe.spec.anchor == "none":
        raise UserError(
            "the recipe trains without an anchor",
            where=recipe.where("dataset"),
            remedy="name the recipe that trains with it; the other run is made from it",
        )


def _method(cell: Cell) -> str:
    return ", ".join(cell)


def _sweep(args: argparse.Namespace, recipe: Recipe) -> Sweep:
    """Two runs, each tested twice."""
    both = _method((WITH, WITH))
    bare = {"anchor": "none", "equal_steps": both}
    settings: Sequence[dict[str, str]] = (
        {},
        {"test_anchor": "none"},
        {**bare, "test_anchor": recipe.spec.anchor},
        bare,
    )
    raw = {
        "title": f"Anchor in training x anchor at test ({recipe.name})",
        "base": str(recipe.path),
        "runs": {_method(cell): run for cell, run in zip(CELLS, settings, strict=True)},
        "seeds": [recipe.spec.seed],
        "evaluate": given(args, _ASKED),
        "plot": {"reference": both},
    }
    where = f"{_STEM} {paths.shown(recipe.path)}"
    return make_sweep(raw, f"{_STEM}_{recipe.name}", where, parse_flags(args.flags))


def effects(systems: Mapping[Cell, System]) -> Effects:
    """Paired differences between the cells, for the measures that both have."""
    result = {}
    for reading, name in systems[CELLS[0]].measures:
        if reading not in SECOND_READINGS and name in _SHOWN:
            for anchor, *cells in _EFFECTS:
                sides = (systems[cell].measures.get((reading, name)) for cell in cells)
                value = difference(*sides)
                if value is not None:
                    result[anchor, name] = value
    return result


def show(systems: Mapping[Cell, System], found: Effects, title: str) -> None:
    """Print the four cells, and what the anchor does at each place."""
    cells, console = list(systems.values()), table_console()
    places, names = (dict.fromkeys(part) for part in zip(*found, strict=True))
    rows = [
        [place, *(shown(found.get((place, n)), 3, sign="+", between="\n") for n in names)]
        for place in places
    ]
    columns = ["anchor", *(name.replace("_", " ") for name in names)]
    changes = Grid("what the anchor adds, paired over test rows [95 % interval]", columns, rows)
    first = table(cells, f"{title}, {cells[0].rows} rows")
    for grid in (first, elsewhere_table(cells), changes):
        if grid is not None:
            print_grid(grid, console)


def write(systems: Mapping[Cell, System], found: Effects, stem: Path) -> list[Path]:
    """Write the cells as CSV, and cells and differences as JSON; return the two files."""
    files = [stem.with_suffix(".csv"), stem.with_suffix(".json")]
    records = [
        {
            **{"trained": trained, "tested": tested, "measure": measure},
            **{key: getattr(number, key) for key in ("value", "low", "high", "n")},
        }
        for (trained, tested), system in systems.items()
        for measure, number in {**system.headline, "bleed": system.general["bleed"]}.items()
        if number is not None
    ]
    paths.write_text(files[0], to_csv(records))
    content = {
        "cells": [
            {
                "trained": trained,
                "tested": tested,
                "scores": system.to_dict(),
                "general": {name: n and _known(n) for name, n in system.general.items()},
            }
            for (trained, tested), system in systems.items()
        ],
        "effects": [
            {"anchor": anchor, "measure": measure, "difference": value.record}
            for (anchor, measure), value in found.items()
        ],
    }
    write_json(files[1], content, allow_nan=False)
    return files


def _known(number: Rate | Estimate) -> dict[str, float | None]:
    """A number for JSON, which has none for a run that diverged."""
    parts = asdict(number)
    return {key: None if part != part else part for key, part in parts.items()}
