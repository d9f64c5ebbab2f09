"""`new`: a card, an anchor and a recipe from a file of rows, for a task of one's own."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.anchors import SEPARATOR
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError, at_least
from tell_plugins.core.mixture import general_card
from tell_plugins.core.row_files import FORMATS
from tell_plugins.core.shown import count_of
from tell_plugins.core.spec import parse_amount, parse_names
from tell_plugins.core.state_files import json_lines, json_text
from tell_plugins.core.text import MARK, row_of
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.answers import METRICS
from tell_plugins.preparation.card_files import card_text, check_name, make_known
from tell_plugins.preparation.forms import Row
from tell_plugins.preparation.own_task import HELD_OUT, SCHEMA_FILE, Task, folds_of, read_task
from tell_plugins.preparation.showing import CHARS_SHOWN, as_seen
from tell_plugins.preparation.task_recipe import (
    DEFAULT,
    METHODS,
    method_of,
    own_recipe,
    recipe_name,
    recipe_of,
    settings_for,
    short_names,
    there,
)
from tell_plugins.recipe.models import own_tokenizer
from tell_plugins.recipe.recipes import Recipe

MOST_TIMES = 40  # general rows a task row where the user names the general data
_CARD = "card.yaml"
Contents = dict[str, dict[str, str]]  # the files of each card


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
    text = "rows to split off (default: 20 %%, up to 200)"
    tests("--test-rows", metavar="N", type=at_least(1), help=text)
    text = "for few rows: K cards and their recipes more, in which each row tests once"
    tests("--folds", metavar="K", type=at_least(2), help=text)
    add("--general", metavar="NAME[+NAME]", nargs="+", help="general cards (default: the model's)")
    text = "a system prompt of the rows becomes the anchor (default), or stays the system prompt, "
    add("--system", choices=("anchor", "keep"), help=f"{text}in the recipe")
    text = "a recipe to start from; or any model: an id that ms-swift knows, or a folder"
    known = ", ".join(short_names())
    add("--model", metavar="M", default="smollm2", help=f"{known}; {text} (default: smollm2)")
    text = (
        "how it trains: hold (rows repeated among general rows that hold the base model by KL), "
        f"mix (the same, general rows teach), paper, sft (default: {DEFAULT}); hold and mix come "
        "with the SFT baseline"
    )
    add("--method", choices=METHODS, default=DEFAULT, help=text)
    add("--metric", choices=METRICS, help="how answers are scored (default: told by the rows)")
    add("--seed", metavar="S", type=int, default=42, help="of the split (default: 42)")
    add("--licence", metavar="TEXT", default="not stated", help="of the rows, for the card")
    for flag, metavar, text in _TEXTS:
        add(flag, metavar=metavar, help=text)
    for flag, text in _SWITCHES:
        add(flag, action="store_true", help=text)


_TEXTS = (
    ("--validation", "FILE", "validation rows"),
    ("--anchor", "TEXT|FILE", "the text in front of every query: what to do and in which form to "
     "answer; 'inline' when the rows begin with it already"),
    ("--amount", "A", "general data to mix in: 2000rows, 4e6tok, 40x"),
    ("--columns", "query=A,response=B", "columns, where the form is not known; 1,2 without a "
     "header"),
    ("--labels", "0=no,1=yes", "what labels are written as, where they are codes"),
    ("--model-type", "TYPE", "of a model that ms-swift cannot tell the type of"),
    ("--template", "NAME", "its chat template, where its type has several"),
    ("--languages", "FROM,TO", "languages of a translation: Icelandic,English"),
    ("--schema", "FILE", "JSON schema of the answers (default: from the rows)"),
    ("--label", "PROPERTY", "property of JSON answers with the label, or none"),
    ("--summary", "TEXT", "one line about the task, for the card"),
    ("--dir", "DIR", "folder of cards (default: the first of $TELL_CARDS, else datasets/)"),
    ("--recipes", "DIR", "folder of the recipe (default: recipes/)"),
)  # fmt: skip
_SWITCHES = (
    ("--last-turn", "of conversations, keep the last turn alone"),
    ("--drop-broken", "leave broken rows out, and list them"),
    ("--drop-overlap", "leave out training rows that are test rows"),
    ("--repair-json", "write answers that are Python's dicts and lists as JSON, and say which; NaN "
     "and a key that stands twice stay broken"),
    ("--clean-labels", "write labels that differ in blanks, case or Unicode form in one form"),
    ("--force", "overwrite the card and the recipe"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Read, show, write, prove: cards and recipes of an own task, or nothing where one fails."""
    roots = paths.card_roots()
    cards = paths.user_target(args.dir) if args.dir else (roots[1] if len(roots) > 1 else roots[0])
    recipes = paths.user_target(args.recipes) if args.recipes else paths.OWN_RECIPES
    check_name(args.name, cards, "NAME")
    task = read_task(args)
    folds = folds_of(task, args.folds, args.seed) if args.folds is not None else []
    pattern, assumed = recipe_of(args.model, args.model_type, args.template, task.metric)
    task.notes += assumed
    pattern = pattern.with_values(**({"system": task.system} if task.system else {}))
    kinds, parts = METHODS[args.method], (task, *folds)
    files = {
        part.name: [recipes / f"{recipe_name(pattern, part.name, kind)}.yaml" for kind in kinds]
        for part in parts
    }
    written = [path for group in files.values() for path in group]
    general = _general(args, pattern, len(task.of("train")))
    contents = {part.name: _files(part, args, general, pattern) for part in parts}
    if not args.force:
        contents = _beside(cards, contents, written, bool(args.general or args.amount))
    _show(task)
    export = make_known(cards)
    settings: dict[str, dict[str, Any]] = {}
    first: list[str] = [export] if export else []
    # each card changes as a whole, once all is known to be right, and the recipes come last: no old
    # one ever stands beside a new card
    with ExitStack() as recipes_last, ExitStack() as cards_first:
        for part in parts:
            check_name(part.name, cards, "NAME")
            staged = cards_first.enter_context(_staged(cards / part.name, contents[part.name]))
            rows = len(part.of("train"))
            if part not in folds[1:]:  # all folds train alike
                card = load_card(part.name, staged)
                settings, more = settings_for(args.method, card, rows, pattern, not args.amount)
                first += [line for line in more if line not in first]
            for kind, path in zip(kinds, files[part.name], strict=True):
                method = method_of(kind, part.name, rows, pattern, **settings[kind])
                file = recipes_last.enter_context(paths.atomic_path(path))
                file.write_text(own_recipe(pattern, path, method, export), "utf-8")
        for path in written:
            path.unlink(missing_ok=True)
    _print_next(task, folds, cards, files, first)
    return 0


