"""Rows made of published files by a card's templates: which rows stay, and how they are written.

Templates are Jinja2 in its sandbox (https://jinja.palletsprojects.com/en/stable/sandbox/), since a
card may come from a stranger: no attribute that leads out of a row, no file, no import.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tell_plugins.core.cards import Card, Published
from tell_plugins.core.draw import ranking
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.rowfiles import read_records
from tell_plugins.core.text import normalise, row_id
from tell_plugins.preparation.download import Places, arriving, ensure
from tell_plugins.preparation.provenance import write_provenance

_SEED = 42
_ORDER = ("test", "validation")  # their rows stay out of the splits after them
Pair = tuple[str, str]


def recipe_of(card: Card, split: str) -> str | None:
    """A hash of all that decides a made file; None for a split that is not made."""
    if card.split(split).made_of is None:
        return None
    splits = {name: [p.model_dump() for p in s.made_of or ()] for name, s in card.splits.items()}
    made = None if card.made is None else card.made.model_dump()
    text = json.dumps([made, splits], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_rows(card: Card, split: str, target: Path, places: Places) -> None:
    """Write the rows of a split to `target`, JSON lines of query and response.

    A query that stood before, in this split or in a held-out one, is left out and counted.
    Raises UserError for a template that a row does not fit, MachineError where a file cannot be
    had or the rows are not as many as the card says.
    """
    held_out = [name for name in _ORDER if name in card.splits and name != split]
    before = held_out[: _ORDER.index(split)] if split in _ORDER else held_out
    seen = {normalise(query) for name in before for query, _ in _pairs(card, name, places)}
    rows: dict[str, Pair] = {}
    repeated = 0
    for query, response in _pairs(card, split, places):
        key = normalise(query)
        repeated += key in seen or key in rows
        if key not in seen:
            rows.setdefault(key, (query, response))
    _check_count(card, split, len(rows))
    if repeated:
        print(f"  {split}: {repeated} rows whose query stands before are left out")
    with arriving(target) as part:
        lines = (_line(query, response) for query, response in rows.values())
        part.write_text("".join(lines), encoding="utf-8")
        made_of = {source.file: source.blob for source in card.split(split).made_of or ()}
        origin = {"made_of": made_of, "recipe": recipe_of(card, split)}
        write_provenance(
            target,
            origin,
            part,
            card=card.name,
            split=split,
            rows=len(rows),
            left_out=repeated,
            licence=card.licence,
        )


def _line(query: str, response: str) -> str:
    return json.dumps({"query": query, "response": response}, ensure_ascii=False) + "\n"


def _check_count(card: Card, split: str, rows: int) -> None:
    expected = card.split(split).rows
    if rows == 0 or (expected is not None and rows != expected):
        raise MachineError(
            f"card '{card.name}', split '{split}': {rows:,} rows were made, the card says "
            f"{expected or 'at least 1'}; nothing was kept",
            remedy="correct 'keep' or 'rows' in the card",
        )


def _pairs(card: Card, split: str, places: Places) -> Iterator[Pair]:
    """The rows that a split's files give, file by file, each in its ranking's order."""
    for source in card.split(split).made_of or ():
        path = ensure(source.url, source.blob, source.file, f"{card.name}/published", places)
        pairs = [_made(card, row, where) for row, where in _kept(card, source, path)]
        ids = b"".join(row_id(*pair) for pair in pairs)
        ranked = ranking(np.frombuffer(ids, np.uint8).reshape(-1, 16), seed=_SEED, source=path.name)
        chosen = ranked[source.after :] if source.first is None else ranked[: source.first]
        yield from (pairs[position] for position in chosen)


def _kept(card: Card, source: Published, path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a published file whose columns have the wanted values, each with its place."""
    assert card.made is not None
    for record in read_records(path):
        where = f"{path.name}, line {record.line}"
        if not isinstance(record.value, dict):
            raise MachineError(
                f"{where}: {record.problem or 'no row'}",
                remedy="name a file whose records are rows: correct 'made_of' in the card",
            )
        row = record.value | source.add
        missing = [column for column in card.made.keep if column not in row]
        if missing:
            raise UserError(
                f"'keep' names the column '{missing[0]}', which the row lacks",
                where=where,
                allowed=", ".join(row),
                remedy="correct the card",
            )
        if all(str(row[column]) in values for column, values in card.made.keep.items()):
            yield row, where


def _made(card: Card, row: dict[str, Any], where: str) -> Pair:
    assert card.made is not None
    texts = [
        _filled(card, name, getattr(card.made, name), row, where) for name in ("query", "response")
    ]
    return texts[0], texts[1]


def _filled(card: Card, name: str, template: str, row: dict[str, Any], where: str) -> str:
    """The text that a template makes of a row. Raises UserError for either's fault."""
    try:
        text = _compiled(template).render(row).strip()
    except Exception as error:  # a template is the card's, and may raise what it likes
        raise UserError(
            f"the template of '{name}' does not fit a row: {error}",
            where=f"card '{card.name}'; {where}",
            allowed="Jinja2 over the columns " + ", ".join(row),
            remedy="correct 'made' in the card",
        ) from None
    if not text:
        raise UserError(
            f"the template of '{name}' gives no text",
            where=f"card '{card.name}'; {where}",
            remedy="correct 'made' in the card, or leave such rows out with 'keep'",
        )
    return text


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """The template, read once for all rows."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    environment.filters["tojson"] = _json  # Jinja's own escapes for HTML
    return environment.from_string(template)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
