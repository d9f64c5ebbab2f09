"""The control grid of a recipe: what each run is, equal steps, the run that trains nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from tell_plugins import cli
from tell_plugins.core.mixture import TASK, Mixture, build_mixture
from tell_plugins.experiments import sweep_verb
from tell_plugins.experiments.planning import SweepPlan, make_plan
from tell_plugins.experiments.sweep import CONTROLS, TELL, controls, meaning
from tell_plugins.recipe.check import inspect
from tell_plugins.recipe.schedule import plan, training_of
from tests.conftest import write_rows
from tests.golden_texts import assert_golden
from tests.sweep_world import World, general_rows, task_rows, unrun_world


def _plan(world: World, **changes: str) -> SweepPlan:
    grid = controls(
        str(world.root / "tiny.yaml"),
        changes=changes,
        seeds=[42],
        evaluate={"general_rows": 4, "retention_rows": 4},
        flags={},
    )
    plan = make_plan(grid, world.root / "out")
    assert plan.problems == []
    return plan


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = unrun_world(tmp_path, monkeypatch)
    leaked = [{"q": row["q"], "r": "No idea."} for row in task_rows(6, 1000)]
    write_rows(made.cards / "tiny_general" / "train.jsonl", [*general_rows(50), *leaked])
    return made


def test_what_each_control_trains_on(world):
    runs = {entry.cell.method: entry for entry in _plan(world).entries}
    mixtures = {method: build_mixture(entry.spec) for method, entry in runs.items()}
    tell = mixtures[TELL]
    task = {tell.task.plain[row] for row in tell.row[tell.origin == 0]} if tell.task else set()
    # its answers are no closed ones: they have a thought
    assert set(CONTROLS) - set(runs) == {"label scoring"}
    for method, mixture in mixtures.items():
        if runs[method].cell.rival:
            assert all(source.role == TASK for source in mixture.sources)
            continue
        if method == "general only":
            assert mixture.task is None
            continue
        assert mixture.task is not None
        mine = {mixture.task.plain[row] for row in mixture.row[mixture.origin == 0]}
        assert mine == task, method
        assert (len(mixture.sources) > 1) == (not method.startswith("SFT")), method
    assert len(mixtures["SFT, as in the paper"]) == 8
    assert runs["SFT, batch 1"].steps == 8
    assert runs["SFT, repeated"].spec.order == "even"
    assert mixtures["TELL, no anchor"].task.anchor.text == ""  # type: ignore[union-attr]
    first, last = mixtures["TELL, task first"].is_task, mixtures["TELL, task last"].is_task
    assert first[:8].all()
    assert not first[8:].any()
    assert last[-8:].all()
    assert runs["general only"].facts.rows == runs[TELL].facts.general_rows == 24
    assert runs["general only"].planned["exposure"] is None
    for name, order in (("TELL, task first", first), ("TELL, task last", last)):
        entry = runs[name]
        schedule = plan(entry.facts.rows, training_of(entry.recipe))
        by_hand = schedule.rates_at(np.flatnonzero(order) // entry.planned["rows_per_step"]).sum()
        assert entry.planned["exposure"] == pytest.approx(by_hand, abs=6e-4)
        assert entry.planned["exposure"] != runs[TELL].planned["exposure"]


def test_general_rows_that_hold_test_queries(world):
    runs = {entry.cell.method: entry for entry in _plan(world, general="40rows").entries}
    kept = build_mixture(runs["TELL, test queries kept"].spec)
    dropped = build_mixture(runs[TELL].spec)
    test = {row["q"] for row in task_rows(6, 1000)}

    def leaked(mixture: Mixture) -> int:
        general = mixture.sources[1]
        return sum(query in test for query, _ in general.rows.texts(general.used))

    assert leaked(dropped) == 0
    assert leaked(kept) > 0
    assert runs[TELL].planned["leaked"] == 0
    assert runs["TELL, test queries kept"].planned["leaked"] == leaked(kept)  # of the rows asked
    assert runs["TELL, test queries kept"].id != runs[TELL].id


@pytest.mark.parametrize("changes", [{}, {"task": "15rows", "general": "1x"}])
def test_runs_at_equal_steps_are_planned_so(world, changes):
    plan = _plan(world, **changes)
    equal = [entry for entry in plan.entries if entry.equal_steps]
    assert len(equal) == 7
    for entry in equal:
        assert entry.equal_steps.cell.method == TELL
        assert entry.steps == entry.equal_steps.steps
        found = inspect(entry.recipe).findings  # `train` does not refuse them
        assert ("tell-rows-unseen", "error") not in {(f.rule, f.severity) for f in found}


def test_amounts_in_tokens_are_the_same_rows_without_the_anchor(world, monkeypatch):
    (world.root / "model").rmdir()
    monkeypatch.setenv("TELL_TOKENIZER", str(world.model()))
    plan = _plan(world, task="500tok", general="900tok")
    runs = {entry.cell.method: entry for entry in plan.entries}
    rows = {entry.facts.task_rows for method, entry in runs.items() if method != "general only"}
    assert rows == {runs[TELL].facts.task_rows}
    assert runs["TELL, no anchor"].facts.general_rows == runs[TELL].facts.general_rows
    assert runs["TELL, no anchor"].facts.task_tokens != runs[TELL].facts.task_tokens


def test_the_grid_of_any_recipe_is_one_command(world, capsys):
    command = ["sweep", "--controls", str(world.root / "tiny.yaml"), "--task", "6rows"]
    options = ["--general", "3x", "--general-rows", "4", "--out", str(world.root / "out")]
    assert cli.main([*command, *options, "--dry-run"]) == 0
    assert_golden("controls.txt", capsys.readouterr().out, world.root)
    assert all(map(meaning, CONTROLS))


def test_the_options_of_the_grid_reach_what_is_asked(world):
    parser = argparse.ArgumentParser()
    sweep_verb.add_arguments(parser)
    options = "--seeds 1,2 --rows 7 --general-rows 4 --batch-size 3"
    args = parser.parse_args(["--controls", str(world.root / "tiny.yaml"), *options.split()])
    args.flags = []
    grid = sweep_verb._sweep(args)
    assert grid.seeds == (1, 2)
    asked = grid.evaluate
    assert (asked.rows, asked.general_rows, asked.batch_size) == (7, 4, 3)
    assert sweep_verb.command_of(args).endswith(options)
