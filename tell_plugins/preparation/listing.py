"""`data list`: what is on this machine of every card, and whether it is the right file."""

from __future__ import annotations

import argparse

from tqdm import tqdm

from tell_plugins.bridge import embedded_model
from tell_plugins.core import paths
from tell_plugins.core.cards import Card, card_names, load_card
from tell_plugins.core.errors import Problems, raise_all
from tell_plugins.core.tokens import tokenizer_file
from tell_plugins.preparation import llama2_tokenizer
from tell_plugins.preparation.card_files import State, state_of
from tell_plugins.preparation.download import read_record
from tell_plugins.recipe.tables import table

_HEAD = ("card", "split", "size", "rows", "state", "why")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="cards (default: all)")


def run(args: argparse.Namespace) -> int:
    """Print the table; 0, or 1 when a file or a card is wrong."""
    lines: list[tuple[str, ...]] = []
    notes: list[str] = []
    problems = Problems()  # of one card, which does not hide the others
    for name in args.names or card_names():
        with problems:
            card = load_card(name)
            notes.append(f"  {name}: {card.licence}")
            notes += [f"    {text}" for text in (card.summary, card.source) if args.names]
            for split in card.splits:
                state = state_of(card, split)
                lines.append(_line(card, split, state))
                if state.path is not None:
                    came = (read_record(state.path) or {}).get("origin", "")
                    notes.append(f"    {split}: {paths.shown(state.path)}{came and f', {came}'}")
    if args.names and not lines:
        raise_all(problems)
    print(table(_HEAD, lines, indent="", right=("size", "rows")))
    print("\nlicences and files:", *notes, sep="\n")
    if not args.names:
        print("", *_others(), sep="\n")
    for problem in problems:
        print(f"\n{problem}")
    return 1 if problems or {"wrong", "changed"} & {line[4] for line in lines} else 0


def _others() -> list[str]:
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


def _line(card: Card, split: str, state: State) -> tuple[str, ...]:
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
