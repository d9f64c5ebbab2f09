"""The verb `data`: download, rebuild, list, show and compare data sets."""

from __future__ import annotations

import argparse
import importlib
from types import ModuleType

from tell_plugins.bridge.embedded_model import prepare_model
from tell_plugins.core import paths
from tell_plugins.core.cards import card_names, load_card
from tell_plugins.core.errors import MachineError, UserError, at_least, raise_all, unknown
from tell_plugins.preparation import card_files, llama2_tokenizer
from tell_plugins.preparation.download import Places, Unreachable

ACTIONS = {
    "list": ("listing", "what is here, whether it is the right file, licence and origin"),
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
        print(f"  smollm2: is ready: {paths.shown(prepare_model())}")
    else:
        state = card_files.make_ready(load_card(name), split, places)
        return state.usable or split not in card_files.NEEDED
    return True
