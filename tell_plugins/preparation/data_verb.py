"""The verb `data`: download, rebuild, list, show and compare data sets."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType

from tqdm import tqdm

from tell_plugins.bridge import embedded_model
from tell_plugins.core import paths
from tell_plugins.core.cards import Card, card_names, load_card
from tell_plugins.core.errors import (
    MachineError,
    Problems,
    UserError,
    at_least,
    raise_all,
    unknown,
)
from tell_plugins.core.shown import table
from tell_plugins.core.tokens import tokenizer_file
from tell_plugins.preparation import card_files, download, llama2_tokenizer
from tell_plugins.preparation.download import Places, Unreachable

ACTIONS = {
    "list": ("", "what is here, whether it is the right file, licence and origin"),
    "show": ("showing", "statistics and three rows of one data set"),
    "overlap": ("overlap", "general rows that are, or nearly are, a task's test queries"),
    "selfgen": ("selfgen", "general data written by the model itself"),
}
OTHERS = {
    "llama2_tokenizer": "the paper's token counter",
    "smollm2": "the embedded model SmolLM2-135M-Instruct",
}
_HALU = ("halu_cot_json", "halu_cot_json_rebuilt", "halu_cot_json_spans", "halu_cot_json_tuning")
# names with a `--rebuild` of their own, and the module that has it
REBUILT = {**dict.fromkeys(_HALU, "halu"), **dict.fromkeys(("en_is_news", "is_en_news"), "news")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take every word; what they mean depends on the first one."""
    parser.usage = "./run.sh data NAME... [options]   or   ./run.sh data ACTION [options]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "\n".join(
        [
            "Make data sets ready, verified, in the first folder of $TELL_DATA_HOME.",
            "\nactions (`./run.sh data ACTION --help` explains one):",
            *(f"  {name:18}{text}" for name, (_, text) in ACTIONS.items()),
            "\nnames (`./run.sh data NAME --help` lists its options):",
            *(f"  {name:18}{text}" for name, text in OTHERS.items()),
            *(f"  {name}" for name in card_names()),
        ]
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(takes_flags=True, parser_class=type(parser))


def run(args: argparse.Namespace) -> int:
    """Do what the first word says. Exit code 1 when something that was asked for is missing."""
    if args.flags:
        raise UserError(
            f"option '{args.flags[0]}' stands before the name",
            where="./run.sh data",
            allowed="./run.sh data NAME... [options]",
            remedy="put the name first",
        )
    first, *rest = args.words or ["list"]
    _check_names([first], ACTIONS)
    about = ACTIONS[first][1] if first in ACTIONS else OTHERS.get(first) or load_card(first).summary
    parser = args.parser_class(prog=f"./run.sh data {first}", description=about, allow_abbrev=False)
    if first == "list":
        parser.add_argument("names", nargs="*", metavar="NAME", help="cards (default: all)")
        return _list(parser.parse_args(rest).names)
    if first in ACTIONS:
        module = _module(ACTIONS[first][0])
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(rest)))
    _add_place_arguments(parser)
    if first in REBUILT:
        _module(REBUILT[first]).add_arguments(parser)
    given = parser.parse_args(rest)
    names = [first, *given.names]
    _check_names(names)
    folder = paths.user_path(given.folder) if given.folder else None
    places = Places(given.mirror, folder, given.hub, given.accept, given.wait, given.tries)
    if not (getattr(given, "rebuild", False) or getattr(given, "tmx", None)):
        return _all_ready(names, places)
    if len(names) > 1:
        found, remedy = "one data set is rebuilt at a time", "name one"
        raise UserError(found, where="./run.sh data", remedy=remedy)
    return int(_module(REBUILT[first]).rebuild(first, given, places))


def _check_names(names: list[str], more: dict[str, tuple[str, str]] | None = None) -> None:
    known = [*(more or ()), *OTHERS, *card_names()]
    for name in names:
        if name not in known:
            raise unknown("name", name, known, "./run.sh data")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"tell_plugins.preparation.{name}")


def _add_place_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="further cards or names")
    group = parser.add_argument_group("where from")
    add = group.add_argument
    place = group.add_mutually_exclusive_group()
    place.add_argument("--mirror", metavar="URL", help="an address that has the files by name")
    text = "a folder on this machine, searched for them"
    place.add_argument("--from", dest="folder", metavar="DIR", help=text)
    text = "the hub for data that lies on one (modelscope)"
    add("--hub", choices=("modelscope", "huggingface"), help=text)
    text = "take rows that differ from what the card says; the file is marked so"
    add("--accept", action="store_true", help=text)
    text = "seconds to wait for a byte (60)"
    add("--wait", type=at_least(1), default=60, metavar="S", help=text)
    text = "how often a file is asked for (5)"
    add("--tries", type=at_least(1), default=5, metavar="N", help=text)


