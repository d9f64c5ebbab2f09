"""`data show`: statistics of a split, a histogram of lengths, three rows as the model sees them."""

from __future__ import annotations

import argparse
import importlib.util
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import unknown
from tell_plugins.core.records import parse_json
from tell_plugins.core.rows import Rows
from tell_plugins.core.sources import TaskRows, lengths_of, open_split, open_task
from tell_plugins.core.text import turns_of
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.card_files import state_of

ROWS_SHOWN, CHARS_SHOWN = 3, 1500
_BATCH = 4096


class Lengths(NamedTuple):
    """Lengths of n rows in one unit: (n, 2), the query with its anchor and the response."""

    unit: str
    values: npt.NDArray[np.int64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `data show`."""
    parser.add_argument("name", metavar="NAME", help="a card")
    parser.add_argument("--split", default="train", help="a split of the card (train)")
    parser.add_argument(
        "--anchor", default="card", help="card, none, or the stem of another anchor file (card)"
    )
    parser.add_argument("--rows", type=int, default=ROWS_SHOWN, metavar="N", help="rows shown (3)")
    parser.add_argument("--full", action="store_true", help="show rows in full")


def run(args: argparse.Namespace) -> int:
    """Print the statistics, draw the histogram, print the first rows."""
    card = load_card(args.name)
    if args.split not in card.splits:
        raise unknown("split", args.split, card.splits, f"card '{card.name}'")
    rows: TaskRows | Rows = (
        open_task(card, args.split, args.anchor)
        if card.kind == "task"
        else open_split(card, args.split)
    )
    state = state_of(card, args.split)
    print(f"{card.name}, split {args.split}: {card.summary}")
    print(f"  licence  {card.licence}")
    print(f"  file     {paths.shown(rows.file)}: {state.verdict} ({state.why})")
    lengths = measure(rows)
    _print_statistics(card, rows, lengths)
    stem = card.name if args.split == "train" else f"{card.name}_{args.split}"
    picture = paths.PROJECT / "output" / "data" / f"{stem}.png"
    query = "query with anchor" if isinstance(rows, TaskRows) and rows.anchor.text else "query"
    title = f"{card.name}, {args.split}: {len(rows):,} rows"
    if importlib.util.find_spec("matplotlib") is None:
        print(f"  picture  not drawn: matplotlib is not installed ({paths.needs('data')})")
    else:
        draw(lengths[0], (query, "response"), title, picture)
        print(f"  picture  {paths.shown(picture)}")
    _print_rows(rows, args.rows, None if args.full else CHARS_SHOWN)
    return 0


def measure(rows: TaskRows | Rows) -> list[Lengths]:
    """Lengths in tokens (when a tokenizer is here), words and characters, in that order."""
    words, characters = [], []
    for start in range(0, len(rows), _BATCH):
        batch = np.arange(start, min(start + _BATCH, len(rows)))
        for pair in rows.texts(batch):
            words.append([len(text.split()) for text in pair])
            characters.append([len(text) for text in pair])
    result = [Lengths("words", np.array(words)), Lengths("characters", np.array(characters))]
    tokenizer = tokenizer_file()
    if tokenizer is not None:
        counter = TokenCounter(tokenizer)
        counted = np.asarray(lengths_of(rows, counter), np.int64)
        result.insert(0, Lengths(f"tokens ({counter.name})", counted))
    return result


def _print_statistics(card: Card, rows: TaskRows | Rows, lengths: list[Lengths]) -> None:
    keys = rows.query_keys if isinstance(rows, TaskRows) else rows.keys
    repeated = len(keys) - len(np.unique(keys))
    print(f"  rows     {len(rows):,}, {repeated:,} of them with the query of an earlier row")
    if isinstance(rows, Rows) and rows.bad_count:
        print(
            f"  unusable {rows.bad_count:,}, first: line {rows.bad[0].line}: {rows.bad[0].reason}"
        )
    if isinstance(rows, TaskRows):
        text = rows.anchor.text
        print(f"  anchor   {rows.anchor.name}: {len(text):,} characters, {len(text.split())} words")
        _print_labels(card, rows)
    print(f"\n  {'':42}{'total':>12}{'mean':>9}{'median':>9}{'95 %':>9}{'longest':>9}")
    for unit, values in lengths:
        for column, part in enumerate(("query", "response")):
            one = values[:, column]
            print(
                f"  {part + ', ' + unit:42}{one.sum():>12,}{one.mean():>9,.1f}"
                f"{np.median(one):>9,.0f}{np.percentile(one, 95):>9,.0f}{one.max():>9,}"
            )
    print()


def _print_labels(card: Card, rows: TaskRows) -> None:
    """How often each short response, or each value of the card's label, stands in the split."""
    from collections import Counter

    key = card.answer.label if card.answer else None
    labels: Counter[str] = Counter()
    for response in rows.responses:
        value: object = response.strip()
        if key:
            try:
                parsed = parse_json(response)
                value = parsed.get(key) if isinstance(parsed, dict) else value
            except ValueError:
                pass
        labels[str(value)] += 1
    if key and len(labels) <= 20:
        said = ", ".join(f"{label} {count:,}" for label, count in labels.most_common())
        print(f"  labels   {said}")


def _print_rows(rows: TaskRows | Rows, count: int, limit: int | None) -> None:
    some = np.arange(min(count, len(rows)))
    for number, (query, response) in enumerate(rows.texts(some), 1):
        print(f"\n--- row {number} (line {rows.lines[number - 1]}) " + "-" * 60)
        for turn, text in enumerate([*turns_of(query), response]):
            print("[assistant]" if turn % 2 else "[user]")
            print(textwrap.indent(_cut(text, limit), "  ", lambda _line: True))


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... ({len(text) - 2 * half:,} characters left out) ...\n{text[-half:]}"


def draw(lengths: Lengths, parts: tuple[str, str], title: str, path: Path) -> None:
    """Draw a histogram of both columns of lengths; a few long rows do not squash the rest."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    unit, values = lengths
    low, high = max(int(values.min()), 1), max(int(values.max()), 2)
    wide = high / low > 50
    edges = np.geomspace(low, high, 41) if wide else np.linspace(min(low, 0), high, 41)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for column, part in enumerate(parts):
        one, colour = values[:, column].clip(min=1), f"C{column}"
        label = f"{part}, {one.sum():,} in all"
        axes.hist(one, bins=edges.tolist(), color=colour, alpha=0.6, label=label)
        axes.axvline(float(np.median(one)), color=colour, linestyle="--", linewidth=1)
    if wide:
        axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel(f"{unit} of one row (dashed: median)")
    axes.set_ylabel("rows")
    axes.set_title(title)
    axes.legend()
    with paths.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)
