"""Rebuilding Halu-CoT-JSON: the spans' thoughts, the real files, and the asking of an endpoint."""

import argparse
import hashlib
import json
import re
import zlib
from typing import Any

import jsonschema
import pytest

from tell_plugins.cli import main
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_split
from tell_plugins.core.spec import parse_spec
from tell_plugins.preparation import halu
from tell_plugins.preparation.download import DIRECT, Places, read_record
from tell_plugins.preparation.halu import (
    HaluRow,
    answer_check,
    question_about,
    shorten,
    span_thought,
)
from tests.chat_server import Reply, serving
from tests.conftest import message_of

# of the file, when the rebuild was published: it stays the same to the byte
SPANS_SHA256 = "259a0054d8007beb7a1a62cc0432c2f0bcf731ade57529356a55a86557ad8370"


def rebuild(*flags: str, places: Places = DIRECT) -> int:
    """`data halu_cot_json --rebuild FLAGS` as the command line would run it."""
    parser = argparse.ArgumentParser()
    halu.add_arguments(parser)
    return halu.rebuild("halu_cot_json", parser.parse_args(["--rebuild", *flags]), places)


FAULT = "is wrong, cannot be verified or does not answer what was asked"


@pytest.mark.parametrize(
    ("response", "label", "spans", "thought"),
    [
        ("The sky is blue.", "no", [], f"No part of the response was found that {FAULT}."),
        ("A. The sky is green. B.", "yes", ["sky is green", "is green"],
         f'The response says "sky is green", which {FAULT}.'),
        ("It is green", "yes", ["It is green"],
         f'The response as a whole, beginning "It is green", {FAULT}.'),
        ("Too short", "yes", ["Incomplete answer"],
         'The fault, as it was noted: "Incomplete answer".'),
        ("Too short", "yes", ["无法验证"], f"Part of the response {FAULT}."),
        ("one two three four five six seven eight nine", "yes", ["two three\nwrong order"],
         f'The response says "two three", which {FAULT}. The fault, as it was noted: "wrong '
         'order".'),
    ],
)  # fmt: skip
def test_a_thought_says_what_the_spans_say(response, label, spans, thought):
    row = HaluRow(0, "Ask.", response, label, tuple(spans))
    assert span_thought(row) == f'The query is "Ask". {thought}'


def test_long_texts_are_cut_at_a_word():
    assert shorten('say "yes"\n twice', 40) == "say 'yes' twice"
    cut = shorten("word " * 50, 23)
    assert cut == "word word word word ..."
    assert shorten("x" * 50, 10) == "x" * 10 + " ..."


def test_rebuilt_prompts_and_labels_are_the_official_ones(real_home, real_data):
    """The anchor is learnt from all official prompts, the payload from HaluEval alone."""
    sources = halu.read_sources()
    path = real_data / "tell_official" / "test_Halu_CoT_JSON.jsonl"
    official = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rebuilt = [
        {"prompt": sources.anchor + row.payload, "response": row.label}
        for row in sources.rows[3001:]
    ]
    assert len(official) == 1506
    assert rebuilt == official
    assert [row.number for row in sources.train] == list(range(3001))


