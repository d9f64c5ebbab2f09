"""IS-EN-NEWS made again: WMT-21's aligned sentences joined to documents, as the paper's files are.

A row is one document. Its query is the anchor and the lines of the source, its response an
opening sentence and the lines of the translation. The result is compared with the git blob id of
the official file, so a rebuild that is right proves itself.
"""

from __future__ import annotations

import argparse
import tarfile
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import MachineError
from tell_plugins.preparation.download import (
    Places,
    arriving,
    fetch,
    has_blob,
    has_md5,
    locked,
    record_split,
    target_of,
)
from tell_plugins.preparation.news_memory import Frame, add_memory, frame

TEST_SETS = {"train": "wmt21/dev", "test": "wmt21"}  # sacrebleu's names
LINE_END = "\r\n"  # of the official files


class Segment(NamedTuple):
    """One aligned line and the document it belongs to."""

    document: str
    source: str
    target: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `data en_is_news --rebuild` and `--tmx`."""
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
    if args.rebuild:
        for split in TEST_SETS:
            segments, origin = from_sacrebleu(card, split, places)
            _write(card, split, segments, origin, accept=places.accept)
    if args.tmx:
        add_memory(card, paths.user_path(args.tmx))
    return 0


def join_documents(segments: list[Segment], frame: Frame) -> list[str]:
    """The lines of a data file: one for each run of segments of one document, in order.

    A document keeps its line breaks, which align source and target line by line.
    """
    rows = []
    for _, group in groupby(segments, key=lambda segment: segment.document):
        lines = list(group)
        source = "\n".join(line.source for line in lines)
        target = "\n".join(line.target for line in lines)
        rows.append(frame.row(source, target))
    return rows


def _write(
    card: Card, split: str, segments: list[Segment], origin: dict[str, Any], *, accept: bool
) -> None:
    spec, target = card.split(split), target_of(card, split)
    rows = join_documents(segments, frame(card))
    with locked(target), arriving(target) as part:
        part.write_bytes("".join(row + LINE_END for row in rows).encode())
        assert spec.blob is not None
        problem = has_blob(spec.blob)(part)
        if problem is not None and not accept:
            raise MachineError(
                f"{target.name}: {len(rows)} documents of {len(segments):,} lines do not make "
                f"the official file ({spec.rows} documents): {problem}; nothing was kept",
                remedy="--accept to take it as it is",
            )
        record_split(
            card,
            split,
            {"rebuilt_from": origin, "official": problem is None},
            part,
            origin=f"rebuilt from {origin['member']}",
            rows=len(rows),
        )
    proved = "equal to the official file, byte by byte" if problem is None else "NOT the official"
    print(
        f"  {split}: {len(rows)} documents of {len(segments):,} lines, {proved}: "
        f"{paths.shown(target)}"
    )


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
    folder = Path(dataset._rawdir)
    path = folder / dataset.langpairs[pair][0]
    if not path.is_file():
        url = dataset.data[0]
        archive = folder / dataset._get_tarball_filename(url)
        print(f"  fetching {url} (sacrebleu's {dataset.name}) ...", flush=True)
        fetch(url, has_md5(dataset.md5[0]), archive, places, name=url.rsplit("/", 1)[-1])
        with tarfile.open(archive) as tar, paths.atomic_path(path) as temporary:
            member = tar.extractfile(dataset.langpairs[pair][0])
            assert member is not None  # the archive is the one that sacrebleu knows
            temporary.write_bytes(member.read())
    return path
