"""Verbs stopped before each of their file operations: what they leave, and what a second run makes.

The stopped run is a fork of this process that ends, without any clean-up, before its n-th
operation; an audit hook counts them, whichever module does them.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tell_plugins.cli import main
from tell_plugins.core import paths
from tell_plugins.core.rows import file_sha256
from tests.conftest import write_card, write_rows
from tests.scripted_engine import answer_by_script

KILLED = 86
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
NO_RESULT = (".lock",)


def _changes_files(event: str, arguments: tuple[Any, ...], below: str) -> bool:
    if event == "open":
        path, _, flags = arguments
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    elif event in CHANGES:
        path = arguments[0]
    else:
        return False
    return str(path).startswith(below)


def run_child(argv: list[str], below: Path, stop_before: int | None = None) -> int:
    """Run a verb in a fork of this process; its exit code, `KILLED` where it was stopped."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # a fork that hangs ends by it
        signal.alarm(300)
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if _changes_files(event, arguments, str(below)):
                if count == stop_before:
                    os._exit(KILLED)
                count += 1

        if stop_before is not None:
            sys.addaudithook(hook)
        code = main(argv)
    finally:
        os._exit(code)


class Case(NamedTuple):
    """A verb in a folder of its own.

    Attributes:
        first: the call that is stopped; `again` is the call that follows.
        results: the folders whose bytes are compared.
        whole: raises AssertionError where a stopped call leaves what is not true.
    """

    root: Path
    first: list[str]
    again: list[str]
    results: list[Path]
    whole: Callable[[], None]


def contents(folders: list[Path]) -> dict[str, bytes]:
    """What the files of folders hold, without the moment that a record names."""
    found: dict[str, bytes] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            unfinished = any(part.endswith(paths.TEMPORARY) for part in path.parts)
            if path.is_file() and not path.name.endswith(NO_RESULT) and not unfinished:
                text = path.read_bytes()
                if path.name.endswith(".provenance.json"):
                    text = json.dumps({**json.loads(text), "made_at": ""}).encode()
                found[str(path)] = text
    return found


