"""Answer schemas are looked at first: broken ones, references, and patterns without an end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.cli import main
from tell_plugins.core.errors import UserError
from tell_plugins.core.rows import question_of
from tell_plugins.core.schemas import compile_schema, read_schema
from tests.check_world import Write
from tests.conftest import MakeCard

EVIL = "^(a|aa)+$"
_LONG = "a" * 40 + "b"


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "objekt"}, "no JSON Schema"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "or to nothing in it"),
        ({"$ref": "other.json"}, "leads out of the file"),
        ({"items": {"$ref": "https://example.com/s.json"}}, "leads out of the file"),
        ({"$ref": "file:///etc/passwd"}, "leads out of the file"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"properties": {"a": {"pattern": "("}}}, "is no regular expression"),
        ({"patternProperties": {"a": {}}}, "'patternProperties' is not read here"),
    ],
)
def test_a_schema_that_cannot_be_applied(schema: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        compile_schema(schema, "s.json")
    assert says in caught.value.found
    assert caught.value.where == "s.json"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ', "[1]", ""])
def test_a_file_that_is_no_schema(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=r"s\.json: (no JSON Schema|a schema is a JSON object)"):
        read_schema(tmp_path / "s.json")


def test_rules_hold_as_the_library_has_them() -> None:
    from jsonschema import Draft202012Validator

    schema = {
        "$defs": {"word": {"type": "string", "pattern": "^[a-z]+$"}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/word"}},
        "additionalProperties": False,
    }
    ours, library = compile_schema(schema, "s.json"), Draft202012Validator(schema)
    values: list[Any] = [{}, {"a": "x"}, {"a": "X"}, {"b": 1}, []]
    for value in values:
        found = [error.validator for error in ours.iter_errors(value)]
        assert found == [error.validator for error in library.iter_errors(value)], value


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"a": {"pattern": EVIL}}}, {"a": _LONG}),
    ],
)
def test_a_pattern_without_an_end_is_named(schema: dict[str, Any], value: Any) -> None:
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        list(compile_schema(schema, "s.json").iter_errors(value))
    assert time.process_time() - began < 5
    assert f"the pattern '{EVIL}' runs longer than 1 s on 'aaaa" in caught.value.found


def test_a_question_without_an_end_is_named() -> None:
    assert question_of("Q: what?", "Q: (.*)") == "what?"
    with pytest.raises(UserError, match="runs longer than 1 s"):
        question_of(_LONG, EVIL)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "https://example.com"}, "leads out of the file"),
        ({"properties": {"a": {"pattern": EVIL}}}, f"the pattern '{EVIL}' runs longer than 1 s"),
    ],
)
def test_check_and_mix_read_the_schema_first(
    write: Write,
    make_card: MakeCard,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    schema: dict[str, Any],
    says: str,
) -> None:
    rows = [{"q": f"question {n}", "r": json.dumps({"a": _LONG})} for n in range(4)]
    folder = make_card("strict", train=rows, metric="json", answer={"schema": "s.json"})
    (folder / "s.json").write_text(json.dumps(schema))
    path = str(write(dataset=["tell/strict:general=0/overlap=keep"]))
    assert main(["check", path]) == 1
    assert says in capsys.readouterr().out
    assert main(["mix", path, "--out", str(tmp_path / "mix")]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "mix" / "train.jsonl").exists()
