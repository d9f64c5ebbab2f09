"""`./run.sh anchors2x2`: anchor in training x anchor at test, in one table (Figures 5 and 6).

One recipe is trained twice, unless the runs are there already: as it is, and with `anchor=none`
into the folder `<output_dir>_noanchor`. Both are tested with the anchor and without it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.files import write_json
from tell_plugins.evaluation import evaluate
from tell_plugins.evaluation.adapters import Adapter, find_adapters
from tell_plugins.evaluation.grids import Grid, print_grid, table_console, to_csv
from tell_plugins.evaluation.intervals import Estimate, Rate, shown
from tell_plugins.evaluation.options import Options
from tell_plugins.evaluation.scored import load_scored
from tell_plugins.evaluation.significance import RESAMPLES, SEED, Difference
from tell_plugins.evaluation.summary import System, cell, headline_names, read_system
from tell_plugins.recipe import train
from tell_plugins.recipe.models import model_folder
from tell_plugins.recipe.recipes import Recipe, as_list, checkpoints, load_recipe

SUFFIX = "_noanchor"
WITH, WITHOUT = "with", "without"
_STEM = "anchors2x2"
# the measures whose differences are shown, by the card's metric
_SHOWN = {
    "json": (
        ("strict", "adherence"),
        ("strict", "balanced_accuracy"),
        ("strict", "exact_match"),
        ("strict", "field_f1"),
    ),
    "label": (("label", "adherence"), ("label", "balanced_accuracy")),
    "translation": (("stripped_segment", "chrf++"), ("stripped_segment", "bleu")),
    "number": (("number", "exact_match"),),
    "text": (("text", "chrf++"), ("text", "exact_match")),
}
# what decides what a run learns, of what ms-swift keeps in args.json as it was given
_TRAINED_WITH = (
    "model",
    "torch_dtype",
    "tuner_type",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_dtype",
    "target_modules",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "max_grad_norm",
    "max_length",
    "seed",
)
Cell = tuple[str, str]  # anchor in training, anchor at test
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
    parser.add_argument("--split", default="test", help="split of the card (default: test)")
    parser.add_argument("--rows", type=int, help="a seeded draw of this many rows (default: all)")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts answered together")
    parser.add_argument(
        "--max-new-tokens", type=int, help="limit of an answer (default: the card's)"
    )
    parser.add_argument(
        "--general-rows", type=int, default=40, help="held-out general rows (default: 40)"
    )
    parser.add_argument(
        "--retention-rows", type=int, metavar="N", help="of the project's own (default: all)"
    )
    parser.epilog = (
        "Further --key value pairs are ms-swift's and hold for both runs. Answers go where "
        "./run.sh eval puts them, the table into <output_dir>/anchors2x2.json and .csv."
    )


@dataclass(frozen=True)
class Effect:
    """What the anchor does at one place, in one measure: a paired difference over test rows."""

    anchor: str
    measure: str
    difference: Difference


def run(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe, args.flags)
    bare = without_anchor(recipe)
    card = load_card(recipe.spec.card)
    wanted = {WITH: (recipe, args.flags), WITHOUT: (bare, _flags(args.flags, bare))}
    for given in wanted.values():  # both, before one is trained for hours
        refuse_another(*given)
    runs = {anchor: _trained(*given) for anchor, given in wanted.items()}
    adapters = _adapters(recipe, runs)
    names = {
        tested: _answer(args, recipe, adapters, anchor)
        for tested, anchor in ((WITH, recipe.spec.anchor), (WITHOUT, "none"))
    }
    out = recipe.output_dir / "eval"
    systems = {
        (trained, tested): read_system(out, adapters[trained].label, names[tested], card)
        for trained in adapters
        for tested in names
    }
    found = effects(
        {
            (trained, tested): out / adapters[trained].label / names[tested]
            for trained, tested in systems
        },
        card,
    )
    show(systems, found, f"{card.name}, {recipe.name}: anchor in training x anchor at test")
    files = write(systems, found, recipe.output_dir / _STEM)
    print("saved " + " and ".join(paths.shown(file) for file in files))
    return 0


def without_anchor(recipe: Recipe) -> Recipe:
    """The recipe with `anchor=none`. Raises UserError for one that has none already."""
    spec = recipe.spec
    if load_card(spec.card).kind == "general" or spec.anchor == "none":
        raise UserError(
            "the recipe trains without an anchor",
            where=recipe.where("dataset"),
            remedy="name the recipe that trains with it; the other run is made from it",
        )
    return recipe.with_values(
        dataset=[str(spec.with_values(anchor="none"))],
        output_dir=f"{recipe.output_dir}{SUFFIX}",
    )


def _flags(flags: Sequence[str], bare: Recipe) -> list[str]:
    """The command line's flags, then those that make the run the one without the anchor."""
    return [
        *flags,
        "--dataset",
        bare.dataset_text,
        "--output_dir",
        str(paths.PROJECT / bare.output_dir),
    ]


