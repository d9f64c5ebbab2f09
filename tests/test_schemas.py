"""Answer schemas are looked at first: broken ones, references, and patterns without an end."""

import json
import time
from typing import Any

import pytest

from tell_plugins.core.errors import UserError
from tell_plugins.core.rows import question_of
from tell_plugins.core.schemas import compile_schema, read_schema
from tests.conftest import error_of, message_of

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
def test_a_schema_that_cannot_be_applied(schema, says):
    caught = error_of(compile_schema, schema, "s.json")
    assert says in caught.found
    assert caught.where == "s.json"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ', "[1]", ""])
def test_a_file_that_is_no_schema(text, tmp_path):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UserError, match=r"s\.json: (no JSON Schema|a schema is a JSON object)"):
        read_schema(tmp_path / "s.json")


def test_rules_hold_as_the_library_has_them():
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


def test_a_pattern_without_an_end_is_named():
    schema = {"properties": {"a": {"pattern": EVIL}}}
    began = time.process_time()
    error = error_of(lambda: list(compile_schema(schema, "s.json").iter_errors({"a": _LONG})))
    assert time.process_time() - began < 5
    assert f"the pattern '{EVIL}' runs longer than 1 s on 'aaaa" in error.found
    assert question_of("Q: what?", "Q: (.*)") == "what?"
    assert "runs longer than 1 s" in message_of(question_of, _LONG, EVIL)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "https://example.com"}, "leads out of the file"),
        ({"properties": {"a": {"pattern": EVIL}}}, f"the pattern '{EVIL}' runs longer than 1 s"),
    ],
)
def test_check_and_mix_read_the_schema_first(write, make_card, tmp_path, schema, says, tell):
    rows = [{"q": f"question {n}", "r": json.dumps({"a": _LONG})} for n in range(4)]
    make_card("strict", train=rows, schema=schema)
    path = str(write(dataset=["tell/strict:general=0/overlap=keep"]))
    assert says in tell("check", path, code=1)
    assert says in tell("mix", path, "--out", tmp_path / "mix", code=1)
    assert not (tmp_path / "mix" / "train.jsonl").exists()
