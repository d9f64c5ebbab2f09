"""Fixtures shared by all tests: every test has its own cache, data home and cards."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
import yaml

from tell_plugins.core.errors import UserError
from tests.check_world import situations, words, write  # noqa: F401
from tests.file_server import FileServer, serving
from tests.own_task import Own
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
def preloaded(tmp_path_factory) -> Iterator[None]:
    """What tests start finds its libraries imported; Hugging Face's have a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        with preloaded_python():
            yield


@pytest.fixture
def ordinary_python(monkeypatch) -> None:
    """Processes start as a user's do."""
    monkeypatch.setattr(sys, "executable", PYTHON)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch) -> None:
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
def real_home(real_data, tmp_path, monkeypatch) -> Path:
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


def started_together(program: str, *arguments: Sequence[object]) -> list[list[str]]:
    """Run a program once with each of these arguments, all at once; the words that each printed.

    It prints a line when it is ready, and reads one before it begins.
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, given)],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for given in arguments
    ]
    assert {process.stdout.readline() for process in processes} == {"ready\n"}
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].split() for process in processes]
    assert {process.returncode for process in processes} == {0}
    return answers


def printed_by(
    *command: object, code: int = 0, cwd: Path = PROJECT, env: Mapping[str, str] | None = None
) -> str:
    """All that a command prints, which ends with that code; `env` is its whole environment."""
    given = [str(word) for word in command]
    done = subprocess.run(given, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed[-4000:]
    return printed


def wait_for(
    condition: Callable[[], object],
    process: subprocess.Popen[Any] | None = None,
    seconds: float = 240,
) -> None:
    """Wait until a condition holds; an error where a process ends before, or the time is over."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "it ended before"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def error_of(call: Callable[..., object], *given: Any, **named: Any) -> UserError:
    """What a call is refused with."""
    with pytest.raises(UserError) as caught:
        call(*given, **named)
    return caught.value


def message_of(call: Callable[..., object], *given: Any, **named: Any) -> str:
    """What is said where a call is refused."""
    return str(error_of(call, *given, **named))


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    """Write JSON lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


Tell = Callable[..., str]


@pytest.fixture
def tell(capsys) -> Tell:
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
def cli(tell) -> Cli:
    """`cli(code, verb, ...)`: the command line ends with that code; all that it says, in one line
    with single blanks."""
    return lambda code, *argv: " ".join(tell(*argv, code=code).split())


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """The folder of the tiny model, which no test may change."""
    from tests.tiny import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


MakeCard = Callable[..., Path]


def write_card(
    root: Path,
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
    """Write a card into a folder below `root`.

    Rows are `{"q": ..., "r": ...}`; further keywords become keys of the card. One with a `schema`
    has JSON answers, which may have a `label`.
    """
    folder, splits = root / name, {"train": train} | ({} if test is None else {"test": test})
    for split, rows in splits.items():
        write_rows(folder / f"{split}.jsonl", rows)
    card: dict[str, object] = {
        "name": name,
        "kind": kind,
        "summary": "made by a test",
        "licence": "none",
        "source": "a test",
        "columns": {"query": "q", "response": "r"},
        "splits": {split: {"file": f"{split}.jsonl"} for split in splits},
    }
    if kind == "task":
        (folder / "anchor.txt").write_text(anchor + "\n", encoding="utf-8")
        card |= {"anchor": "anchor.txt", "metric": "number"}
        card["general"] = {"from": ["plain"], "amount": "2x"}
    if keys.get("metric") == "translation":
        card["translation"] = {"source": "English", "target": "Icelandic"}
    if schema is not None:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        (folder / "schema.json").write_text(text)
        answer = {"schema": "schema.json"} | ({"label": label} if label else {})
        card |= {"metric": "json", "answer": answer}
    (folder / "card.yaml").write_text(yaml.safe_dump(card | keys), encoding="utf-8")
    return folder


def change(file: Path, **keys: object) -> None:
    """Change keys of a YAML file, or of the card in a folder; None leaves a key out."""
    file = file / "card.yaml" if file.is_dir() else file
    values = yaml.safe_load(file.read_text()) | keys
    kept = {key: value for key, value in values.items() if value is not None}
    file.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")


@pytest.fixture
def make_card(tmp_path) -> MakeCard:
    """Make a card under `$TELL_CARDS`: `make_card(name, train=[...], ...)`, see `write_card`."""
    return partial(write_card, tmp_path / "cards")


@pytest.fixture
def own(tmp_path, capsys) -> Own:
    """`new` in a folder of the test."""
    return Own(tmp_path, capsys, method="hold")


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A server of files."""
    with serving() as running:
        yield running
