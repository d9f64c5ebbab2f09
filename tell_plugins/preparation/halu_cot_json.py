"""Rebuilding Halu-CoT-JSON from HaluEval's general split, with thoughts of one's own.

The paper's training file is HaluEval's general rows 0 to 3000 with thoughts by gpt-3.5-turbo, its
test file the rows after them without any. The prompts can be made again byte for byte: anchor and
test rows are taken from the official test file, which also proves the rebuild row by row. Only the
thoughts are new: built from HaluEval's annotated spans, or written by an endpoint.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins import __version__
from tell_plugins.core import paths
from tell_plugins.core.anchors import shared_front
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.rowfiles import read_records
from tell_plugins.core.rows import file_sha256
from tell_plugins.core.sources import find_file, open_split
from tell_plugins.preparation.span_thoughts import span_thought

OFFICIAL, BY_SPANS, BY_ENDPOINT = "halu_cot_json", "halu_cot_json_spans", "halu_cot_json_rebuilt"
HALUEVAL_FILE = "general_data.json"
HALUEVAL_URL = "https://raw.githubusercontent.com/RUCAIBox/HaluEval/main/data/general_data.json"
HALUEVAL_BLOB = "4b395488fcbe333702cf8ab07b5a3cf192fae424"
HALUEVAL_SHA256 = "73302cd97666b808fb94b5d8a4a2c924049c9484e609017a2f808c4a6d539219"
TRAIN, TEST = range(0, 3001), range(3001, 4507)  # positions in HaluEval's file
_KEYS = ("user_query", "chatgpt_response", "hallucination")


class HaluRow(NamedTuple):
    """One row of HaluEval's general split; `number` is its position in the file, from 0."""

    number: int
    query: str
    response: str
    label: str  # yes | no
    spans: tuple[str, ...]

    @property
    def payload(self) -> str:
        """What follows the anchor in an official prompt."""
        return f"'user_query' : {self.query}\n'chatgpt_response' : {self.response}"


