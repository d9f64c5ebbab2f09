"""HaluEval's general split and its place in Halu-CoT-JSON: rows 0 to 3000 train, the rest tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.anchors import shared_front
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.rowfiles import read_records
from tell_plugins.core.rows import file_sha256, open_rows
from tell_plugins.preparation.download import DIRECT, Places, ensure

OFFICIAL = "halu_cot_json"
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


def read_sources(halueval: str | None = None, places: Places = DIRECT) -> Sources:
    """Read HaluEval and the official test file and prove that one continues the other.

    `halueval` names HaluEval's file on this machine. Raises UserError when it is missing or not
    the expected one, or the two do not fit; MachineError when one cannot be fetched.
    """
    path = _halueval_file(halueval, places)
    official = load_card(OFFICIAL).split("test")
    assert official.url is not None
    assert official.blob is not None
    test_file = ensure(official.url, official.blob, official.file, OFFICIAL, places)
    rows = read_halueval(path)
    anchor = _check_against_official(test_file, rows[TEST.start : TEST.stop])
    files: list[dict[str, Any]] = [
        {
            "file": HALUEVAL_FILE,
            "from": HALUEVAL_URL,
            "sha256": HALUEVAL_SHA256,
            "rows_used": f"{TRAIN.start} to {TRAIN.stop - 1}",
        },
        {
            "file": test_file.name,
            "from": official.url,
            "sha256": file_sha256(test_file),
            "used_for": "anchor; proof of prompts and labels",
        },
    ]
    return Sources(anchor, rows[TRAIN.start : TRAIN.stop], files)


def read_halueval(path: Path) -> list[HaluRow]:
    """The rows of HaluEval's general split, in file order. UserError names a row that is wrong."""
    rows: list[HaluRow] = []
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


def _halueval_file(named: str | None, places: Places) -> Path:
    if named is None:
        return ensure(HALUEVAL_URL, HALUEVAL_BLOB, HALUEVAL_FILE, "halueval", places)
    path = paths.user_path(named)
    if not path.is_file():
        raise UserError(f"no file '{named}'", where="--halueval", remedy="correct the path")
    digest = file_sha256(path)
    if digest != HALUEVAL_SHA256:
        raise UserError(
            f"not the HaluEval file this rebuild is made for: sha256 {digest}",
            where=paths.shown(path),
            allowed=f"sha256 {HALUEVAL_SHA256}",
            remedy=f"leave --halueval out, or take the file from {HALUEVAL_URL}",
        )
    return path


def _check_against_official(path: Path, rows: Sequence[HaluRow]) -> str:
    """The anchor of the official test file. UserError unless its rows are `rows`, in order."""
    card = load_card(OFFICIAL)
    official = open_rows(path, card.columns_of("test")).all_texts()
    anchor = shared_front([prompt for prompt, _ in official], paths.shown(path))
    expected = [(anchor + row.payload, row.label) for row in rows]
    if official != expected:
        pairs = enumerate(zip(official, expected, strict=False))
        first = next((n for n, (a, b) in pairs if a != b), min(len(official), len(expected)))
        raise UserError(
            f"row {first} of the official test file is not HaluEval's row {TEST.start + first}",
            where=paths.shown(path),
            remedy="a fault of this program: both files were verified; please report it",
        )
    return anchor
