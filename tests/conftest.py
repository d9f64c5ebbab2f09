"""Fixtures shared by all tests: every test has its own cache, data home and cards."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import pytest

from tests.check_world import situations, words, write  # noqa: F401
from tests.preloaded import PYTHON, preloaded_python
from tests.swift_keys_once import lay_keys

PROJECT = Path(__file__).resolve().parents[1]
Result = TypeVar("Result")
REAL_DATA = PROJECT.parent / "shared" / "data"


# two processes take the files in turn: the long ones first, so that none is left alone at the end
_LONGEST = (
    *("recipe_files", "sweep", "benchmarks", "mix_train", "crash_points", "new_task", "templates"),
    *("retention", "export", "wheel", "anchors2x2", "demo", "tune", "controls", "run_sh", "light"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True, scope="session")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests start finds its libraries imported; Hugging Face's have a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        with preloaded_python():
            yield


@pytest.fixture
def ordinary_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes start as a user's do."""
    monkeypatch.setattr(sys, "executable", PYTHON)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test away from the user's cache, data, cards and tokenizer."""
    monkeypatch.setenv("TELL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TELL_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("TELL_CARDS", str(tmp_path / "cards"))
    monkeypatch.delenv("TELL_TOKENIZER", raising=False)
    monkeypatch.delenv("TELL_CALLER_DIR", raising=False)
    monkeypatch.chdir(PROJECT)
    lay_keys(tmp_path / "cache")


@pytest.fixture
def real_data() -> Path:
    """The real data beside the project; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs the real data beside the project (../shared/data)")
    return REAL_DATA


@pytest.fixture
def real_home(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$TELL_DATA_HOME` with the test's own folder first and the real data after it."""
    home = tmp_path / "data"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("TELL_DATA_HOME", f"{home}:{real_data}")
    return home


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of a test module where no other test has changed a library."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def in_preloaded_process(function: Callable[..., Result], *arguments: object) -> Result:
    """The same, sooner, where ms-swift may be loaded, which changes transformers and peft."""
    with TemporaryDirectory() as folder:
        Path(folder, "call").write_bytes(pickle.dumps((function, arguments)))
        subprocess.run([sys.executable, "-m", "tests.fresh", folder], cwd=PROJECT, check=True)
        result: Result = pickle.loads(Path(folder, "result").read_bytes())
        return result


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    """Write JSON lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


Tell = Callable[..., str]


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Run a verb: `tell("data", "list", code=1)`; all that it printed."""
    from tell_plugins.cli import main

    def run(*given: str | Path, code: int = 0) -> str:
        capsys.readouterr()
        assert main([str(word) for word in given]) == code
        said = "".join(capsys.readouterr())
        assert "Traceback" not in said
        return said

    return run


Cli = Callable[..., str]


@pytest.fixture
def cli(tell: Tell) -> Cli:
    """`cli(code, verb, ...)`: the command line ends with that code; all that it says, in one line
    with single blanks."""
    return lambda code, *argv: " ".join(tell(*argv, code=code).split())


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model, which no test may change."""
    from tests.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


MakeCard = Callable[..., Path]


@pytest.fixture
def make_card(tmp_path: Path) -> MakeCard:
    """Make a card under `$TELL_CARDS`: `make_card(name, train=[...], test=[...], kind=..., ...)`.

    Rows are `{"q": ..., "r": ...}`; further keywords become keys of the card. One with a `schema`
    has JSON answers, which may have a `label`.
    """
    import yaml

    def make(
        name: str,
        *,
        train: list[dict[str, str]],
        test: list[dict[str, str]] | None = None,
        kind: str = "task",
        anchor: str = "ANCHOR: do the task.",
        schema: object = None,
        label: str | None = None,
        **keys: object,
    ) -> Path:
        folder = tmp_path / "cards" / name
        if keys.get("metric") == "translation":
            keys.setdefault("translation", {"source": "English", "target": "Icelandic"})
        if schema is not None:
            answer = {"schema": "s.json"} | ({"label": label} if label else {})
            keys |= {"metric": "json", "answer": answer}
            text = schema if isinstance(schema, str) else json.dumps(schema)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "s.json").write_text(text)
        card: dict[str, object] = {
            "name": name,
            "kind": kind,
            "summary": "made by a test",
            "licence": "none",
            "source": "a test",
            "columns": {"query": "q", "response": "r"},
            "splits": {"train": {"file": "train.jsonl"}},
        }
        write_rows(folder / "train.jsonl", train)
        if test is not None:
            write_rows(folder / "test.jsonl", test)
            card["splits"] = {"train": {"file": "train.jsonl"}, "test": {"file": "test.jsonl"}}
        if kind == "task":
            (folder / "anchor.txt").write_text(anchor + "\n", encoding="utf-8")
            card |= {
                "anchor": "anchor.txt",
                "metric": "number",
                "general": {"from": ["plain"], "amount": "2x"},
            }
        card |= keys
        (folder / "card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
        return folder

    return make
