"""`new`: a card, an anchor and a recipe from a file of rows, for a task of one's own."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import json_lines, json_text
from tell_plugins.core.mixture import Mixture, build_mixture, general_card
from tell_plugins.core.rowfiles import FORMATS
from tell_plugins.core.sources import find_file, open_split
from tell_plugins.core.spec import parse_amount, parse_names, parse_spec
from tell_plugins.core.text import row_of, turns_of
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.answer_kind import METRICS
from tell_plugins.preparation.any_model import any_model
from tell_plugins.preparation.known_cards import check_name, make_known
from tell_plugins.preparation.method import (
    DEFAULT,
    METHODS,
    Method,
    among,
    entries,
    general_rows,
    paper,
    plain_sft,
)
from tell_plugins.preparation.own_task import SPLITS, Task, folds_of, read_task
from tell_plugins.preparation.task_recipe import (
    general_of,
    header,
    pattern_for,
    recipe_name,
    recipe_text,
    short_names,
)
from tell_plugins.recipe.lengths import own_tokenizer
from tell_plugins.recipe.recipes import Recipe

MOST_TIMES = 40  # general rows a task row where the user names the general data
_SHOWN_CHARS = 700
_LETTER = re.compile("[A-Za-z ]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `new`."""
    parser.epilog = (
        "example: ./run.sh new tickets --train tickets.csv --columns query=text,response=verdict "
        "--anchor 'Is the ticket urgent? Answer yes or no.' --model smollm2"
    )
    add = parser.add_argument
    add("name", metavar="NAME", help="name of the task: letters, digits, _")
    add("--train", metavar="FILE", required=True, help=", ".join(FORMATS))
    add("--test", metavar="FILE", help="test rows (default: a part of the training rows)")
    add("--validation", metavar="FILE", help="validation rows")
    add(
        "--anchor",
        metavar="TEXT|FILE",
        help="the text in front of every query: what to do and in which form to answer; 'inline' "
        "when the rows begin with it already",
    )
    add(
        "--general",
        metavar="NAME[+NAME]",
        nargs="+",
        help="general cards (default: the model's)",
    )
    add("--amount", metavar="A", help="general data to mix in: 2000rows, 4e6tok, 40x")
    add(
        "--columns",
        metavar="query=A,response=B",
        help="columns, where the form is not known; 1,2 without a header",
    )
    add("--labels", metavar="0=no,1=yes", help="what labels are written as, where they are codes")
    add(
        "--system",
        choices=("anchor", "keep"),
        help="a system prompt of the rows becomes the "
        "anchor (default), or stays the system prompt, in the recipe",
    )
    add("--last-turn", action="store_true", help="of conversations, keep the last turn alone")
    add("--drop-broken", action="store_true", help="leave broken rows out, and list them")
    add(
        "--repair-json",
        action="store_true",
        help="write answers that are Python's dicts and lists as JSON, and say which; NaN and a "
        "key that stands twice stay broken",
    )
    add(
        "--model",
        metavar="M",
        default="qwen",
        help="qwen, llama2, gemma, smollm2; a recipe to start from; or any model: an id that "
        "ms-swift knows, or a folder (default: qwen)",
    )
    add("--model-type", metavar="TYPE", help="of a model that ms-swift cannot tell the type of")
    add("--template", metavar="NAME", help="its chat template, where its type has several")
    add(
        "--method",
        choices=METHODS,
        default=DEFAULT,
        help="how it trains: hold (rows repeated among general rows that hold the base model by "
        f"KL), mix (the same, general rows teach), paper, sft (default: {DEFAULT}); hold and mix "
        "come with the SFT baseline",
    )
    add("--metric", choices=METRICS, help="how answers are scored (default: told by the rows)")
    add("--languages", metavar="FROM,TO", help="languages of a translation: Icelandic,English")
    add("--schema", metavar="FILE", help="JSON schema of the answers (default: from the rows)")
    add("--label", metavar="PROPERTY", help="property of JSON answers with the label, or none")
    add(
        "--clean-labels",
        action="store_true",
        help="write labels that differ in blanks, case or Unicode form in one form",
    )
    add("--test-rows", metavar="N", type=int, help="rows to split off (default: 20 %%, up to 200)")
    add(
        "--folds",
        metavar="K",
        type=int,
        help="for few rows: K cards and their recipes more, in which each row tests once",
    )
    add("--seed", metavar="S", type=int, default=42, help="of the split (default: 42)")
    add("--drop-overlap", action="store_true", help="leave out training rows that are test rows")
    add("--summary", metavar="TEXT", help="one line about the task, for the card")
    add("--licence", metavar="TEXT", default="not stated", help="of the rows, for the card")
    add(
        "--dir",
        metavar="DIR",
        help="folder of cards (default: the first of $TELL_CARDS, else datasets/)",
    )
    add("--recipes", metavar="DIR", help="folder of the recipe (default: recipes/)")
    add("--force", action="store_true", help="overwrite the card and the recipe")


