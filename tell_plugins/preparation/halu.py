"""Rebuilding Halu-CoT-JSON from HaluEval's general split, with thoughts of one's own.

The paper's training file is HaluEval's general rows 0 to 3000 with thoughts by gpt-3.5-turbo, its
test file the rows after them without any. The prompts are made again byte for byte, with the
anchor of the official test file. Only the thoughts are new: built from HaluEval's annotated spans,
or written by an endpoint. An annotator marked what is wrong with a response: passages of it (quoted
here), or a remark in the annotator's own words. A thought from spans says that, tied to the query;
nothing is added.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from tell_plugins.core import paths
from tell_plugins.core.anchors import shared_front
from tell_plugins.core.cards import Card, load_card
from tell_plugins.core.row_files import read_records
from tell_plugins.core.rows import file_sha256
from tell_plugins.core.schemas import card_validator
from tell_plugins.core.state_files import only_one, parse_json, write_json_lines
from tell_plugins.preparation import endpoint
from tell_plugins.preparation.download import (
    DIRECT,
    Places,
    content_name,
    ensure,
    target_of,
    write_rows,
)

OFFICIAL = "halu_cot_json"
BY_SPANS, BY_ENDPOINT = "halu_cot_json_spans", "halu_cot_json_rebuilt"
TUNING = "halu_cot_json_tuning"  # the rows of BY_SPANS, the last of them held out
HELD_OUT_ROWS = 300  # those that stand next to the test rows in HaluEval
TRAIN_ROWS = 3001
HALUEVAL_FILE = "general_data.json"
HALUEVAL_URL = "https://raw.githubusercontent.com/RUCAIBox/HaluEval/main/data/general_data.json"
HALUEVAL_BLOB = "4b395488fcbe333702cf8ab07b5a3cf192fae424"


class HaluRow(NamedTuple):
    """One row of HaluEval's general split; `number` is its position in the file, from 0."""

    number: int
    query: str
    response: str
    label: str  # yes | no
    spans: tuple[str, ...]

    @property
    def key(self) -> str:
        """What names the row's answer, for good."""
        return str(self.number)

    @property
    def payload(self) -> str:
        """What follows the anchor in an official prompt."""
        return f"'user_query' : {self.query}\n'chatgpt_response' : {self.response}"


class Sources(NamedTuple):
    """What a rebuild is made of."""

    anchor: str  # the text in front of every official prompt, its last line break included
    rows: list[HaluRow]  # all of HaluEval's
    files: list[dict[str, Any]]  # of each file read, its name, origin and SHA-256

    @property
    def train(self) -> list[HaluRow]:
        return self.rows[:TRAIN_ROWS]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rebuild", action="store_true", help="make the training rows again from HaluEval")
    text = "who writes the thoughts: HaluEval's annotated spans (default), or a language model "
    text += "(default where --base-url is given)"
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
    thoughts = args.thoughts or ("endpoint" if args.base_url else "spans")
    if thoughts == "spans":
        return rebuild_from_spans(places)
    server = endpoint.endpoint_of(args)
    return _rebuild_from_endpoint(read_sources(places), server, args)


def read_sources(places: Places = DIRECT) -> Sources:
    """HaluEval and the official test file. Raises MachineError when one cannot be had."""
    official = load_card(OFFICIAL).split("test")
    url, blob = str(official.url), str(official.blob)
    test = ensure(url, blob, official.file, OFFICIAL, places)
    halueval = ensure(HALUEVAL_URL, HALUEVAL_BLOB, HALUEVAL_FILE, "halueval", places)
    prompts = [record.value["prompt"] for record in read_records(test)]
    rows = []
    for number, raw in enumerate(record.value for record in read_records(halueval)):
        spans = tuple(map(str, raw.get("hallucination_spans") or ()))
        query, response = raw["user_query"], raw["chatgpt_response"]
        rows.append(HaluRow(number, query, response, raw["hallucination"], spans))
    used_for = ((halueval, HALUEVAL_URL, f"rows 0 to {TRAIN_ROWS - 1}"), (test, url, "the anchor"))
    files = [
        {"file": path.name, "from": place, "sha256": file_sha256(path), "used_for": what}
        for path, place, what in used_for
    ]
    return Sources(shared_front(prompts, paths.shown(test)), rows, files)


def rebuild_from_spans(places: Places) -> int:
    """Write the training file with thoughts from spans, and once more with validation rows: on
    those settings are chosen, so that the test rows choose nothing."""
    sources = read_sources(places)
    how = {
        "by": "HaluEval's annotated spans; no language model took part",
        "method": "tell_plugins/preparation/halu.py: passages of the response that an "
        "annotator marked are quoted, remarks are repeated, and rows without a fault get one "
        "sentence that names the query",
    }
    rows = [training_row(sources.anchor, row, span_thought(row)) for row in sources.train]
    write_split(BY_SPANS, "train", rows, sources, how)
    write_split(TUNING, "train", rows[:-HELD_OUT_ROWS], sources, how)
    write_split(TUNING, "validation", rows[-HELD_OUT_ROWS:], sources, how)
    print(f"to choose settings on the validation rows, use  tell/{TUNING}")
    return 0