def _trained(recipe: Recipe, flags: Sequence[str]) -> Path:
    """The last checkpoint of the run, which is trained first where there is none.

    Raises UserError as `refuse_another` does, MachineError when training failed.
    """
    if not checkpoints(recipe.output_dir):
        code = train.check_and_train(str(recipe.path), flags)
        if code or not checkpoints(recipe.output_dir):
            raise MachineError(
                f"swift sft ended with exit code {code} and left no checkpoint in "
                f"{paths.shown(recipe.output_dir)}\n  remedy:  see what it printed above"
            )
    refuse_another(recipe, flags)
    return checkpoints(recipe.output_dir)[-1]


def refuse_another(recipe: Recipe, flags: Sequence[str]) -> None:
    """Raise UserError for a run on other data, with other values, or that did not come to its end.

    Of a recipe that may stop early nothing says whether it did.
    """
    found = checkpoints(recipe.output_dir)
    if not found:
        return
    run = Adapter(found[-1].name, found[-1])
    another = "name another folder with --output_dir DIR, or remove that run"
    manifest = run.manifest()
    trained = manifest["spec"] if manifest else "unknown data"
    if trained != str(recipe.spec):
        raise UserError(
            f"the run there was trained on {trained}, not on {recipe.spec}",
            where=run.shown,
            remedy=another,
        )
    changed = _changed(recipe, run.saved("args.json"))
    if changed:
        raise UserError(
            f"the run there was trained with other values ({', '.join(changed)})",
            where=run.shown,
            remedy=another,
        )
    state = run.saved("trainer_state.json")
    taken, planned = state.get("global_step", 0), state.get("max_steps", 1)
    if taken < planned and recipe.get("early_stop_interval") is None:
        resume = ["./run.sh", "train", paths.shown(recipe.path), *flags]
        raise UserError(
            f"the run there stopped at step {taken:,} of {planned:,}"
            if state
            else "the run there stopped while it saved this checkpoint",
            where=run.shown,
            remedy=shlex.join([*resume, "--resume_from_checkpoint", run.shown])
            + ", or remove that run",
        )


def _changed(recipe: Recipe, saved: Mapping[str, Any]) -> list[str]:
    """What the recipe now asks for otherwise than a run was trained, where both say it."""
    return [
        f"{key}: {saved[key]} there, {asked} now"
        for key in _TRAINED_WITH
        if (asked := recipe.get(key)) is not None
        and saved.get(key) is not None
        and not _same(asked, saved[key])
        and not (key == "model" and saved[key] == str(model_folder(asked)))
    ]


def _same(asked: Any, saved: Any) -> bool:
    try:
        return float(asked) == float(saved)
    except (TypeError, ValueError):
        return sorted(map(str, as_list(asked))) == sorted(map(str, as_list(saved)))


