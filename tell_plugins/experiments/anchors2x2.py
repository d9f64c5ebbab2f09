"""`./run.sh anchors2x2`: anchor in training x anchor at test, in one table (Figures 5 and 6).

A sweep: one recipe is trained twice, unless the runs are there already, as it is and with
`anchor=none`. Both are tested with the anchor and without it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.grids import POINTS, Record, grid_of, print_grid, table_console, to_csv
from tell_plugins.evaluation.options import add_some, given
from tell_plugins.evaluation.scoring import System, difference_of
from tell_plugins.evaluation.system_tables import both_tables
from tell_plugins.experiments import sweep_verb
from tell_plugins.experiments.results import load_studies, systems_of
from tell_plugins.experiments.runner import add_jobs
from tell_plugins.experiments.sweep import Sweep, make_sweep
from tell_plugins.recipe.recipes import Recipe, load_recipe, parse_flags

WITH, WITHOUT = "with", "without"
_STEM = "anchors2x2"
_ASKED = ("split", "rows", "batch_size", "max_new_tokens", "general_rows", "retention_rows")
# the measures whose differences are shown
_SHOWN = ("adherence", "balanced accuracy", "exact match", "field f1", "chrF++", "BLEU")
Cell = tuple[str, str]  # anchor in training, anchor at test
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
        "of a sweep: killed, it goes on, and ./run.sh report shows it. The tables go beside them, "
        "as anchors2x2_<recipe>_cells.csv and _effects.csv."
    )


def run(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe, args.flags)
    root = paths.user_target(args.out) if args.out else sweep_verb.DEFAULT_ROOT
    sweep = _sweep(args, recipe)
    command = shlex.join(["./run.sh", "anchors2x2", paths.shown(recipe.path), *args.flags])
    code = sweep_verb.do(sweep, root, command, jobs=args.jobs, retry_failed=True)
    if code:
        return code
    study = next(study for study in load_studies(root) if study.name == sweep.name)
    systems = dict(zip(CELLS, systems_of(study)[1:], strict=True))
    found = effects(systems)
    show(systems, found, f"{recipe.spec.card}, {recipe.name}: anchor in training, at test")
    files = write(systems, found, root / sweep.name)
    print("saved " + " and ".join(paths.shown(file) for file in files))
    return 0


def _sweep(args: argparse.Namespace, recipe: Recipe) -> Sweep:
    """Two runs, each tested twice. Raises UserError where there is no anchor to be left out."""
    if load_card(recipe.spec.card).kind == "general" or recipe.spec.anchor == "none":
        raise UserError(
            "the recipe trains without an anchor",
            where=recipe.where("dataset"),
            remedy="name the recipe that trains with it; the other run is made from it",
        )
    both, *_ = methods = [", ".join(cell) for cell in CELLS]
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
        "runs": dict(zip(methods, settings, strict=True)),
        "seeds": [recipe.spec.seed],
        "evaluate": given(args, _ASKED),
        "plot": {"reference": both},
    }
    where = f"{_STEM} {paths.shown(recipe.path)}"
    return make_sweep(raw, f"{_STEM}_{recipe.name}", where, parse_flags(args.flags))


def effects(systems: Mapping[Cell, System]) -> list[Record]:
    """What the anchor adds at each place: paired differences, of shares in percentage points."""
    found: list[Record] = []
    for anchor, mine, theirs in _EFFECTS:
        changes = {n: difference_of([systems[mine]], [systems[theirs]], n) for n in _SHOWN}
        points = {f"{n}{POINTS}": change for n, change in changes.items() if change}
        found.append({"anchor": anchor, **points})
    return found


def show(systems: Mapping[Cell, System], found: Sequence[Record], title: str) -> None:
    """Print the four cells, and what the anchor adds at each place."""
    cells, console = list(systems.values()), table_console()
    added = grid_of(found, "what the anchor adds, paired over test rows [95 % interval]")
    for grid in (*both_tables(cells, f"{title}, {cells[0].rows} rows"), added):
        print_grid(grid, console)


def write(systems: Mapping[Cell, System], found: Sequence[Record], stem: Path) -> list[Path]:
    """Write the cells, and what the anchor adds, as CSV; return the two files."""
    cells = [
        {"trained": trained, "tested": tested, **system.headline, **system.general.numbers}
        for (trained, tested), system in systems.items()
    ]
    files = [stem.with_name(f"{stem.name}_{name}.csv") for name in ("cells", "effects")]
    for file, records in zip(files, (cells, found), strict=True):
        paths.write_text(file, to_csv(records))
    return files
