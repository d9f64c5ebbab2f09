"""The split `tm`: long sentence pairs of a translation memory, for the paper's larger baseline.

The paper takes pairs of more than 50 words from the University of Iceland's memory. Here "words"
are those of the English side. A pair whose sentence stands in a train, validation or test file, on
either side, is left out, and so is a pair with a sentence that an earlier pair had.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lxml import etree

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.progress import track
from tell_plugins.core.rows import file_sha256
from tell_plugins.core.sources import find_file, open_task
from tell_plugins.core.text import comparison_keys
from tell_plugins.preparation.card_files import NEEDED
from tell_plugins.preparation.download import locked, record_split, target_of

DIRECTIONS = ("en_is_news", "is_en_news")
SPLIT = "tm"
WORDS = 50  # the English side has more
_BATCH = 2000
_REASONS = {
    "short": f"English side of {WORDS} words or fewer",
    "held_out": "a sentence of the train or test documents",
    "repeated": "a sentence that an earlier pair has",
}
_CODES = {"English": "en", "Icelandic": "is"}
_CODE = ("bpt", "ept", "it", "ph", "ut")  # inline elements that hold formatting codes
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_Pair = tuple[str, ...]


class Frame(NamedTuple):
    """The constant text around the documents of one direction, and its language codes."""

    anchor: str
    opening: str
    source: str
    target: str

    def row(self, source: str, target: str) -> str:
        """One line of a data file, without its end."""
        row = {"query": self.anchor + source, "response": self.opening + target}
        return json.dumps(row, ensure_ascii=False)


def frame(card: Card) -> Frame:
    """The constant text of a direction.

    That of en-is stands so in the official files. That of is-en is taken to be the same with the
    languages changed; the blob id of a rebuilt file proves it or shows that it is not.
    """
    assert card.translation is not None
    source, target = card.translation.source, card.translation.target
    return Frame(
        f"This text is in {source} and needs to be translated into {target}. Please translate only "
        "the text, strictly maintaining the original content order without making any other "
        "changes.\n\n ",
        f"Sure, here is the {target} translation: \n\n ",
        _CODES[source],
        _CODES[target],
    )


def add_memory(card: Card, tmx: Path) -> None:
    """Write the split `tm` of `card` from a TMX file and say what was kept and left out.

    Raises UserError for a wrong file, or when the documents to stay apart from are not here.
    """
    known, text, target = document_lines(card), frame(card), target_of(card, SPLIT)
    counts: Counter[str] = Counter(dict.fromkeys(_REASONS, 0))
    with locked(target), paths.atomic_path(target) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for batch in _batches(tmx, (text.source, text.target), counts):
                pairs = _fresh(batch, known, counts)
                file.writelines(text.row(*pair) + "\n" for pair in pairs)
        kept = counts.pop("kept", 0)
        said = ", ".join(f"{counts[key]:,} {reason}" for key, reason in _REASONS.items())
        if not kept:
            raise UserError(
                f"none of its {counts.total():,} pairs can be used: left out: {said}",
                where=paths.shown(tmx),
                remedy="name a memory of English and Icelandic",
            )
        record_split(
            card,
            SPLIT,
            {"tmx": tmx.name, "sha256": file_sha256(tmx)},
            temporary,
            origin=f"made of {tmx.name}",
            rows=kept,
            left_out=dict(counts),
            rule=f"English side of more than {WORDS} words",
            licence="that of the translation memory",
        )
    print(
        f"  {SPLIT}: {kept:,} pairs (left out: {said}): {paths.shown(target)}\n"
        f"  train on it with  tell/{card.name}:split={SPLIT}"
    )


def _batches(tmx: Path, codes: _Pair, counts: Counter[str]) -> Iterator[list[_Pair]]:
    """Pairs whose English side is long enough, in batches."""
    batch = []
    for pair in read_pairs(tmx, codes):
        if len(pair[codes.index("en")].split()) <= WORDS:
            counts["short"] += 1
            continue
        batch.append(pair)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


def _fresh(batch: list[_Pair], known: dict[int, str], counts: Counter[str]) -> Iterator[_Pair]:
    """The pairs without a sentence that is `known`, by comparison key; theirs become known."""
    keys = comparison_keys([side for pair in batch for side in pair]).tolist()
    for pair, *both in zip(batch, keys[::2], keys[1::2], strict=True):
        found = {known[key] for key in both if key in known}
        reason = next((each for each in _REASONS if each in found), "kept")
        counts[reason] += 1
        if reason == "kept":
            known.update(dict.fromkeys(both, "repeated"))
            yield pair


def document_lines(card: Card) -> dict[int, str]:
    """Comparison keys of every line of the documents that pairs must stay apart from.

    Those are the documents of `card`, and of the other direction where they are here. Raises
    UserError when a file of `card` is missing.
    """
    keys: dict[int, str] = {}
    for other in map(load_card, DIRECTIONS):
        for split in (split for split in NEEDED if split in other.splits):
            if find_file(other, split) is not None:
                rows, opening = open_task(other, split), frame(other).opening
                texts = [*rows.plain, *(each.removeprefix(opening) for each in rows.responses)]
                lines = [line for text in texts for line in text.split("\n") if line.strip()]
                keys.update(dict.fromkeys(comparison_keys(lines).tolist(), "held_out"))
            elif other.name == card.name:
                raise UserError(
                    f"split '{split}' is not here, and no pair of it may be trained on",
                    where=f"card '{card.name}'",
                    remedy=f"./run.sh data {card.name}",
                )
    return keys


# ------------------------------------------------------------------------- TMX


def read_pairs(path: Path, languages: Sequence[str]) -> Iterator[_Pair]:
    """The texts of each translation unit of a TMX file that has all of `languages` ("en", ...).

    Blanks are closed up, formatting codes left out. The file is read unit by unit, so memory does
    not grow with it, and nothing is fetched for its document type. Raises UserError for a file that
    is no TMX, is broken, or uses entities of its own.
    """
    if not path.is_file():
        raise UserError(f"no file '{path}'", where="--tmx", remedy="correct the path")
    unit = None
    with path.open("rb") as file, track(path.stat().st_size, f"reading {path.name}", "B") as bar:
        bar.unit_scale = True
        try:
            for _, unit in etree.iterparse(file, tag="tu", resolve_entities=False):
                bar.update(file.tell() - bar.n)
                texts = _texts(unit, path)
                if all(language in texts for language in languages):
                    yield tuple(texts[language] for language in languages)
                unit.clear()  # and what stands before it goes, too
                while unit.getprevious() is not None:
                    del unit.getparent()[0]
        except etree.XMLSyntaxError as error:
            raise _error(path, error.lineno, f"no XML: {error.msg}") from None
    if unit is None:
        raise _error(path, 1, "no translation unit (<tu>) is in it")


def _texts(unit: Any, path: Path) -> dict[str, str]:
    """The text of each language's first segment."""
    texts: dict[str, str] = {}
    for variant in unit.iterchildren("tuv"):
        code = (variant.get(_LANGUAGE) or variant.get("lang") or "").replace("_", "-")
        for segment in variant.iterchildren("seg"):
            for entity in segment.iter(etree.Entity):
                what = f"it uses an entity ('{entity.name}') of its own, which is refused"
                raise _error(path, segment.sourceline, what)
            etree.strip_elements(segment, *_CODE, with_tail=False)
            text = " ".join("".join(segment.itertext()).split())
            if code and text:
                texts.setdefault(code.partition("-")[0].lower(), text)
    return texts


def _error(path: Path, line: int, found: str) -> UserError:
    return UserError(
        found, where=f"{paths.shown(path)}, line {line}", remedy="name a whole TMX file"
    )