def _all_ready(names: list[str], places: Places) -> int:
    """Make everything named ready. What fails is told at the end, after all the others; a fault of
    the machine then decides the exit code."""
    failed: list[UserError | MachineError] = []
    complete = True
    for name, splits in {name: _splits(name) for name in names}.items():
        print(name)
        for split in splits:
            try:
                complete &= _is_ready(name, split, places)
            except (UserError, MachineError) as error:
                failed.append(error)
                if isinstance(error, Unreachable):  # so are the card's other files
                    break
    if any(isinstance(error, MachineError) for error in failed):
        raise MachineError("\n".join(str(error) for error in failed)) from failed[0]
    raise_all([error for error in failed if isinstance(error, UserError)])
    return 0 if complete else 1


def _splits(name: str) -> list[str]:
    """What of a name is made ready one by one; of a card, its splits."""
    if name in OTHERS:
        return [""]
    splits = load_card(name).splits
    # what is downloaded comes first: a build may need it
    return sorted(splits, key=lambda split: splits[split].build is not None)


def _is_ready(name: str, split: str, places: Places) -> bool:
    """Make a file ready; whether nothing is left to do for the user."""
    if name == "llama2_tokenizer":
        llama2_tokenizer.prepare(places)
    elif name == "smollm2":
        print(f"  smollm2: is ready: {paths.shown(embedded_model.prepare_model())}")
    else:
        state = card_files.make_ready(load_card(name), split, places)
        return state.usable or split not in card_files.NEEDED
    return True


# --- list


def _list(names: Sequence[str]) -> int:
    """Print what is here, of these cards or of all; 0, or 1 when a file or a card is wrong."""
    lines: list[tuple[str, ...]] = []
    notes: list[str] = []
    problems = Problems()  # of one card, which does not hide the others
    for name in names or card_names():
        with problems:
            card = load_card(name)
            notes.append(f"  {name}: {card.licence}")
            notes += [f"    {text}" for text in (card.summary, card.source) if names]
            for split in card.splits:
                state = card_files.state_of(card, split)
                lines.append(_line(card, split, state))
                if state.path is not None:
                    came = (download.read_record(state.path) or {}).get("origin", "")
                    notes.append(f"    {split}: {paths.shown(state.path)}{came and f', {came}'}")
    if names and not lines:
        raise_all(problems)
    print(
        table(
            ("card", "split", "size", "rows", "state", "why"),
            lines,
            indent="",
            right=("size", "rows"),
        )
    )
    print("\nlicences and files:", *notes, sep="\n")
    if not names:
        print("", *_no_cards(), sep="\n")
    for problem in problems:
        print(f"\n{problem}")
    return 1 if problems or {"wrong", "changed"} & {line[4] for line in lines} else 0


def _no_cards() -> list[str]:
    """What is no card: the tokenizer, the embedded model, the folders."""
    tokenizer = tokenizer_file()
    here = "llama2_tokenizer: missing"
    if tokenizer:
        problem = llama2_tokenizer.problem(tokenizer)
        what = f": not the paper's, {problem}" if problem else ", verified as Llama-2's"
        here = f"tokens are counted with {tokenizer}{what}"
    model = embedded_model.model_dir()
    ready = paths.shown(model) if embedded_model.is_ready() else "missing"
    homes = ", ".join(str(home) for home in paths.data_homes())
    return [here, f"smollm2: {ready}", f"data homes, first to last: {homes}"]


def _line(card: Card, split: str, state: card_files.State) -> tuple[str, ...]:
    spec, path = card.split(split), state.path
    if path is None:
        expected = f"({spec.rows:,})" if spec.rows else ""
        how = spec.build or f"./run.sh data {card.name}"
        return (card.name, split, "", expected, state.verdict, how)
    shown = ""
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            rows = sum(1 for line in file if line.strip())
        shown = f"{rows:,}" + (f" of {spec.rows:,}" if spec.rows not in (None, rows) else "")
    size = tqdm.format_sizeof(path.stat().st_size, "B")
    return (card.name, split, size, shown, state.verdict, state.why)
