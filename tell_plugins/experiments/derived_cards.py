"""Cards that an experiment makes: general rows held out or of one mixture, random text, task parts.

Each is an ordinary card in a folder that `$TELL_CARDS` names, so that ms-swift and `eval` read it
as any other. Its name or its `source` line holds a hash of what it was made from; a card that is
there already and was made from the same is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tell_plugins.core import draw, paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import GENERAL, Mixture
from tell_plugins.core.sources import open_split
from tell_plugins.core.state_files import write_json_lines
from tell_plugins.core.text import MARK, row_of
from tell_plugins.evaluation.prompts import HELD_OUT_SPLIT
from tell_plugins.evaluation.scorers.label import closed_labels

_FORMAT = 1  # raised when a card of the same name would hold other rows
_MADE = "made by an experiment from"  # how the `source` line of such a card begins
_HELD_OUT_SEED = 42  # the held-out rows are the same for every run, whatever its seed

Pair = tuple[str, str]


def with_held_out(card: Card, rows: int, folder: Path) -> str:
    """The name of a general card with `rows` rows kept out of training in a split `heldout`.

    That is the card itself where it has such a split. Else its rows are divided once, whatever
    the run, its seed or its amounts: so all runs are measured on the same rows, and none of them
    trained on one. Rows that ask the same as a held-out row leave the training part too.

    Raises UserError when the card has too few rows.
    """
    if HELD_OUT_SPLIT in card.splits:
        return card.name
    source = open_split(card, "train")
    ranked = draw.ranking(source.ids, seed=_HELD_OUT_SEED, source=f"{card.name} {HELD_OUT_SPLIT}")
    if len(ranked) <= rows:
        raise UserError(
            f"{rows} rows to be held out of {len(ranked)}",
            where=f"general card '{card.name}'",
            allowed=f"fewer than {len(ranked)}",
            remedy="lower evaluate.general_rows (--general-rows)",
        )
    name = f"{card.name}_less{rows}"
    held = ranked[:rows]
    kept = np.sort(ranked[rows:])
    kept = kept[~np.isin(source.keys[kept], source.keys[held])]
    return _write(
        folder,
        name,
        made_from=[card.name, source.sha256, str(rows)],
        summary=f"{card.name} without {rows} rows, which are its split '{HELD_OUT_SPLIT}'.",
        card=card,
        splits={
            "train": lambda: source.texts(kept),
            HELD_OUT_SPLIT: lambda: source.texts(held),
        },
        keys={} if card.max_tokens is None else {"max_tokens": card.max_tokens},
    )


def part_of_task(card: Card, splits: Mapping[str, Sequence[Pair]], folder: Path) -> str:
    """The name of a card of the same task that has these rows as its splits, and no others.

    Rows stand as in the card's files, an inline anchor included. Without a split `test` nothing
    that works with the part can read a test row.
    """
    needed = [] if card.inline_anchor else [card.file(str(card.anchor))]
    needed += [card.schema_path()] if card.metric == "json" else []
    files = sorted({*card.folder.glob("*.txt"), *needed})
    own = card.model_dump(mode="json", by_alias=True, exclude_none=True)
    kept = ("kind", "anchor", "metric", "answer", "translation", "question", "max_new_tokens")
    keys = {key: own[key] for key in kept if key in own}
    assert card.general is not None  # a task card has it
    keys["general"] = {"from": list(card.general.sources), "amount": str(card.general.amount)}
    if card.metric == "label":  # a part need not hold all of them
        keys["answer"] = {"labels": closed_labels(card)}
    rows = json.dumps({split: list(pairs) for split, pairs in splits.items()})
    made_from = [
        rows,
        json.dumps(keys),
        *(hashlib.sha256(f.read_bytes()).hexdigest() for f in files),
    ]
    return _write(
        folder,
        f"{card.name}_part_{_digest(made_from)[:8]}",
        made_from=made_from,
        summary=f"Rows of {card.name} that train, and others that judge what they taught.",
        card=card,
        splits={split: partial(list, pairs) for split, pairs in splits.items()},
        keys=keys,
        files=files,
    )


def general_rows_of(mixture: Mixture) -> list[Pair]:
    """(query, response) of the general rows of a mixture, source by source, ranked."""
    drawn = [source for source in mixture.sources if source.role == GENERAL]
    return [pair for source in drawn for pair in source.rows.texts(source.used)]


def general_only(mixture: Mixture, folder: Path) -> str:
    """The name of a card that holds exactly the general rows of `mixture`."""
    summary = "The general rows of one mixture, alone"
    return _from_mixture(mixture, folder, "only", summary, lambda rows: rows)


def random_text(mixture: Mixture, folder: Path) -> str:
    """The name of a card of random text in the shape of the general rows of `mixture`.

    All words of those rows, queries and responses together, are shuffled (seeded by the mixture)
    and dealt out again: every row keeps its two word counts, every word its frequency; nothing
    that makes sense is left. The control of arXiv 2411.07175, which tells the effect of further
    steps and of regularisation from that of knowledge.
    """
    shuffled = partial(shuffled_words, seed=mixture.spec.seed)
    return _from_mixture(mixture, folder, "random", "Shuffled words in the shape of rows", shuffled)


def shuffled_words(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The rows with all their words shuffled among them; each text keeps its number of words."""
    texts = [text.replace(MARK, " ").split() for pair in pairs for text in pair]
    words = [word for text in texts for word in text]
    generator = random.Random(f"random text {seed}")
    keys = [generator.random() for _ in words]  # the one method whose sequence Python fixes
    dealt = iter([words[i] for i in sorted(range(len(words)), key=keys.__getitem__)])
    result = [" ".join(islice(dealt, len(text))) for text in texts]
    return list(zip(result[::2], result[1::2], strict=True))


