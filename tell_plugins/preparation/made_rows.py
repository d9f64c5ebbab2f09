"""Rows made of published files by a card's templates: which rows stay, and how they are written.

Templates are Jinja2 in its sandbox (https://jinja.palletsprojects.com/en/stable/sandbox/), since a
card may come from a stranger: no attribute that leads out of a row, no file, no import.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from functools import lru_cache, partial
from typing import Any

from tell_plugins.core.cards import Card, Published
from tell_plugins.core.draw import ranking
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.row_files import read_records
from tell_plugins.core.table_rows import Record
from tell_plugins.core.text import normalise, row_ids
from tell_plugins.preparation.download import Places, ensure, write_rows

_SEED = 42
_ORDER = ("test", "validation")  # their rows stay out of the splits after them
_Pair = tuple[str, str]


def recipe_of(card: Card, split: str) -> str | None:
    """A hash of all that decides a made file; None for a split that is not made."""
    if card.split(split).made_of is None:
        return None
    splits = {name: [p.model_dump() for p in s.made_of or ()] for name, s in card.splits.items()}
    made = None if card.made is None else card.made.model_dump()
    text = json.dumps([made, splits], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_rows(card: Card, splits: Collection[str], places: Places) -> None:
    """Write the rows of some splits to their files, JSON lines of query and response.

    A query that stood before, in its split or in a held-out one, is left out and counted. Raises
    UserError for a template that a row does not fit, MachineError where a file cannot be had or
    the rows are not as many as the card says.
    """
    held_out: set[str] = set()
    made = [name for name, split in card.splits.items() if split.made_of]
    for split in sorted(made, key=lambda name: [*_ORDER, name].index(name)):
        rows: dict[str, _Pair] = {}
        repeated = 0
        for query, response in _pairs(card, split, places):
            key = normalise(query)
            repeated += key in held_out or key in rows
            if key not in held_out:
                rows.setdefault(key, (query, response))
        if split in _ORDER:
            held_out |= rows.keys()
        if split in splits:
            _write(card, split, list(rows.values()), repeated)


def _write(card: Card, split: str, rows: list[_Pair], repeated: int) -> None:
    expected = card.split(split).rows
    if not rows or (expected is not None and len(rows) != expected):
        raise MachineError(
            f"card '{card.name}', split '{split}': {len(rows):,} rows were made, the card says "
            f"{expected or 'at least 1'}; nothing was kept",
            remedy="correct 'keep' or 'rows' in the card",
        )
    if repeated:
        print(f"  {split}: {repeated} rows whose query stands before are left out")
    made_of = {source.file: source.blob for source in card.split(split).made_of or ()}
    write_rows(
        card,
        split,
        [{"query": query, "response": response} for query, response in rows],
        {"made_of": made_of, "recipe": recipe_of(card, split)},
        origin="made of " + ", ".join(made_of),
        left_out=repeated,
    )


def _pairs(card: Card, split: str, places: Places) -> Iterator[_Pair]:
    """The rows that a split's files give, file by file, each in its ranking's order."""
    for source in card.split(split).made_of or ():
        path = ensure(source.url, source.blob, source.file, f"{card.name}/published", places)
        made = (_made(card, source, record, path.name) for record in read_records(path))
        pairs = [pair for pair in made if pair is not None]
        ranked = ranking(row_ids(pairs), seed=_SEED, source=path.name)
        chosen = ranked[source.after :] if source.first is None else ranked[: source.first]
        yield from (pairs[position] for position in chosen)


def _made(card: Card, source: Published, record: Record, name: str) -> _Pair | None:
    """What the card makes of a record of the file `name`; None for a row that it does not keep.

    Raises UserError where 'keep' or a template does not fit the row.
    """
    made = card.made
    assert made is not None
    try:
        row = record.value | source.add
        if any(str(row[column]) not in values for column, values in made.keep.items()):
            return None
        texts = [_compiled(text).render(row).strip() for text in (made.query, made.response)]
        if not all(texts):
            raise ValueError("a template gives no text")
        return texts[0], texts[1]
    except Exception as error:  # a template is the card's, and may raise what it likes
        raise UserError(
            f"'made' does not fit this row: {type(error).__name__}: {error}",
            where=f"card '{card.name}'; {name}, line {record.line}",
            allowed="'keep' and Jinja2 over the columns of the row",
            remedy="correct the card; 'keep' leaves rows out",
        ) from None


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """The template, read once for all rows."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined)
    # Jinja's own escapes for HTML
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    return environment.from_string(template)
