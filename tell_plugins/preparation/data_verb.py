"""The verb `data`: download, rebuild, list, show and compare data sets."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, card_names, load_card
from tell_plugins.core.errors import MachineError, UserError, raise_all, unknown

if TYPE_CHECKING:
    from tell_plugins.preparation.card_files import Options

ACTIONS = {
    "list": ("listing", "what is here, whether it is the right file, licence and origin"),
    "show": ("showing", "statistics, a histogram and three rows of one data set"),
    "overlap": ("overlap", "general rows that are, or nearly are, a task's test queries"),
    "selfgen": ("selfgen", "general data written by the model itself"),
}
OTHERS = {
    "llama2_tokenizer": "the paper's token counter",
    "smollm2": "the embedded model SmolLM2-135M-Instruct",
}
HALU = (
    "halu_cot_json",
    "halu_cot_json_rebuilt",
    "halu_cot_json_spans",
    "halu_cot_json_tuning",
)
NEWS = ("en_is_news", "is_en_news")
Parser = Callable[..., argparse.ArgumentParser]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take every word; what they mean depends on the first one."""
    parser.usage = "./run.sh data NAME... [options]   or   ./run.sh data ACTION [options]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = _description()
    parser.add_argument("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(takes_flags=True, parser_class=type(parser))


def _description() -> str:
    lines = ["Make data sets ready, verified, in the first folder of $TELL_DATA_HOME.", ""]
    lines.append("actions (`./run.sh data ACTION --help` explains one):")
    lines += [f"  {name:18}{text}" for name, (_, text) in ACTIONS.items()]
    lines += ["", "names (`./run.sh data NAME --help` lists its options):"]
    lines += [f"  {name:18}{text}" for name, text in OTHERS.items()]
    lines += [f"  {name}" for name in card_names()]
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Do what the first word says. Exit code 1 when something that was asked for is missing."""
    if args.flags:
        raise UserError(
            f"option '{args.flags[0]}' stands before the name",
            where="./run.sh data",
            allowed="./run.sh data NAME... [options]",
            remedy="put the name first",
        )
    return _run_words(args.parser_class, args.words or ["list"])


def _run_words(parser_class: Parser, words: list[str]) -> int:
    first, rest = words[0], words[1:]
    known = [*ACTIONS, *OTHERS, *card_names()]
    if first not in known:
        raise unknown("name", first, known, "./run.sh data")
    if first in ACTIONS:
        module = _module(ACTIONS[first][0])
        parser = parser_class(
            prog=f"./run.sh data {first}", description=ACTIONS[first][1], allow_abbrev=False
        )
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(rest)))
    return _prepare(parser_class, first, rest)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"tell_plugins.preparation.{name}")


def _prepare(parser_class: Parser, first: str, rest: list[str]) -> int:
    parser = parser_class(
        prog=f"./run.sh data {first}",
        description=_about(first),
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="further cards or names")
    _add_place_arguments(parser)
    if first in HALU:
        _module("halu_cot_json").add_arguments(parser)
    elif first in NEWS:
        _module("is_en_news").add_arguments(parser)
    args = parser.parse_args(rest)
    args.names, args.parser_class = [first, *args.names], parser_class
    for name in args.names:
        if name not in OTHERS and name not in card_names():
            raise unknown("name", name, [*OTHERS, *card_names()], "./run.sh data")
    rebuild = getattr(args, "rebuild", False)
    tmx = getattr(args, "tmx", None)
    if rebuild or tmx:
        return _rebuild(args, first)
    return _all_ready(args)


def _about(name: str) -> str:
    return OTHERS.get(name) or load_card(name).summary


def _add_place_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where from")
    place = group.add_mutually_exclusive_group()
    place.add_argument("--mirror", metavar="URL", help="an address that has the files by name")
    place.add_argument(
        "--from", dest="folder", metavar="DIR", help="a folder on this machine, searched for them"
    )
    group.add_argument(
        "--hub",
        choices=("modelscope", "huggingface"),
        help="the hub for data that lies on one (modelscope)",
    )
    group.add_argument(
        "--accept",
        action="store_true",
        help="take rows that differ from what the card says; the file is marked so",
    )
    group.add_argument(
        "--wait", type=float, default=60, metavar="S", help="seconds to wait for a byte (60)"
    )
    group.add_argument(
        "--tries", type=int, default=5, metavar="N", help="how often a file is asked for (5)"
    )


def _rebuild(args: argparse.Namespace, first: str) -> int:
    if len(args.names) > 1:
        raise UserError(
            "one data set is rebuilt at a time", where="./run.sh data", remedy="name one"
        )
    if first in HALU:
        return int(_module("halu_cot_json").rebuild(args, _options(args).places))
    card = load_card(first)
    code = 0
    if args.rebuild:
        code = _module("is_en_news").rebuild(card, args, _options(args).places)
    if args.tmx:
        code = code or _module("translation_memory").build(card, paths.user_path(args.tmx))
    return int(code)


def _options(args: argparse.Namespace) -> Options:
    from tell_plugins.preparation.card_files import Options
    from tell_plugins.preparation.download import Places
    from tell_plugins.preparation.transfer import Patience

    if args.wait <= 0 or args.tries < 1:
        raise UserError(
            f"{args.wait:g} s, {args.tries} tries",
            where="--wait, --tries",
            allowed="more than 0 s, at least 1 try",
            remedy="leave them out for 60 s and the usual tries",
        )
    folder = paths.user_path(args.folder) if args.folder else None
    places = Places(args.mirror, folder, Patience(timeout=args.wait, tries=args.tries))
    return Options(partial(_run_words, args.parser_class), places, args.hub, args.accept)


def _all_ready(args: argparse.Namespace) -> int:
    """Make everything named ready. What fails is told at the end, after all the others."""
    from tell_plugins.preparation.transfer import Unreachable

    options = _options(args)
    failed: list[UserError | MachineError] = []
    complete = True
    for name in args.names:
        print(name)
        for job in _jobs(name, options):
            try:
                complete &= job()
            except (UserError, MachineError) as error:
                failed.append(error)
                if isinstance(error, Unreachable):  # so are the card's other files
                    break
    _raise(failed)
    return 0 if complete else 1


def _jobs(name: str, options: Options) -> list[Callable[[], bool]]:
    """What makes `name` ready; each job says whether it left nothing to do for the user."""
    if name == "llama2_tokenizer":
        module = _module("llama2_tokenizer")
        return [lambda: bool(module.prepare(options.places, options.hub))]
    if name == "smollm2":
        return [_model_ready]
    card = load_card(name)
    # what is downloaded comes first: a build may need it
    splits = sorted(card.splits, key=lambda split: card.split(split).build is not None)
    return [partial(_split_ready, card, split, options) for split in splits]


def _split_ready(card: Card, split: str, options: Options) -> bool:
    from tell_plugins.preparation.card_files import NEEDED, make_ready

    return make_ready(card, split, options).usable or split not in NEEDED


def _model_ready() -> bool:
    from tell_plugins.bridge.embedded_model import prepare_model

    folder = prepare_model()
    print(f"  smollm2: is ready: {paths.shown(folder)}")
    return True


def _raise(failed: list[UserError | MachineError]) -> None:
    """Raise what failed as one message; a fault of the machine decides the exit code."""
    if any(isinstance(error, MachineError) for error in failed):
        raise MachineError("\n".join(str(error) for error in failed)) from failed[0]
    raise_all([error for error in failed if isinstance(error, UserError)])
