"""The wheel: built, installed into an environment of its own, used from an unrelated folder."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement

from tell_plugins import __version__
from tests.conftest import PROJECT, printed_by
from tests.environments import linked_environment
from tests.tiny import make_tiny_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.slow


class Place(NamedTuple):
    """An environment with the wheel, and a folder of a user who has nothing else."""

    python: Path
    folder: Path

    def tell(self, *args: str, code: int = 0) -> str:
        """What the command prints, errors included."""
        tell = self.python.with_name("tell")
        text = printed_by(tell, *args, code=code, cwd=self.folder, env=self.environment)
        assert "Traceback" not in text
        assert "./run.sh" not in text, "there is none"
        return text

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("TELL_") and key != "PYTHONPATH"
        }
        return {**kept, "TELL_CACHE": str(self.folder.parent / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    root = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    alone = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    build = ["wheel", "--quiet", "--no-deps", *alone, "--wheel-dir", str(root), str(PROJECT)]
    subprocess.run([*pip, *build], check=True, cwd=root)
    (wheel,) = root.glob("*.whl")
    python = linked_environment(root / "venv", ["light", "data", "train"])
    install = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True, cwd=root)
    folder = root / "far" / "away"
    folder.mkdir(parents=True)
    return Place(python, folder)


def test_the_command_and_the_plugin(place):
    assert place.tell("--version") == f"{__version__}\n"
    text = place.tell("--help")
    assert "usage: tell" in text
    assert "bench" not in text
    plugin = Path(place.tell("plugin").strip())
    assert plugin.is_file()
    assert plugin.is_relative_to(place.python.parents[1])


def test_what_comes_along_is_found(place):
    assert "sample_complaints" in place.tell("data", "list")
    assert "tell data llama2_tokenizer" in place.tell("check", "recipes/qwen_json.yaml", code=1)
    assert "No problems found" in place.tell("check", "recipes/smollm2_sample.yaml")
    out = place.folder / "mixed"
    place.tell("mix", "recipes/smollm2_sample.yaml", "--out", "mixed")
    assert (out / "manifest.json").is_file()


def test_from_rows_to_a_score(place):
    """A card and a recipe, a mixture, a training of one step, its answers; all beside the user."""
    lines = [f"ticket number {n} about {n * 7},{'yes' if n % 2 else 'no'}" for n in range(40)]
    (place.folder / "tickets.csv").write_text("\n".join(["text,verdict", *lines]))
    place.tell(
        *("new", "tickets", "--train", "tickets.csv", "--columns", "query=text,response=verdict"),
        *("--anchor", 'Answer only "yes" or "no".', "--model", "smollm2"),
    )
    assert (place.folder / "datasets" / "tickets" / "card.yaml").is_file()
    recipe = "recipes/smollm2_tickets.yaml"
    values = yaml.safe_load((place.folder / recipe).read_text())
    assert values["external_plugins"] == [place.tell("plugin").strip()]
    assert values["model"].startswith(str(place.folder.parent / "cache"))
    make_tiny_model(place.folder / "tiny")
    place.tell("mix", recipe)
    assert (place.folder / "output" / "smollm2_tickets" / "mix" / "manifest.json").is_file()
    steps = ("--max_steps", "1", "--save_steps", "1")
    place.tell("train", recipe, "--force", "--model", "tiny", *steps)
    (checkpoint,) = place.folder.glob("output/smollm2_tickets/v*/checkpoint-1")
    saved = json.loads((checkpoint / "args.json").read_text())
    assert saved["external_plugins"] == values["external_plugins"]
    assert saved["model"] == str(place.folder / "tiny")
    text = place.tell("eval", recipe, "--model", "tiny", "--rows", "2")
    assert "adherence" in text
    written = {path.name for path in place.folder.iterdir()}
    assert written <= {"mixed", "tickets.csv", "datasets", "recipes", "tiny", "output"}


def test_the_extras_bring_what_the_groups_pin():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = {"light": project["dependencies"], **project["optional-dependencies"]}
    for group, texts in extras.items():
        lines = (PROJECT / "requirements" / f"{group}.txt").read_text().splitlines()
        pins = [Requirement(line.partition("#")[0]) for line in lines if line[:1] not in "#"]
        ranges = {_plain(Requirement(text).name): Requirement(text) for text in texts}
        ranges.pop("tell-recipes", None)
        assert set(ranges) == {_plain(pin.name) for pin in pins}, group
        for pin in pins:
            (version,) = re.findall(r"==(.+)", str(pin.specifier)) or [None]
            if version is not None:
                assert ranges[_plain(pin.name)].specifier.contains(version), pin


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
