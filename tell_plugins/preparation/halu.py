"""Rebuilding Halu-CoT-JSON from HaluEval's general split, with thoughts of one's own.

The paper's training file is HaluEval's general rows 0 to 3000 with thoughts by gpt-3.5-turbo, its
test file the rows after them without any. The prompts are made again byte for byte, with the
anchor of the official test file. Only the thoughts are new: built from HaluEval's annotated spans,
or written by an endpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.anchors import shared_front
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.rows import file_sha256
from tell_plugins.core.state_files import write_json_lines
from tell_plugins.preparation import endpoint
from tell_plugins.preparation.download import DIRECT, Places, ensure, target_of, write_rows
from tell_plugins.preparation.halu_thoughts import (
    ANSWER_TOKENS,
    SYSTEM,
    TASK,
    HaluRow,
    answer_check,
    question_about,
    span_thought,
    thought_in,
)
from tell_plugins.preparation.journal import Journal

OFFICIAL = "halu_cot_json"
BY_SPANS, BY_ENDPOINT = "halu_cot_json_spans", "halu_cot_json_rebuilt"
TUNING = "halu_cot_json_tuning"  # the rows of BY_SPANS, the last of them held out
HELD_OUT_ROWS = 300  # those that stand next to the test rows in HaluEval
TRAIN_ROWS = 3001
HALUEVAL_FILE = "general_data.json"
HALUEVAL_URL = "https://raw.githubusercontent.com/RUCAIBox/HaluEval/main/data/general_data.json"
HALUEVAL_BLOB = "4b395488fcbe333702cf8ab07b5a3cf192fae424"


class Sources(NamedTuple):
    """What a rebuild is made of.

    Attributes:
        anchor: the text in front of every official prompt, its last line break included.
        rows: all of HaluEval's; the first `TRAIN_ROWS` train.
        files: of each file read, its name, origin and SHA-256.
    """

    anchor: str
    rows: list[HaluRow]
    files: list[dict[str, Any]]

    @property
    def train(self) -> list[HaluRow]:
        return self.rows[:TRAIN_ROWS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `data halu_cot_json --rebuild`."""
    add = parser.add_argument
    add("--rebuild", action="store_true", help="make the training rows again from HaluEval")
    text = "who writes the thoughts: HaluEval's annotated spans, or a language model (default: "
    text += "endpoint where --base-url is given)"
    add("--thoughts", choices=("spans", "endpoint"), help=text)
    text = "an endpoint answers the first N rows only: a trial"
    add("--rows", metavar="N", type=int, help=text)
    text = "rows for which the endpoint finds no valid answer get a thought from the spans"
    add("--fill", choices=("spans",), help=text)
    endpoint.add_arguments(parser)


def rebuild(name: str, args: argparse.Namespace, places: Places = DIRECT) -> int:
    """Rebuild the training file as `args` say; 0 when it is complete, 1 when rows failed.

    Source files that are not here are fetched, from `places` where it names any.
    """
    thoughts = args.thoughts or ("endpoint" if args.base_url else None)
    if thoughts is None:
        raise UserError(
            "nobody is named to write the thoughts",
            where=f"data {name} --rebuild",
            allowed="--thoughts spans, or --base-url URL --model NAME",
            remedy="--thoughts spans needs no language model",
        )
    if thoughts == "spans":
        return rebuild_from_spans(places)
    where_to_ask = endpoint.asking_of(args)
    return _rebuild_from_endpoint(read_sources(places), where_to_ask, args)


def read_sources(places: Places = DIRECT) -> Sources:
    """HaluEval and the official test file. Raises MachineError when one cannot be had."""
    official = load_card(OFFICIAL).split("test")
    assert official.url is not None
    assert official.blob is not None
    test = ensure(official.url, official.blob, official.file, OFFICIAL, places)
    halueval = ensure(HALUEVAL_URL, HALUEVAL_BLOB, HALUEVAL_FILE, "halueval", places)
    prompts = [json.loads(line)["prompt"] for line in _lines(test)]
    rows = []
    for number, raw in enumerate(map(json.loads, _lines(halueval))):
        spans = tuple(map(str, raw.get("hallucination_spans") or ()))
        query, response = raw["user_query"], raw["chatgpt_response"]
        rows.append(HaluRow(number, query, response, raw["hallucination"], spans))
    files = [
        {"file": path.name, "from": url, "sha256": file_sha256(path), "used_for": what}
        for path, url, what in (
            (halueval, HALUEVAL_URL, f"rows 0 to {TRAIN_ROWS - 1}"),
            (test, official.url, "the anchor"),
        )
    ]
    return Sources(shared_front(prompts, paths.shown(test)), rows, files)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").rstrip("\n").split("\n")  # texts may hold U+2028


