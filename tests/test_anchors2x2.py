"""Anchor in training x anchor at test: two runs, four cells, one table."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.cli import main
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import scoring
from tell_plugins.evaluation.anchors2x2 import (
    Cell,
    effects,
    refuse_another,
    show,
    without_anchor,
)
from tell_plugins.evaluation.summary import System, read_general
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tests.conftest import MakeCard
from tests.saved_answers import save_answers
from tests.tiny import make_tiny_cards, make_tiny_model, tiny_recipe
from tests.tiny_adapters import saved_adapter

DATASET = "tell/tiny_task:task=all/general=10rows"
YES = '{"label": "yes"}'


def test_the_other_run_differs_in_anchor_and_folder_alone(
    make_card: MakeCard, tmp_path: Path
) -> None:
    make_tiny_cards(make_card)
    recipe = load_recipe(tiny_recipe(tmp_path / "r.yaml", tmp_path, DATASET), ["--seed", "7"])
    bare = without_anchor(recipe)
    assert bare.dataset_text == "tell/tiny_task:general=10rows/anchor=none"
    assert bare.output_dir == tmp_path / "run_noanchor"
    same = {"dataset", "output_dir"}
    assert {k: v for k, v in bare.values.items() if k not in same} == {
        k: v for k, v in recipe.values.items() if k not in same
    }
    assert bare.values["seed"] == 7
    for dataset in ("tell/tiny_task:anchor=none", "tell/plain"):
        with pytest.raises(UserError, match="without an anchor"):
            without_anchor(recipe.with_values(dataset=[dataset]))


def answered_cells(root: Path) -> dict[Cell, Path]:
    """Answers to `tiny_task`: 6, 3, 0 and 0 of 6 are adherent."""
    good = {("with", "with"): 6, ("with", "without"): 3}
    folders = {}
    for cell in itertools.product(("with", "without"), repeat=2):
        count = good.get(cell, 0)
        texts = [YES if row < count else "yes" for row in range(6)]
        folders[cell] = save_answers(root.joinpath(*cell), "tiny_task", texts)
    return folders


def test_differences_are_paired_over_the_rows(make_card: MakeCard, tmp_path: Path) -> None:
    """Adherence 6, 3, 0 and 0 of 6 in the four cells."""
    make_tiny_cards(make_card)
    found = {
        effect.anchor: effect.difference
        for effect in effects(answered_cells(tmp_path), load_card("tiny_task"))
        if effect.measure == "adherence"
    }
    assert {name: value.value for name, value in found.items()} == {
        "at test, trained with it": 0.5,
        "at test, trained without": 0.0,
        "in training, tested with it": 1.0,
        "in training, tested without": 0.5,
        "in both, against in neither": 1.0,
    }
    assert 0.3 < found["in training, tested with it"].low < 0.6  # six rows say no more
    assert found["at test, trained with it"].low < 0.5 < found["at test, trained with it"].high


def test_a_card_without_a_label_has_adherence_and_its_content(
    make_card: MakeCard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_cards(make_card)
    file = tmp_path / "cards" / "tiny_task" / "card.yaml"
    file.write_text(file.read_text().replace("  label: label\n", ""))
    card = load_card("tiny_task")
    folders = answered_cells(tmp_path / "eval")
    found = effects(folders, card)
    assert {effect.measure for effect in found} == {"adherence", "exact_match", "field_f1"}
    systems = {
        cell: System("x", scoring.score(folder), read_general(folder, None, card))
        for cell, folder in folders.items()
    }
    show(systems, found, "title")
    printed = capsys.readouterr().out
    assert "balanced accuracy" not in printed
    assert "+1.000" in printed


def trained_run(recipe: Recipe, steps: int, **args: Any) -> Path:
    """What a training leaves that came to step `steps` of 2,000."""
    folder = saved_adapter(recipe.output_dir / f"checkpoint-{steps}", bytes(4))
    (folder / "manifest.json").write_text(json.dumps({"spec": str(recipe.spec)}))
    (folder / "args.json").write_text(json.dumps(recipe.values | args))
    state = {"global_step": steps, "max_steps": 2000}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def recipe(make_card: MakeCard, tmp_path: Path) -> Recipe:
    make_tiny_cards(make_card)
    return load_recipe(tiny_recipe(tmp_path / "r.yaml", tmp_path / "model", DATASET))


def test_a_run_that_came_to_its_end_is_taken(recipe: Recipe) -> None:
    refuse_another(recipe, [])  # none: it is trained
    trained_run(recipe, 2000, learning_rate="1e-2", lora_rank=4.0, target_modules="all-linear")
    refuse_another(recipe, [])


def test_a_run_that_was_stopped_is_not_taken_for_a_trained_one(recipe: Recipe) -> None:
    folder = trained_run(recipe, 500)
    with pytest.raises(UserError, match="stopped at step 500 of 2,000") as caught:
        refuse_another(recipe, ["--lora_rank", "4"])
    remedy = str(caught.value).partition("remedy:")[2]
    assert f"--lora_rank 4 --resume_from_checkpoint {folder}" in remedy
    refuse_another(recipe.with_values(early_stop_interval=3), [])
    (folder / "trainer_state.json").unlink()
    with pytest.raises(UserError, match="stopped while it saved"):
        refuse_another(recipe, [])


@pytest.mark.parametrize(
    ("key", "before", "now"),
    [
        ("num_train_epochs", 3, 1),
        ("learning_rate", 1e-4, 2e-4),
        ("target_modules", ["q_proj", "v_proj"], ["v_proj"]),
        ("model", "other/model", "some/model"),
    ],
)
def test_a_run_with_other_values_is_another(
    key: str, before: Any, now: Any, recipe: Recipe
) -> None:
    trained_run(recipe, 2000, **{key: before})
    refuse_another(recipe.with_values(**{key: before}), [])
    with pytest.raises(UserError, match=f"{key}: .* there, .* now"):
        refuse_another(recipe.with_values(**{key: now}), [])


def test_both_runs_are_looked_at_before_one_is_trained(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "tell_plugins.recipe.train.check_and_train", lambda *_: pytest.fail("it trains")
    )
    trained_run(without_anchor(recipe), 500)
    assert main(["anchors2x2", str(recipe.path)]) == 1
    assert "stopped at step 500" in capsys.readouterr().err


@pytest.mark.slow
def test_two_runs_four_cells(
    make_card: MakeCard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_cards(make_card)
    recipe = tiny_recipe(tmp_path / "r.yaml", make_tiny_model(tmp_path / "model"), DATASET)
    call = ["anchors2x2", str(recipe), "--max-new-tokens", "8", "--general-rows", "3"]
    call += ["--retention-rows", "3"]
    flags = ["--learning_rate", "0.02"]
    assert main([*call, *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.count("training tell/") == 2
    run, bare = tmp_path / "run", tmp_path / "run_noanchor"
    for folder, anchor in ((run, "card"), (bare, "none")):
        assert json.loads((folder / "manifest.json").read_text())["anchor"]["choice"] == anchor
        assert json.loads((folder / "args.json").read_text())["learning_rate"] == 0.02
    content = json.loads((run / "anchors2x2.json").read_text())
    cells = {(cell["trained"], cell["tested"]): cell["scores"] for cell in content["cells"]}
    assert set(cells) == {(a, b) for a in ("with", "without") for b in ("with", "without")}
    for (trained, tested), scores in cells.items():
        assert scores["settings"]["anchor"] == ("card" if tested == "with" else "none")
        assert ("run_noanchor" in scores["settings"]["adapter"]) is (trained == "without")
        assert scores["rows"] == 6
    with (run / "anchors2x2.csv").open() as file:
        records = list(csv.DictReader(file))
    adherence = [r for r in records if r["measure"] == "adherence"]
    assert len(adherence) == 4
    assert len({r["measure"] for r in records}) >= 4  # adherence never stands alone
    assert len(content["effects"]) == 10
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert main([*call, *flags]) == 0  # everything is there: nothing is trained or answered again
    assert "training tell/" not in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    other = ["--dataset", "tell/tiny_task:task=all/general=9rows"]
    assert main([*call, *flags, *other]) == 1
    assert "was trained on tell/tiny_task:general=10rows" in capsys.readouterr().err
