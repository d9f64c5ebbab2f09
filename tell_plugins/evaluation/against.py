"""`eval RECIPE --against sft`: a recipe and its baseline in one table, with paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.errors import UserError, nearest
from tell_plugins.evaluation import retention
from tell_plugins.evaluation.adapters import BASE
from tell_plugins.evaluation.answers import GENERAL
from tell_plugins.evaluation.intervals import Interval, shown
from tell_plugins.evaluation.scorers import SECOND_READINGS
from tell_plugins.recipe.recipes import TUNED, Recipe, checkpoints, load_recipe

_KEPT = {
    retention.INSTRUCTIONS: "loss on foreign instructions",
    retention.PROSE: "loss on prose",
    retention.KL: "divergence from the base model",
}


def with_baseline(recipe: Recipe, variant: str, named: Sequence[str]) -> list[str]:
    """What `--adapter` is to name: the base model, the recipe's run (or `named`), the baseline's.

    A tuned recipe has the baselines of the one that it was tuned from. Raises UserError where
    there is no recipe `<recipe>_<variant>.yaml`, or no run of one of them.
    """
    stem = recipe.path.stem.removesuffix(TUNED)
    path = recipe.path.with_name(f"{stem}_{variant}.yaml")
    if not path.is_file():
        variants = [
            p.stem.removeprefix(f"{stem}_") for p in recipe.path.parent.glob(f"{stem}_*.yaml")
        ]
        match = nearest(variant, variants)
        raise UserError(
            f"no recipe '{path.name}'",
            where=f"--against {variant}",
            allowed=", ".join(sorted(variants)) or f"{stem}_<VARIANT>.yaml beside this recipe",
            remedy=f"did you mean '{match}'?" if match else "write that recipe, then train it",
        )
    own = [name for name in named if name != BASE] or [str(_last_run(recipe))]
    return [BASE, *own, str(_last_run(load_recipe(path)))]


def _last_run(recipe: Recipe) -> Path:
    found = checkpoints(recipe.output_dir)
    if not found:
        raise UserError(
            f"no run of {paths.shown(recipe.path)}",
            where=paths.shown(recipe.output_dir),
            remedy=f"./run.sh train {paths.shown(recipe.path)}",
        )
    return found[-1].absolute()


def print_verdict(folders: Sequence[Path]) -> None:
    """Print each system's paired differences to the last one, and a line of what they say."""
    from tell_plugins.evaluation.compare import compare
    from tell_plugins.evaluation.compare_tables import difference_grid
    from tell_plugins.evaluation.grids import print_grid, table_console

    comparison = compare(folders, baseline=folders[-1])
    if not comparison.differences:
        return
    console = table_console()
    print_grid(difference_grid(comparison, None), console)
    own = comparison.systems[-2].name
    for compared in comparison.differences:
        if compared.system == own and compared.scorer not in SECOND_READINGS:
            found = compared.difference
            measure = compared.measure.replace("_", " ")
            said = _said(better=found.low > 0, worse=found.high < 0)
            console.print(f"{measure}: {own} {said} {comparison.baseline}", highlight=False)
    for what, change in _elsewhere(folders[-2], folders[-1]):
        said = _said(better=change.high < 0, worse=change.low > 0)
        numbers = f"{shown(change, sign='+')} nats a token"
        console.print(f"{what}: {own} {said} {comparison.baseline}, {numbers}", highlight=False)


def _said(*, better: bool, worse: bool) -> str:
    word = "better" if better else "worse" if worse else None
    return f"is {word} than" if word else "is not told apart from"


def _elsewhere(own: Path, baseline: Path) -> Iterator[tuple[str, Interval]]:
    """What the one kept of the rest of the model, less is better, where both were measured."""
    from tell_plugins.evaluation.summary import change

    mine, theirs = own.parent / GENERAL, baseline.parent / GENERAL
    for name, what in _KEPT.items():
        found = change(mine, theirs, name)
        if found is not None:
            yield what, found