@pytest.mark.slow
def test_rebuild_from_spans(real_home, real_data, capsys):
    assert rebuild("--thoughts", "spans") == 0
    card, tuning = load_card("halu_cot_json_spans"), load_card("halu_cot_json_tuning")
    path = real_home / card.name / card.split("train").file
    first = path.read_bytes()
    assert hashlib.sha256(first).hexdigest() == SPANS_SHA256
    rows = [json.loads(line) for line in first.decode().splitlines()]
    answers = [json.loads(row["response"]) for row in rows]
    raw = (real_data / "halueval" / "general_data.json").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3001
    assert [answer["hallucination"] for answer in answers] == [
        json.loads(line)["hallucination"] for line in raw[:3001]
    ]
    schema = json.loads(card.file(card.answer.schema_file).read_text())
    for answer in answers:
        jsonschema.validate(answer, schema)
    assert len({answer["thought"] for answer in answers}) == 3001

    record = read_record(path)
    assert record["sha256"] == SPANS_SHA256
    assert record["labels"] == {"no": 2468, "yes": 533}
    assert "no language model" in record["thoughts"]["by"]

    assert len(open_split(card, "test")) == 1506
    out = capsys.readouterr().out
    assert "3,001 rows (533 yes, 2,468 no)" in out
    assert "2,701 rows (481 yes" in out
    files = [real_home / tuning.name / tuning.split(s).file for s in ("train", "validation")]
    parts = [file.read_bytes() for file in files]
    assert b"".join(parts) == first
    assert [len(part.splitlines()) for part in parts] == [2701, 300]
    assert len({each.file("answer.schema.json").read_bytes() for each in (card, tuning)}) == 1
    for each, rows in ((card, 3001), (tuning, 2701)):
        assert each.split("train").rows == rows
        assert len(build_mixture(parse_spec(f"tell/{each.name}:general=0"))) == rows
    main(["data", "list", tuning.name])
    out = capsys.readouterr().out
    assert "verified" in out
    assert "rebuilt from general_data.json, test_Halu_CoT_JSON.jsonl\n" in out


def test_sources_are_fetched_where_they_are_missing(tmp_path, real_data, capsys):
    assert rebuild(places=Places(folder=real_data)) == 0
    home = tmp_path / "data"
    assert (home / "halueval" / "general_data.json").is_file()
    assert (home / "halu_cot_json" / "test_Halu_CoT_JSON.jsonl").is_file()
    assert (home / "halu_cot_json_spans" / "halu_cot_json_spans.jsonl").is_file()


def test_an_endpoint_needs_a_model():
    assert "--model is missing" in message_of(rebuild, "--base-url", "http://127.0.0.1:9/v1")


YES = HaluRow(0, "Name a moon.", "Mars is a moon.", "yes", ("Mars",))
NO = HaluRow(1, "Name an annotated book.", "Any annotated one.", "no", ())


def said(thought: object) -> str:
    return json.dumps({"thought": thought, "hallucination": "yes"})


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("0", '{"thought": "Mars is a planet.", "hallucination": "yes"}', None),
        ("0", '```json\n{"thought": "It is.", "hallucination": "yes"}\n```', None),
        ("0", '<think>hm {</think>\n{"thought": "It is.", "hallucination": "yes"}', None),
        ("0", '{"thought": "Fine.", "hallucination": "no"}', "must be 'yes'"),
        ("1", '{"thought": "Wrong.", "hallucination": "yes"}', "must be 'no'"),
        *(("0", text, "no JSON") for text in ("Mars is a planet.", '{"thought": "cut')),
        *(("0", text, "no JSON") for text in ("[" * 100_000, "1" * 5000)),
        ("0", '["yes"]', "does not fit"),
        ("0", '{"thought": "a", "hallucination": "yes", "more": 1}', "does not fit"),
        ("0", said(4), "does not fit"),
        *(("0", said(thought), "must have 1 to") for thought in ("  ", "a" * 1501)),
        ("0", said("The given label is yes."), "given to you"),
        ("0", said("As annotated."), "given to you"),
        ("0", said("Half \ud83d."), "half a character"),
        ("1", '{"thought": "An annotated book.", "hallucination": "no"}', None),
    ],
    ids=lambda value: None if len(str(value)) < 1000 else "long",
)
def test_answers_that_count(key, text, problem):
    check = answer_check(load_card("halu_cot_json_rebuilt"), [YES, NO])
    found = check(key, text)
    assert found is None if problem is None else found is not None and problem in found


def test_the_question_holds_label_and_spans():
    yes, no = (question_about(row)[1]["content"] for row in (YES, NO))
    assert '"hallucination": "yes"' in yes
    assert "- Mars" in yes
    assert "Mars is a moon." in yes
    assert '"hallucination": "no"' in no
    assert "pointed at" not in no


def label_in(messages: list[dict[str, str]]) -> str:
    match = re.search(r'"hallucination": "(yes|no)"', messages[1]["content"])
    return match[1]