def run(args: argparse.Namespace) -> int:
    """Read, show, write, prove: cards and recipes of an own task, or nothing where one fails."""
    _check_texts(args)
    cards, recipes = _places(args)
    task = read_task(args)
    folds = folds_of(task, args.folds, args.seed) if args.folds is not None else []
    pattern = _pattern(args, task)
    files = {
        part.name: {
            variant: recipes / f"{recipe_name(pattern, part.name, variant)}.yaml"
            for variant in METHODS[args.method]
        }
        for part in (task, *folds)
    }
    folders = [cards / name for name in files]
    for folder in folders:
        check_name(folder.name, cards, "NAME")
        _restore(folder)
    written = [path for variants in files.values() for path in variants.values()]
    _refuse_overwriting(args, *folders, *written)
    print(_picture(task))
    for note in task.notes:
        print(f"note: {note}")
    export = make_known(cards)
    downloads = _write(args, pattern, (task, *folds), cards, files, export)
    tested = f"{len(folds)} folds" if folds else f"{len(task.test)} test rows"
    print(f"metric:  {task.metric}; {len(task.train)} training rows, {tested}")
    for folder in folders:
        print(f"card:    {paths.shown(folder)}")
    for path in written:
        print(f"recipe:  {paths.shown(path)}")
    own = list(files[task.name].values())
    front = recipes / f"{recipe_name(pattern, task.name)}_fold"
    commands = (
        _fold_commands(front, METHODS[args.method], len(folds), own[0]) if folds else _commands(own)
    )
    print("next:", *([export] if export else []), *downloads, *commands, sep="\n  ")
    return 0


def _write(
    args: argparse.Namespace,
    pattern: Recipe,
    tasks: Sequence[Task],
    cards: Path,
    files: Mapping[str, Mapping[str, Path]],
    export: str | None,
) -> list[str]:
    """Write cards and recipes of a task and its folds; returns the downloads that they need first.

    `files` are the recipes by task and variant. Each card changes as a whole, once all is known to
    be right, and the recipes come last: no old one ever stands beside a new card.
    """
    whole, *folds = tasks
    sources, amount = _general(args, pattern, len(whole.train))
    downloads: dict[str, None] = {}
    methods: dict[str, Method] = {}
    with ExitStack() as recipes_last, ExitStack() as cards_first:
        for part in tasks:
            content = _files(_card(part, args, sources, amount, pattern), part)
            staged = cards_first.enter_context(_staged(cards / part.name, content))
            if part in folds[1:]:  # all folds train alike
                used = {key: _of_fold(method, folds[0], part) for key, method in methods.items()}
            else:
                card = load_card(part.name, staged)
                methods, missing = _methods(args, part, pattern, sources, card)
                used, downloads = methods, downloads | dict.fromkeys(missing)
            for variant, path in files[part.name].items():
                lines = header(pattern, part.name, used[variant], path, export)
                text = recipe_text(pattern, path.stem, used[variant], lines, part.system)
                file = recipes_last.enter_context(paths.atomic_path(path))
                file.write_text(text, encoding="utf-8")
        for variants in files.values():
            for path in variants.values():
                path.unlink(missing_ok=True)
    return list(downloads)


def _pattern(args: argparse.Namespace, task: Task) -> Recipe:
    """The recipe to start from; what was assumed of a model without one joins the notes."""
    named = args.model in short_names() or args.model.endswith((".yaml", ".yml"))
    if named and not (args.model_type or args.template):
        return pattern_for(args.model, task.metric)
    recipe, assumed = any_model(args.model, args.model_type, args.template)
    task.notes.append(assumed)
    return recipe


def _methods(
    args: argparse.Namespace, task: Task, pattern: Recipe, sources: Sequence[str], card: Card
) -> tuple[dict[str, Method], list[str]]:
    """The method by variant, proven by a mixture, and the downloads that it needs first."""
    rows = len(task.train)
    general = None
    if not args.amount:
        there = _there(sources)
        general = f"{min(general_rows(rows), there or general_rows(rows))}rows"
    main = (
        paper(task.name, rows)
        if args.method == "paper"
        else among(task.name, rows, general, pattern, hold=args.method != "mix")
    )
    total = entries(rows)
    missing: list[str] = []
    if args.method != "sft":
        mixture, missing = _mixture(main.dataset, card)
        total = total if mixture is None else len(mixture)
    return {"": main, "sft": plain_sft(task.name, rows, total, pattern)}, missing


