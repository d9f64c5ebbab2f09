"""Anchor in training x anchor at test: two runs, four cells, one table."""

import csv
import json
import math
from pathlib import Path

import pytest

from tell_plugins.core.cards import load_card
from tell_plugins.evaluation.elsewhere import Elsewhere, read_general
from tell_plugins.evaluation.intervals import Estimate
from tell_plugins.evaluation.scoring import System, load_scored
from tell_plugins.experiments.anchors2x2 import CELLS, Cell, effects, show, write
from tell_plugins.recipe.recipes import load_recipe
from tests.conftest import change
from tests.saved_answers import save_answers
from tests.tiny import make_tiny_cards, tiny_recipe

DATASET = "tell/tiny_task:task=all/general=10rows"
YES = '{"label": "yes"}'


@pytest.mark.parametrize("dataset", ["tell/tiny_task:anchor=none", "tell/plain"])
def test_a_recipe_without_an_anchor_is_refused(dataset, make_card, tmp_path, tell):
    make_tiny_cards(make_card)
    recipe = tiny_recipe(tmp_path / "r.yaml", tmp_path, dataset)
    assert "without an anchor" in tell("anchors2x2", recipe, "--out", tmp_path / "out", code=1)


def answered_cells(root: Path) -> dict[Cell, System]:
    """Answers to `tiny_task`: 6, 3, 0 and 0 of 6 are adherent."""
    card = load_card("tiny_task")
    good = {("with", "with"): 6, ("with", "without"): 3}
    systems = {}
    for cell in CELLS:
        count = good.get(cell, 0)
        texts = [YES if row < count else "yes" for row in range(6)]
        folder = save_answers(root.joinpath(*cell), "tiny_task", texts)
        systems[cell] = System("x", load_scored(folder), read_general(folder, None, card))
    return systems


def test_differences_are_paired_over_the_rows(make_card, tmp_path):
    """Adherence 6, 3, 0 and 0 of 6 in the four cells."""
    make_tiny_cards(make_card)
    records = effects(answered_cells(tmp_path))
    found = {record["anchor"]: record["adherence, points"] for record in records}
    assert {name: value.value for name, value in found.items()} == {
        "at test, trained with it": 50,
        "at test, trained without": 0,
        "in training, tested with it": 100,
        "in training, tested without": 50,
        "in both, against in neither": 100,
    }
    assert 30 < found["in training, tested with it"].low < 60  # six rows say no more
    assert found["at test, trained with it"].low < 50 < found["at test, trained with it"].high


def test_a_card_without_a_label_has_adherence_and_its_content(make_card, tmp_path, capsys):
    make_tiny_cards(make_card)
    change(tmp_path / "cards" / "tiny_task", answer={"schema": "schema.json"})
    systems = answered_cells(tmp_path / "eval")
    found = effects(systems)
    measures = {"adherence, points", "exact match, points", "field f1, points"}
    assert all(record.keys() == {"anchor", *measures} for record in found)
    show(systems, found, "title")
    assert "+100.0" in capsys.readouterr().out


def test_a_run_that_diverged_is_written(make_card, tmp_path):
    make_tiny_cards(make_card)
    systems = answered_cells(tmp_path / "eval")
    broken: Elsewhere = {"bleed": None, "KL to base": Estimate(math.nan, math.nan, math.nan, 3)}
    vars(systems[CELLS[0]].general)["numbers"] = broken
    with write(systems, [], tmp_path / "out")[0].open() as file:
        first = next(csv.DictReader(file))
    assert (first["KL to base n"], first["KL to base"], first["bleed k"]) == ("3", "nan", "")


@pytest.mark.slow
def test_two_runs_four_cells(make_card, model, tmp_path, tell):
    make_tiny_cards(make_card)
    recipe = tiny_recipe(tmp_path / "r.yaml", model, DATASET)
    out = tmp_path / "out"
    call = ["anchors2x2", str(recipe), "--out", str(out), "--max-new-tokens", "8"]
    call += ["--general-rows", "3", "--retention-rows", "3", "--learning_rate", "0.02"]
    assert "5 runs, 0 done, 5 to do" in tell(*call)
    trained = [
        (json.loads(path.read_text()), json.loads(path.with_name("args.json").read_text()))
        for path in sorted((out / "runs").glob("*/train/manifest.json"))
    ]
    assert {manifest["anchor"]["choice"] for manifest, _ in trained} == {"card", "none"}
    assert [args["learning_rate"] for _, args in trained] == [0.02, 0.02]
    asked = [load_recipe(file) for file in out.glob("runs/tiny*/eval/*/recipe.yaml")]
    assert sorted(recipe.spec.anchor for recipe in asked) == ["card", "card", "none", "none"]
    cells, added = (
        list(csv.DictReader((out / f"anchors2x2_r_{name}.csv").open()))
        for name in ("cells", "effects")
    )
    assert {(cell["trained"], cell["tested"]) for cell in cells} == set(CELLS)
    assert all(cell["adherence n"] == "6" for cell in cells)
    # adherence never stands alone
    assert {"balanced accuracy", "bleed", "prose minus base"} <= cells[0].keys()
    assert len(added) == 5
    assert all(record["adherence, points"] for record in added)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert "5 runs, 5 done, 0 to do" in tell(*call)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
