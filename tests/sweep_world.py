"""What sweep tests stand on: a small random model, a task, general data, a recipe; all in a folder.

A real `swift sft` and a real `eval` of it take little more than their imports.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT, write_card
from tests.recipe_world import environment
from tests.tiny import TINY, make_tiny_model

RECIPE: dict[str, Any] = {
    **TINY,
    "torch_dtype": "bfloat16",
    "dataset": ["tell/tiny_task:task=8rows/general=24rows"],
    "max_length": 512,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.03,
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 16,
    "enable_channel_loss": True,
}
SCHEMA = {
    "type": "object",
    "properties": {"thought": {"type": "string"}, "label": {"enum": ["yes", "no"]}},
    "required": ["thought", "label"],
    "additionalProperties": False,
}


def task_rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows of a task with labels yes and no in turn."""
    rows = []
    for i in range(start, start + count):
        label = "yes" if i % 2 else "no"
        answer = json.dumps({"thought": f"number {i}", "label": label})
        rows.append({"q": f"Is {i} an odd number?", "r": answer})
    return rows


def general_rows(count: int) -> list[dict[str, str]]:
    """Plain questions with plain answers."""
    return [{"q": f"Name item {i} of the list", "r": f"It is thing {i * 7}."} for i in range(count)]


class World:
    """A folder with everything a sweep needs, and the environment to run it in."""

    def __init__(self, root: Path, *, task: int = 16, test: int = 6, general: int = 60) -> None:
        self.root = root
        self.cards = root / "cards"
        write_card(self.cards, "tiny_general", kind="general", train=general_rows(general))
        write_card(
            self.cards,
            "tiny_task",
            train=task_rows(task),
            test=task_rows(test, 1000),
            anchor="Say whether the number is odd.",
            schema=SCHEMA,
            label="label",
            general={"from": ["tiny_general"], "amount": "2x"},
            max_new_tokens=8,
        )

    def model(self) -> Path:
        """The random model, made when it is first asked for."""
        folder = self.root / "model"
        return folder if folder.is_dir() else make_tiny_model(folder)

    def recipe(self, name: str = "tiny", **changes: Any) -> Path:
        """Write a recipe for the model in this folder."""
        path = self.root / f"{name}.yaml"
        values = {"model": str(self.model()), **RECIPE, **changes}
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    def sweep(self, name: str = "small", **changes: Any) -> Path:
        """Write a sweep of four runs: TELL and SFT at two amounts of task data."""
        path = self.root / f"{name}.yaml"
        values = {
            "title": "A small sweep",
            "base": str(self.root / "tiny.yaml"),
            "methods": {"TELL": {}, "SFT": {"general": "0", "gradient_accumulation_steps": 4}},
            "grid": {"task": ["4rows", "8rows"]},
            "evaluate": {"general_rows": 4, "retention_rows": 4, "batch_size": 4},
            "plot": {"x": "task_tokens"},
            **changes,
        }
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.root)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `./run.sh ARGUMENTS` in this world."""
        return subprocess.Popen(
            [sys.executable, "-m", "tell_plugins", *arguments],
            cwd=PROJECT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *arguments: str, code: int = 0) -> str:
        """Run `./run.sh ARGUMENTS` to its end and return its output."""
        process = self.start(*arguments)
        output, _ = process.communicate()
        assert process.returncode == code, output
        return output


def unrun_world(root: Path, monkeypatch: pytest.MonkeyPatch, **recipe: Any) -> World:
    """A world without a model whose cards are known: for plans, not for runs."""
    (root / "model").mkdir()
    made = World(root)
    made.recipe(**recipe)
    monkeypatch.setenv("TELL_CARDS", str(made.cards))
    return made