def _of_fold(method: Method, first: Task, fold: Task) -> Method:
    """The settings of the first fold for another."""

    def said(text: str) -> str:
        rows = f" {len(first.train)} rows"
        return text.replace(first.name, fold.name).replace(rows, f" {len(fold.train)} rows")

    return replace(
        method,
        dataset=said(method.dataset),
        title=said(method.title),
        why=tuple(map(said, method.why)),
    )


def _commands(recipes: Sequence[Path]) -> list[str]:
    """What to type next; two recipes are evaluated in one call, side by side."""
    shown = [shlex.quote(paths.shown(path)) for path in recipes]
    lines = [f"./run.sh check {' '.join(shown)}", *(f"./run.sh train {path}" for path in shown)]
    if len(recipes) == 1:
        return [*lines, f"./run.sh eval {shown[0]}"]
    return [*lines, f"./run.sh eval {shown[0]} --against sft   # is it better than plain SFT?"]


def _fold_commands(front: Path, variants: Sequence[str], folds: int, whole: Path) -> list[str]:
    """What to type next: a loop over the folds, whose recipes' names begin with `front`, one
    table of them all, and the training of the adapter to use on the whole task."""
    at = shlex.quote(paths.shown(front))
    recipes = [f"{at}${{fold}}{variant and f'_{variant}'}.yaml" for variant in variants]
    steps = [f"./run.sh train {recipe}" for recipe in recipes]
    steps.append(f"./run.sh eval {recipes[0]}{' --against sft' if len(recipes) > 1 else ''}")
    numbers = " ".join(str(number) for number in range(1, folds + 1))
    return [
        f"./run.sh check {at}*.yaml",
        f"for fold in {numbers}; do {' && '.join(steps)} || break; done",
        f"./run.sh compare --pool output/{front.name}*/eval   # every row, in one table",
        f"./run.sh train {shlex.quote(paths.shown(whole))}   # the adapter to use, of all rows",
    ]


def _check_texts(args: argparse.Namespace) -> None:
    """UserError for a text or a file name that a card cannot hold: empty, or not UTF-8."""
    for name, value in vars(args).items():
        if not isinstance(value, str):
            continue
        if value.encode("utf-8", "ignore").decode() != value:
            raise UserError(
                f"{value!r} is not UTF-8", where=f"--{name}", remedy="rename the file or retype it"
            )
        if name in ("summary", "licence") and not value.strip():
            raise UserError(
                "the text is empty", where=f"--{name}", remedy="write it, or leave it out"
            )


# ------------------------------------------------------------------------- places


def _places(args: argparse.Namespace) -> tuple[Path, Path]:
    """The folder of cards and the folder of recipes to write to."""
    roots = paths.card_roots()
    cards = paths.user_target(args.dir) if args.dir else (roots[1] if len(roots) > 1 else roots[0])
    check_name(args.name, cards, "NAME")
    recipes = paths.user_target(args.recipes) if args.recipes else paths.OWN_RECIPES
    return cards, recipes


def _refuse_overwriting(args: argparse.Namespace, *places: Path) -> None:
    there = [path for path in places if path.exists()]
    if there and not args.force:
        raise UserError(
            f"{' and '.join(paths.shown(path) for path in there)} would be overwritten",
            where=args.name,
            remedy="choose another name, or add --force",
        )


# ------------------------------------------------------------------------- writing


def _general(
    args: argparse.Namespace, pattern: Recipe, task_rows: int
) -> tuple[tuple[str, ...], str]:
    """The general cards and the amount for the card: as asked, else the pattern's."""
    if args.amount:
        parse_amount(args.amount, task=False, where="--amount")
    if args.general is None:
        sources, amount = general_of(pattern)
        if amount.endswith("x"):
            amount = _times(sources, task_rows, most=float(amount[:-1]))
        return sources, args.amount or amount
    names = parse_names("+".join(args.general), where="--general")
    for name in names:
        general_card(name, "--general")
    return names, args.amount or _times(names, task_rows)


def _times(names: Sequence[str], task_rows: int, most: float = MOST_TIMES) -> str:
    """As many times the task rows as the general data has, up to `most`."""
    rows = _there(names)
    if rows is None:
        return f"{most:g}x"
    there = int(rows / task_rows)
    return f"{min(most, there):g}x" if there else "all"


def _there(names: Sequence[str]) -> int | None:
    """The general rows to be had, in equal parts; some may be dropped. None where unknown."""
    sizes = []
    for name in names:
        card = load_card(name)
        here = find_file(card, "train")
        sizes.append(len(open_split(card, "train")) if here else card.split("train").rows or 0)
    return int(0.95 * min(sizes) * len(names)) or None


