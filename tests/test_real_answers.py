"""The embedded model on official test prompts: killed and resumed, batched and one by one.

`TELL_TEST_ROWS` says how many prompts (default 4, so that a test run stays short; 100 take about
20 minutes on two cores).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.bridge.embedded_model import prepare_model
from tell_plugins.core.cards import load_card
from tell_plugins.evaluation.answers import ANSWERS
from tell_plugins.evaluation.prompts import task_prompts
from tests.conftest import PROJECT
from tests.tiny import tiny_recipe
from tests.tiny_adapters import gap_where_they_part

pytestmark = pytest.mark.slow

ROWS = int(os.environ.get("TELL_TEST_ROWS", "4"))
LIMIT = 64 if ROWS >= 50 else 16
BATCH = 8 if ROWS >= 50 else 2


@pytest.fixture
def call(real_home: Path, tmp_path: Path) -> list[str]:
    """The command that answers the prompts; the folder is to be added."""
    model = prepare_model()
    recipe = tiny_recipe(tmp_path / "smollm2.yaml", model, "tell/halu_cot_json")
    flags = ["--adapter", "none", "--rows", str(ROWS), "--max-new-tokens", str(LIMIT)]
    command = [sys.executable, "-m", "tell_plugins", "eval", str(recipe), *flags]
    return [*command, "--general-rows", "0", "--out"]


def run(command: list[str], out: Path, *more: str) -> Path:
    """Run `eval` to its end and return the file of answers."""
    done = subprocess.run([*command, str(out), *more], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = out.glob(f"none/*/{ANSWERS}")
    return file


def answers(file: Path) -> dict[int, dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").split("\n")
    return {line["row"]: line for line in map(json.loads, filter(None, lines))}


def test_killed_and_resumed_batched_and_one_by_one(call: list[str], tmp_path: Path) -> None:
    batch = ["--batch-size", str(BATCH)]
    undisturbed = run(call, tmp_path / "undisturbed", *batch)

    killed = tmp_path / "killed" / undisturbed.relative_to(tmp_path / "undisturbed")
    with subprocess.Popen(
        [*call, str(tmp_path / "killed"), *batch], cwd=PROJECT, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 1800
        while time.monotonic() < deadline:
            if killed.is_file() and killed.read_bytes().count(b"\n") >= ROWS // 2 - 1:
                break
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    before = killed.read_bytes()
    assert 0 < before.count(b"\n") < ROWS, "it was to be killed in the middle"
    assert run(call, tmp_path / "killed", *batch).read_bytes() == undisturbed.read_bytes()

    single = answers(run(call, tmp_path / "single", "--batch-size", "1"))
    batched = answers(undisturbed)
    assert len(batched) == len(single) == ROWS
    for key in ("id", "prompt_tokens"):
        assert all(batched[row][key] == single[row][key] for row in single)
    assert sum(bool(line["text"].strip()) for line in single.values()) > ROWS / 2
    differ = [row for row in single if single[row]["text"] != batched[row]["text"]]
    gaps = {row: _gap(row, single[row]["text"], batched[row]["text"]) for row in differ}
    print(f"{ROWS - len(differ)} of {ROWS} answers are the same; gaps of the others: {gaps}")
    assert len(differ) <= max(1, 0.02 * ROWS)  # one tie may be among few rows
    assert all(gap < 1e-3 for gap in gaps.values())


def _gap(row: int, one: str, other: str) -> float:
    """The gap in logits between the two likeliest tokens where two answers to a row part."""
    from tell_plugins.bridge.engine import LocalEngine

    values = {"model": str(prepare_model()), "model_type": "llama", "template": "chatml"}
    engine = LocalEngine({**values, "check_model": False}, {}, batch_size=1)
    _, prompts = task_prompts(load_card("halu_cot_json"), "test", "card")
    return gap_where_they_part(engine, prompts[row].text, one, other, LIMIT)