def _rebuild_from_endpoint(
    sources: Sources, server: endpoint.Endpoint, args: argparse.Namespace
) -> int:
    """Ask for the thoughts and write what there is: the training file when all rows have one, else
    a partial one."""
    card = load_card(BY_ENDPOINT)
    rows = sources.train if args.rows is None else sources.train[: max(0, args.rows)]
    path = target_of(card, "train")
    prompt = {"system": SYSTEM, "user": TASK}
    kept = path.with_suffix(".answers") / content_name({"model": args.model} | prompt)
    questions = {row.key: question_about(row) for row in rows}
    check = answer_check(card, sources.train)
    with only_one(path.parent, "process", "$TELL_DATA_HOME"):
        answers, failures = endpoint.ask_all(questions, check, server, args, kept, ANSWER_TOKENS)
    failed = [row for row in rows if row.key in failures]
    unanswered, partial = path.with_suffix(".failures.jsonl"), path.with_suffix(".partial.jsonl")
    reasons = ({"row": r.number, "query": r.query, "reason": failures[r.key]} for r in failed)
    write_json_lines(unanswered, reasons)
    thoughts = {key: json.loads(bare_json(answer))["thought"] for key, answer in answers.items()}
    if args.fill:
        thoughts |= {row.key: span_thought(row) for row in failed}
    told = [row for row in rows if row.key in thoughts]
    done = [training_row(sources.anchor, row, thoughts[row.key].strip()) for row in told]
    if len(done) == len(sources.train):
        how = {
            "by": f"{args.model} at {server.shown_url}",
            "temperature": args.temperature,
            "method": "given query, response, label and annotated spans; each answer checked "
            "against the card's schema and the row's label",
            "prompt": prompt,
            "from_spans_instead": [row.number for row in failed],
        }
        write_split(BY_ENDPOINT, "train", done, sources, how)
        partial.unlink(missing_ok=True)
        return 0
    write_json_lines(partial, done)
    print(f"{len(done):,} of {len(sources.train):,} rows have a thought: not the training file yet")
    print(f"  as far as it goes: {paths.shown(partial)}")
    if failed:
        print(
            f"{len(failed):,} rows have no valid answer after {args.attempts} attempts: "
            f"{paths.shown(unanswered)}\n"
            "  remedy:  raise --attempts (perhaps with --temperature 1), or --fill spans"
        )
    return 1 if failed else 0


def training_row(anchor: str, row: HaluRow, thought: str) -> dict[str, str]:
    """A row as the official training file has it."""
    answer = {"thought": thought, "hallucination": row.label}
    return {"prompt": anchor + row.payload, "response": json.dumps(answer, ensure_ascii=False)}


def write_split(
    name: str, split: str, rows: Sequence[dict[str, str]], sources: Sources, how: dict[str, Any]
) -> None:
    labels = Counter(json.loads(row["response"])["hallucination"] for row in rows)
    made_of = ", ".join(file["file"] for file in sources.files)
    facts = {"origin": f"rebuilt from {made_of}", "labels": dict(sorted(labels.items()))}
    source = {"rebuilt_from": sources.files}
    path = write_rows(load_card(name), split, rows, source, **facts, thoughts=how)
    counts = f"{len(rows):,} rows ({labels['yes']} yes, {labels['no']:,} no)"
    print(f"tell/{name}, {split}: {counts}: {paths.shown(path)}")


# ------------------------------------------------------------------------- from spans

_QUERY_CHARS, _SPAN_CHARS = 90, 140
_MOST_SPANS = 3
_WHOLE = 0.9  # a span of this share of the response is the response as a whole
_FAULT = "is wrong, cannot be verified or does not answer what was asked"
_OTHER_SCRIPT = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]")  # Chinese remarks


