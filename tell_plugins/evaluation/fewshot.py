"""The fixed examples of a 2-shot test (Appendix A.1), chosen by seed and saved.

The paper's script holds placeholders, so which two examples it used is not known. Here they come
from the training split, and a file beside the answers says which.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tell_plugins.core import draw, paths
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import read_json, write_json
from tell_plugins.core.sources import find_file, open_task

FORMAT = 1
EXAMPLES = "examples.json"


@dataclass(frozen=True)
class Example:
    """A row of the training split with its anchor. `id` is the content hash of the plain row."""

    id: str
    row: int
    query: str
    response: str


@dataclass(frozen=True)
class Examples:
    """The examples in the order in which they are shown, and how they were chosen."""

    card: str
    split: str
    anchor: str
    seed: int
    longest: int
    examples: list[Example]

    @property
    def history(self) -> list[tuple[str, str]]:
        """(query, response) pairs to put in front of a question."""
        return [(example.query, example.response) for example in self.examples]


def choose_examples(
    card: Card,
    anchor: str = "card",
    *,
    count: int = 2,
    seed: int = 42,
    split: str = "train",
    longest: int | None = None,
) -> Examples:
    """The first `count` rows of the split's seeded ranking that are not too long.

    `longest` bounds the characters of query and response together; by default it is the split's
    median, so that examples leave room for the question. Rows that also stand in a held-out split
    are never chosen. Raises UserError when too few rows are left.
    """
    fit = ranked_examples(card, anchor, seed=seed, split=split, longest=longest or 0)
    if len(fit.examples) < count:
        raise UserError(
            f"{count} examples asked, {len(fit.examples)} rows have up to {fit.longest:,} "
            "characters",
            where=f"split '{split}' of card '{card.name}'",
            remedy="ask for fewer examples, or allow longer ones",
        )
    return replace(fit, examples=fit.examples[:count])


def ranked_examples(
    card: Card,
    anchor: str,
    *,
    seed: int = 42,
    split: str = "train",
    longest: int | None = None,
    among: Collection[int] | None = None,
) -> Examples:
    """All rows of the split that may be examples, in the seeded order.

    `longest` bounds their characters (None: it does not; 0: by the split's median), `among` names
    the rows that may be taken.
    """
    task = open_task(card, split, anchor)
    sizes = [len(q) + len(r) for q, r in zip(task.queries, task.responses, strict=True)]
    limit = max(sizes) if longest is None else longest or int(np.median(sizes))
    held_out = _held_out_keys(card, anchor, split)
    ranked = draw.ranking(task.ids, seed=seed, source=f"{card.name} examples")
    examples = [
        Example(bytes(task.ids[row]).hex(), int(row), task.queries[row], task.responses[row])
        for row in ranked
        if sizes[row] <= limit
        and int(task.query_keys[row]) not in held_out
        and (among is None or int(row) in among)
    ]
    return Examples(card.name, split, anchor, seed, limit, examples)


def fixed_examples(
    folder: Path, card: Card, anchor: str = "card", *, count: int = 2, seed: int = 42
) -> Examples:
    """The examples saved in `folder`, chosen and saved there on the first call.

    Raises UserError when those saved were chosen otherwise, or their rows are gone.
    """
    path = folder / EXAMPLES
    chosen = choose_examples(card, anchor, count=count, seed=seed)
    if not path.is_file():
        save_examples(path, chosen)
        return chosen
    saved = load_examples(path)
    if saved != chosen:
        raise UserError(
            f"other examples are saved here (card '{saved.card}', anchor '{saved.anchor}', "
            f"seed {saved.seed}, {len(saved.examples)} rows)",
            where=paths.shown(path),
            remedy="use another folder, or remove the file and the answers beside it",
        )
    return saved


def save_examples(path: Path, examples: Examples) -> None:
    """Write the examples in one piece."""
    content = {"format": FORMAT, **asdict(examples)}
    write_json(path, content)


def load_examples(path: Path) -> Examples:
    """Read saved examples. Raises UserError for a file that is none."""
    try:
        content = dict(read_json(path, dict[str, Any], "remove the file") or {})
        del content["format"]
        content["examples"] = [Example(**example) for example in content["examples"]]
        return Examples(**content)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"no saved examples: {error}", where=paths.shown(path), remedy="remove the file"
        ) from None


def _held_out_keys(card: Card, anchor: str, split: str) -> set[int]:
    keys: set[int] = set()
    for name in card.splits:
        if name != split and find_file(card, name):
            keys |= {int(key) for key in open_task(card, name, anchor).query_keys}
    return keys
