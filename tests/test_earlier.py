"""What an earlier sweep left under the same names: taken over only where it is the same still."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tell_plugins import cli
from tell_plugins.experiments.planning import SweepPlan, make_plan
from tell_plugins.experiments.results import Study, collect, index_file, study_of, tell_left_out
from tell_plugins.experiments.store import (
    EVALUATED,
    TRAINED,
    other_answers,
    write_json,
)
from tell_plugins.experiments.sweep import make_sweep
from tests.made_results import MadeResults
from tests.sweep_world import World, unrun_world


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    """A small world without a model, and one recipe beside the usual."""
    made = unrun_world(tmp_path, monkeypatch)
    made.recipe("other", lora_rank=2)
    return made


@pytest.fixture
def out(world) -> Path:
    return world.root / "out"


def _plan(world: World, out: Path, **keys: Any) -> SweepPlan:
    raw = {
        "title": "t",
        "base": str(world.root / "tiny.yaml"),
        "methods": {"TELL": None, "SFT": {"general": "0"}},
        "grid": {"task": ["4rows", "8rows"]},
        "evaluate": {"general_rows": 4, "retention_rows": 4},
        **keys,
    }
    plan = make_plan(make_sweep(raw, "made", "made.yaml"), out)
    os.environ["TELL_CARDS"] = str(world.cards)  # as in the process of the next sweep
    assert plan.problems == []
    return plan


def _finished(out: Path, plan: SweepPlan) -> Study:
    """A sweep that is done as far as its folder says; what is kept of it."""
    for run in plan.everything:
        run.prepare()
        write_json(run.folder / TRAINED, {"steps": 1})
        evaluated = {"seconds": 1, "content": run.asked.content}
        write_json(run.eval_folder / EVALUATED, evaluated)
    study = study_of(plan, "./run.sh sweep made.yaml")
    write_json(index_file(out, study), study.model_dump(mode="json"))
    return study


def test_answers_to_the_prompts_of_now_are_kept(world, out):
    """Those of a release that did not say what was asked, too."""
    _finished(out, _plan(world, out))
    assert list(other_answers(_plan(world, out).everything)) == []
    for file in out.glob("runs/*/eval/*/evaluated.json"):
        file.write_text('{"seconds": 1}')
    _edit("tiny_task/test.jsonl", "Is 1003 an", "Is 3001 an")(world)
    assert list(other_answers(_plan(world, out).everything)) == []


def _edit(name: str, old: str, new: str) -> Callable[[World], None]:
    def edit(world: World) -> None:
        file = world.cards / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return edit


@pytest.mark.parametrize(
    "change",
    [
        _edit("tiny_task/anchor.txt", "odd", "uneven"),
        _edit("tiny_task/test.jsonl", "Is 1003 an", "Is one thousand and three an"),
        _edit("tiny_task/test.jsonl", "number 1003", "number 1,003"),  # another right answer
        _edit("tiny_general/train.jsonl", "Name item", "Tell me item"),
        _edit("tiny_task/card.yaml", "max_new_tokens: ", "max_new_tokens: 1"),
    ],
    ids=["anchor", "test_row", "test_answer", "held_out_rows", "length"],
)
def test_answers_to_other_answers_are_not_taken_for_these(world, out, change, capsys, monkeypatch):
    sweep = str(world.sweep("made", evaluate={"general_rows": 4, "retention_rows": 4}))
    before = _plan(world, out)
    _finished(out, before)
    change(world)
    after = _plan(world, out)
    assert after.bases[0].evaluation == before.bases[0].evaluation
    (problem,) = other_answers(after.everything)
    same = [run for run in after.everything if run.done]  # the others are other runs now
    more = f" and {len(same) - 1} more" if same[1:] else ""
    assert problem.where == f"{after.bases[0].eval_folder}{more}"
    assert f"runs/*/eval/{after.bases[0].evaluation}" in str(problem.remedy)
    for flags in (["--dry-run"], []):
        assert cli.main(["sweep", sweep, *flags, "--out", str(out)]) == 1
        assert "the answers are to other prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ({}, 0),
        ({"seeds": [42, 43]}, 0),
        ({"grid": {"task": ["4rows", "8rows", "12rows"]}}, 0),
        ({"methods": {"ours": None, "SFT": {"general": "0"}}}, 0),  # the same runs
        ({"evaluate": {"general_rows": 4, "retention_rows": 4, "batch_size": 2}}, 0),
        ({"grid": {"task": ["8rows"]}}, 2),
        ({"settings": {"learning_rate": 2e-4}}, 4),
        ({"methods": {"TELL": None, "SFT": {"general": "0", "lora_rank": 2}}}, 2),
    ],
)
def test_runs_that_a_report_will_leave_out_are_told(world, out, capsys, change, lost):
    _finished(out, _plan(world, out))
    tell_left_out(out, study_of(_plan(world, out, **change), ""))
    told = capsys.readouterr().out
    assert (f"{lost} finished runs that are not this sweep's, such as " in told) is bool(lost)


def test_flags_make_another_sweep_which_a_dry_run_tells(world, out, tell):
    path = world.sweep("made", evaluate={"general_rows": 4, "retention_rows": 4})
    index = out / "sweeps" / "made.json"
    before = _finished(out, _plan(world, out)).model_dump(mode="json")
    command = ["sweep", str(path), "--learning_rate", "2e-4", "--dry-run"]
    assert "made.json is of a sweep with 4 finished runs" in tell(*command, "--out", out)
    assert json.loads(index.read_text()) == before


def _made(root: Path, *methods: str) -> Path:
    made = MadeResults(root, rows=10, general=4)
    made.base()
    for method in methods:
        made.run(method, adherent=0.5)
    made.index("made", "Made", [42])
    return root


def test_a_sweep_that_grew_is_collected_over_itself(tmp_path):
    target = tmp_path / "kept"
    collect(_made(tmp_path / "a", "TELL"), target)
    collect(_made(tmp_path / "b", "TELL", "SFT"), target)
    index = json.loads((target / "sweeps" / "made.json").read_text())
    assert [entry["method"] for entry in index["entries"]] == ["TELL", "SFT"]


def test_unfinished_runs_are_not_collected(tmp_path):
    """Trained, and half of it answered."""
    root = _made(tmp_path / "a", "TELL", "SFT")
    next((root / "runs" / "SFT--42" / "eval").glob("*/evaluated.json")).unlink()
    target = tmp_path / "kept"
    collect(root, target)
    assert {path.name for path in (target / "runs").iterdir()} == {"TELL--42", "base-made"}