def rebuild_from_spans(places: Places) -> int:
    """Write the training file with thoughts from spans, and once more with validation rows: on
    those settings are chosen, so that the test rows choose nothing."""
    sources = read_sources(places)
    how = {
        "by": "HaluEval's annotated spans; no language model took part",
        "method": "tell_plugins/preparation/halu_thoughts.py: passages of the response that an "
        "annotator marked are quoted, remarks are repeated, and rows without a fault get one "
        "sentence that names the query",
    }
    rows = [training_row(sources.anchor, row, span_thought(row)) for row in sources.train]
    write_split(load_card(BY_SPANS), "train", rows, sources, how)
    card = load_card(TUNING)
    write_split(card, "train", rows[:-HELD_OUT_ROWS], sources, how)
    write_split(card, "validation", rows[-HELD_OUT_ROWS:], sources, how)
    print(f"to choose settings on the validation rows, use  tell/{TUNING}")
    return 0


def _rebuild_from_endpoint(
    sources: Sources, where_to_ask: endpoint.Asking, args: argparse.Namespace
) -> int:
    """Ask for the thoughts and write what there is: the training file when all rows have one, else
    a partial one."""
    card = load_card(BY_ENDPOINT)
    rows = sources.train if args.rows is None else sources.train[: max(0, args.rows)]
    path = target_of(card, "train")
    prompt = hashlib.sha256((SYSTEM + TASK).encode()).hexdigest()
    header = {"for": card.name, "model": where_to_ask.model, "prompt_sha256": prompt}
    questions = {str(row.number): question_about(row) for row in rows}
    check = answer_check(card, sources.train)
    with Journal(path.with_suffix(".journal.jsonl"), header, endpoint.AskedRecord) as journal:
        outcome = endpoint.ask_all(questions, check, where_to_ask, journal, ANSWER_TOKENS, args.yes)
    thoughts = {int(key): thought_in(answer) for key, answer in outcome.answers.items()}
    failed = [row for row in rows if row.number not in thoughts]
    reasons = [
        {"row": row.number, "query": row.query, "label": row.label}
        | {"reason": outcome.failures[str(row.number)]}
        for row in failed
    ]
    if args.fill:
        thoughts |= {row.number: span_thought(row) for row in failed}
    told = [row for row in rows if row.number in thoughts]
    done = [training_row(sources.anchor, row, thoughts[row.number]) for row in told]
    failures, partial = path.with_suffix(".failures.jsonl"), path.with_suffix(".partial.jsonl")
    write_json_lines(failures, reasons)
    if len(done) == len(sources.train):
        how = {
            "by": f"{where_to_ask.model} at {where_to_ask.shown_url}",
            "temperature": where_to_ask.temperature,
            "method": "given query, response, label and annotated spans; each answer checked "
            "against the card's schema and the row's label",
            "prompt": {"system": SYSTEM, "user": TASK},
            "from_spans_instead": [row.number for row in failed],
        }
        write_split(card, "train", done, sources, how)
        partial.unlink(missing_ok=True)
        return 0
    write_json_lines(partial, done)
    print(
        f"{len(done):,} of {len(sources.train):,} rows have a thought: not the training file yet\n"
        f"  as far as it goes: {paths.shown(partial)}"
    )
    if failed:
        print(
            f"{len(failed):,} rows have no valid answer after {where_to_ask.attempts} attempts: "
            f"{paths.shown(failures)}\n"
            "  remedy:  raise --attempts (perhaps with --temperature 1), or --fill spans"
        )
    return 1 if failed else 0


def training_row(anchor: str, row: HaluRow, thought: str) -> dict[str, str]:
    """A row as the official training file has it."""
    answer = {"thought": thought, "hallucination": row.label}
    return {"prompt": anchor + row.payload, "response": json.dumps(answer, ensure_ascii=False)}


def write_split(
    card: Card, split: str, rows: Sequence[dict[str, str]], sources: Sources, how: dict[str, Any]
) -> None:
    """Write the rows of a split and the record of their origin."""
    labels = Counter(json.loads(row["response"])["hallucination"] for row in rows)
    path = write_rows(
        card,
        split,
        rows,
        {"rebuilt_from": sources.files},
        origin="rebuilt from " + ", ".join(file["file"] for file in sources.files),
        labels=dict(sorted(labels.items())),
        thoughts=how,
    )
    print(
        f"tell/{card.name}, {split}: {len(rows):,} rows ({labels['yes']} yes, {labels['no']:,} no)"
        f": {paths.shown(path)}"
    )
