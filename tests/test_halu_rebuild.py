"""Rebuilding Halu-CoT-JSON: the spans' thoughts, the real files, and the asking of an endpoint."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import jsonschema
import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_split
from tell_plugins.core.spec import parse_spec
from tell_plugins.preparation import halu_cot_json
from tell_plugins.preparation.span_thoughts import shorten, span_thought


def rebuild(*flags: str) -> int:
    """`data halu_cot_json --rebuild FLAGS` as the command line would run it."""
    parser = argparse.ArgumentParser()
    halu_cot_json.add_arguments(parser)
    return halu_cot_json.rebuild(parser.parse_args(["--rebuild", *flags]))


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
    sources = halu_cot_json.read_sources()
    path = real_data / "tell_official" / "test_Halu_CoT_JSON.jsonl"
    official = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = halu_cot_json.read_halueval(real_data / "halueval" / "general_data.json")
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

    record = json.loads(path.with_suffix(".provenance.json").read_text())
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


def test_missing_and_foreign_sources_are_named(tmp_path: Path, real_data: Path) -> None:
    with pytest.raises(UserError, match=r"no HaluEval file[\s\S]*remedy: .*curl .*general_data"):
        rebuild("--thoughts", "spans")
    with pytest.raises(UserError, match="--halueval: no file 'nowhere'"):
        rebuild("--thoughts", "spans", "--halueval", "nowhere")
    real = real_data / "halueval" / "general_data.json"
    with pytest.raises(UserError, match=r"no file 'test_Halu_CoT_JSON.jsonl'[\s\S]*run.sh data"):
        rebuild("--thoughts", "spans", "--halueval", str(real))
    foreign = tmp_path / "general_data.json"
    foreign.write_bytes(real.read_bytes() + b"\n")
    with pytest.raises(UserError, match="not the HaluEval file"):
        rebuild("--thoughts", "spans", "--halueval", str(foreign))


def test_an_official_file_with_another_row_is_refused(tmp_path: Path, real_data: Path) -> None:
    home = tmp_path / "data"
    home.mkdir()
    official = real_data / "tell_official" / "test_Halu_CoT_JSON.jsonl"
    lines = official.read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[7])
    row["response"] = "yes" if row["response"] == "no" else "no"
    lines[7] = json.dumps(row)
    (home / "test_Halu_CoT_JSON.jsonl").write_text("\n".join(lines), encoding="utf-8")
    halueval = real_data / "halueval" / "general_data.json"
    with pytest.raises(UserError, match="row 7 of the official test file is not HaluEval's"):
        rebuild("--thoughts", "spans", "--halueval", str(halueval))
