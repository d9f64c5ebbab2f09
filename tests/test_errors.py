"""The shape of errors: each in the code says where, and what to do about it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tell_plugins.core.errors import MachineError, unknown
from tests.conftest import PROJECT

FILES = sorted((PROJECT / "tell_plugins").rglob("*.py"))


def _calls(path: Path) -> Iterator[tuple[str, ast.Call, str]]:
    """Every error that a file makes: its kind, the call, its text."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        name = (
            node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
        )
        if isinstance(node, ast.Call) and name in ("UserError", "MachineError"):
            yield name, node, ast.get_source_segment(source, node) or ""


def test_there_are_errors_to_look_at():
    assert sum(1 for path in FILES for _ in _calls(path)) > 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_error_says_where_and_what_to_do(path):
    for kind, call, text in _calls(path):
        given = {keyword.arg for keyword in call.keywords}
        where = f"{path.name}, line {call.lineno}"
        if kind == "UserError":
            assert given >= {"where", "remedy"}, where
        elif "str(error)" not in text:  # which hands others' messages on
            assert "remedy" in given or "remedy:" in text, where


def test_names_are_listed_where_one_has_to_choose():
    names = [f"name{n:02}" for n in range(40)]
    assert unknown("card", "xyz", names, "here").allowed == ", ".join(names)
    assert unknown("card", "name1", names, "here").allowed == "40 names"
    assert unknown("card", "xyz", names * 3, "here").allowed == "120 names"


def test_a_fault_of_the_machine_has_the_same_shape():
    assert str(MachineError("no space", remedy="free some")) == "no space\n  remedy:  free some"
    assert str(MachineError("no space")) == "no space"