def _from_mixture(
    mixture: Mixture,
    folder: Path,
    kind: str,
    summary: str,
    make: Callable[[list[Pair]], Sequence[Pair]],
) -> str:
    rows = general_rows_of(mixture)
    sources = [source for source in mixture.sources if source.role == GENERAL]
    if not rows:
        raise UserError(
            "the mixture has no general rows to make a control of",
            where=str(mixture.spec),
            remedy="give the recipe general data, or --general",
        )
    content = "".join(map(json.dumps, rows))
    made_from = [kind, hashlib.sha256(content.encode()).hexdigest(), str(mixture.spec.seed)]
    names = "_".join(source.card.name for source in sources)
    return _write(
        folder,
        f"{names}_{kind}_{_digest(made_from)[:8]}",
        made_from=made_from,
        summary=f"{summary} ({len(rows)} rows of {names}).",
        card=max((s.card for s in sources), key=lambda card: card.columns.history is not None),
        splits={"train": partial(make, rows)},
    )


def is_derived(card: Path) -> bool:
    """Whether a `card.yaml` is of a card that was made here."""
    return f"\nsource: {_MADE} " in card.read_text(encoding="utf-8", errors="replace")


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("|".join([str(_FORMAT), *parts]).encode()).hexdigest()


def _write(
    folder: Path,
    name: str,
    *,
    made_from: list[str],
    summary: str,
    card: Card,
    splits: Mapping[str, Callable[[], Sequence[Pair]]],
    keys: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
) -> str:
    earlier = {"history": "history"} if card.columns.history else {}
    content: dict[str, Any] = {
        "name": name,
        "kind": GENERAL,
        "summary": summary,
        "licence": card.licence,
        "source": f"{_MADE} {card.name}, key {_digest(made_from)}",
        "columns": {"query": "query", "response": "response"} | earlier,
        "splits": {split: {"file": f"{split}.jsonl"} for split in splits},
        **(keys or {}),
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    here = folder / name
    target = here / "card.yaml"
    copies = {file: here / file.relative_to(card.folder) for file in files}
    with suppress(OSError):
        parts = [*(here / f"{split}.jsonl" for split in splits), *copies.values()]
        if target.read_text(encoding="utf-8") == text and all(part.is_file() for part in parts):
            return name
    for split, rows in splits.items():
        write_json_lines(here / f"{split}.jsonl", (row_of(*pair) for pair in rows()))
    for file, copy in copies.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    paths.write_text(target, text)  # last: a card without its rows is never seen
    load_card(name)
    return name