def right(messages: list[dict[str, str]]) -> Reply:
    answer = {"thought": "It was looked at with care.", "hallucination": label_in(messages)}
    return Reply(json.dumps(answer))


@pytest.mark.slow
def test_stopped_in_the_middle_it_finishes_with_every_row_once(real_home, capsys):
    """All 3,001 rows; a server that goes down, and is sometimes wrong or broken, by the row."""
    stubborn = "Provide a few examples of homophones."  # row 1 never gets a right label

    def script(body: dict[str, Any], nth: int) -> Reply:
        messages, quirk = body["messages"], zlib.crc32(str(body["messages"][1]).encode()) % 100
        other = "no" if label_in(messages) == "yes" else "yes"
        if stubborn in messages[1]["content"] or (nth == 0 and quirk < 3):
            return Reply(json.dumps({"thought": "t", "hallucination": other}))
        if nth == 0 and quirk < 5:
            return Reply("no JSON at all")
        return Reply(status=500) if nth == 0 and quirk == 5 else right(messages)

    path = real_home / "halu_cot_json_rebuilt" / "halu_cot_json_rebuilt.jsonl"
    with serving(script) as server:
        flags = ("--base-url", server.url, "--model", "m")
        up, server.script = (
            server.script,
            lambda body, nth: (
                Reply(status=401) if len(server.requests) > 900 else script(body, nth)
            ),
        )
        with pytest.raises(UserError, match="HTTP 401"):
            rebuild(*flags)
        assert not path.exists()
        stored = {file.stem for file in path.with_suffix(".answers").rglob("[0-9]*.json")}
        assert 500 < len(stored) < 1000
        before, server.script = len(server.requests), up

        assert rebuild(*flags) == 1  # one row keeps failing
        assert "1 rows have no valid answer after 3 attempts" in capsys.readouterr().out
        assert not path.exists()
        failures = path.with_suffix(".failures.jsonl").read_text().splitlines()
        assert [json.loads(line)["row"] for line in failures] == [1]
        sent_later = {body["messages"][1]["content"] for body in server.requests[before:]}
        rows = halu.read_sources().train
        known = [row for row in rows if str(row.number) in stored]
        assert not [row for row in known if question_about(row)[1]["content"] in sent_later]

        total = len(server.requests)
        assert rebuild(*flags, "--fill", "spans") == 0
        assert len(server.requests) == total + 3  # the row that fails is asked once more

    result = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(
        row["prompt"].endswith(source.payload) for row, source in zip(result, rows, strict=True)
    )
    assert len({row["prompt"] for row in result}) == 3001
    labels = [json.loads(row["response"])["hallucination"] for row in result]
    assert labels == [row.label for row in rows]
    record = read_record(path)
    assert record["thoughts"]["from_spans_instead"] == [1]
    assert record["thoughts"]["by"].startswith("m at http://127.0.0.1:")
    assert len(build_mixture(parse_spec("tell/halu_cot_json_rebuilt:general=0"))) == 3001


def test_a_trial_of_some_rows_is_never_taken_for_the_whole(real_home, capsys):
    with serving(lambda body, nth: right(body["messages"])) as server:
        assert rebuild("--base-url", server.url, "--model", "m", "--rows", "12") == 0
        assert len(server.requests) == 12
        assert rebuild("--base-url", server.url, "--model", "m", "--rows", "15") == 0
        assert len(server.requests) == 15
        assert rebuild("--base-url", server.url, "--model", "other", "--rows", "2") == 0
        assert len(server.requests) == 17  # the answers of one model are not the other's
        assert rebuild("--base-url", server.url, "--model", "m", "--rows", "15") == 0
        assert len(server.requests) == 17
    folder = real_home / "halu_cot_json_rebuilt"
    assert not (folder / "halu_cot_json_rebuilt.jsonl").exists()
    partial = (folder / "halu_cot_json_rebuilt.partial.jsonl").read_text(encoding="utf-8")
    assert len(partial.splitlines()) == 15
    assert "15 of 3,001 rows have a thought" in capsys.readouterr().out