def _adapters(recipe: Recipe, runs: dict[str, Path]) -> dict[str, Adapter]:
    found = find_adapters([str(path) for path in runs.values()], recipe)
    return dict(zip(runs, found, strict=True))


def _answer(
    args: argparse.Namespace, recipe: Recipe, adapters: dict[str, Adapter], anchor: str
) -> str:
    """Answer and score with both adapters; return the name of their answers' folders."""
    keys = ("split", "rows", "batch_size", "max_new_tokens", "general_rows", "retention_rows")
    options = Options(
        recipe=str(recipe.path),
        flags=args.flags,
        adapter=[str(adapter.path) for adapter in adapters.values()],
        anchor=anchor,
        **{key: getattr(args, key) for key in keys},
    )
    evaluate.answer(options)
    return options.folder(42)


def effects(folders: dict[Cell, Path], card: Card) -> list[Effect]:
    """Paired differences between the cells, for the measures that the card's metric shows."""
    from tell_plugins.evaluation.measures import difference, measures

    found = {cell: measures(load_scored(folder)) for cell, folder in folders.items()}
    result = []
    for key in _SHOWN[str(card.metric)]:
        if not all(key in measured for measured in found.values()):
            continue  # with a label there is no exact match, without one no balanced accuracy
        for anchor, one, other in _EFFECTS:
            value = difference(found[one][key], found[other][key], resamples=RESAMPLES, seed=SEED)
            if value is not None:
                result.append(Effect(anchor, key[1], value))
    return result


def show(systems: dict[Cell, System], found: Sequence[Effect], title: str) -> None:
    """Print the four cells, and what the anchor does at each place."""
    console = table_console()
    first = next(iter(systems.values())).scores
    measures = headline_names(systems.values())
    columns = ["trained, tested", *measures, "style fit", "bleed"]
    rows = []
    for (trained, tested), system in systems.items():
        scores = [cell(system.scores.headline.get(name)) for name in measures]
        loss = shown(system.general.style_fit, 3, interval=False)
        rows.append([f"{trained}, {tested}", *scores, loss, cell(system.general.bleed)])
    print_grid(Grid(f"{title}, {first.rows} rows", columns, rows), console)
    differences = {(effect.anchor, effect.measure): effect.difference for effect in found}
    names = list(dict.fromkeys(effect.measure for effect in found))
    rows = [
        [
            anchor,
            *(shown(differences.get((anchor, name)), 3, sign="+", between="\n") for name in names),
        ]
        for anchor in dict.fromkeys(effect.anchor for effect in found)
    ]
    columns = ["anchor", *(name.replace("_", " ") for name in names)]
    changes = "what the anchor adds, paired over test rows [95 % interval]"
    print_grid(Grid(changes, columns, rows), console)


def write(systems: dict[Cell, System], found: Sequence[Effect], stem: Path) -> list[Path]:
    """Write the cells as CSV, and cells and differences as JSON; return the two files."""
    files = [stem.with_suffix(".csv"), stem.with_suffix(".json")]
    paths.write_text(files[0], to_csv(list(_records(systems))))
    content = {
        "cells": [
            {
                "trained": trained,
                "tested": tested,
                "scores": system.scores.to_dict(),
                "general": asdict(system.general),
            }
            for (trained, tested), system in systems.items()
        ],
        "effects": [asdict(effect) for effect in found],
    }
    write_json(files[1], content, allow_nan=False)
    return files


def _records(systems: dict[Cell, System]) -> Iterator[dict[str, Any]]:
    for (trained, tested), system in systems.items():
        numbers: dict[str, Rate | Estimate | None] = {**system.scores.headline}
        numbers["bleed"] = system.general.bleed
        for measure, number in numbers.items():
            if number is not None:
                yield {
                    "trained": trained,
                    "tested": tested,
                    "measure": measure,
                    "value": number.value,
                    "low": number.low,
                    "high": number.high,
                    "n": number.n,
                }
