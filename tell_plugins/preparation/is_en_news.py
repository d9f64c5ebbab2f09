"""IS-EN-NEWS made again: WMT-21's aligned sentences joined to documents, as the paper's files are.

A row is one document. Its query is the anchor and the lines of the source, its response an
opening sentence and the lines of the translation. The result is compared with the git blob id of
the official file, so a rebuild that is right proves itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import Card
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.preparation.card_files import target_of
from tell_plugins.preparation.checksums import Checksum
from tell_plugins.preparation.download import Places, arriving
from tell_plugins.preparation.provenance import write_provenance

CARDS = ("en_is_news", "is_en_news")
TEST_SETS = {"train": "wmt21/dev", "test": "wmt21"}  # sacrebleu's names
LINE_END = "\r\n"  # of the official files
_CODES = {"English": "en", "Icelandic": "is"}


class Frame(NamedTuple):
    """The constant text around the documents of one direction."""

    anchor: str
    opening: str


class Segment(NamedTuple):
    """One aligned line and the document it belongs to."""

    document: str
    source: str
    target: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `data en_is_news --rebuild` and `--tmx`."""
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="make the files again from WMT-21's sentences, which sacrebleu's data sets hold",
    )
    parser.add_argument("--split", choices=tuple(TEST_SETS), help="one split (default: both)")
    parser.add_argument("--source", metavar="FILE", help="aligned lines of the source")
    parser.add_argument("--reference", metavar="FILE", help="aligned lines of the translation")
    parser.add_argument("--docids", metavar="FILE", help="the document id of each line")
    parser.add_argument(
        "--tmx", metavar="FILE", help="a translation memory: its long pairs become the split 'tm'"
    )


def languages(card: Card) -> tuple[str, str]:
    """The language codes of source and target, such as ("en", "is")."""
    assert card.translation is not None
    return _CODES[card.translation.source], _CODES[card.translation.target]


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
    )


def row_text(frame: Frame, source: str, target: str) -> str:
    """One line of a data file, without its end."""
    row = {"query": frame.anchor + source, "response": frame.opening + target}
    return json.dumps(row, ensure_ascii=False)


def join_documents(segments: Iterable[Segment], frame: Frame) -> list[str]:
    """The lines of a data file: one for each run of segments of one document, in order.

    A document keeps its line breaks, which align source and target line by line.
    """
    rows = []
    for _, group in groupby(segments, key=lambda segment: segment.document):
        lines = list(group)
        source = "\n".join(line.source for line in lines)
        target = "\n".join(line.target for line in lines)
        rows.append(row_text(frame, source, target))
    return rows


def rebuild(card: Card, args: argparse.Namespace, places: Places) -> int:
    """Make the files of `card` again, one split or both, and say how each compares.

    Raises UserError for files that do not fit together, MachineError when WMT-21's files cannot
    be had or the result is not the official file (with `--accept` it is taken all the same).
    """
    named = (args.source, args.reference, args.docids)
    if any(named) and not (all(named) and args.split):
        raise UserError(
            "aligned lines are three files of one split",
            where="--source, --reference, --docids, --split",
            allowed="all four together, or none (then sacrebleu's data sets are used)",
            remedy="add what is missing",
        )
    splits = [args.split] if args.split else list(TEST_SETS)
    for split in splits:
        if all(named):
            source, reference, docids = (paths.user_path(str(name)) for name in named)
            segments = read_aligned(source, reference, docids)
            origin: dict[str, Any] = {"aligned_files": [str(name) for name in named]}
        else:
            segments, origin = from_sacrebleu(card, split, places)
        _write(card, split, segments, origin, accept=args.accept)
    return 0


def _write(
    card: Card, split: str, segments: Sequence[Segment], origin: dict[str, Any], *, accept: bool
) -> None:
    spec, target = card.split(split), target_of(card, split)
    rows = join_documents(segments, frame(card))
    with arriving(target) as part:
        part.write_bytes("".join(row + LINE_END for row in rows).encode())
        assert spec.blob is not None
        problem = Checksum("blob", spec.blob).problem(part)
        if problem is not None and not accept:
            raise MachineError(
                f"{target.name}: {len(rows)} documents of {len(segments):,} lines do not make "
                f"the official file ({spec.rows} documents): {problem}; nothing was kept\n"
                "  remedy:  other aligned lines (blanks count), or --accept to take it as it is"
            )
        write_provenance(
            target,
            {"rebuilt_from": origin, "official": problem is None},
            part,
            card=card.name,
            split=split,
            rows=len(rows),
            lines=len(segments),
            licence=card.licence,
        )
    proved = "equal to the official file, byte by byte" if problem is None else "NOT the official"
    print(
        f"  {split}: {len(rows)} documents of {len(segments):,} lines, {proved}: "
        f"{paths.shown(target)}"
    )


def read_aligned(source: Path, reference: Path, docids: Path) -> list[Segment]:
    """The segments of three files whose lines belong together. UserError when they do not."""
    columns = [read_lines(path) for path in (docids, source, reference)]
    counts = [len(lines) for lines in columns]
    if len(set(counts)) > 1:
        raise UserError(
            f"the files have {counts[1]:,}, {counts[2]:,} and {counts[0]:,} lines",
            where=", ".join(paths.shown(path) for path in (source, reference, docids)),
            allowed="the same number of lines in each",
            remedy="name files of one test set",
        )
    return [Segment(*lines) for lines in zip(*columns, strict=True)]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, blanks at their ends kept. Raises UserError when it is none."""
    if not path.is_file():
        raise UserError(
            f"no file '{path.name}'", where=paths.shown(path.parent), remedy="correct the path"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 (byte {error.start})", where=paths.shown(path), remedy="convert it"
        ) from None
    lines = text.split("\n")  # not splitlines, which also breaks at characters inside sentences
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def from_sacrebleu(card: Card, split: str, places: Places) -> tuple[list[Segment], dict[str, Any]]:
    """The segments of sacrebleu's data set for a split, and where they came from.

    The dev set holds documents of both directions; those written in the source language are this
    direction's. The sentences are taken as WMT published them: sacrebleu's own text files have
    runs of blanks closed up, which the official files have not.
    """
    from tell_plugins.preparation.wmt import raw_file

    source, target = languages(card)
    path, dataset, origin = raw_file(TEST_SETS[split], f"{source}-{target}", places)
    try:
        fields = dataset._unwrap_wmt21_or_later(path)
    except (SyntaxError, AssertionError, ValueError) as error:  # lxml's errors are SyntaxErrors
        raise MachineError(
            f"{path}: not WMT-21's XML ({error})\n  remedy:  remove the file, it is fetched again"
        ) from None
    references = [name for name in fields if name == "ref" or name.startswith("ref:")]
    segments = []
    for index, document in enumerate(fields["docid"]):
        if fields["origlang"][index] == source:
            texts = [fields[name][index] for name in references]
            text = next((text for text in texts if text), "")
            segments.append(Segment(document, fields["src"][index] or "", text))
    if not segments:
        raise MachineError(
            f"{path}: no document was written in '{source}'\n"
            "  remedy:  remove the file, it is fetched again"
        )
    return segments, origin
