"""Anchor in training x anchor at test: two runs, four cells, one table."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tell_plugins.cli import main
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import UserError
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation.anchors2x2 import effects, without_anchor
from tell_plugins.evaluation.answers import ANSWERS, SETTINGS
from tell_plugins.recipe.recipes import load_recipe
from tests.conftest import MakeCard
from tests.tiny import make_tiny_cards, make_tiny_model, tiny_recipe

DATASET = "tell/tiny_task:task=all/general=10rows"
YES, NO = '{"label": "yes"}', '{"label": "no"}'


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


def test_differences_are_paired_over_the_rows(make_card: MakeCard, tmp_path: Path) -> None:
    """Adherence 6, 3, 0 and 0 of 6 in the four cells."""
    make_tiny_cards(make_card)
    task = open_task(load_card("tiny_task"), "test")
    good = {("with", "with"): 6, ("with", "without"): 3, ("without", "with"): 0}
    folders = {}
    for trained in ("with", "without"):
        for tested in ("with", "without"):
            folder = folders[trained, tested] = tmp_path / trained / tested
            folder.mkdir(parents=True)
            count = good.get((trained, tested), 0)
            settings = {"card": "tiny_task", "split": "test", "anchor": "card", "rows": 6}
            (folder / SETTINGS).write_text(json.dumps(settings))
            lines = [
                {
                    "id": bytes(task.ids[row]).hex(),
                    "row": row,
                    "text": YES if row < count else "yes",
                    "finish_reason": "stop",
                }
                for row in range(6)
            ]
            (folder / ANSWERS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = {
        effect.anchor: effect.difference
        for effect in effects(folders, load_card("tiny_task"))
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


@pytest.mark.slow
def test_two_runs_four_cells(
    make_card: MakeCard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_cards(make_card)
    recipe = tiny_recipe(tmp_path / "r.yaml", make_tiny_model(tmp_path / "model"), DATASET)
    call = ["anchors2x2", str(recipe), "--max-new-tokens", "8", "--general-rows", "3"]
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
