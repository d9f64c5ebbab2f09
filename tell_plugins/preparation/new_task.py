"""`new`: a card, an anchor and a recipe from a file of rows, for a task of one's own."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tell_plugins.core import paths
from tell_plugins.core.anchors import SEPARATOR
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError, at_least
from tell_plugins.core.mixture import general_card
from tell_plugins.core.row_files import FORMATS
from tell_plugins.core.spec import parse_amount, parse_names
from tell_plugins.core.state_files import json_lines, json_text
from tell_plugins.core.text import MARK, row_of
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.answers import METRICS
from tell_plugins.preparation.card_files import card_text, check_name, make_known
from tell_plugins.preparation.method import DEFAULT, METHODS, Method, methods_for, there
from tell_plugins.preparation.own_task import SCHEMA_FILE, Task, folds_of, read_task
from tell_plugins.preparation.showing import CHARS_SHOWN, as_seen
from tell_plugins.preparation.task_recipe import (
    general_of,
    own_recipe,
    pattern_for,
    recipe_name,
    short_names,
)
from tell_plugins.recipe.lengths import own_tokenizer
from tell_plugins.recipe.recipes import Recipe
from tell_plugins.recipe.tables import count_of

MOST_TIMES = 40  # general rows a task row where the user names the general data
_CARD = "card.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example: ./run.sh new tickets --train tickets.csv --columns query=text,response=verdict "
        "--anchor 'Is the ticket urgent? Answer yes or no.' --model smollm2"
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="name of the task: letters, digits, _")
    add("--train", metavar="FILE", required=True, help=", ".join(FORMATS))
    tests = parser.add_mutually_exclusive_group().add_argument
    tests("--test", metavar="FILE", help="test rows (default: a part of the training rows)")
    add("--validation", metavar="FILE", help="validation rows")
    text = "the text in front of every query: what to do and in which form to answer; 'inline' "
    add("--anchor", metavar="TEXT|FILE", help=f"{text}when the rows begin with it already")
    text = "general cards (default: the model's)"
    add("--general", metavar="NAME[+NAME]", nargs="+", help=text)
    add("--amount", metavar="A", help="general data to mix in: 2000rows, 4e6tok, 40x")
    text = "columns, where the form is not known; 1,2 without a header"
    add("--columns", metavar="query=A,response=B", help=text)
    add("--labels", metavar="0=no,1=yes", help="what labels are written as, where they are codes")
    text = "a system prompt of the rows becomes the anchor (default), or stays the system prompt, "
    add("--system", choices=("anchor", "keep"), help=f"{text}in the recipe")
    add("--last-turn", action="store_true", help="of conversations, keep the last turn alone")
    add("--drop-broken", action="store_true", help="leave broken rows out, and list them")
    text = "write answers that are Python's dicts and lists as JSON, and say which; NaN and a key "
    add("--repair-json", action="store_true", help=f"{text}that stands twice stay broken")
    text = "a recipe to start from; or any model: an id that ms-swift knows, or a folder"
    known = ", ".join(short_names())
    add("--model", metavar="M", default="smollm2", help=f"{known}; {text} (default: smollm2)")
    add("--model-type", metavar="TYPE", help="of a model that ms-swift cannot tell the type of")
    add("--template", metavar="NAME", help="its chat template, where its type has several")
    text = (
        "how it trains: hold (rows repeated among general rows that hold the base model by KL), "
        f"mix (the same, general rows teach), paper, sft (default: {DEFAULT}); hold and mix come "
        "with the SFT baseline"
    )
    add("--method", choices=METHODS, default=DEFAULT, help=text)
    add("--metric", choices=METRICS, help="how answers are scored (default: told by the rows)")
    add("--languages", metavar="FROM,TO", help="languages of a translation: Icelandic,English")
    add("--schema", metavar="FILE", help="JSON schema of the answers (default: from the rows)")
    add("--label", metavar="PROPERTY", help="property of JSON answers with the label, or none")
    text = "write labels that differ in blanks, case or Unicode form in one form"
    add("--clean-labels", action="store_true", help=text)
    text = "rows to split off (default: 20 %%, up to 200)"
    tests("--test-rows", metavar="N", type=at_least(1), help=text)
    text = "for few rows: K cards and their recipes more, in which each row tests once"
    tests("--folds", metavar="K", type=at_least(2), help=text)
    add("--seed", metavar="S", type=int, default=42, help="of the split (default: 42)")
    add("--drop-overlap", action="store_true", help="leave out training rows that are test rows")
    add("--summary", metavar="TEXT", help="one line about the task, for the card")
    add("--licence", metavar="TEXT", default="not stated", help="of the rows, for the card")
    text = "folder of cards (default: the first of $TELL_CARDS, else datasets/)"
    add("--dir", metavar="DIR", help=text)
    add("--recipes", metavar="DIR", help="folder of the recipe (default: recipes/)")
    add("--force", action="store_true", help="overwrite the card and the recipe")


def run(args: argparse.Namespace) -> int:
    """Read, show, write, prove: cards and recipes of an own task, or nothing where one fails."""
    _check_texts(args)
    roots = paths.card_roots()
    cards = paths.user_target(args.dir) if args.dir else (roots[1] if len(roots) > 1 else roots[0])
    recipes = paths.user_target(args.recipes) if args.recipes else paths.OWN_RECIPES
    check_name(args.name, cards, "NAME")
    task = read_task(args)
    folds = folds_of(task, args.folds, args.seed) if args.folds is not None else []
    pattern, assumed = pattern_for(args.model, args.model_type, args.template, task.metric)
    task.notes += assumed
    pattern = pattern.with_values(**({"system": task.system} if task.system else {}))
    variants = METHODS[args.method]
    parts = (task, *folds)
    files = {
        part.name: [recipes / f"{recipe_name(pattern, part.name, v)}.yaml" for v in variants]
        for part in parts
    }
    written = [path for group in files.values() for path in group]
    general = _general(args, pattern, len(task.train))
    contents = {part.name: _files(part, args, general, pattern) for part in parts}
    if not args.force:
        contents = _beside(cards, contents, written, bool(args.general or args.amount))
    _show(task)
    export = make_known(cards)
    methods: list[Callable[[str, int], Method]] = []
    downloads: list[str] = []
    # each card changes as a whole, once all is known to be right, and the recipes come last: no old
    # one ever stands beside a new card
    with ExitStack() as recipes_last, ExitStack() as cards_first:
        for part in parts:
            check_name(part.name, cards, "NAME")
            staged = cards_first.enter_context(_staged(cards / part.name, contents[part.name]))
            if part not in folds[1:]:  # all folds train alike
                card, rows = load_card(part.name, staged), len(part.train)
                methods, missing = methods_for(args.method, card, rows, pattern, not args.amount)
                downloads += missing
            for method_of, path in zip(methods, files[part.name], strict=True):
                method = method_of(part.name, len(part.train))
                file = recipes_last.enter_context(paths.atomic_path(path))
                file.write_text(own_recipe(pattern, path, method, export), "utf-8")
        for path in written:
            path.unlink(missing_ok=True)
    _print_next(task, folds, cards, files, [*filter(None, [export]), *dict.fromkeys(downloads)])
    return 0


def _show(task: Task) -> None:
    """Print three rows as the model will see them, and what was concluded."""
    for number in sorted({0, len(task.train) // 2, len(task.train) - 1}):
        pair = task.train[number]
        query = task.anchor + SEPARATOR + pair.query
        print(as_seen(str(number + 1), query, pair.response, CHARS_SHOWN // 2))
    print(*(f"note: {note}" for note in task.notes), sep="\n")


def _print_next(
    task: Task,
    folds: Sequence[Task],
    cards: Path,
    files: Mapping[str, Sequence[Path]],
    first: Sequence[str],
) -> None:
    """Say what was written, and the commands to type next, those that come `first` before all."""
    tested = f"{len(folds)} folds" if folds else count_of(len(task.test), "test row")
    print(f"metric:  {task.metric}; {count_of(len(task.train), 'training row')}, {tested}")
    print(*(f"card:    {paths.shown(cards / name)}" for name in files), sep="\n")
    written = [path for group in files.values() for path in group]
    print(*(f"recipe:  {paths.shown(path)}" for path in written), sep="\n")
    own = [shlex.quote(paths.shown(path)) for path in files[task.name]]
    if folds:
        commands = _fold_commands(own, files[folds[0].name], len(folds))
    else:
        commands = [f"./run.sh check {' '.join(own)}", *(f"./run.sh train {path}" for path in own)]
        against = " --against sft   # is it better than plain SFT?" if len(own) > 1 else ""
        commands.append(f"./run.sh eval {own[0]}{against}")
    print("next:", *first, *commands, sep="\n  ")


def _fold_commands(own: Sequence[str], first: Sequence[Path], folds: int) -> list[str]:
    """A loop over the folds, one table of them all, and the training of the adapter to use on the
    whole task; `own` are its recipes, `first` those of the first fold."""
    front = first[0].with_name(first[0].name.rpartition("_fold1")[0] + "_fold")
    at = shlex.quote(paths.shown(front))
    recipes = [f"{at}${{fold}}{path.name.removeprefix(front.name + '1')}" for path in first]
    steps = [f"./run.sh train {recipe}" for recipe in recipes]
    steps.append(f"./run.sh eval {recipes[0]}{' --against sft' if len(recipes) > 1 else ''}")
    numbers = " ".join(str(number) for number in range(1, folds + 1))
    return [
        f"./run.sh check {at}*.yaml",
        f"for fold in {numbers}; do {' && '.join(steps)} || break; done",
        f"./run.sh compare --pool output/{front.name}*/eval   # every row, in one table",
        f"./run.sh train {own[0]}   # the adapter to use, of all rows",
    ]


def _check_texts(args: argparse.Namespace) -> None:
    """UserError for a text or a file name that a card cannot hold, since it is not UTF-8."""
    for name, value in vars(args).items():
        if isinstance(value, str) and value.encode("utf-8", "ignore").decode() != value:
            raise UserError(
                f"{value!r} is not UTF-8", where=f"--{name}", remedy="rename the file or retype it"
            )


def _general(args: argparse.Namespace, pattern: Recipe, task_rows: int) -> dict[str, Any]:
    """The general cards and the amount for the card: as asked, else the pattern's."""
    if args.amount:
        parse_amount(args.amount, task=False, where="--amount")
    names, amount = general_of(pattern)
    if args.general is not None:
        names, amount = parse_names("+".join(args.general), where="--general"), f"{MOST_TIMES}x"
        for name in names:
            general_card(name, "--general")
    if amount.endswith("x") and (rows := there(names)) is not None:
        times = min(float(amount[:-1]), rows // task_rows)
        amount = f"{times:g}x" if times else "all"
    return {"from": list(names), "amount": args.amount or amount}


# ------------------------------------------------------------------------- the card


def _card(
    task: Task, args: argparse.Namespace, general: Mapping[str, Any], pattern: Recipe
) -> dict[str, Any]:
    columns = {"query": "query", "response": "response"}
    if any(MARK in pair.query for pair in task.pairs):
        columns["history"] = "history"
    return {
        "name": task.name,
        "kind": "task",
        "summary": args.summary or f"Own task, {len(task.train)} training rows.",
        "licence": args.licence,
        "source": ", ".join(Path(f).name for f in (args.train, args.validation, args.test) if f),
        "columns": columns,
        "splits": {
            name: {"file": f"{name}.jsonl", "rows": len(pairs)}
            for name, pairs in task.parts.items()
        },
        "anchor": "anchor.txt",
        "general": general,
        "metric": task.metric,
        **task.card_keys,
        "max_new_tokens": _max_new_tokens(task, str(pattern.get("model"))),
    }


def _max_new_tokens(task: Task, model: str) -> int:
    """Room for the longest training answer and a third more, in steps of 32.

    Counted with the model's own tokenizer, else Llama-2's, else taken to be two bytes a token, so
    that none is cut.
    """
    path = tokenizer_file()
    counter = own_tokenizer(model) or (TokenCounter(path) if path else None)
    responses = [pair.response for pair in task.train]
    longest = max(len(text.encode()) for text in responses) // 2
    if counter is not None:
        longest = int(counter.count(responses).max())
    return max(64, -(-(longest * 4 // 3 + 16) // 32) * 32)


def _files(
    task: Task, args: argparse.Namespace, general: Mapping[str, Any], pattern: Recipe
) -> dict[str, str]:
    files = {
        f"{name}.jsonl": "".join(json_lines(row_of(pair.query, pair.response) for pair in pairs))
        for name, pairs in task.parts.items()
    }
    files["anchor.txt"] = task.anchor + "\n"
    if task.schema is not None:
        files[SCHEMA_FILE] = json_text(task.schema)
    return files | {_CARD: card_text(_card(task, args, general, pattern))}


def _beside(
    cards: Path, contents: dict[str, dict[str, str]], recipes: Sequence[Path], general: bool
) -> dict[str, dict[str, str]]:
    """What is to be written where nothing may be overwritten: of a card of the same task, which
    was made for another model, nothing.

    `general` tells that the user names the general data, which is then to be the card's too.
    Raises UserError for another card of the name, and for recipes that are there.
    """
    free = {"summary", "licence", "source", "max_new_tokens", *([] if general else ["general"])}
    same = [name for name, files in contents.items() if _is_there(cards / name, files, free)]
    folders = [cards / name for name in contents if name not in same]
    there = [path for path in (*folders, *recipes) if path.exists()]
    if there:
        raise UserError(
            f"{' and '.join(paths.shown(path) for path in there)} would be overwritten",
            where=next(iter(contents)),
            allowed="a new name; or the same rows, anchor and answers with another --model, whose "
            "recipe then stands beside the first",
            remedy="choose another name, or add --force",
        )
    return {name: {} if name in same else files for name, files in contents.items()}


def _is_there(folder: Path, files: Mapping[str, str], free: Collection[str]) -> bool:
    """Whether the folder holds these files, and a card that differs in `free` keys at most."""
    try:
        there = {name: (folder / name).read_text(encoding="utf-8") for name in files}
        old, new = yaml.safe_load(there[_CARD]), yaml.safe_load(files[_CARD])
        keys = {*old, *new} - {*free}
        same_card = all(old.get(key) == new[key] for key in keys)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError):
        return False
    return same_card and there | {_CARD: ""} == {**files, _CARD: ""}


@contextmanager
def _staged(folder: Path, files: dict[str, str]) -> Iterator[Path]:
    """A card's new folder, hidden; it takes its place as a whole when the block ends well.

    Files that the user put into the old one stay.
    """
    with paths.atomic_dir(folder) as temporary:
        if folder.exists():
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        yield temporary
        if folder.exists():
            os.replace(folder, temporary.with_name("before"))
