"""`./run.sh anchor RECIPE --write N`: the model writes its own anchors, the best becomes a file."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.anchors import RESERVED
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import cached_json, write_json
from tell_plugins.evaluation.intervals import shown
from tell_plugins.experiments import anchor_writing
from tell_plugins.experiments.anchor_writing import Scored, Writing
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tell_plugins.recipe.tables import table

NAME = "self_written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(takes_flags=True)
    parser.add_argument("recipe", help="the recipe whose model writes, for its card")
    parser.add_argument("--write", type=int, required=True, metavar="N", help="candidates")
    parser.add_argument("--seed", type=int, default=42, help="of rows and sampling (default: 42)")
    parser.add_argument(
        "--rows", type=int, default=3, metavar="K", help="training rows shown for each (default: 3)"
    )
    parser.add_argument(
        "--held-out", type=int, default=24, help="other training rows to score on (default: 24)"
    )
    parser.add_argument(
        "--name", default=NAME, help=f"of the anchor file (default: {NAME}; anchor={NAME})"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an anchor of that name")


def run(args: argparse.Namespace) -> int:
    recipe = load_recipe(args.recipe, args.flags)
    card = _task_card(recipe)
    _check(args, card)
    _check_files(card, recipe, args)
    rows = anchor_writing.training_rows(
        card, examples=args.write * args.rows, scored=args.held_out, seed=args.seed
    )
    engine = _engine(recipe)
    writing = anchor_writing.write_anchors(
        engine, rows, count=args.write, shown=args.rows, seed=args.seed
    )
    _print(writing, len(rows.scored))
    text_file = card.folder / f"{args.name}.txt"
    if not args.overwrite and _text(text_file) not in (None, writing.best.text):
        raise _taken(text_file)
    record = describe(writing, recipe, args, engine.name)
    write_json(card.folder / f"{args.name}.json", record)
    paths.write_text(text_file, writing.best.text + "\n")
    _print_next(recipe, card, args.name, text_file, len(writing.candidates), args.write)
    return 0


def _task_card(recipe: Recipe) -> Card:
    card = load_card(recipe.spec.card)
    if card.kind == "general":
        raise UserError(
            f"'{card.name}' is general data and has no anchor",
            where=recipe.where("dataset"),
            remedy="name the recipe of a task",
        )
    return card


def _check(args: argparse.Namespace, card: Card) -> None:
    for name in ("write", "rows", "held_out"):
        if getattr(args, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise UserError("a count below 1", where=flag, allowed="1 and more", remedy="raise it")
    own = str(card.anchor).removesuffix(".txt")
    taken = {*RESERVED, own}
    if args.name in taken or not re.fullmatch(r"[\w.-]+", args.name):
        raise UserError(
            f"'{args.name}' cannot be the name of a further anchor",
            where="--name",
            allowed=f"letters, digits, _ - . and none of {', '.join(sorted(taken))}",
            remedy=f"--name {NAME}",
        )


def _engine(recipe: Recipe) -> Any:
    from tell_plugins.evaluation.engines import make_engine

    return make_engine("transformers", recipe, {}, batch_size=1)


def _check_files(card: Card, recipe: Recipe, args: argparse.Namespace) -> None:
    """Refuse what would be written over, before a model is loaded.

    Only the very same call may find its own anchor again: then its text will be the same.
    """
    path = card.folder / f"{args.name}.json"
    record = _record(path)
    if path.is_file() and record is None:
        raise UserError(
            "a file of that name is here, and no record of written anchors",
            where=paths.shown(path),
            remedy=f"another --name, such as {NAME}",
        )
    asked = _asked(recipe, args)
    again = record is not None and {key: record.get(key) for key in asked} == asked
    text_file = card.folder / f"{args.name}.txt"
    if text_file.is_file() and not args.overwrite and not again:
        raise _taken(text_file)


def _record(path: Path) -> dict[str, Any] | None:
    """What an earlier call wrote of its candidates; None for a missing or another file."""
    found: dict[str, Any] | None = cached_json(path, dict[str, Any])
    keys = {"candidates", "manual", "none", "rejected"}
    return found if found is not None and keys <= set(found) else None


def _asked(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """What of a call decides the candidates, beside their number."""
    return {
        "card": recipe.spec.card,
        "recipe": recipe.name,
        "model": recipe.get("model"),
        "seed": args.seed,
        "rows_shown": args.rows,
        "rows_scored": args.held_out,
    }


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _taken(path: Path) -> UserError:
    """An anchor that was trained with is not replaced by another without being asked."""
    return UserError(
        "there is another anchor of that name, which recipes may use",
        where=paths.shown(path),
        remedy="--overwrite, or another --name",
    )


def describe(
    writing: Writing, recipe: Recipe, args: argparse.Namespace, engine: str
) -> dict[str, Any]:
    """Everything about the candidates, as JSON."""
    return {
        "format": 1,
        **_asked(recipe, args),
        "engine": engine,
        "decoding": asdict(anchor_writing.DECODING),
        "candidates": [_plain(candidate) for candidate in writing.candidates],
        "manual": _without_text(writing.manual),
        "none": _without_text(writing.none),
        "rejected": [{"text": text, "reason": reason} for text, reason in writing.rejected],
    }


def _without_text(scored: Scored) -> dict[str, Any]:
    kept = ("loss", "low", "high", "tokens", "change")
    return {key: value for key, value in _plain(scored).items() if key in kept}


def _plain(scored: Scored) -> dict[str, Any]:
    """What is known of an anchor, as JSON."""
    loss = scored.loss
    return {**asdict(scored), "loss": loss.value, "low": loss.low, "high": loss.high}


def _print(writing: Writing, count: int) -> None:
    print(f"Mean loss per response token on {count} other training rows (lower is better)\n")
    named = [(f"candidate {i}", c) for i, c in enumerate(writing.candidates, 1)]
    named += [("the card's anchor", writing.manual), ("no anchor", writing.none)]
    rows = []
    for name, scored in named:
        change = "" if scored is writing.manual else shown(scored.change, 3, sign="+")
        text = " ".join(scored.text.split())
        start = text if len(text) <= 70 else text[:67] + "..."
        rows.append([name, shown(scored.loss, 3), change, start])
    print(table(["anchor", "loss [95 %]", "minus the card's", "text"], rows, indent=""))


def _print_next(
    recipe: Recipe, card: Card, name: str, path: Path, written: int, wanted: int
) -> None:
    if written < wanted:
        print(f"\n{written} of {wanted} candidates: the model said the same again and again")
    dataset = recipe.spec.with_values(anchor=name)
    print(f"\nbest: {paths.shown(path)}; all: {paths.shown(path.with_suffix('.json'))}")
    print(f"next: ./run.sh train {paths.shown(recipe.path)} --dataset {dataset}")
