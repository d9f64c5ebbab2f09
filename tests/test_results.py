"""What is published in `results/` is what its saved answers say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tell_plugins.core.spec import parse_spec
from tell_plugins.experiments.planning import base_id, run_id
from tell_plugins.experiments.results import BASE_METHOD, Study, load_studies
from tell_plugins.experiments.sweep import CONTROLS, RIVAL
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tests.conftest import PROJECT

RESULTS = PROJECT / "results"
SUITE = PROJECT.parent / "shared" / "data" / "suite"
# what the published runs were trained with and the recipe now sets otherwise
BEFORE = {"loss_type": None, "system": None}
STUDIES = load_studies(RESULTS)


def test_every_study_can_be_run_again_by_its_command() -> None:
    assert [study.name for study in STUDIES] == [
        "controls_smollm2_json_115rows_400rows",
        "controls_smollm2_json_15rows_400rows",
        "smollm2_fig11",
        "smollm2_seeds",
    ]
    for study in STUDIES:
        words = study.command.removeprefix("./run.sh sweep ").split()
        if words[0] == "--controls":
            trained = {name for name, control in CONTROLS.items() if RIVAL not in control["sets"]}
            assert {entry.method for entry in study.entries} == {*trained, BASE_METHOD}
            words = words[1:]
        assert (PROJECT / words[0]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "results",
    [
        RESULTS,
        pytest.param(
            RESULTS / "study",
            marks=pytest.mark.skipif(not SUITE.is_dir(), reason="no ../shared/data/suite"),
        ),
    ],
    ids=["paper", "study"],
)
def test_the_report_is_made_again_from_the_saved_answers(results: Path, tmp_path: Path) -> None:
    """Every table byte for byte, and a picture for every picture."""
    from tell_plugins.cli import main

    if results != RESULTS:  # labels are scored against the test rows
        assert main(["data", "banking77", "--from", str(SUITE)]) == 0
        for name in ("restaurants", "music"):
            assert main(["data", f"snips_{name}", "--from", str(SUITE / "snips")]) == 0
    assert main(["report", str(results), "--out", str(tmp_path)]) == 0
    for kind in ("tables", "pictures"):
        published = {path.name for path in (results / kind).iterdir()}
        of_now = {name for name in published if not name.endswith("_training.png")}  # no longer
        assert {path.name for path in (tmp_path / kind).iterdir()} == of_now
    for table in (results / "tables").iterdir():
        assert (tmp_path / "tables" / table.name).read_bytes() == table.read_bytes(), table.name


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_runs_at_equal_steps_have_equal_steps_and_all_prompts_were_answered(study: Study) -> None:
    """As the trainers' state and the saved answers have it, not the plan."""
    assert len(study.done) == len(study.entries)
    by_run = {entry.run: entry for entry in study.entries}
    for entry in study.done:
        if entry.equal_steps:
            assert entry.steps == by_run[entry.equal_steps].steps
        for answers in entry.task:
            asked = study.evaluate.rows
            assert answers.settings.rows == len(answers.answers) == asked >= 100


def test_a_point_that_trained_nothing_is_named_not_its_method() -> None:
    page = (RESULTS / "report.html").read_text(encoding="utf-8")
    assert "TELL (general=0): no-op." in page
    assert ">TELL: no-op." not in page


def test_a_sweep_finds_the_published_runs_again() -> None:
    """Ids are made of settings and mixtures as ever: hours of finished runs hang on them."""
    recipe = load_recipe(PROJECT / "recipes" / "smollm2_json.yaml")
    recipe, found = recipe.with_values(**BEFORE), 0
    for path in sorted((RESULTS / "runs").glob("*/run.json")):
        run, known = json.loads(path.read_text()), path.parent.name.rpartition("-")[2]
        if run["base"]:
            assert base_id(recipe) == known
            continue
        settings = Recipe(recipe.path, run["settings"])
        assert not any(run["settings"].get(key) for key in BEFORE)
        assert run_id(settings, parse_spec(run["spec"]), run["mixture"]["hash"]) == known
        assert base_id(settings) == base_id(recipe)
        found += 1
    assert found == 27


def test_nothing_published_names_a_machine_or_another_host() -> None:
    for path in [*RESULTS.rglob("*.json"), *RESULTS.rglob("*.html"), *RESULTS.rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'(?:"|\s)/(?:home|root|tmp|work|Users)/', text), path
        if path.suffix == ".html":
            assert not re.search(r'(?:src|href)="(?:https?:)?//', text), path
