"""`./run.sh check --json`: one object a recipe, as its schema says, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tell_plugins.cli import main
from tell_plugins.core.errors import MachineError
from tell_plugins.recipe import mixture_rules, recipes
from tell_plugins.recipe.checked import PARTS
from tests.check_world import HELD
from tests.conftest import PROJECT
from tests.golden_texts import assert_golden

SCHEMA = json.loads((PROJECT / "tell_plugins" / "recipe" / "check.schema.json").read_text())


Said = Callable[..., tuple[int, Any]]


@pytest.fixture
def said(capsys) -> Said:
    """The exit code and the whole standard output of `check --json`, which must fit the schema."""

    def run(*arguments: str | Path) -> tuple[int, Any]:
        code = main(["check", "--json", *map(str, arguments)])
        found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        jsonschema.validate(found, SCHEMA, jsonschema.Draft202012Validator)
        return code, found

    return run


def parts_of(found: dict[str, Any]) -> set[str]:
    reasons = {each["part"]: each["why"] for each in found["not_checked"]}
    assert all(reasons.values())
    assert {*found["ran"], *reasons} == set(PARTS)
    assert len(found["ran"]) + len(reasons) == len(PARTS)
    return set(reasons)


def test_the_schema_is_one_and_knows_the_parts():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    ran = SCHEMA["$defs"]["recipe"]["properties"]["ran"]
    assert tuple(ran["items"]["enum"]) == PARTS


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [("good", {}, 0), ("warning", {"strict": None}, 0), ("problems", {"seed": "x"}, 1)],
)
def test_the_whole_object(name, changes, code, write, said, tmp_path):
    given, found = said(write(**changes))
    assert given == code
    assert_golden(f"check/{name}.json", json.dumps(found, indent=2) + "\n", tmp_path)


def test_with_the_models_tokenizer_everything_is_looked_at(write, words, tmp_path, said):
    model = words(tmp_path / "model")
    (model / "config.json").write_text("{}")
    path = write(model=str(model), model_type="llama", template="chatml", target_modules=None)
    code, found = said(path)
    assert (code, found["findings"]) == (0, [])
    assert parts_of(found) == set()
    code, found = said(path, "--max_length", "3")
    assert code == 1
    assert {each["id"] for each in found["findings"]} == {"tell-row-long", "tell-general-long"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"dataset": ["tell/toy:tsk=1rows"]}, {"data", "schedule"}),
        ({"dataset": ["tell/halu_cot_json:task=1e4tok/general=4e6tok"]}, {"data", "schedule"}),
        ({"dataset": ["tell/halu_cot_json:task=115rows/general=0"]}, {"data"}),
        ({"dataset": ["tell/toy:task=99rows"]}, {"data"}),
        ({"dataset": ["tell/plain:task=32rows"]}, {"held_out_rows"}),
        ({"dataset": ["tell/half:general=24rows/overlap=keep"]}, {"held_out_rows"}),
        ({"dataset": ["tell/toy:task=0/general=24rows"]}, set()),
        ({"dataset": [HELD], "loss_type": "tell"}, set()),
        ({"lr_scheduler_type": "polynomial"}, {"schedule"}),
        ({"learning_rate": "x"}, {"schedule"}),
        ({"learning_rate": float("inf")}, {"schedule"}),
        ({"max_length": "x"}, set()),
    ],
)
def test_what_was_not_checked_says_why(write, make_card, said, changes, parts):
    folder = make_card("half", train=[{"q": f"q {n}", "r": "a"} for n in range(9)], test=[])
    (folder / "test.jsonl").unlink()
    _, found = said(write(**changes))
    without = {"control_tokens", "lengths"}  # the test has no tokenizer
    unread = {"held_out_rows"} if "data" in parts else set()
    assert parts_of(found) == parts | without | unread
    assert (found["sources"] is None) == ("data" in parts)
    assert (found["steps"] is None) == ("schedule" in parts)


def test_several_recipes_are_a_list(write, said):
    code, found = said(str(write("good")), str(write("bad", seed="x")), "nowhere.yaml")
    assert code == 1
    assert [each["recipe"].rpartition("/")[2] for each in found] == [
        "good.yaml",
        "bad.yaml",
        "nowhere.yaml",
    ]
    assert [bool(each["findings"]) for each in found] == [False, True, True]
    assert found[2]["findings"][0]["id"] == "tell-recipe"
    assert parts_of(found[2]) == set(PARTS)


def test_what_cannot_be_judged_is_exit_code_2(write, monkeypatch, said):
    def fail(*_: object) -> None:
        raise MachineError("ms-swift could not tell which settings it knows")

    good = str(write())
    with monkeypatch.context() as patched:
        patched.setattr(recipes, "swift_keys", fail)
        code, found = said(good)
        assert (code, found["findings"], found["ran"]) == (2, [], [])
        assert "could not tell which settings it knows" in found["not_checked"][0]["why"]
        code, found = said("nowhere.yaml", good)
        assert (code, found[0]["findings"][0]["id"]) == (2, "tell-recipe")
    monkeypatch.setattr(mixture_rules, "build_mixture", fail)
    assert said(good)[0] == 2