class Sources(NamedTuple):
    """What a rebuild is made of, checked against the official test file.

    Attributes:
        anchor: the text in front of every official prompt, its last line break included.
        train: HaluEval's rows 0 to 3000.
        files: name, origin and SHA-256 of each file read.
    """

    anchor: str
    train: list[HaluRow]
    files: list[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `data halu_cot_json --rebuild`."""
    parser.add_argument(
        "--rebuild", action="store_true", help="make the training rows again from HaluEval"
    )
    parser.add_argument(
        "--thoughts",
        choices=("spans", "endpoint"),
        help="who writes the thoughts: HaluEval's annotated spans, or a language model "
        "(default: endpoint where --base-url is given)",
    )
    parser.add_argument("--halueval", metavar="FILE", help=f"HaluEval's {HALUEVAL_FILE}")


def rebuild(args: argparse.Namespace) -> int:
    """Rebuild the training file as `args` say; 0 when it is complete, 1 when rows failed."""
    sources = read_sources(args.halueval)
    return _rebuild_from_spans(sources)


def _rebuild_from_spans(sources: Sources) -> int:
    thoughts = [
        span_thought(row.query, row.response, row.label, row.spans) for row in sources.train
    ]
    how = {
        "by": "HaluEval's annotated spans; no language model took part",
        "method": "tell_plugins/preparation/span_thoughts.py: passages of the response that an "
        "annotator marked are quoted, remarks are repeated, and rows without a fault get one "
        "sentence that names the query",
        "forms": dict(sorted(Counter(thought.form for thought in thoughts).items())),
    }
    rows = [
        training_row(sources.anchor, row, thought.text)
        for row, thought in zip(sources.train, thoughts, strict=True)
    ]
    write_rebuilt(load_card(BY_SPANS), rows, sources, how)
    return 0


def training_row(anchor: str, row: HaluRow, thought: str) -> dict[str, str]:
    """A row as the official training file has it."""
    answer = {"thought": thought, "hallucination": row.label}
    return {
        "prompt": anchor + row.payload,
        "response": json.dumps(answer, ensure_ascii=False),
    }


def write_rebuilt(
    card: Card, rows: Sequence[dict[str, str]], sources: Sources, how: dict[str, Any]
) -> Path:
    """Write the complete training file and, beside it, where it came from."""
    path = paths.data_homes()[0] / card.name / card.split("train").file
    paths.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    labels = Counter(json.loads(row["response"])["hallucination"] for row in rows)
    record = {
        "file": path.name,
        "sha256": file_sha256(path),
        "rows": len(rows),
        "labels": dict(sorted(labels.items())),
        "made_by": f"tell-recipes {__version__}",
        "sources": sources.files,
        "thoughts": how,
        "licence": card.licence,
    }
    write_json(path.with_suffix(".provenance.json"), record)
    print(
        f"{len(rows):,} training rows ({labels['yes']} yes, {labels['no']:,} no): "
        f"{paths.shown(path)}\n"
        f"{len(TEST):,} test rows: the paper's own, equal to HaluEval's row by row\n"
        f"use it as  tell/{card.name}"
    )
    return path


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, in one piece."""
    paths.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_sources(halueval: str | None = None) -> Sources:
    """Read HaluEval and the official test file and prove that one continues the other.

    Raises UserError when a file is missing, is not the expected one, or the two do not fit.
    """
    path = _halueval_file(halueval)
    digest = file_sha256(path)
    if digest != HALUEVAL_SHA256:
        raise UserError(
            f"not the HaluEval file this rebuild is made for: sha256 {digest}",
            where=paths.shown(path),
            allowed=f"sha256 {HALUEVAL_SHA256}",
            remedy=f"take it from {HALUEVAL_URL}",
        )
    rows = read_halueval(path)
    test_file, anchor = _check_against_official(rows[TEST.start : TEST.stop])
    files = [
        {"file": HALUEVAL_FILE, "from": HALUEVAL_URL, "sha256": digest, "rows_used": "0 to 3000"},
        {
            "file": test_file.name,
            "from": load_card(OFFICIAL).split("test").url,
            "sha256": file_sha256(test_file),
            "used_for": "anchor; proof of prompts and labels",
        },
    ]
    return Sources(anchor, rows[TRAIN.start : TRAIN.stop], files)


def read_halueval(path: Path) -> list[HaluRow]:
    """The rows of HaluEval's general split, in file order. UserError names a row that is wrong."""
    rows = []
    for record in read_records(path):
        value = record.value
        problem = record.problem
        if problem is None and not (
            isinstance(value, dict) and all(isinstance(value.get(key), str) for key in _KEYS)
        ):
            problem = f"not a row with the texts {', '.join(_KEYS)}"
        if problem is None and value["hallucination"] not in ("yes", "no"):
            problem = f"the label is '{value['hallucination']}', not yes or no"
        if problem is not None:
            raise UserError(
                problem,
                where=f"{paths.shown(path)}, line {record.line}",
                remedy=f"take the file from {HALUEVAL_URL}",
            )
        spans = tuple(str(span) for span in value.get("hallucination_spans") or ())
        query, response, label = (value[key] for key in _KEYS)
        rows.append(HaluRow(len(rows), query, response, label, spans))
    return rows


def _halueval_file(named: str | None) -> Path:
    if named:
        path = paths.user_path(named)
        if path.is_file():
            return path
        raise UserError(f"no file '{named}'", where="--halueval", remedy="correct the path")
    for home in paths.data_homes():
        places = [home / "halueval" / HALUEVAL_FILE, home / HALUEVAL_FILE]
        for path in (*places, *sorted(home.glob(f"*/{HALUEVAL_FILE}"))):
            if path.is_file():
                return path
    target = paths.data_homes()[0] / "halueval" / HALUEVAL_FILE
    raise UserError(
        f"no HaluEval file '{HALUEVAL_FILE}'",
        where="looked in " + ", ".join(map(str, paths.data_homes())),
        remedy=f"curl --create-dirs -Lo {target} {HALUEVAL_URL}   (or --halueval FILE)",
    )


def _check_against_official(rows: Sequence[HaluRow]) -> tuple[Path, str]:
    """The official test file and its anchor. UserError unless its rows are `rows`, in order."""
    card = load_card(OFFICIAL)
    path = find_file(card, "test")
    if path is None:
        raise UserError(
            f"no file '{card.split('test').file}': anchor and test rows are taken from it",
            where="looked in " + ", ".join(map(str, paths.data_homes())),
            remedy=f"./run.sh data {OFFICIAL}",
        )
    official = open_split(card, "test").all_texts()
    anchor = shared_front([prompt for prompt, _ in official], paths.shown(path))
    if len(official) != len(rows):
        raise UserError(
            f"{len(official):,} usable rows, not {len(rows):,}",
            where=paths.shown(path),
            remedy=f"fetch it again: ./run.sh data {OFFICIAL}",
        )
    for row, (prompt, label) in zip(rows, official, strict=True):
        if (anchor + row.payload, row.label) != (prompt, label):
            raise UserError(
                f"row {row.number - TEST.start} of the official test file is not HaluEval's row "
                f"{row.number}",
                where=paths.shown(path),
                remedy=f"fetch both files again: ./run.sh data {OFFICIAL}, {HALUEVAL_URL}",
            )
    return path, anchor
