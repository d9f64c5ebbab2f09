"""What sweep tests stand on: a small random model, a task, general data, a recipe; all in a folder.

A real `swift sft` and a real `eval` of it take little more than their imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT
from tests.tiny import make_tiny_model

RECIPE: dict[str, Any] = {
    "external_plugins": ["tell_plugins/register.py"],
    "model_type": "llama",
    "template": "chatml",
    "use_cpu": True,
    "torch_dtype": "bfloat16",
    "check_model": False,
    "dataset": ["tell/tiny_task:task=8rows/general=24rows"],
    "dataset_shuffle": False,
    "train_dataloader_shuffle": False,
    "strict": True,
    "max_length": 512,
    "tuner_type": "lora",
    "lora_rank": 4,
    "target_modules": ["all-linear"],
    "learning_rate": 0.01,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.03,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "enable_channel_loss": True,
    "gradient_checkpointing": False,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "report_to": ["none"],
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
        self._card("tiny_general", "general", {"train": general_rows(general)})
        self._card(
            "tiny_task",
            "task",
            {"train": task_rows(task), "test": task_rows(test, 1000)},
            anchor="anchor.txt",
            metric="json",
            answer={"schema": "schema.json", "label": "label"},
            general={"from": ["tiny_general"], "amount": "2x"},
            max_new_tokens=8,
        )
        (self.cards / "tiny_task" / "anchor.txt").write_text("Say whether the number is odd.\n")
        (self.cards / "tiny_task" / "schema.json").write_text(json.dumps(SCHEMA))

    def _card(self, name: str, kind: str, splits: Mapping[str, Any], **keys: Any) -> None:
        folder = self.cards / name
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines)
        card = {
            "name": name,
            "kind": kind,
            "summary": "made by a test",
            "licence": "none",
            "source": "a test",
            "columns": {"query": "q", "response": "r"},
            "splits": {split: {"file": f"{split}.jsonl"} for split in splits},
            **keys,
        }
        (folder / "card.yaml").write_text(yaml.safe_dump(card))

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
        return {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "TELL_CARDS": str(self.cards),
            "TELL_CACHE": str(self.root / "cache"),
            "TELL_DATA_HOME": str(self.root / "data"),
            "OMP_NUM_THREADS": "1",
            "LOG_LEVEL": "INFO",
        }

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