def _general(args: argparse.Namespace, pattern: Recipe, task_rows: int) -> dict[str, Any]:
    """The general cards and the amount for the card: as asked, else the pattern's."""
    if args.amount:
        parse_amount(args.amount, task=False, where="--amount")
    usual = load_card(pattern.spec.card).general
    if usual is None:
        remedy = "name another recipe, or a model"
        raise UserError(f"{pattern.name} trains no task", where="--model", remedy=remedy)
    names, amount = pattern.spec.sources or usual.sources, str(usual.amount)
    if args.general is not None:
        names, amount = parse_names("+".join(args.general), where="--general"), f"{MOST_TIMES}x"
        for name in names:
            general_card(name, "--general")
    if amount.endswith("x") and (rows := there(names)) is not None:
        times = min(float(amount[:-1]), rows // task_rows)
        amount = f"{times:g}x" if times else "all"
    return {"from": list(names), "amount": args.amount or amount}


# ------------------------------------------------------------------------- what is said


def _show(task: Task) -> None:
    """Print three rows as the model will see them, and what was concluded."""
    rows = task.of("train")
    for number in sorted({0, len(rows) // 2, len(rows) - 1}):
        query = task.anchor + SEPARATOR + rows[number].query
        print(as_seen(str(number + 1), query, rows[number].response, CHARS_SHOWN // 2))
    print(*(f"note: {note}" for note in task.notes), sep="\n")


def _print_next(
    task: Task,
    folds: Sequence[Task],
    cards: Path,
    files: Mapping[str, Sequence[Path]],
    first: Sequence[str],
) -> None:
    """Say what was written, and the commands to type next, those that come `first` before all."""
    tested = f"{len(folds)} folds" if folds else count_of(len(task.of("test")), "test row")
    rows = count_of(len(task.of("train")), "training row")
    print(f"metric:  {task.metric}; {rows}, {tested}")
    print(*(f"card:    {paths.shown(cards / name)}" for name in files), sep="\n")
    print(
        *(f"recipe:  {paths.shown(path)}" for group in files.values() for path in group), sep="\n"
    )
    own = [paths.shown(path) for path in files[task.name]]
    against = " --against sft" if len(own) > 1 else ""
    question = "   # is it better than plain SFT?" if against else ""
    commands = [
        f"./run.sh check {shlex.join(own)}",
        *(f"./run.sh train {shlex.quote(path)}" for path in own),
        f"./run.sh eval {shlex.quote(own[0])}{against}{question}",
    ]
    if folds:
        # a fold's recipes are called as the task's own, with `_foldN` after its name
        stem = files[task.name][0].stem.removesuffix("_sft") + "_fold"
        at = shlex.quote(paths.shown(files[task.name][0].with_name(stem)))
        ends = ["_sft.yaml" if path.endswith("_sft.yaml") else ".yaml" for path in own]
        steps = [f"./run.sh train {at}${{fold}}{end}" for end in ends]
        steps.append(f"./run.sh eval {at}${{fold}}{ends[0]}{against}")
        numbers = " ".join(str(number) for number in range(1, len(folds) + 1))
        commands = [
            f"./run.sh check {at}*.yaml",
            f"for fold in {numbers}; do {' && '.join(steps)} || break; done",
            f"./run.sh compare --pool output/{stem}*/eval   # every row, in one table",
            f"./run.sh train {shlex.quote(own[0])}   # the adapter to use, of all rows",
        ]
    print("next:", *first, *commands, sep="\n  ")


# ------------------------------------------------------------------------- the card


def _files(
    task: Task, args: argparse.Namespace, general: Mapping[str, Any], pattern: Recipe
) -> dict[str, str]:
    """The text of each file of a task's card."""
    columns = {"query": "query", "response": "response"}
    if any(MARK in row.query for row in task.rows):
        columns["history"] = "history"
    splits = {split: rows for split in HELD_OUT if (rows := task.of(split))}
    card = {
        "name": task.name,
        "kind": "task",
        "summary": args.summary or f"Own task, {len(splits['train'])} training rows.",
        "licence": args.licence,
        "source": ", ".join(Path(f).name for f in (args.train, args.validation, args.test) if f),
        "columns": columns,
        "splits": {s: {"file": f"{s}.jsonl", "rows": len(rows)} for s, rows in splits.items()},
        "anchor": "anchor.txt",
        "general": general,
        "metric": task.metric,
        **task.card_keys,
        "max_new_tokens": _max_new_tokens(splits["train"], str(pattern.get("model"))),
    }
    schema = {} if task.schema is None else {SCHEMA_FILE: json_text(task.schema)}
    written = {
        f"{split}.jsonl": "".join(json_lines(row_of(r.query, r.response) for r in rows))
        for split, rows in splits.items()
    }
    return {_CARD: card_text(card), "anchor.txt": task.anchor + "\n", **schema, **written}


def _max_new_tokens(rows: Sequence[Row], model: str) -> int:
    """Room for the longest training answer and a third more, in steps of 32.

    Counted with the model's own tokenizer, else Llama-2's, else taken to be two bytes a token, so
    that none is cut.
    """
    path = tokenizer_file()
    counter = own_tokenizer(model) or (TokenCounter(path) if path else None)
    responses = [row.response for row in rows]
    longest = max(len(text.encode()) for text in responses) // 2
    if counter is not None:
        longest = int(counter.count(responses).max())
    return max(64, -(-(longest * 4 // 3 + 16) // 32) * 32)


def _beside(cards: Path, contents: Contents, recipes: Sequence[Path], general: bool) -> Contents:
    """What is to be written where nothing may be overwritten: of a card of the same task, which
    was made for another model, nothing.

    `general` tells that the user names the general data, which is then to be the card's too.
    Raises UserError for another card of the name, and for recipes that are there.
    """
    same = [name for name, files in contents.items() if _is_there(cards / name, files, general)]
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


def _is_there(folder: Path, files: Mapping[str, str], general: bool) -> bool:
    """Whether the folder holds these files, but for what a card says of model and origin."""
    free = f"(summary|licence|source|max_new_tokens{'' if general else '|general'}):.*\n(  .*\n)*"
    try:
        there = {name: (folder / name).read_text(encoding="utf-8") for name in files}
    except (OSError, UnicodeDecodeError):
        return False
    old, new = (re.sub(f"(?m)^{free}", "", each.pop(_CARD)) for each in (there, {**files}))
    return old == new and there.items() <= files.items()


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
