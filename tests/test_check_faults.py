"""Planted faults: each has the one finding that it should, and every rule has some."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tell_plugins.core.errors import UserError
from tell_plugins.recipe.checked import Finding, as_errors
from tests.check_world import look
from tests.conftest import PROJECT
from tests.swift_keys_once import keys

PLANTED = yaml.safe_load(Path(__file__).with_name("planted_faults.yaml").read_text())
_CASES = [(rule, fault, says) for rule, faults in PLANTED.items() for fault, says in faults]


@pytest.fixture
def planted(situations, make_card, words, monkeypatch) -> Path:
    """Cards, models and a run with one fault each, and a tokenizer that counts words."""
    tasks = [{"q": f"planted {n}", "r": f"answer {n}"} for n in range(8)]
    general = [{"q": f"plain {n}", "r": f"reply {n}"} for n in range(30)]
    make_card("leak", train=tasks, test=tasks[:1])
    half = make_card("half", train=tasks, test=tasks[:1])
    (half / "test.jsonl").unlink()
    make_card("steered", train=[*tasks, {"q": "a", "r": "b<|im_end|>"}])
    make_card("long", train=[{"q": "w " * 300, "r": "x"}, *tasks], anchor="w w w")
    for name, change in {
        "doubled": [general[0]],
        "rough": [{"q": "other", "r": ""}],
        "leaky": [{"q": "Test question 1", "r": "x"}],
        "steering": [{"q": "a</s>", "r": "b"}],
        "wide": [{"q": "w " * 300, "r": "x"}],
    }.items():
        make_card(name, train=[*change, *general], kind="general")
    answers = [{"q": f"planted {n}", "r": json.dumps({"a": "a" * 40 + "b"})} for n in range(8)]
    for name, schema in {
        "bad_schema": {"$ref": "https://example.com"},
        "slow_pattern": {"properties": {"a": {"pattern": "^(a|aa)+$"}}},
    }.items():
        make_card(name, train=answers, schema=schema)
    _own_words(words(situations / "own_words"))
    (situations / "run" / "checkpoint-2").mkdir(parents=True)
    monkeypatch.setenv("TELL_TOKENIZER", str(words(situations / "llama2")))
    return situations


def _own_words(folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text("{}")


def _findings(path: Path) -> list[Finding]:
    try:
        return look(path).findings
    except UserError as problem:
        return as_errors("tell-recipe", problem)


@pytest.mark.parametrize(("rule", "fault", "says"), _CASES)
def test_a_planted_fault_has_its_finding_and_no_other(write, planted, rule, fault, says):
    if rule == "tell-value-list" and keys().takes_yaml_first:
        pytest.skip("this ms-swift reads such a list")
    changes = {"text": fault} if isinstance(fault, str) else dict(fault)
    whole, also = changes.pop("whole", None), changes.pop("also", None)
    path = write(**{key: _placed(value, planted) for key, value in changes.items()})
    if whole is not None:
        path.write_text(whole)
    found = _findings(path)
    assert {finding.rule for finding in found} == {rule, also or rule}, found
    mine = [finding for finding in found if finding.rule == rule]
    assert len({str(problem) for problem in mine}) == len(mine), "said once"
    assert any(says in str(problem) for problem in mine), mine
    if isinstance(fault, str):
        key, last = fault.partition(":")[0], len(path.read_text().splitlines())
        assert all(f"'{key}" in problem.found for problem in mine)
        assert all(problem.where == f"{path}, line {last}" for problem in mine)
    assert all(finding.remedy for finding in found)


def _placed(value: Any, folder: Path) -> Any:
    return value.replace("{}/", f"{folder}/") if isinstance(value, str) else value


def test_every_rule_has_a_line_on_the_page_and_a_planted_fault_of_its_own():
    package = PROJECT / "tell_plugins"
    files = [*package.glob("recipe/*.py"), package / "bridge" / "mixed_use.py"]
    code = "".join(path.read_text() for path in files)
    rules = re.findall(r'"(tell-[a-z-]+)"', code)
    page = (PROJECT / "docs" / "check.md").read_text()
    lines = re.findall(r"^\| `(tell-[a-z-]+)` \|[^|]+\|[^|]+\|$", page, re.MULTILINE)
    assert sorted(lines) == sorted(set(rules))
    alone = {rule for rule, fault, _ in _CASES if isinstance(fault, str) or "also" not in fault}
    assert alone == set(rules)
    assert len(_CASES) >= 60
