"""The light set: check, mix, new and data where neither torch nor ms-swift is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tell_plugins.cli import VERBS
from tell_plugins.recipe.swift_keys import ModelTable, installed_version, shipped_keys
from tests.conftest import PROJECT, printed_by
from tests.environments import linked_environment
from tests.swift_keys_once import keys


@pytest.fixture(scope="module")
def light(tmp_path_factory) -> Path:
    """The Python of an environment with nothing but the light set."""
    return linked_environment(tmp_path_factory.mktemp("light") / "venv", ["light"])


def run(python: Path, *args: str, code: int = 0) -> str:
    """What a verb prints, errors included."""
    text = printed_by(python, "-m", "tell_plugins", *args, code=code)
    assert "Traceback" not in text
    return text


def test_there_is_nothing_heavy(light):
    for name in ("torch", "swift", "transformers", "datasets", "pandas"):
        done = subprocess.run([str(light), "-I", "-c", f"import {name}"], capture_output=True)
        assert "ModuleNotFoundError" in done.stderr.decode(), name


def test_check(light):
    text = run(light, "check", "recipes/smollm2_sample.yaml")
    assert "No problems found" in text
    assert "ms-swift is not installed: keys, models and templates were compared with" in text
    assert "task exposure" in text
    flags = ("--lerning_rate", "1e-4", "--model_type", "lama")
    text = run(light, "check", "recipes/smollm2_sample.yaml", *flags, code=1)
    assert "did you mean 'learning_rate'?" in text
    found = json.loads(run(light, "check", "--json", "recipes/smollm2_sample.yaml"))
    reasons = {each["part"]: each["why"] for each in found["not_checked"]}
    assert reasons["settings"].startswith("ms-swift is not installed")


def test_check_of_every_recipe(light):
    files = [str(path.relative_to(PROJECT)) for path in (PROJECT / "recipes").glob("*.yaml")]
    text = run(light, "check", *sorted(files), code=1)  # most data sets are not here
    assert f"{len(files)} recipes: " in text


def test_mix(light, tmp_path):
    run(light, "mix", "recipes/smollm2_sample.yaml", "--out", str(tmp_path / "mix"))
    here = json.loads((tmp_path / "mix" / "manifest.json").read_text())
    assert here["rows"] == len((tmp_path / "mix" / "train.jsonl").read_text().splitlines())


@pytest.mark.parametrize("model", ["smollm2", "Qwen/Qwen2.5-7B-Instruct"])
def test_new(light, tmp_path, model):
    rows = tmp_path / "tickets.csv"
    lines = [f"ticket number {n} about {n * 7},{'yes' if n % 2 else 'no'}" for n in range(40)]
    rows.write_text("\n".join(["text,verdict", *lines]))
    text = run(
        light,
        *("new", "tickets", "--train", str(rows), "--columns", "query=text,response=verdict"),
        *("--anchor", 'Answer only "yes" or "no".', "--model", model),
        *("--dir", str(tmp_path / "cards"), "--recipes", str(tmp_path / "recipes")),
    )
    assert "./run.sh train" in text
    recipes = [str(path) for path in (tmp_path / "recipes").glob("*.yaml")]
    assert len(recipes) == 2
    assert "2 recipes: 2 good" in run(light, "check", *recipes)


def test_data(light):
    assert "sample_complaints" in run(light, "data", "list")
    text = run(light, "data", "show", "sample_complaints")
    assert "[assistant]" in text
    text = run(light, "data", "alpaca_en", code=2)
    assert "needs the package 'modelscope', which is not installed here" in text
    assert "remedy:  ./run.sh setup data" in text


def test_train_says_what_is_missing(light):
    text = run(light, "train", "recipes/smollm2_sample.yaml", code=2)
    assert text == "ms-swift is not installed here\n  remedy:  ./run.sh setup train\n"


HELP_OF_ALL = """
import contextlib
from tell_plugins.cli import VERBS, main
for verb in VERBS:
    with contextlib.suppress(SystemExit):
        main([verb, "--help"])
"""


def test_every_verb_explains_itself(light):
    done = subprocess.run([str(light), "-c", HELP_OF_ALL], cwd=PROJECT, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().count("usage: ./run.sh ") == len(VERBS)


@pytest.mark.slow
def test_the_shipped_table_is_the_pinned_ms_swifts():
    shipped = shipped_keys()
    if shipped.version != installed_version():
        pytest.skip(f"ms-swift {installed_version()} is installed; the table is of another one")
    asked = [sys.executable, "-m", "tell_plugins.bridge.keys"]
    done = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert shipped == keys().model_copy(update={"installed": False})
    assert answer["keys"] == shipped.keys
    assert ModelTable(**answer["models"]) == shipped.models
