"""Cards that an experiment makes: general rows held out or of one mixture, random text, task parts.

Each is an ordinary card in a folder that `$TELL_CARDS` names, so that ms-swift and `eval` read it
as any other. Its name or its `source` line holds a hash of what it was made from; a card that is
there already and was made from the same is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
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
    held, kept = ranked[:rows], np.sort(ranked[rows:])
    kept = kept[~np.isin(source.keys[kept], source.keys[held])]
    return _write(
        folder,
        f"{card.name}_less{rows}",
        made_from=[card.name, source.sha256, str(rows)],
        summary=f"{card.name} without {rows} rows, which are its split '{HELD_OUT_SPLIT}'.",
        card=card,
        splits={"train": source.texts(kept), HELD_OUT_SPLIT: source.texts(held)},
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
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    made_from = [rows, json.dumps(keys), *hashes]
    return _write(
        folder,
        f"{card.name}_part_{_digest(made_from)[:8]}",
        made_from=made_from,
        summary=f"Rows of {card.name} that train, and others that judge what they taught.",
        card=card,
        splits=splits,
        keys=keys,
        files=files,
    )


def general_rows_of(mixture: Mixture) -> list[Pair]:
    """(query, response) of the general rows of a mixture, source by source, ranked."""
    drawn = [source for source in mixture.sources if source.role == GENERAL]
    return [pair for source in drawn for pair in source.rows.texts(source.used)]


def of_general_rows(mixture: Mixture, folder: Path, *, shuffled: bool = False) -> str:
    """The name of a card that holds exactly the general rows of `mixture`.

    `shuffled`: random text in their shape. All words of those rows, queries and responses
    together, are shuffled (seeded by the mixture) and dealt out again: every row keeps its two word
    counts, every word its frequency; nothing that makes sense is left. It is the control of arXiv
    2411.07175, which tells what further steps and regularisation do from what knowledge does.
    """
    rows, seed = general_rows_of(mixture), mixture.spec.seed
    cards = [source.card for source in mixture.sources if source.role == GENERAL]
    if not rows:
        raise UserError(
            "the mixture has no general rows to make a control of",
            where=str(mixture.spec),
            remedy="give the recipe general data, or --general",
        )
    kind = "random" if shuffled else "only"
    content = hashlib.sha256("".join(map(json.dumps, rows)).encode()).hexdigest()
    made_from = [kind, content, str(seed)]
    names = "_".join(card.name for card in cards)
    what = "Shuffled words in the shape of" if shuffled else "Of one mixture, alone:"
    return _write(
        folder,
        f"{names}_{kind}_{_digest(made_from)[:8]}",
        made_from=made_from,
        summary=f"{what} {len(rows)} rows of {names}.",
        card=max(cards, key=lambda card: card.columns.history is not None),
        splits={"train": shuffled_words(rows, seed) if shuffled else rows},
    )


def shuffled_words(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The rows with all their words shuffled among them; each text keeps its number of words."""
    texts = [text.replace(MARK, " ").split() for pair in pairs for text in pair]
    words = [word for text in texts for word in text]
    generator = random.Random(f"random text {seed}")
    keys = [generator.random() for _ in words]  # the one method whose sequence Python fixes
    dealt = iter([words[i] for i in sorted(range(len(words)), key=keys.__getitem__)])
    result = [" ".join(islice(dealt, len(text))) for text in texts]
    return list(zip(result[::2], result[1::2], strict=True))


def use(folder: Path) -> None:
    """Let the cards in a folder be found, by what this process starts too, after the user's.

    Those that other sweeps made are left out: a run's recipe tells the user to name them.
    """
    own = str(paths.user_path(folder).resolve())
    parts = [part for part in os.environ.get("TELL_CARDS", "").split(os.pathsep) if part]
    kept = [part for part in parts if part != own and not _of_a_sweep(paths.user_path(part))]
    os.environ["TELL_CARDS"] = os.pathsep.join([*kept, own])


def _of_a_sweep(folder: Path) -> bool:
    texts = [card.read_text("utf-8", "replace") for card in folder.glob("*/card.yaml")]
    return bool(texts) and all(f"\nsource: {_MADE} " in text for text in texts)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("|".join([str(_FORMAT), *parts]).encode()).hexdigest()


def _write(
    folder: Path,
    name: str,
    *,
    made_from: list[str],
    summary: str,
    card: Card,
    splits: Mapping[str, Sequence[Pair]],
    keys: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
) -> str:
    earlier = {"history": "history"} if card.columns.history else {}
    content = {
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
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return name
    for split, rows in splits.items():
        write_json_lines(here / f"{split}.jsonl", (row_of(*pair) for pair in rows))
    for file in files:
        copy = here / file.relative_to(card.folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    paths.write_text(target, text)  # last: a card without its rows is never seen
    load_card(name)
    return name
