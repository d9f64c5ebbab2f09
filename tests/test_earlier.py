"""What an earlier sweep left under the same names: taken over only where it is the same still."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tell_plugins import cli
from tell_plugins.evaluation import evaluate
from tell_plugins.evaluation.options import Options
from tell_plugins.evaluation.prompts import pairs_sha256, prompts_sha256
from tell_plugins.experiments.planning import SweepPlan, make_plan
from tell_plugins.experiments.results import Study, collect, index_file, study_of, tell_left_out
from tell_plugins.experiments.store import (
    EVALUATED,
    TRAINED,
    PlannedBase,
    other_answers,
    prepare,
    write_json,
)
from tell_plugins.experiments.sweep import make_sweep
from tell_plugins.recipe.recipes import load_recipe
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
    assert plan.problems == []
    return plan


def _answered(run: PlannedBase) -> Path:
    """Prepare a run and leave what `eval` writes before it asks; the folder of its answers."""
    folder = prepare(run).eval_folder
    recipe = str(folder / "recipe.yaml")
    asked = Options(recipe=recipe, adapter=["none"], general_rows=4, retention_rows=4)
    task = evaluate.plan(load_recipe(recipe), asked)
    questions = task.foreign.questions
    asked = {("test-greedy", "test"): task.prompts, ("general", "general"): questions}
    for (name, split), prompts in asked.items():
        settings: dict[str, Any] = {"card": "tiny_task", "split": split, "anchor": "card"}
        settings["prompts_sha256"] = prompts_sha256(prompts)
        settings["max_new_tokens"] = task.max_new_tokens if split == "test" else 64
        settings["rows_sha256"] = "" if split == "test" else pairs_sha256(task.general)
        write_json(folder / "none" / name / "settings.json", settings)
    return folder


def _finished(out: Path, plan: SweepPlan) -> Study:
    """A sweep that is done as far as its folder says; what is kept of it."""
    for run in (*plan.bases, *plan.runs):
        job = prepare(run)
        write_json(job.folder / TRAINED, {"steps": 1})
        write_json(job.eval_folder / EVALUATED, {"seconds": 1})
    study = study_of(plan, "./run.sh sweep made.yaml")
    write_json(index_file(out, study), study.model_dump(mode="json"))
    return study


def test_answers_to_the_prompts_of_now_are_kept(world, out):
    plan = _plan(world, out)
    for run in (*plan.bases, *plan.runs):
        _answered(run)
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
def test_answers_to_other_answers_are_not_taken_for_these(world, out, change, capsys):
    sweep = str(world.sweep(evaluate={"general_rows": 4, "retention_rows": 4}))
    before = _plan(world, out)
    folder = _answered(before.bases[0])
    change(world)
    after = _plan(world, out)
    assert after.bases[0].evaluation.id == before.bases[0].evaluation.id
    (problem,) = other_answers(after.everything)
    assert problem.where == str(folder)
    assert f"runs/*/eval/{folder.name}" in str(problem.remedy)
    assert cli.main(["sweep", sweep, "--dry-run", "--out", str(out)]) == 1
    assert "the answers are to other prompts" in capsys.readouterr().err
    assert cli.main(["sweep", sweep, "--out", str(out)]) == 1
    assert not list(out.glob("sweeps/*"))


def test_answers_of_several_runs_are_told_once(world, out):
    plan = _plan(world, out)
    for run in (*plan.bases, *plan.runs):
        _answered(run)
    _edit("tiny_task/test.jsonl", "Is 1003 an", "Is 3001 an")(world)
    (problem,) = other_answers(_plan(world, out).everything)
    assert str(problem.where).endswith(" and 4 more")


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