def stop_everywhere(case: Case, template: Path) -> int:
    """Stop the case before each operation and compare the second run's files; how many points."""
    shutil.copytree(case.root, template)

    def afresh() -> None:
        shutil.rmtree(case.root)
        shutil.copytree(template, case.root)

    assert run_child(case.first, case.root) == 0
    wanted = contents(case.results)
    for point in range(1000):
        afresh()
        code = run_child(case.first, case.root, point)
        case.whole()
        if code != KILLED:
            assert code == 0
            return point
        assert run_child(case.again, case.root) == 0, f"stopped before operation {point}"
        assert contents(case.results) == wanted, f"stopped before operation {point}"
    raise AssertionError("it never ends")


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A folder that holds all that a verb may write to."""
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("TELL_CACHE", str(folder / "cache"))
    monkeypatch.setenv("TELL_DATA_HOME", str(folder / "data"))
    monkeypatch.setenv("TELL_CARDS", str(folder / "cards"))
    return folder


@pytest.fixture
def cards(make_card, root, tmp_path) -> Path:
    """A task `toy` and the general data it mixes with; the folder of their recipe."""
    make_card(
        "toy",
        train=[{"q": f"sum {n}", "r": f"#### {n}"} for n in range(6)],
        test=[{"q": f"other sum {n}", "r": f"#### {n}"} for n in range(5)],
    )
    make_card("plain", train=[{"q": f"g {n}", "r": "x"} for n in range(40)], kind="general")
    os.rename(tmp_path / "cards", root / "cards")
    return root


def recipe(folder: Path, **keys: object) -> Path:
    path = folder / "toy.yaml"
    values = {"model": "smollm2", "dataset": ["tell/toy:general=9rows"], **keys}
    path.write_text(yaml.safe_dump({**values, "output_dir": str(folder / "run")}))
    return path


@pytest.mark.slow
def test_mix_over_an_earlier_mixture(cards, tmp_path):
    out, file = cards / "mix", str(recipe(cards))
    earlier = ["mix", file, "--out", str(out), "--dataset", "tell/toy:task=2rows/general=3rows"]
    assert main(earlier) == 0
    shutil.rmtree(cards / "cache" / "rows")

    def whole() -> None:
        if (out / "manifest.json").is_file():
            manifest = json.loads((out / "manifest.json").read_text())
            assert len((out / "train.jsonl").read_text().splitlines()) == manifest["rows"]

    argv = ["mix", file, "--out", str(out)]
    assert stop_everywhere(Case(cards, argv, argv, [out], whole), tmp_path / "before") > 20


def new_task(cards: Path, file: Path) -> list[str]:
    """The call that makes the task `own` of a file."""
    argv = ["new", "own", "--train", str(file), "--anchor", "Is the number odd? Say yes or no."]
    return [*argv, "--general", "plain", "--recipes", str(cards / "recipes"), "--model", "smollm2"]


def odd_rows(path: Path, count: int) -> Path:
    rows = [{"query": f"Is {n} odd?", "response": "yes" if n % 2 else "no"} for n in range(count)]
    return write_rows(path, rows)


@pytest.mark.slow
def test_new_over_an_earlier_task(cards, tmp_path):
    """A card is the old or the new one as a whole; no old recipe stands beside a new card."""
    names, flags = ["own", "own_fold1", "own_fold2"], ["--folds", "2"]
    recipes = cards / "recipes"
    assert main([*new_task(cards, odd_rows(tmp_path / "old.jsonl", 20)), *flags]) == 0

    def state() -> list[dict[str, bytes]]:
        """What each card holds, and the recipes."""
        return [contents([folder]) for folder in (*(cards / "cards" / n for n in names), recipes)]

    old = state()
    shutil.copytree(cards, tmp_path / "old")
    argv = [*new_task(cards, odd_rows(tmp_path / "mine.jsonl", 40)), *flags, "--force"]
    assert main(argv) == 0
    new = state()
    for before, after in zip(old, new, strict=True):
        assert before.keys() == after.keys()
        assert not any(before[n] == after[n] for n in before if n.endswith((".jsonl", ".yaml")))
    shutil.rmtree(cards)
    shutil.copytree(tmp_path / "old", cards)

    def whole() -> None:
        *there, made = state()
        assert all(
            card in ({}, *both) for card, *both in zip(there, old[:-1], new[:-1], strict=True)
        )
        right = new if there == new[:-1] else old
        assert all(text == right[-1][name] for name, text in made.items())
        assert there == old[:-1] or right is new or not made

    case = Case(cards, argv, argv, [cards / "cards", recipes], whole)
    assert stop_everywhere(case, tmp_path / "before") > 10


def test_data_of_a_folder(cards, tmp_path):
    """Rows that a hub would have: the record of the file is there as soon as the file is."""
    there = write_rows(
        tmp_path / "there" / "rows.jsonl", ({"q": f"{n}", "r": "a"} for n in range(5))
    )
    splits = {"train": {"file": "rows.jsonl", "modelscope": "o/far"}}
    write_card(cards / "cards", "far", train=[], kind="general", splits=splits)
    file = cards / "data" / "far" / "rows.jsonl"

    def whole() -> None:
        if file.is_file():
            record = json.loads(file.with_name(f"{file.name}.provenance.json").read_text())
            assert record["sha256"] == file_sha256(file)

    argv = ["data", "far", "--from", str(there.parent)]
    case = Case(cards, argv, argv, [cards / "data"], whole)
    assert stop_everywhere(case, tmp_path / "before") > 5


@pytest.mark.slow
def test_eval(cards, tmp_path, monkeypatch):
    answer_by_script(monkeypatch, lambda _, prompt: f"#### {len(prompt)}")
    argv = ["eval", str(recipe(cards)), "--adapter", "none", "--batch-size", "2"]
    argv += ["--general-rows", "4", "--retention-rows", "4", "--out"]
    assert main([*argv, str(tmp_path / "loaded")]) == 0  # so that no child loads the modules anew
    argv.append(str(cards / "out"))
    case = Case(cards, argv, argv, [cards / "out"], lambda: None)
    assert stop_everywhere(case, tmp_path / "before") > 10
