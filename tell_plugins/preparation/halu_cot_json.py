"""Rebuilding Halu-CoT-JSON from HaluEval's general split, with thoughts of one's own.

The paper's training file is HaluEval's general rows 0 to 3000 with thoughts by gpt-3.5-turbo, its
test file the rows after them without any. The prompts can be made again byte for byte: anchor and
test rows are taken from the official test file, which also proves the rebuild row by row. Only the
thoughts are new: built from HaluEval's annotated spans, or written by an endpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tell_plugins.core import paths
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.files import json_lines, write_json, write_json_lines
from tell_plugins.preparation import endpoint
from tell_plugins.preparation.asked_thoughts import (
    ANSWER_TOKENS,
    SYSTEM,
    TASK,
    answer_check,
    bare_json,
    question_about,
)
from tell_plugins.preparation.download import DIRECT, Places
from tell_plugins.preparation.halueval import (
    HALUEVAL_FILE,
    HALUEVAL_SHA256,
    TEST,
    HaluRow,
    Sources,
    read_sources,
)
from tell_plugins.preparation.journal import Journal
from tell_plugins.preparation.provenance import write_provenance
from tell_plugins.preparation.span_thoughts import span_thought

BY_SPANS, BY_ENDPOINT = "halu_cot_json_spans", "halu_cot_json_rebuilt"
TUNING = "halu_cot_json_tuning"  # the rows of BY_SPANS, the last of them held out
HELD_OUT_ROWS = 300  # those that stand next to the test rows in HaluEval


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
    parser.add_argument(
        "--rows", metavar="N", type=int, help="an endpoint answers the first N rows only: a trial"
    )
    parser.add_argument(
        "--fill",
        choices=("spans",),
        help="rows for which the endpoint finds no valid answer get a thought from the spans",
    )
    endpoint.add_arguments(parser)


def rebuild(args: argparse.Namespace, places: Places = DIRECT) -> int:
    """Rebuild the training file as `args` say; 0 when it is complete, 1 when rows failed.

    Source files that are not here are fetched, from `places` where it names any.
    """
    thoughts = args.thoughts or ("endpoint" if args.base_url else None)
    if thoughts is None:
        raise UserError(
            "nobody is named to write the thoughts",
            where="data halu_cot_json --rebuild",
            allowed="--thoughts spans, or --base-url URL --model NAME",
            remedy="--thoughts spans needs no language model",
        )
    if thoughts == "spans":
        return _rebuild_from_spans(read_sources(args.halueval, places))
    where_to_ask = endpoint.endpoint_of(args)
    where_to_ask.need_key()
    return _rebuild_from_endpoint(read_sources(args.halueval, places), where_to_ask, args)


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
    write_divided(load_card(TUNING), rows, sources, how)
    return 0


def _rebuild_from_endpoint(
    sources: Sources, where_to_ask: endpoint.Endpoint, args: argparse.Namespace
) -> int:
    card = load_card(BY_ENDPOINT)
    rows = sources.train if args.rows is None else sources.train[: max(0, args.rows)]
    questions = [question_about(row) for row in rows]
    check = answer_check(card, sources.train)
    path = paths.data_homes()[0] / card.name / card.split("train").file
    header = {
        "for": card.name,
        "model": where_to_ask.model,
        "halueval_sha256": HALUEVAL_SHA256,
        "prompt_sha256": hashlib.sha256((SYSTEM + TASK).encode()).hexdigest(),
    }
    with Journal(path.with_suffix(".journal.jsonl"), header, endpoint.AskedRecord) as journal:
        todo = endpoint.open_questions(questions, check, where_to_ask, journal)
        if len(todo) < len(questions):
            print(f"{len(questions) - len(todo):,} rows are answered already (or given up)")
        endpoint.need_consent(todo, where_to_ask, ANSWER_TOKENS, args.yes)
        try:
            outcome = endpoint.ask(questions, check, where_to_ask, journal)
        finally:
            account = endpoint.ledger(journal.records, where_to_ask)
            write_json(path.with_suffix(".ledger.json"), account)
            print(_account_line(account))
    return _finish(card, path, rows, outcome, sources, where_to_ask, args.fill == "spans")


def _finish(
    card: Card,
    path: Path,
    rows: Sequence[HaluRow],
    outcome: endpoint.Outcome,
    sources: Sources,
    where_to_ask: endpoint.Endpoint,
    fill: bool,
) -> int:
    """Write what there is: the training file when all rows are answered, else a partial one."""
    failed = [row for row in rows if str(row.number) in outcome.failures]
    failures, partial = path.with_suffix(".failures.jsonl"), path.with_suffix(".partial.jsonl")
    _write_lines(failures, [_failure(row, outcome) for row in failed])
    filled = {row.number for row in failed} if fill else set()
    done = [
        training_row(sources.anchor, row, _thought(row, outcome))
        for row in rows
        if fill or str(row.number) in outcome.answers
    ]
    if len(done) == len(sources.train):
        how = {
            "by": f"{where_to_ask.model} at {where_to_ask.shown_url}",
            "temperature": where_to_ask.temperature,
            "method": "given query, response, label and annotated spans; each answer checked "
            "against the card's schema and the row's label",
            "prompt": {"system": SYSTEM, "user": TASK},
            "from_spans_instead": sorted(filled),
            "ledger": outcome.ledger,
        }
        write_rebuilt(card, done, sources, how)
        partial.unlink(missing_ok=True)
        return 0
    _write_lines(partial, done)
    print(f"{len(done):,} of {len(sources.train):,} rows have a thought: not the training file yet")
    if done:
        print(f"  as far as it goes: {paths.shown(partial)}")
    if failed:
        print(
            f"{len(failed):,} rows have no valid answer after {where_to_ask.attempts} attempts: "
            f"{paths.shown(failures)}\n"
            "  remedy:  raise --attempts (perhaps with --temperature 1), or --fill spans"
        )
    return 1 if failed else 0


def _thought(row: HaluRow, outcome: endpoint.Outcome) -> str:
    text = outcome.answers.get(str(row.number))
    if text is None:
        return span_thought(row.query, row.response, row.label, row.spans).text
    return str(json.loads(bare_json(text))["thought"]).strip()


def _failure(row: HaluRow, outcome: endpoint.Outcome) -> dict[str, Any]:
    return {
        "row": row.number,
        "query": row.query,
        "label": row.label,
        "reason": outcome.failures[str(row.number)],
    }


def _write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSON lines in one piece; no rows, no file."""
    if rows:
        write_json_lines(path, rows)
    else:
        path.unlink(missing_ok=True)