def shorten(text: str, limit: int) -> str:
    """`text` on one line, cut at a word near `limit` characters, double quotes made single."""
    line = " ".join(text.replace('"', "'").split())
    if len(line) <= limit:
        return line
    head = line[: limit + 1]
    cut = head.rfind(" ")
    return (head[:cut] if cut > limit // 2 else head[:limit]).rstrip(" ,;:.") + " ..."


def _quoted(text: str, limit: int = _SPAN_CHARS) -> str:
    """`text` shortened and in double quotes, its own full stop left out."""
    line = shorten(text, limit)
    return f'"{line if line.endswith("...") else line.rstrip(". ") or line}"'


def span_thought(row: HaluRow) -> str:
    """The thought for one row; the same row always gives the same thought."""
    opening = f"The query is {_quoted(row.query, _QUERY_CHARS)}."
    if row.label == "no":
        return f"{opening} No part of the response was found that {_FAULT}."
    quotes, remarks = _sort_spans(row.response, row.spans)
    if not quotes and not remarks:
        return f"{opening} Part of the response {_FAULT}."
    parts = [opening]
    if quotes and len(_plain(quotes[0])) >= _WHOLE * max(1, len(_plain(row.response))):
        parts.append(f"The response as a whole, beginning {_quoted(quotes[0])}, {_FAULT}.")
    elif quotes:
        said = " and ".join(_quoted(quote) for quote in quotes[:_MOST_SPANS])
        parts.append(f"The response says {said}, which {_FAULT}.")
    if remarks:
        noted = ", ".join(_quoted(remark) for remark in remarks[:_MOST_SPANS])
        parts.append(f"The fault, as it was noted: {noted}.")
    return " ".join(parts)


def _sort_spans(response: str, spans: Sequence[str]) -> tuple[list[str], list[str]]:
    """The spans that the response holds, and the annotator's remarks.

    A span that the response does not hold as it stands is looked at line by line. Remarks in
    another script than the data's are left out.
    """
    quotes: list[str] = []
    remarks: list[str] = []
    for span in spans:
        if _holds(response, span):
            quotes.append(span)
            continue
        for line in filter(str.strip, span.splitlines()):
            (quotes if _holds(response, line) else remarks).append(line.strip())
    remarks = [remark for remark in remarks if not _OTHER_SCRIPT.search(remark)]
    return _distinct(quotes), _distinct(remarks)


def _distinct(texts: Sequence[str]) -> list[str]:
    """`texts` without those that repeat, or are part of, another one."""
    kept: list[str] = []
    for text in sorted(texts, key=len, reverse=True):
        if text.strip() and not any(_holds(other, text) for other in kept):
            kept.append(text)
    return [text for text in dict.fromkeys(texts) if text in kept]


def _holds(response: str, span: str) -> bool:
    part = _plain(span)
    return bool(part) and part in _plain(response)


@lru_cache(maxsize=64)
def _plain(text: str) -> str:
    """`text` in lower case, its words alone; as it stands where it has none."""
    return " ".join(re.findall(r"[^\W_]+", text.lower())) or text.strip()


# ------------------------------------------------------------------------- asked

_LONGEST_THOUGHT = 1500  # characters; with the label it stays below the card's max_new_tokens
ANSWER_TOKENS = 130  # a usual answer, for the estimate
_GIVEN_AWAY = re.compile(
    r"\b(annotat\w*|(given|true|correct|provided|gold|expected) (label|verdict)|the verdict)\b",
    re.IGNORECASE,
)
SYSTEM = (
    "You explain why an answer of an AI system is sound or not. You write factual, analytical "
    "English and reply with one JSON object and nothing else."
)
TASK = """\
An AI system was given this query:
<query>
{query}
</query>
It answered:
<response>
{response}
</response>
Careful readers came to this verdict: {verdict}{marked}

Write the analysis that leads to this verdict, in two to four sentences, as if you had worked it \
out yourself: say what the query asks, what the response does, and {point}. Do not mention the \
readers, the verdict, a label or that anything was given to you.
Reply with exactly this JSON object, the analysis in place of the dots:
{{"thought": "...", "hallucination": "{label}"}}"""


def question_about(row: HaluRow) -> endpoint.Messages:
    """What the endpoint is asked about a row: query, response, label and, for yes, the spans."""
    verdict, point, marked = "it contains no hallucination.", "why it holds", ""
    if row.label == "yes":
        verdict = "it contains a hallucination (it is wrong, cannot be verified, or does not "
        verdict += "answer what was asked)."
        point = "what exactly is wrong with it and why"
        spans = "".join(f"\n- {span.strip()}" for span in row.spans if span.strip())
        if spans:
            marked = "\nWhat they pointed at (passages of the response, or remarks):" + spans
    facts = {"query": row.query, "response": row.response, "label": row.label}
    text = TASK.format(**facts, verdict=verdict, marked=marked, point=point)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def answer_check(card: Card, rows: Sequence[HaluRow]) -> Callable[[str, str], str | None]:
    """What is wrong with an answer: against the card's schema, the row's label, and our limits."""
    validator = card_validator(card)
    by_key = {row.key: row for row in rows}

    def check(key: str, text: str) -> str | None:
        try:
            value = parse_json(bare_json(text))
        except ValueError as error:
            return f"it is no JSON ({error})"
        problem = next(iter(validator.iter_errors(value)), None) if validator else None
        if problem is not None:
            return f"the JSON does not fit: {problem.message[:200]}"
        row, thought = by_key[key], value["thought"].strip()
        if value["hallucination"] != row.label:
            return f"'hallucination' must be '{row.label}'"
        if not thought or len(thought) > _LONGEST_THOUGHT:
            return f"'thought' must have 1 to {_LONGEST_THOUGHT} characters"
        if re.search(r"[\ud800-\udfff]", thought):
            return "'thought' holds half a character (a lone surrogate)"
        given = _GIVEN_AWAY.search(thought)
        if given and given[0].lower() not in row.payload.lower():
            return f"'thought' must not speak of what was given to you ('{given[0]}')"
        return None

    return check


def bare_json(text: str) -> str:
    """An answer without the thinking before it and the code fence around it."""
    text = re.sub(r"\A\s*<think>.*?</think>", "", text, flags=re.DOTALL).strip()
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, flags=re.DOTALL)
    return fenced[1] if fenced else text
