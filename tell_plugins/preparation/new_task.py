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

import yaml

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture, general_card
from tell_plugins.core.row_files import FORMATS
from tell_plugins.core.sources import find_file, open_split
from tell_plugins.core.spec import parse_amount, parse_names, parse_spec
from tell_plugins.core.state_files import json_lines, json_text
from tell_plugins.core.text import row_of
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.answers import METRICS
from tell_plugins.preparation.card_files import check_name, make_known
from tell_plugins.preparation.method import (
    DEFAULT,
    METHODS,
    Method,
    among,
    as_the_paper,
    general_rows_for,
    plain_sft,
    repeat_of,
)
from tell_plugins.preparation.own_task import (
    FEW_TEST_ROWS,
    SPLITS,
    Task,
    folds_of,
    read_task,
    shows_little,
)
from tell_plugins.preparation.showing import CHARS_SHOWN, as_seen
from tell_plugins.preparation.task_recipe import (
    any_model,
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
    add("--test-rows", metavar="N", type=int, help="rows to split off (default: 20 %%, up to 200)")
    text = "for few rows: K cards and their recipes more, in which each row tests once"
    add("--folds", metavar="K", type=int, help=text)
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
    pattern = _pattern(args, task)
    variants = METHODS[args.method]
    parts = (task, *folds)
    files = {
        part.name: [recipes / f"{recipe_name(pattern, part.name, v)}.yaml" for v in variants]
        for part in parts
    }
    written = [path for group in files.values() for path in group]
    sources, amount = _general(args, pattern, len(task.train))
    contents = {
        part.name: _files(_card(part, args, sources, amount, pattern), part) for part in parts
    }
    if not args.force:
        contents = _beside(cards, contents, written, bool(args.general or args.amount))
    for number in sorted({0, len(task.train) // 2, len(task.train) - 1}):
        pair = task.train[number]
        print(as_seen(str(number + 1), task.seen(pair), pair.response, CHARS_SHOWN // 2))
    print(*(f"note: {note}" for note in task.notes), sep="\n")
    export = make_known(cards)
    downloads: dict[str, None] = {}
    # each card changes as a whole, once all is known to be right, and the recipes come last: no old
    # one ever stands beside a new card
    with ExitStack() as recipes_last, ExitStack() as cards_first:
        methods: list[Method] = []
        for part in parts:
            check_name(part.name, cards, "NAME")
            staged = cards_first.enter_context(_staged(cards / part.name, contents[part.name]))
            if part not in folds[1:]:  # all folds train alike
                card = load_card(part.name, staged)
                methods, missing = _methods(args, part, pattern, card)
                downloads |= dict.fromkeys(missing)
            for method, path in zip(methods, files[part.name], strict=True):
                filled = method.of(part.name, len(part.train))
                file = recipes_last.enter_context(paths.atomic_path(path))
                file.write_text(own_recipe(pattern, path, filled, export, part.system), "utf-8")
        for path in written:
            path.unlink(missing_ok=True)
    _print_next(task, folds, cards, files, export, downloads)
    return 0


def _print_next(
    task: Task,
    folds: Sequence[Task],
    cards: Path,
    files: Mapping[str, Sequence[Path]],
    export: str | None,
    downloads: Mapping[str, None],
) -> None:
    """Say what was written, and the commands to type next."""
    tested = f"{len(folds)} folds" if folds else count_of(len(task.test), "test row")
    print(f"metric:  {task.metric}; {count_of(len(task.train), 'training row')}, {tested}")
    for name in files:
        print(f"card:    {paths.shown(cards / name)}")
    for path in (path for group in files.values() for path in group):
        print(f"recipe:  {paths.shown(path)}")
    own = [shlex.quote(paths.shown(path)) for path in files[task.name]]
    if folds:
        commands = _fold_commands(own, files[folds[0].name], len(folds))
    else:
        commands = [f"./run.sh check {' '.join(own)}", *(f"./run.sh train {path}" for path in own)]
        against = " --against sft   # is it better than plain SFT?" if len(own) > 1 else ""
        commands.append(f"./run.sh eval {own[0]}{against}")
    if task.split_off and len(task.test) < FEW_TEST_ROWS:
        few = shows_little(len(task.test))
        commands.append(f"# {few}: the same `new` with --folds 5 --force tests on every row once")
    print("next:", *([export] if export else []), *downloads, *commands, sep="\n  ")


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


def _pattern(args: argparse.Namespace, task: Task) -> Recipe:
    """The recipe to start from; what was assumed of a model without one joins the notes."""
    named = args.model in short_names() or args.model.endswith((".yaml", ".yml"))
    if named and not (args.model_type or args.template):
        return pattern_for(args.model, task.metric)
    recipe, assumed = any_model(args.model, args.model_type, args.template)
    task.notes.append(assumed)
    return recipe


# ------------------------------------------------------------------------- general data, method


def _general(
    args: argparse.Namespace, pattern: Recipe, task_rows: int
) -> tuple[tuple[str, ...], str]:
    """The general cards and the amount for the card: as asked, else the pattern's."""
    if args.amount:
        parse_amount(args.amount, task=False, where="--amount")
    names, amount = general_of(pattern)
    if args.general is not None:
        names, amount = parse_names("+".join(args.general), where="--general"), f"{MOST_TIMES}x"
        for name in names:
            general_card(name, "--general")
    if amount.endswith("x") and (rows := _there(names)) is not None:
        times = min(float(amount[:-1]), rows // task_rows)
        amount = f"{times:g}x" if times else "all"
    return names, args.amount or amount


def _there(names: Sequence[str]) -> int | None:
    """The general rows to be had, in equal parts; some may be dropped. None where unknown."""
    sizes = []
    for name in names:
        card = load_card(name)
        here = find_file(card, "train")
        sizes.append(len(open_split(card, "train")) if here else card.split("train").rows or 0)
    return int(0.95 * min(sizes) * len(names)) or None


def _methods(
    args: argparse.Namespace, task: Task, pattern: Recipe, card: Card
) -> tuple[list[Method], list[str]]:
    """The method of each variant, proven by a mixture, and the downloads that it needs first."""
    rows = len(task.train)
    assert card.general is not None  # `_card` wrote it
    fields = _has_fields(card)
    wanted = general_rows_for(rows, fields=fields)
    held = min(wanted, _there(card.general.sources) or wanted)
    general = None if args.amount else f"{held}rows"
    repeat = repeat_of(rows, fields=fields)
    main = as_the_paper()
    if args.method != "paper":
        main = among(repeat, general, pattern, hold=args.method != "mix")
    total: int | None = None
    missing: list[str] = []
    if args.method != "sft":
        total, missing = _mixture(main.of(task.name, rows).dataset, card)
    sft = plain_sft(rows, total or rows * repeat + wanted, pattern)
    return [sft if variant else main for variant in METHODS[args.method]], missing


def _has_fields(card: Card) -> bool:
    """Whether an answer is a JSON object of which no property alone is the answer."""
    return card.metric == "json" and not (card.answer and card.answer.label)


def _mixture(dataset: str, card: Card) -> tuple[int | None, list[str]]:
    """The rows of the mixture that the recipe asks for, or None and the downloads that it needs.

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
    return len(mixture), []


# ------------------------------------------------------------------------- the card


def _card(
    task: Task, args: argparse.Namespace, sources: Sequence[str], amount: str, pattern: Recipe
) -> dict[str, Any]:
    given = (getattr(args, name) for name in SPLITS)
    card: dict[str, Any] = {
        "name": task.name,
        "kind": "task",
        "summary": args.summary or f"Own task, {len(task.train)} training rows.",
        "licence": args.licence,
        "source": ", ".join(Path(file).name for file in given if file),
        "columns": {"query": "query", "response": "response"}
        | ({"history": "history"} if task.has_turns else {}),
        "splits": {
            name: {"file": f"{name}.jsonl", "rows": len(task.parts[name])}
            for name in SPLITS
            if name in task.parts
        },
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
    files[_CARD] = yaml.safe_dump(
        card, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None
    )
    return files


def _beside(
    cards: Path, contents: dict[str, dict[str, str]], recipes: Sequence[Path], general: bool
) -> dict[str, dict[str, str]]:
    """What is to be written where nothing may be overwritten: of a card of the same task, which
    was made for another model, no more than a longer answer.

    `general` tells that the user names the general data, which is then to be the card's too.
    Raises UserError for another card of the name, and for recipes that are there.
    """
    kept: dict[str, dict[str, str]] = {}
    there = [path for path in recipes if path.exists()]
    for name, files in contents.items():
        folder = cards / name
        same = _same_card(folder, files, general) if folder.exists() else files
        if same is None:
            there.insert(0, folder)
        else:
            kept[name] = same
    if there:
        raise UserError(
            f"{' and '.join(paths.shown(path) for path in there)} would be overwritten",
            where=next(iter(contents)),
            allowed="a new name; or the same rows, anchor and answers with another --model, whose "
            "recipe then stands beside the first",
            remedy="choose another name, or add --force",
        )
    return kept


def _same_card(folder: Path, files: dict[str, str], general: bool) -> dict[str, str] | None:
    """What has to change in a card that is of the same task; None where it is of another."""
    try:
        before = {name: (folder / name).read_text(encoding="utf-8") for name in files}
        old = yaml.safe_load(before[_CARD])
        new = yaml.safe_load(files[_CARD])
        tokens = [int(card.pop("max_new_tokens")) for card in (old, new)]
    except (OSError, ValueError, AttributeError, KeyError, yaml.YAMLError):
        return None
    for key in ("summary", "licence", "source", *(() if general else ("general",))):
        new[key] = old.get(key)
    if new != old or any(before[name] != text for name, text in files.items() if name != _CARD):
        return None
    longer = re.sub(r"(?m)^(max_new_tokens: ).*", rf"\g<1>{max(tokens)}", before[_CARD])
    return {_CARD: longer}


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
