"""The split `tm`: long sentence pairs of a translation memory, for the paper's larger baseline.

The paper takes pairs of more than 50 words from the University of Iceland's memory. Here "words"
are those of the English side. A pair whose sentence stands in a train, validation or test file, on
either side, is left out, and so is a pair with a sentence that an earlier pair had.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import find_file, open_task
from tell_plugins.core.text import comparison_keys
from tell_plugins.preparation.card_files import NEEDED, target_of
from tell_plugins.preparation.checksums import checksum_of
from tell_plugins.preparation.download import locked
from tell_plugins.preparation.is_en_news import CARDS, Frame, frame, languages, row_text
from tell_plugins.preparation.provenance import write_provenance
from tell_plugins.preparation.tmx import read_pairs

SPLIT = "tm"
WORDS = 50  # the English side has more
_BATCH = 2000
_REASONS = {
    "short": f"English side of {WORDS} words or fewer",
    "held_out": "a sentence of the train or test documents",
    "repeated": "a sentence that an earlier pair has",
}


def build(card: Card, tmx: Path) -> int:
    """Write the split `tm` of `card` from a TMX file and say what was kept and left out.

    Raises UserError for a wrong file, or when the documents to stay apart from are not here.
    """
    known = document_lines(card)
    target = target_of(card, SPLIT)
    counts: Counter[str] = Counter()
    with locked(target), paths.atomic_path(target) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for row in _rows(card, tmx, known, counts):
                file.write(row + "\n")
        if not counts["kept"]:
            raise UserError(
                f"none of its {sum(counts.values()):,} pairs can be used: {_said(counts)}",
                where=paths.shown(tmx),
                remedy="name a memory of English and Icelandic",
            )
        write_provenance(
            target,
            {"tmx": tmx.name, "sha256": checksum_of(tmx, "sha256").hex},
            temporary,
            card=card.name,
            split=SPLIT,
            rows=counts["kept"],
            left_out={reason: counts[reason] for reason in _REASONS},
            rule=f"English side of more than {WORDS} words",
            licence="that of the translation memory",
        )
    print(
        f"  {SPLIT}: {counts['kept']:,} pairs ({_said(counts)}): {paths.shown(target)}\n"
        f"  train on it with  tell/{card.name}:split={SPLIT}"
    )
    return 0


def _said(counts: Counter[str]) -> str:
    return "left out: " + ", ".join(f"{counts[key]:,} {text}" for key, text in _REASONS.items())


def _rows(card: Card, tmx: Path, known: set[int], counts: Counter[str]) -> Iterator[str]:
    seen: set[int] = set()
    text = frame(card)
    for batch in _batches(card, tmx, counts):
        yield from _fresh(batch, known, seen, counts, text)


def _batches(card: Card, tmx: Path, counts: Counter[str]) -> Iterator[list[tuple[str, str]]]:
    """Pairs (source, target) whose English side is long enough, in batches."""
    codes = languages(card)
    english = codes.index("en")
    batch = []
    for pair in read_pairs(tmx, codes):
        if len(pair[english].split()) <= WORDS:
            counts["short"] += 1
            continue
        batch.append((pair[0], pair[1]))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _fresh(
    batch: list[tuple[str, str]], known: set[int], seen: set[int], counts: Counter[str], text: Frame
) -> Iterator[str]:
    keys = comparison_keys([side for pair in batch for side in pair]).tolist()
    for (source, target), *both in zip(batch, keys[::2], keys[1::2], strict=True):
        reason = (
            "held_out"
            if not known.isdisjoint(both)
            else "repeated"
            if not seen.isdisjoint(both)
            else "kept"
        )
        counts[reason] += 1
        if reason == "kept":
            seen.update(both)
            yield row_text(text, source, target)


def document_lines(card: Card) -> set[int]:
    """Comparison keys of every line of the documents that pairs must stay apart from.

    Those are the documents of `card`, and of the other direction where they are here. Raises
    UserError when a file of `card` is missing.
    """
    keys: set[int] = set()
    for name in CARDS:
        other = load_card(name)
        for split in (split for split in NEEDED if split in other.splits):
            if find_file(other, split) is None:
                if name == card.name:
                    raise UserError(
                        f"split '{split}' is not here, and no pair of it may be trained on",
                        where=f"card '{name}'",
                        remedy=f"./run.sh data {name}",
                    )
                continue
            keys.update(_lines_of(other, split))
    return keys


def _lines_of(card: Card, split: str) -> list[int]:
    rows, opening = open_task(card, split), frame(card).opening
    texts = [*rows.plain, *(response.removeprefix(opening) for response in rows.responses)]
    lines = [line for text in texts for line in text.split("\n") if line.strip()]
    keys: list[int] = comparison_keys(lines).tolist()
    return keys
