"""`./run.sh mix RECIPE`: write a recipe's mixture without training."""

from __future__ import annotations

import argparse
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import ANCHOR, MANIFEST, write_facts
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.schemas import card_validator
from tell_plugins.core.spec import weighting
from tell_plugins.recipe.check_report import source_lines
from tell_plugins.recipe.mixture_rules import read_dataset, try_patterns
from tell_plugins.recipe.recipes import load_recipe

ROWS = "train.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder to write to (default: output/NAME/mix)"
    )
    parser.epilog = "--dataset 'tell/...' takes another dataset string than the recipe's."
    parser.set_defaults(takes_flags=True)


def run(args: argparse.Namespace) -> int:
    """Write rows, anchor and manifest, which vouches for the others: it goes first, comes last."""
    recipe = load_recipe(args.recipe, args.flags)
    strange = sorted(recipe.flags - {"dataset"})
    if strange:
        raise UserError(
            f"flag --{strange[0]} does not change a mixture",
            where="command line",
            allowed="--out, --dataset",
            remedy="remove it; `./run.sh train` takes ms-swift's flags",
        )
    spec = read_dataset(recipe)
    card = load_card(spec.card)
    card_validator(card)  # before the rows, which take longer
    mixture = build_mixture(spec, card)
    task = mixture.task
    if task is not None:
        try_patterns(card, task.responses)
    folder = paths.PROJECT / "output" / recipe.name / "mix"
    if args.out:
        folder = paths.make_folder(paths.user_target(args.out), "--out")
    (folder / MANIFEST).unlink(missing_ok=True)
    mixture.write_json_lines(folder / ROWS)
    write_facts(mixture, folder, weighting(recipe.get("loss_type")))
    share = f"task share {mixture.is_task.mean():.1%} of rows"
    print(spec, *(f"  {line}" for line in source_lines(mixture)), sep="\n")
    print(f"  {len(mixture):,} rows, order {spec.order}, seed {spec.seed}, {share}")
    if task is not None:
        print(f"  anchor '{task.anchor.name}', {len(task.anchor.text):,} characters")
    names = [ROWS, MANIFEST, *([ANCHOR] if task is not None else [])]
    print(f"\nwritten to {paths.shown(folder)}/: {', '.join(names)}")
    return 0
