"""`data overlap`: how many general rows are, or nearly are, held-out queries of a task."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np

from tell_plugins.core import paths
from tell_plugins.core.cards import HELD_OUT, Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import write_json_lines
from tell_plugins.core.rows import Rows, question_of
from tell_plugins.core.sources import TaskRows, find_file, open_split, open_task
from tell_plugins.core.spec import ALL, is_tell, parse_names, parse_spec
from tell_plugins.preparation import near_duplicates
from tell_plugins.preparation.near_duplicates import CONTAINS, EQUAL, KINDS, NEAR, SIMILARITY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `data overlap`."""
    parser.add_argument("what", help="a recipe, a dataset string tell/..., or a task card")
    parser.add_argument("--general", metavar="NAME[+NAME]", help="general cards (default: its own)")
    parser.add_argument("--split", help="one held-out split (default: all that are here)")
    parser.add_argument(
        "--similarity",
        type=int,
        default=SIMILARITY,
        metavar="N",
        help=f"from which similarity, 50 to 100, two queries are nearly equal ({SIMILARITY})",
    )
    parser.add_argument("--examples", type=int, default=5, metavar="N", help="pairs to show (5)")
    parser.add_argument("--out", metavar="FILE", help="write every row found as JSON lines")


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 even when rows overlap, since training drops or reports them."""
    if not 50 <= args.similarity <= 100:
        raise UserError(
            f"similarity {args.similarity}",
            where="--similarity",
            allowed="50 to 100",
            remedy=f"leave it out for {SIMILARITY}",
        )
    card, names = _task(args.what)
    if args.general:
        names = parse_names(args.general, where="--general")
    held_out = _held_out(card, args.split)
    queries, places = _questions(held_out)
    splits = ", ".join(f"{rows.split} ({len(rows):,} rows)" for rows in held_out)
    print(f"{card.name}: held-out queries of {splits}")
    found: list[dict[str, Any]] = []
    for name in names:
        general = load_card(name)
        rows = open_split(general, "train")
        matches = near_duplicates.find(rows, queries, args.similarity)
        found += list(_found(general, rows, matches, queries, places))
        _print_report(general, rows, matches, args.similarity)
        _print_examples([row for row in found if row["general"] == name], args.examples)
    if args.out:
        path = paths.user_target(args.out)
        write_json_lines(path, found)
        print(f"\n{len(found):,} rows written: {paths.shown(path)}")
    return 0


def _task(what: str) -> tuple[Card, tuple[str, ...]]:
    """The task card that `what` names and the general cards it mixes with."""
    if what.endswith((".yaml", ".yml")):
        from tell_plugins.recipe.recipes import load_recipe

        spec = load_recipe(what).spec
    elif is_tell(what):
        spec = parse_spec(what)
    else:
        spec = parse_spec(f"tell/{what}")
    card = load_card(spec.card)
    if card.kind != "task":
        raise UserError(
            f"'{card.name}' is general data: it has no held-out queries",
            where="data overlap",
            allowed="a recipe or a card of kind 'task'",
            remedy=f"./run.sh data overlap TASK --general {card.name}",
        )
    return card, spec.with_values(general=ALL).general_of(card)[1]


def _held_out(card: Card, split: str | None) -> list[TaskRows]:
    names = [split] if split else [name for name in HELD_OUT if name in card.splits]
    if not split:
        names = [name for name in names if find_file(card, name)] or names
    if not names:
        raise UserError(
            f"card '{card.name}' has no held-out split",
            where="data overlap",
            remedy="give it a split 'test'",
        )
    return [open_task(card, name) for name in names]


def _questions(held_out: list[TaskRows]) -> tuple[list[str], list[str]]:
    """The compared part of every held-out query, and the place of its row."""
    queries = [question_of(text, rows.card.question) for rows in held_out for text in rows.plain]
    places = [f"{rows.split}, line {line}" for rows in held_out for line in rows.lines.tolist()]
    return queries, places


def _found(
    card: Card,
    rows: Rows,
    matches: near_duplicates.Matches,
    queries: list[str],
    places: list[str],
) -> Iterator[dict[str, Any]]:
    """Every row found, the surest first."""
    hits = np.flatnonzero(matches.kind)
    hits = hits[np.lexsort((hits, -matches.similarity[hits].astype(int), -matches.kind[hits]))]
    for row, (query, _) in zip(hits.tolist(), rows.texts(hits), strict=True):
        other = int(matches.query[row])
        yield {
            "kind": KINDS[int(matches.kind[row])],
            "similarity": int(matches.similarity[row]),
            "general": card.name,
            "line": int(rows.lines[row]),
            "id": rows.ids[row].tobytes().hex(),
            "query": query,
            "held_out": places[other],
            "held_out_query": queries[other],
        }


def _print_report(
    card: Card, rows: Rows, matches: near_duplicates.Matches, similarity: int
) -> None:
    total = len(rows)
    equal, near, inside = (matches.count(kind) for kind in (EQUAL, NEAR, CONTAINS))
    print(f"\n{card.name}: {total:,} rows")
    for count, words in (
        (equal, "are a held-out query but for case and spacing; training drops them"),
        (inside, "contain one whole; training keeps them"),
        (near, f"are nearly one (similarity {similarity} of 100 or more); training keeps them"),
    ):
        print(f"  {count:>7,}  {count / total:7.3%}  {words}")


def _print_examples(found: list[dict[str, Any]], count: int) -> None:
    for kind in KINDS.values():
        some = [row for row in found if row["kind"] == kind][:count]
        if some:
            print(f"\n  {kind}:")
        for row in some:
            print(f"    {_short(row['query'])}   (line {row['line']})")
            print(
                f"      {row['similarity']:>3}  {_short(row['held_out_query'])}"
                f"   ({row['held_out']})"
            )


def _short(text: str, length: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."