def _card(
    task: Task, args: argparse.Namespace, sources: Sequence[str], amount: str, pattern: Recipe
) -> dict[str, Any]:
    splits = {
        name: {"file": f"{name}.jsonl", "rows": len(task.parts[name])}
        for name in SPLITS
        if name in task.parts
    }
    card: dict[str, Any] = {
        "name": task.name,
        "kind": "task",
        "summary": args.summary or f"Own task, {len(task.train)} training rows.",
        "licence": args.licence,
        "source": ", ".join(
            Path(given).name for name in SPLITS if (given := getattr(args, name)) is not None
        ),
        "columns": {"query": "query", "response": "response"}
        | ({"history": "history"} if task.has_turns else {}),
        "splits": splits,
        "anchor": "inline" if task.inline else "anchor.txt",
        "general": {"from": list(sources), "amount": amount},
        "metric": task.metric,
    }
    if task.schema is not None:
        card["answer"] = {"schema": "answer.schema.json"}
        if task.label is not None:
            card["answer"]["label"] = task.label
    if task.labels is not None:
        card["answer"] = {"labels": task.labels}
    if task.languages is not None:
        card["translation"] = {"source": task.languages[0], "target": task.languages[1]}
    card["max_new_tokens"] = _max_new_tokens(task, str(pattern.get("model")))
    return card


def _max_new_tokens(task: Task, model: str) -> int:
    """Room for the longest training answer and a third more, in steps of 32.

    Counted with the model's own tokenizer, else Llama-2's, else guessed so that none is cut: two
    letters a token, and every other byte one.
    """
    path = tokenizer_file()
    counter = own_tokenizer(model) or (TokenCounter(path) if path else None)
    responses = [pair.response for pair in task.train]
    longest = (
        int(counter.count(responses).max())
        if counter is not None
        else max(len(text.encode()) - len(_LETTER.findall(text)) // 2 for text in responses)
    )
    return max(64, -(-(longest * 4 // 3 + 16) // 32) * 32)


def _files(card: dict[str, Any], task: Task) -> dict[str, str]:
    """The card's files by name."""
    files: dict[str, str] = {}
    for name, pairs in task.parts.items():
        rows = [row_of(pair.query, pair.response) for pair in pairs]
        files[f"{name}.jsonl"] = "".join(json_lines(rows))
    if not task.inline:
        files["anchor.txt"] = task.anchor + "\n"
    if task.schema is not None:
        files["answer.schema.json"] = json_text(task.schema)
    files["card.yaml"] = yaml.safe_dump(
        card, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None
    )
    return files


@contextmanager
def _staged(folder: Path, files: dict[str, str]) -> Iterator[Path]:
    """A card's new folder, hidden; it takes its place as a whole when the block ends well.

    Files that the user put into the old one stay.
    """
    before, cards_there = _hidden(folder), folder.parent.is_dir()
    try:
        with paths.atomic_dir(folder) as temporary:
            if folder.exists():
                shutil.copytree(folder, temporary, dirs_exist_ok=True)
            for name, text in files.items():
                (temporary / name).write_text(text, encoding="utf-8")
            yield temporary
            if folder.exists():
                os.replace(folder, before)
    except BaseException:
        _restore(folder)
        if not cards_there:
            with suppress(OSError):
                folder.parent.rmdir()
        raise
    _restore(folder)


def _hidden(folder: Path) -> Path:
    """Where a card lies while another takes its place, hidden from all lists."""
    return folder.with_name(f".{folder.name[:200]}.before")


def _restore(folder: Path) -> None:
    """Put back a card that was killed out of its place; remove it where the new one stands."""
    before = _hidden(folder)
    if folder.exists():
        shutil.rmtree(before, ignore_errors=True)
    elif before.is_dir():
        os.replace(before, folder)


def _picture(task: Task) -> str:
    """Three rows as the model will see them: the first, the middle and the last training row."""
    rows = task.train
    chosen = [rows[place] for place in sorted({0, len(rows) // 2, len(rows) - 1})]
    parts = []
    for number, pair in enumerate(chosen, 1):
        turns = [*turns_of(task.seen(pair)), pair.response]
        for turn, text in enumerate(turns):
            who = "assistant" if turn % 2 else "user"
            parts.append(f"--- row {number}, {who}\n{_cut(text)}")
    return "\n".join([*parts, "---"])


def _cut(text: str) -> str:
    if len(text) <= _SHOWN_CHARS:
        return text
    half = _SHOWN_CHARS // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _mixture(dataset: str, card: Card) -> tuple[Mixture | None, list[str]]:
    """The mixture that the recipe asks for, or None and the downloads that it needs first.

    Raises UserError when it cannot be built and no download would change that.
    """
    try:
        mixture = build_mixture(parse_spec(dataset), card)
    except UserError as error:
        downloads = re.findall(r"\./run\.sh data [\w.-]+", str(error))
        if not downloads:
            raise
        print(f"not ready to train yet: {error}")
        return None, downloads
    parts = ", ".join(f"{len(part.used)} rows of {part.card.name}" for part in mixture.sources)
    print(f"mixture: {parts}")
    return mixture, []
