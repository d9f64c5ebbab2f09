"""`data show`: statistics of a split, and three rows as the model sees them."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.rows import Rows
from tell_plugins.core.shown import table
from tell_plugins.core.sources import TaskRows, lengths_of, open_split, open_task
from tell_plugins.core.text import turns_of, words
from tell_plugins.core.tokens import TokenCounter, tokenizer_file
from tell_plugins.preparation.answers import labels_of
from tell_plugins.preparation.card_files import state_of

CHARS_SHOWN = 1500
_MOST_LABELS = 20  # that are listed
_MEASURES: dict[str, Any] = {
    **{"total": np.sum, "mean": np.mean, "median": np.median},
    **{"95 %": partial(np.percentile, q=95), "longest": np.max},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="a card")
    add("--split", default="train", help="a split of the card (train)")
    text = "card, none, or the stem of another anchor file (card)"
    add("--anchor", default="card", help=text)
    add("--rows", type=int, default=3, metavar="N", help="rows shown (3)")
    add("--full", action="store_true", help="show rows in full")


def run(args: argparse.Namespace) -> int:
    card, split = load_card(args.name), args.split
    is_task = card.kind == "task"
    rows = open_task(card, split, args.anchor) if is_task else open_split(card, split)
    state = state_of(card, split)
    print(f"{card.name}, split {split}: {card.summary}")
    print(f"  licence  {card.licence}")
    print(f"  file     {rows.shown}: {state.verdict} ({state.why})")
    _print_facts(card, rows)
    print("\n" + _lengths(rows) + "\n")
    some = np.arange(min(args.rows, len(rows)))
    for number, (query, response) in enumerate(rows.texts(some)):
        name, limit = (
            f"{number + 1} (line {rows.lines[number]})",
            None if args.full else CHARS_SHOWN,
        )
        print("\n" + as_seen(name, query, response, limit))
    return 0


def _print_facts(card: Card, rows: TaskRows | Rows) -> None:
    keys = rows.query_keys if isinstance(rows, TaskRows) else rows.keys
    repeated = len(keys) - len(np.unique(keys))
    print(f"  rows     {len(rows):,}, {repeated:,} of them with the query of an earlier row")
    if rows.bad_count:
        first = rows.bad[0]
        print(f"  unusable {rows.bad_count:,}, first: line {first.line}: {first.reason}")
    if isinstance(rows, TaskRows):
        text = rows.anchor.text
        print(f"  anchor   {rows.anchor.name}: {len(text):,} characters, {len(words(text))} words")
        key = card.answer.label if card.answer else None
        labels = Counter(labels_of(rows.responses, str(card.metric), key) or [])
        if 0 < len(labels) <= _MOST_LABELS:
            said = ", ".join(f"{label} {count:,}" for label, count in labels.most_common())
            print(f"  labels   {said}")


def _lengths(rows: TaskRows | Rows) -> str:
    """A table of lengths in words, and in tokens where a tokenizer is here."""
    pairs = rows.texts(np.arange(len(rows)))
    by_unit: dict[str, Any] = {
        "words": np.array([[len(words(text)) for text in pair] for pair in pairs])
    }
    if tokenizer := tokenizer_file():
        counter = TokenCounter(tokenizer)
        by_unit[f"tokens ({counter.name})"] = lengths_of(rows, counter)
    lines = [
        (f"{part}, {unit}", *(f"{measure(one):,.0f}" for measure in _MEASURES.values()))
        for unit, values in by_unit.items()
        for part, one in zip(("query", "response"), values.T, strict=True)
    ]
    return table(("length", *_MEASURES), lines, right=_MEASURES)


def as_seen(name: str, query: str, response: str, limit: int | None) -> str:
    """The turns of a row as the model sees them, each without its middle where it is longer than
    `limit` characters."""
    lines = [f"--- row {name} " + "-" * 60]
    for turn, text in enumerate([*turns_of(query), response]):
        if limit is not None and len(text) > limit:
            out = f"... ({len(text) - limit // 2 * 2:,} characters left out) ..."
            text = f"{text[: limit // 2]}\n{out}\n{text[-(limit // 2) :]}"
        lines.append("[assistant]" if turn % 2 else "[user]")
        lines.append(textwrap.indent(text, "  ", lambda _line: True))
    return "\n".join(lines)