def _account_line(account: dict[str, Any]) -> str:
    cost = "" if account["cost"] is None else f"; cost {account['cost']:.2f}"
    return (
        f"so far: {account['requests']:,} requests, {account['answers']:,} answers, "
        f"{account['refused_by_check']:,} refused by the check, "
        f"{account['sent_again']:,} sent again; "
        f"{account['tokens_in']:,} tokens asked, {account['tokens_out']:,} answered{cost}"
    )


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
    path, labels = _write_split(card, "train", rows, sources, how)
    print(
        f"{len(rows):,} training rows ({labels['yes']} yes, {labels['no']:,} no): "
        f"{paths.shown(path)}\n"
        f"{len(TEST):,} test rows: the paper's own, equal to HaluEval's row by row\n"
        f"use it as  tell/{card.name}"
    )
    return path


def write_divided(
    card: Card, rows: Sequence[dict[str, str]], sources: Sources, how: dict[str, Any]
) -> None:
    """Write the training rows once more, the last `HELD_OUT_ROWS` of them as validation rows.

    Settings are chosen on those, so that the test rows choose nothing.
    """
    parts = {"train": rows[:-HELD_OUT_ROWS], "validation": rows[-HELD_OUT_ROWS:]}
    for split, part in parts.items():
        path, labels = _write_split(card, split, part, sources, how)
        print(f"{split}: {len(part):,} of them ({labels['yes']} yes): {paths.shown(path)}")
    print(f"to choose settings on the validation rows, use  tell/{card.name}")


def _write_split(
    card: Card,
    split: str,
    rows: Sequence[dict[str, str]],
    sources: Sources,
    how: dict[str, Any],
) -> tuple[Path, Counter[str]]:
    """Write the rows of a split and their provenance: the file, and how often each label is."""
    path = paths.data_homes()[0] / card.name / card.split(split).file
    labels = Counter(json.loads(row["response"])["hallucination"] for row in rows)
    with paths.atomic_path(path) as temporary:
        temporary.write_text("".join(json_lines(rows)), encoding="utf-8")
        write_provenance(
            path,
            {"rebuilt_from": sources.files},
            temporary,
            rows=len(rows),
            labels=dict(sorted(labels.items())),
            thoughts=how,
            licence=card.licence,
        )
    return path, labels
