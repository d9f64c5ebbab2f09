"""Rebuilding Halu-CoT-JSON: the spans' thoughts, the real files, and the asking of an endpoint."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from pathlib import Path

import jsonschema
import pytest

from tell_plugins.bridge.embedded_model import prepare_model
from tell_plugins.cli import main
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_split
from tell_plugins.core.spec import parse_spec
from tell_plugins.preparation import halu_cot_json, halueval
from tell_plugins.preparation.asked_thoughts import answer_check, question_about
from tell_plugins.preparation.download import DIRECT, Places
from tell_plugins.preparation.provenance import provenance_path
from tell_plugins.preparation.span_thoughts import shorten, span_thought
from tests.chat_server import Reply, serving
from tests.conftest import PROJECT, write_rows

ROW = {"user_query": "a", "chatgpt_response": "b", "hallucination": "no"}


def rebuild(*flags: str, places: Places = DIRECT) -> int:
    """`data halu_cot_json --rebuild FLAGS` as the command line would run it."""
    parser = argparse.ArgumentParser()
    halu_cot_json.add_arguments(parser)
    return halu_cot_json.rebuild(parser.parse_args(["--rebuild", *flags]), places)


# ---------------------------------------------------------------- thoughts from spans


@pytest.mark.parametrize(
    ("response", "label", "spans", "form", "holds"),
    [
        ("The sky is blue.", "no", [], "no fault", 'The query is "Ask"'),
        ("A. The sky is green. B.", "yes", ["sky is green"], "yes, quotation", '"sky is green"'),
        ("It is green", "yes", ["It is green"], "yes, whole response", "as a whole"),
        ("Too short", "yes", ["Incomplete answer"], "yes, remark", '"Incomplete answer"'),
        ("Too short", "yes", [], "yes, no span", "Part of the response"),
        ("Too short", "yes", ["无法验证"], "yes, no span", "Part of the response"),
        (
            "one two three four five six seven eight nine",
            "yes",
            ["two three\nwrong order"],
            "yes, quotation and remark",
            '"two three", which',
        ),
    ],
)
def test_a_thought_says_what_the_spans_say(
    response: str, label: str, spans: list[str], form: str, holds: str
) -> None:
    thought = span_thought("Ask.", response, label, spans)
    assert thought.form == form
    assert holds in thought.text
    assert "无" not in thought.text


def test_spans_inside_each_other_are_quoted_once() -> None:
    response = "First this, then that, and at the end something else altogether."
    spans = ["then that", "this, then that", "then that"]
    text = span_thought("Ask", response, "yes", spans).text
    assert text.count("then that") == 1


def test_long_texts_are_cut_at_a_word() -> None:
    assert shorten('say "yes"\n twice', 40) == "say 'yes' twice"
    cut = shorten("word " * 50, 23)
    assert cut == "word word word word ..."
    assert shorten("x" * 50, 10) == "x" * 10 + " ..."


# ---------------------------------------------------------------- the real files


def test_rebuilt_prompts_and_labels_are_the_official_ones(real_home: Path, real_data: Path) -> None:
    """The anchor is learnt from all official prompts, the payload from HaluEval alone."""
    sources = halueval.read_sources()
    path = real_data / "tell_official" / "test_Halu_CoT_JSON.jsonl"
    official = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = halueval.read_halueval(real_data / "halueval" / "general_data.json")
    rebuilt = [
        {"prompt": sources.anchor + row.payload, "response": row.label} for row in rows[3001:4507]
    ]
    assert len(official) == 1506
    assert rebuilt == official
    assert [row.number for row in sources.train] == list(range(3001))


def test_rebuild_from_spans(
    real_home: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rebuild("--thoughts", "spans") == 0
    card = load_card("halu_cot_json_spans")
    path = real_home / card.name / card.split("train").file
    first = path.read_bytes()
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

    record = json.loads(provenance_path(path).read_text())
    assert record["sha256"] == hashlib.sha256(first).hexdigest()
    assert record["labels"] == {"no": 2468, "yes": 533}
    assert sum(record["thoughts"]["forms"].values()) == 3001
    assert "no language model" in record["thoughts"]["by"]

    assert len(open_split(card, "test")) == 1506
    mixture = build_mixture(parse_spec("tell/halu_cot_json_spans:general=0"))
    assert len(mixture) == 3001
    assert "3,001 training rows (533 yes, 2,468 no)" in capsys.readouterr().out

    path.unlink()
    rebuild("--thoughts", "spans")
    assert path.read_bytes() == first


def test_the_same_rows_are_divided_to_choose_settings_on(
    real_home: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rebuild("--thoughts", "spans") == 0
    assert "2,701 of them (481 yes)" in capsys.readouterr().out
    whole = load_card("halu_cot_json_spans")
    card = load_card("halu_cot_json_tuning")
    text = (real_home / whole.name / whole.split("train").file).read_bytes()
    parts = [
        (real_home / card.name / card.split(split).file).read_bytes()
        for split in ("train", "validation")
    ]
    assert b"".join(parts) == text
    assert [len(part.splitlines()) for part in parts] == [2701, 300]
    assert all(open_split(card, split).bad_count == 0 for split in card.splits)
    assert {card.split(split).rows for split in ("train", "validation")} == {2701, 300}
    schemas = [each.file("answer.schema.json").read_bytes() for each in (whole, card)]
    assert schemas[0] == schemas[1]
    assert len(build_mixture(parse_spec("tell/halu_cot_json_tuning:general=0"))) == 2701
    main(["data", "list", card.name])
    assert "verified" in capsys.readouterr().out


def test_a_rebuilt_file_is_listed_with_the_files_that_it_was_made_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [{"file": name, "sha256": "0"} for name in ("general_data.json", "official.jsonl")]
    row = halu_cot_json.training_row(
        "Judge.\n", halueval.HaluRow(0, "Why?", "Because.", "no", ()), ""
    )
    sources = halueval.Sources("Judge.\n", [], files)
    halu_cot_json.write_rebuilt(load_card("halu_cot_json_spans"), [row], sources, {"by": "a test"})
    main(["data", "list", "halu_cot_json_spans"])
    assert "rebuilt from general_data.json, official.jsonl\n" in capsys.readouterr().out


def test_sources_that_are_missing_or_foreign_are_named(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(halueval, "HALUEVAL_URL", "http://127.0.0.1:9/general_data.json")
    with pytest.raises(UserError, match="--halueval: no file 'nowhere'"):
        rebuild("--thoughts", "spans", "--halueval", "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    foreign = tmp_path / "general_data.json"
    foreign.write_bytes((real_data / "halueval" / "general_data.json").read_bytes() + b"\n")
    with pytest.raises(UserError, match="not the HaluEval file"):
        rebuild("--thoughts", "spans", "--halueval", str(foreign))
    with pytest.raises(UserError, match=r"no file 'general_data\.json' in the folder"):
        rebuild("--thoughts", "spans", places=Places(folder=empty))
    assert not (tmp_path / "data" / "halu_cot_json_spans").exists()


def test_sources_are_fetched_where_they_are_missing(
    tmp_path: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rebuild("--thoughts", "spans", places=Places(folder=real_data)) == 0
    home = tmp_path / "data"
    assert (home / "halueval" / "general_data.json").is_file()
    assert (home / "halu_cot_json" / "test_Halu_CoT_JSON.jsonl").is_file()
    assert (home / "halu_cot_json_spans" / "halu_cot_json_spans.jsonl").is_file()


def test_nobody_named_to_write_the_thoughts() -> None:
    with pytest.raises(UserError, match="--thoughts spans"):
        rebuild()
    with pytest.raises(UserError, match="--model is missing"):
        rebuild("--base-url", "http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match=r"one price without the other"):
        rebuild("--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--price-in", "1")


@pytest.mark.parametrize("change", ["label", "prompt", "a row less"])
def test_an_official_file_that_does_not_fit_is_refused(
    change: str, tmp_path: Path, real_data: Path
) -> None:
    """The proof of the rebuild is one: it fails for a test file that differs in one place."""
    official = real_data / "tell_official" / "test_Halu_CoT_JSON.jsonl"
    lines = official.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[7])
    if change == "label":
        row["response"] = "yes" if row["response"] == "no" else "no"
    elif change == "prompt":
        row["prompt"] += " "
    lines[7] = json.dumps(row)
    if change == "a row less":
        del lines[7]
    changed = tmp_path / "test_Halu_CoT_JSON.jsonl"
    changed.write_text("\n".join(lines), encoding="utf-8")
    rows = halueval.read_halueval(real_data / "halueval" / "general_data.json")
    with pytest.raises(
        UserError, match="row 7 of the official test file is not HaluEval's row 3008"
    ):
        halueval._check_against_official(changed, rows[3001:4507])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"user_query": "a", "chatgpt_response": "b"}, "line 2: not a row with the texts"),
        ({**ROW, "hallucination": "maybe"}, "line 2: the label is 'maybe'"),
        ({**ROW, "user_query": 3}, "line 2: not a row with the texts"),
    ],
)
def test_a_wrong_row_of_halueval_is_named(row: object, message: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "general_data.json", [ROW, row])
    with pytest.raises(UserError, match=message):
        halueval.read_halueval(path)


# ---------------------------------------------------------------- thoughts from an endpoint

YES = halueval.HaluRow(0, "Name a moon.", "Mars is a moon.", "yes", ("Mars",))
NO = halueval.HaluRow(1, "Name an annotated book.", "Any annotated one.", "no", ())


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("0", '{"thought": "Mars is a planet.", "hallucination": "yes"}', None),
        ("0", '```json\n{"thought": "It is.", "hallucination": "yes"}\n```', None),
        ("0", '<think>hm {</think>\n{"thought": "It is.", "hallucination": "yes"}', None),
        ("0", '{"thought": "Fine.", "hallucination": "no"}', "must be 'yes'"),
        ("1", '{"thought": "Wrong.", "hallucination": "yes"}', "must be 'no'"),
        ("0", "Mars is a planet.", "no JSON"),
        ("0", '{"thought": "cut', "no JSON"),
        pytest.param("0", "[" * 100_000, "no JSON", id="deep"),
        pytest.param("0", "1" * 5000, "no JSON", id="long"),
        ("0", '["yes"]', "does not fit"),
        ("0", '{"thought": "a", "hallucination": "yes", "more": 1}', "does not fit"),
        ("0", '{"thought": 4, "hallucination": "yes"}', "does not fit"),
        ("0", '{"thought": "  ", "hallucination": "yes"}', "must have 1 to"),
        ("0", json.dumps({"thought": "a" * 1501, "hallucination": "yes"}), "must have 1 to"),
        ("0", '{"thought": "The given label is yes.", "hallucination": "yes"}', "given to you"),
        ("0", '{"thought": "Half \\ud83d.", "hallucination": "yes"}', "half a character"),
        ("0", '{"thought": "As annotated.", "hallucination": "yes"}', "given to you"),
        ("1", '{"thought": "An annotated book.", "hallucination": "no"}', None),
    ],
)
def test_answers_that_count(key: str, text: str, problem: str | None) -> None:
    check = answer_check(load_card("halu_cot_json_rebuilt"), [YES, NO])
    found = check(key, text)
    assert found is None if problem is None else found is not None and problem in found


def test_the_question_holds_label_and_spans() -> None:
    yes, no = (question_about(row).messages[1]["content"] for row in (YES, NO))
    assert '"hallucination": "yes"' in yes
    assert "- Mars" in yes
    assert "Mars is a moon." in yes
    assert '"hallucination": "no"' in no
    assert "pointed at" not in no


def label_in(messages: list[dict[str, str]]) -> str:
    match = re.search(r'"hallucination": "(yes|no)"', messages[1]["content"])
    assert match is not None
    return match[1]


def right(messages: list[dict[str, str]]) -> Reply:
    answer = {"thought": "It was looked at with care.", "hallucination": label_in(messages)}
    return Reply(json.dumps(answer))


def run_rebuild(home: Path, *flags: str) -> subprocess.Popen[str]:
    """The rebuild as a process of its own; its output goes to `out.txt` and is never a pipe."""
    command = [sys.executable, "-m", "tell_plugins", "data", "halu_cot_json", "--rebuild", *flags]
    with (home / "out.txt").open("w") as out:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )


@pytest.mark.slow
def test_killed_in_the_middle_it_finishes_with_every_row_once(real_home: Path) -> None:
    """All 3,001 rows; the server is sometimes wrong, slow, limited or broken, by the row."""
    stubborn = "Provide a few examples of homophones."  # row 1 never gets a right label

    def script(messages: list[dict[str, str]], nth: int) -> Reply:
        text = messages[1]["content"]
        other = "no" if label_in(messages) == "yes" else "yes"
        wrong = Reply(json.dumps({"thought": "t", "hallucination": other}))
        if stubborn in text:
            return wrong
        quirk = zlib.crc32(text.encode()) % 100
        if nth == 0:
            if quirk < 3:
                return wrong
            if quirk < 5:
                return Reply("no JSON at all")
            if quirk == 5:
                return Reply(status=500)
            if quirk == 6 and len(server.requests) % 7 == 0:
                return Reply(status=429, headers={"Retry-After": "0.2"})
            if quirk == 7 and len(server.requests) % 5 == 0:
                return Reply("late", delay=1.5)
        return right(messages)

    path = real_home / "halu_cot_json_rebuilt" / "halu_cot_json_rebuilt.jsonl"
    journal = path.with_suffix(".journal.jsonl")
    with serving(script) as server:
        flags = ("--base-url", server.url, "--model", "m", "--timeout", "1")
        first = run_rebuild(real_home, *flags)
        while len(server.requests) < 900:
            assert first.poll() is None, (real_home / "out.txt").read_text()
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert not path.exists()
        lines = journal.read_text(encoding="utf-8").splitlines()
        stored = {
            entry["key"]
            for entry in map(json.loads, lines[1:-1])
            if entry.get("text") and entry["problem"] is None
        }
        assert 500 < len(stored) < 1000
        before = len(server.requests)

        second = run_rebuild(real_home, *flags)
        assert second.wait(timeout=120) == 1  # one row keeps failing
        out = (real_home / "out.txt").read_text()
        assert "1 rows have no valid answer after 3 attempts" in out
        assert not path.exists()
        failures = path.with_suffix(".failures.jsonl").read_text().splitlines()
        assert [json.loads(line)["row"] for line in failures] == [1]
        sent_later = {body["messages"][1]["content"] for body in server.requests[before:]}
        rows = halueval.read_sources().train
        asked_twice = [
            row.number
            for row in rows
            if str(row.number) in stored
            and question_about(row).messages[1]["content"] in sent_later
        ]
        assert asked_twice == []

        third = run_rebuild(real_home, *flags, "--fill", "spans")
        total = len(server.requests)
        assert third.wait(timeout=60) == 0
        assert len(server.requests) == total

    result = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [
        row["prompt"].endswith(source.payload) for row, source in zip(result, rows, strict=True)
    ]
    assert len({row["prompt"] for row in result}) == 3001
    labels = [json.loads(row["response"])["hallucination"] for row in result]
    assert labels == [row.label for row in rows]
    record = json.loads(provenance_path(path).read_text())
    assert record["thoughts"]["from_spans_instead"] == [1]
    assert record["thoughts"]["by"].startswith("m at http://127.0.0.1:")
    account = json.loads(path.with_suffix(".ledger.json").read_text())
    assert account["answers"] >= 3001
    assert account["requests"] <= len(server.requests)
    assert len(build_mixture(parse_spec("tell/halu_cot_json_rebuilt:general=0"))) == 3001


def test_a_trial_of_some_rows_is_never_taken_for_the_whole(
    real_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda messages, nth: right(messages)) as server:
        assert rebuild("--base-url", server.url, "--model", "m", "--rows", "12") == 0
        assert len(server.requests) == 12
        assert rebuild("--base-url", server.url, "--model", "m", "--rows", "15") == 0
        assert len(server.requests) == 15
        with pytest.raises(UserError, match="model was 'm', is 'other'"):
            rebuild("--base-url", server.url, "--model", "other")
    folder = real_home / "halu_cot_json_rebuilt"
    assert not (folder / "halu_cot_json_rebuilt.jsonl").exists()
    partial = (folder / "halu_cot_json_rebuilt.partial.jsonl").read_text(encoding="utf-8")
    assert len(partial.splitlines()) == 15
    assert "15 of 3,001 rows have a thought" in capsys.readouterr().out


@pytest.mark.slow
def test_answers_of_ms_swifts_own_server_are_judged_like_any(
    real_home: Path, tmp_path: Path
) -> None:
    """`swift deploy` with the embedded model: it speaks the protocol and answers no JSON."""
    model = prepare_model()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = f"--model {model} --model_type llama --template chatml --torch_dtype float32"
    flags += f" --host 127.0.0.1 --port {port} --served_model_name smol --max_new_tokens 24"
    with (tmp_path / "deploy.txt").open("w") as out:
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name("swift")), "deploy", *flags.split()],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}/v1"
        _wait_for(f"{url}/models", server, tmp_path / "deploy.txt")
        few = ("--rows", "3", "--attempts", "1", "--concurrency", "2", "--max-tokens", "24")
        assert rebuild("--base-url", url, "--model", "smol", *few) == 1
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
    folder = real_home / "halu_cot_json_rebuilt"
    failures = (folder / "halu_cot_json_rebuilt.failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in failures] == [0, 1, 2]
    account = json.loads((folder / "halu_cot_json_rebuilt.ledger.json").read_text())
    assert account["answers"] == account["refused_by_check"] == 3
    assert account["tokens_in"] > 500
    assert account["tokens_estimated_for"] == 0


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
