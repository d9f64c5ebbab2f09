"""The demo, end to end on a small random model, and what it says about its table."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tell_plugins import cli
from tell_plugins.bridge import embedded_model
from tell_plugins.core import paths
from tell_plugins.evaluation.intervals import Estimate, Interval, rate
from tell_plugins.experiments import demo
from tell_plugins.experiments.measures import Difference
from tell_plugins.experiments.planning import make_plan
from tell_plugins.experiments.store import Store
from tell_plugins.experiments.sweep import load_sweep
from tests.conftest import PROJECT
from tests.tiny import make_tiny_model

LINES = ("base model", "word counting", "SFT", "SFT, equal steps", "TELL", "TELL, held")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's sweep on a small random model, with few general rows, under `tmp_path`."""
    model = make_tiny_model(tmp_path / "model")
    recipes = tmp_path / "recipes"
    (recipes / "sweeps").mkdir(parents=True)
    values = yaml.safe_load((PROJECT / "recipes" / "smollm2_sample_hold.yaml").read_text())
    values["model"] = str(model)
    values["dataset"] = [values["dataset"][0].replace("96rows", "24rows").replace("48", "8")]
    (recipes / "hold.yaml").write_text(yaml.safe_dump(values))
    sweep = yaml.safe_load((PROJECT / "recipes" / "sweeps" / "demo.yaml").read_text())
    sweep["base"] = str(recipes / "hold.yaml")
    sweep["evaluate"]["retention_rows"] = 10
    (recipes / "sweeps" / "demo.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    monkeypatch.setattr(paths, "RECIPES", recipes)
    monkeypatch.setattr(demo, "OUT", tmp_path / "demo")
    monkeypatch.setattr(embedded_model, "prepare_model", lambda: model)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.mark.newest
@pytest.mark.slow
def test_the_demo(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo"]) == 0
    printed = capfd.readouterr().out
    for name in LINES:
        assert re.search(rf"^ +{name} +\d", printed, flags=re.MULTILINE), name
    assert "100 test rows" in printed
    assert "6 runs, 0 done, 6 to do" in printed
    assert "Next, your own task: ./run.sh new" in printed
    assert (small / "demo" / "demo.png").read_bytes().startswith(b"\x89PNG")
    text = (small / "demo" / "demo.txt").read_text()
    assert "balanced" in text
    for line in (printed + text).splitlines():  # no cell and no line of the notes is cut off
        assert line.count("[") == line.count("]"), line
    assert "foreign instructions" in text
    assert "TELL, held against SFT, equal steps, form: " in " ".join(text.split())
    adapters = sorted((small / "demo").rglob("adapter_model.safetensors"))
    assert len(adapters) == len(LINES) - 2  # not of the base model and of word counting

    assert cli.main(["report", str(small / "demo")]) == 0  # the report reads it as any sweep
    page = (small / "demo" / "report.html").read_text(encoding="utf-8")
    assert "word counting" in page
    assert "circles" in page
    capfd.readouterr()

    assert cli.main(["demo"]) == 0  # a second run reuses what is there
    assert "6 runs, 6 done, 0 to do" in capfd.readouterr().out
    assert sorted((small / "demo").rglob("adapter_model.safetensors")) == adapters

    recipe = small / "recipes" / "hold.yaml"  # another learning rate: trained anew
    recipe.write_text(recipe.read_text().replace("0.004", "0.001"))
    sweep = load_sweep(small / "recipes" / "sweeps" / "demo.yaml")
    store = Store(small / "demo")
    plan = make_plan(sweep, store.cards)
    assert [run.cell.method for run in plan.runs if store.job(run).done] == ["word counting"]


@pytest.mark.slow
def test_a_failed_training_shows_the_end_of_its_log(
    small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = small / "recipes" / "sweeps" / "demo.yaml"
    values = yaml.safe_load(sweep.read_text())
    values["runs"] = {"TELL, held": {"max_length": 20}}  # no row is that short
    sweep.write_text(yaml.safe_dump(values))
    assert cli.main(["demo"]) == 1
    found = capfd.readouterr()
    assert "failed: TELL, held, seed 42: train ended with exit code 1" in found.out + found.err
    assert "train.log" in found.out + found.err


def _system(
    label: str, right: int, content: tuple[float, float, float], share: int = 60, bled: int = 0
) -> Any:
    headline = {
        "adherence": rate([i < right for i in range(100)]),
        "balanced accuracy": Estimate(*content, 100),
        "most frequent label": rate([i < share for i in range(100)]),
    }
    change = None if label == demo.BASE else Interval(*(0.1 if "SFT" in label else -0.1,) * 3)
    bleed = rate([i < bled for i in range(40)])
    general = SimpleNamespace(instructions=change, prose=None, bleed=bleed)
    return SimpleNamespace(label=label, scores=SimpleNamespace(headline=headline), general=general)


@pytest.mark.parametrize("winner", ["TELL", "SFT, equal steps"])
def test_the_reading_names_whoever_won(winner: str) -> None:
    loser = "TELL" if winner != "TELL" else "SFT, equal steps"
    systems = [
        _system(demo.BASE, 0, (0.0, 0.0, 0.0)),
        _system("SFT", 60, (0.4, 0.3, 0.5), share=98),
        _system(winner, 97, (0.8, 0.7, 0.9)),
        _system(loser, 50, (0.5, 0.4, 0.6), bled=3),
    ]
    text = "\n".join(demo.reading(systems, {}))
    assert f"Right form most often: {winner} (97%)" in text
    assert f"Right label most often: {winner} (balanced accuracy 0.80, above chance)" in text
    assert "SFT answers nearly always the same label" in text
    assert f"task's answers open: {loser} 3 of 40" in text
    worse = next(line for line in text.splitlines() if line.startswith("Worse on foreign"))
    assert "TELL" not in worse
    assert "SFT" in worse
    better = next(line for line in text.splitlines() if line.startswith("Better on foreign"))
    assert "SFT" not in better
    assert "TELL" in better


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        ((0.30, 0.20, 0.40, 0.001), "more often right (+30 points [+20, +40]; these rows show 14"),
        ((-0.30, -0.40, -0.20, 0.001), "less often right (-30 points"),
        ((0.02, -0.05, 0.09, 0.6), "not told apart (+2 points [-5, +9]; these rows show 10 points"),
        ((0.04, 0.01, 0.07, 0.07), "not told apart (+4 points"),
    ],
)
def test_the_reading_pairs_the_two_that_matter(
    gap: tuple[float, float, float, float], said: str
) -> None:
    """By the paired difference: these systems' own intervals overlap in every case."""
    systems = [
        _system(demo.BASE, 0, (0.0, 0.0, 0.0)),
        _system(demo.RIVAL, 99, (0.73, 0.64, 0.81)),
        _system(demo.OURS, 98, (0.71, 0.62, 0.79)),
    ]
    gaps = {"form": Difference(*gap[:3], 100, p=gap[3])}
    text = "\n".join(demo.reading(systems, gaps))
    assert f"{demo.OURS} against {demo.RIVAL}, form: {said}" in text
    assert "overlap" not in text
