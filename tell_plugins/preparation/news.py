"""IS-EN-NEWS made again: WMT-21's aligned sentences joined to documents, as the paper's files are;
and its split `tm`, long sentence pairs of a translation memory, for the paper's larger baseline.

A row is one document. Its query is the anchor and the lines of the source, its response an
opening sentence and the lines of the translation. The result is compared with the git blob id of
the official file, so a rebuild that is right proves itself.

The paper takes pairs of more than 50 words from the University of Iceland's memory. Here "words"
are those of the English side. A pair whose sentence stands in a train, validation or test file, on
either side, is left out, and so is a pair with a sentence that an earlier pair had.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from lxml import etree

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.core.progress import track
from tell_plugins.core.rows import file_sha256
from tell_plugins.core.sources import find_file, open_task
from tell_plugins.core.text import comparison_keys
from tell_plugins.preparation import download
from tell_plugins.preparation.card_files import NEEDED
from tell_plugins.preparation.download import Places

TEST_SETS = {"train": "wmt21/dev", "test": "wmt21"}  # sacrebleu's names
LINE_END = "\r\n"  # of the official files
DIRECTIONS = ("en_is_news", "is_en_news")
_CODES = {"English": "en", "Icelandic": "is"}


class Frame(NamedTuple):
    """The constant text around the documents of one direction, and its language codes."""

    anchor: str
    opening: str
    source: str
    target: str

    def row(self, source: str, target: str) -> str:
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


class Segment(NamedTuple):
    """One aligned line and the document it belongs to."""

    document: str
    source: str
    target: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "make the files again from WMT-21's sentences, which sacrebleu's data sets hold"
    parser.add_argument("--rebuild", action="store_true", help=text)
    text = "a translation memory: its long pairs become the split 'tm'"
    parser.add_argument("--tmx", metavar="FILE", help=text)


def rebuild(name: str, args: argparse.Namespace, places: Places) -> int:
    """Make the files of a card again and say how each compares; add a memory's pairs.

    Raises MachineError when WMT-21's files cannot be had or the result is not the official file
    (with `--accept` it is taken all the same), UserError for a wrong memory.
    """
    card = load_card(name)
    for split in TEST_SETS if args.rebuild else ():
        segments, origin = from_sacrebleu(card, split, places)
        _write(card, split, segments, origin, accept=places.accept)
    if args.tmx:
        add_memory(card, paths.user_path(args.tmx))
    return 0


# ------------------------------------------------------------------------- WMT-21


def join_documents(segments: list[Segment], frame: Frame) -> list[str]:
    """The lines of a data file: one for each run of segments of one document, in order.

    A document keeps its line breaks, which align source and target line by line.
    """
    rows = []
    for _, group in groupby(segments, key=lambda segment: segment.document):
        _, sources, targets = zip(*group, strict=True)
        rows.append(frame.row("\n".join(sources), "\n".join(targets)))
    return rows


def _write(
    card: Card, split: str, segments: list[Segment], origin: dict[str, Any], *, accept: bool
) -> None:
    spec, target = card.split(split), download.target_of(card, split)
    rows = join_documents(segments, frame(card))
    made = f"{len(rows)} documents of {len(segments):,} lines"
    with download.locked(target), download.arriving(target) as part:
        part.write_bytes("".join(row + LINE_END for row in rows).encode())
        problem = download.has_blob(str(spec.blob))(part)
        if problem is not None and not accept:
            raise MachineError(
                f"{target.name}: {made} do not make the official file ({spec.rows} documents): "
                f"{problem}; nothing was kept",
                remedy="--accept to take it as it is",
            )
        source = {"rebuilt_from": origin, "official": problem is None}
        facts = {"origin": f"rebuilt from {origin['member']}", "rows": len(rows)}
        download.record_split(card, split, source, part, **facts)
    proved = "equal to the official file, byte by byte" if problem is None else "NOT the official"
    print(f"  {split}: {made}, {proved}: {paths.shown(target)}")


def from_sacrebleu(card: Card, split: str, places: Places) -> tuple[list[Segment], dict[str, Any]]:
    """The segments of sacrebleu's data set for a split, and where they came from.

    The dev set holds documents of both directions; those written in the source language are this
    direction's. The sentences are taken as WMT published them: sacrebleu's own text files have
    runs of blanks closed up, which the official files have not.
    """
    from sacrebleu.dataset import DATASETS

    text = frame(card)
    dataset: Any = DATASETS[TEST_SETS[split]]
    pair = f"{text.source}-{text.target}"
    path = _raw_file(dataset, pair, places)
    try:
        fields = dataset._unwrap_wmt21_or_later(path)
    except (SyntaxError, AssertionError, ValueError) as error:  # lxml's errors are SyntaxErrors
        raise MachineError(
            f"{path}: not WMT-21's XML ({error})", remedy="remove the file, it is fetched again"
        ) from None
    references = [name for name in fields if name == "ref" or name.startswith("ref:")]
    segments = []
    for index, document in enumerate(fields["docid"]):
        if fields["origlang"][index] == text.source:
            texts = [fields[name][index] for name in references]
            target = next((each for each in texts if each), "")
            segments.append(Segment(document, fields["src"][index] or "", target))
    origin = {"sacrebleu": TEST_SETS[split], "pair": pair, "archive": dataset.data[0]}
    return segments, origin | {"md5": dataset.md5[0], "member": path.name}


def _raw_file(dataset: Any, pair: str, places: Places) -> Path:
    """WMT's XML file where sacrebleu keeps it, taken out of its archive where it is not there.

    sacrebleu would fetch the archive in a single breath and try once; here it is fetched like every
    other file. Raises MachineError when it cannot be had or is not the right one.
    """
    folder, name, url = Path(dataset._rawdir), dataset.langpairs[pair][0], dataset.data[0]
    path = folder / name
    if not path.is_file():
        archive, proof = folder / url.rsplit("/", 1)[-1], download.has_md5(dataset.md5[0])
        print(f"  fetching {url} (sacrebleu's {dataset.name}) ...", flush=True)
        download.fetch(url, proof, archive, places)
        with tarfile.open(archive) as tar, paths.atomic_path(path) as temporary:
            member = tar.extractfile(name)
            assert member is not None  # the archive is the one that sacrebleu knows
            temporary.write_bytes(member.read())
    return path


# ------------------------------------------------------------------------- a translation memory

SPLIT = "tm"
WORDS = 50  # the English side has more
_REASONS = {
    "short": f"English side of {WORDS} words or fewer",
    "held_out": "a sentence of the train or test documents",
    "repeated": "a sentence that an earlier pair has",
}
_CODE = ("bpt", "ept", "it", "ph", "ut")  # inline elements that hold formatting codes
_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_Pair = tuple[str, ...]


def add_memory(card: Card, tmx: Path) -> None:
    """Write the split `tm` of `card` from a TMX file and say what was kept and left out.

    Raises UserError for a wrong file, or when the documents to stay apart from are not here.
    """
    known, text, target = document_lines(card), frame(card), download.target_of(card, SPLIT)
    codes = (text.source, text.target)
    counts: Counter[str] = Counter(dict.fromkeys(_REASONS, 0))
    with download.locked(target), paths.atomic_path(target) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for pair in read_pairs(tmx, codes):
                reason = _left_out(pair, pair[codes.index("en")], known)
                counts[reason or "kept"] += 1
                if reason is None:
                    file.write(text.row(*pair) + "\n")
        kept = counts.pop("kept", 0)
        said = ", ".join(f"{counts[key]:,} {reason}" for key, reason in _REASONS.items())
        if not kept:
            raise UserError(
                f"none of its {counts.total():,} pairs can be used: left out: {said}",
                where=paths.shown(tmx),
                remedy="name a memory of English and Icelandic",
            )
        facts = {
            "origin": f"made of {tmx.name}",
            "rows": kept,
            "left_out": dict(counts),
            "rule": f"English side of more than {WORDS} words",
            "licence": "that of the translation memory",
        }
        source = {"tmx": tmx.name, "sha256": file_sha256(tmx)}
        download.record_split(card, SPLIT, source, temporary, **facts)
    print(f"  {SPLIT}: {kept:,} pairs (left out: {said}): {paths.shown(target)}")
    print(f"  train on it with  tell/{card.name}:split={SPLIT}")


def _left_out(pair: _Pair, english: str, known: dict[int, str]) -> str | None:
    """The key of `_REASONS` for a pair that is not taken; one that is becomes `known`."""
    if len(english.split()) <= WORDS:
        return "short"
    keys = comparison_keys(pair).tolist()
    found = {known[key] for key in keys if key in known}
    if not found:
        known.update(dict.fromkeys(keys, "repeated"))
    return min(found, default=None)


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
    where = f"{paths.shown(path)}, line {line}"
    return UserError(found, where=where, remedy="name a whole TMX file")
