"""`data list`: what is on this machine of every card, and whether it is the right file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tell_plugins.bridge import embedded_model
from tell_plugins.core import paths
from tell_plugins.core.cards import Card, card_names, load_card
from tell_plugins.core.errors import UserError, raise_all
from tell_plugins.core.tokens import tokenizer_file
from tell_plugins.preparation.card_files import State, state_of
from tell_plugins.preparation.llama2_tokenizer import Llama2Content
from tell_plugins.preparation.provenance import read_provenance
from tell_plugins.preparation.transfer import shown_url
from tell_plugins.recipe.tables import table

COUNTED = 256 << 20  # bytes; the rows of a larger file of unknown content are not counted
_HEAD = ("card", "split", "size", "rows", "state", "why")
_FILES = ("rebuilt_from", "aligned_files", "file", "member", "tmx")  # in a record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `data list`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="cards (default: all)")


def run(args: argparse.Namespace) -> int:
    """Print the table; 0, or 1 when a file or a card is wrong."""
    cards: dict[str, Card] = {}
    problems: list[UserError] = []
    for name in args.names or card_names():
        with _noted(problems):
            cards[name] = load_card(name)
    if args.names:
        raise_all(problems)
    states: dict[str, dict[str, State]] = {name: {} for name in cards}
    for name, card in cards.items():
        for split in card.splits:
            with _noted(problems):
                states[name][split] = state_of(card, split)
    lines = [
        _line(cards[name], split, state)
        for name, splits in states.items()
        for split, state in splits.items()
    ]
    print(table(_HEAD, lines, indent="", right=("size", "rows")))
    print("\nlicences and files:")
    for name, splits in states.items():
        print(_note(cards[name], splits, full=bool(args.names)))
    if not args.names:
        print("\n" + "\n".join(_others()))
    for problem in problems:
        print(f"\n{problem}")
    wrong = {state.verdict for splits in states.values() for state in splits.values()}
    return 1 if problems or wrong & {"wrong", "changed"} else 0


@contextmanager
def _noted(problems: list[UserError]) -> Iterator[None]:
    """Add a UserError to `problems` instead of raising it: one card does not hide the others."""
    try:
        yield
    except UserError as error:
        problems.append(error)


def _others() -> list[str]:
    """What is no card: the tokenizer, the embedded model, the folders."""
    tokenizer = tokenizer_file()
    here = f"tokens are counted with {tokenizer}" if tokenizer else "llama2_tokenizer: missing"
    if tokenizer:
        problem = Llama2Content().problem(tokenizer)
        here += f": not the paper's, {problem}" if problem else ", verified as Llama-2's"
    model = embedded_model.model_dir()
    ready = paths.shown(model) if embedded_model.is_ready() else "missing"
    homes = ", ".join(str(home) for home in paths.data_homes())
    return [here, f"smollm2: {ready}", f"data homes, first to last: {homes}"]


def _line(card: Card, split: str, state: State) -> tuple[str, ...]:
    spec = card.split(split)
    expected = f"({spec.rows:,})" if spec.rows else ""
    if state.path is None:
        how = spec.build or f"./run.sh data {card.name}"
        return (card.name, split, "", expected, state.verdict, how)
    rows = count_rows(card, split, state)
    shown = "" if rows is None else f"{rows:,}"
    if spec.rows and rows is not None and rows != spec.rows:
        shown = f"{rows:,} of {spec.rows:,}"
    return (card.name, split, size_text(state.path.stat().st_size), shown, state.verdict, state.why)


def count_rows(card: Card, split: str, state: State) -> int | None:
    """The rows of a file: the card's number for the card's file, else counted; None if unknown."""
    spec, path = card.split(split), state.path
    if path is None:
        return None
    if spec.blob and state.verdict == "verified":
        return spec.rows
    record = read_provenance(path)
    if state.verdict == "verified" and record and isinstance(record.get("rows"), int):
        return int(record["rows"])
    if path.suffix != ".jsonl" or path.stat().st_size > COUNTED:
        return None
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _note(card: Card, states: dict[str, State], full: bool) -> str:
    lines = [f"  {card.name}: {card.licence}"]
    if full:
        lines += [f"    {card.summary}", f"    {card.source}"]
    for split, state in states.items():
        if state.path is not None:
            origin = _origin(state.path)
            came = f", {origin}" if origin else ""
            lines.append(f"    {split}: {paths.shown(state.path)}{came}")
    return "\n".join(lines)


def _origin(path: Path) -> str:
    """Where a file came from, in a few words; "" when nothing is recorded."""
    record = read_provenance(path)
    if record is None:
        return ""
    origin: Any = record.get("from")
    if not isinstance(origin, dict):
        thoughts: Any = record.get("thoughts")
        by = thoughts.get("by") if isinstance(thoughts, dict) else None
        return f"made by {by}" if by else "made here"
    if "hub" in origin:
        return f"from {origin['hub']} {origin.get('id')}, revision {origin.get('revision')}"
    if "place" in origin:
        return f"from {shown_url(str(origin['place']))}"
    return "rebuilt from " + ", ".join(_file_names(origin) or sorted(origin))


def _file_names(origin: Any) -> list[str]:
    """The names of the files that a record says a file was made from."""
    if isinstance(origin, str):
        return [Path(origin).name]
    if isinstance(origin, dict):
        origin = [origin[key] for key in _FILES if key in origin]
    if not isinstance(origin, list):
        return []
    return [name for part in origin for name in _file_names(part)]


def size_text(size: int) -> str:
    """A file size for people."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
