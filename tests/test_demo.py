"""The demo, end to end on a small random model, and what it says about its table."""

import re
from pathlib import Path

import pytest
import yaml

from tell_plugins import cli
from tell_plugins.bridge import embedded_model
from tell_plugins.core import paths
from tell_plugins.experiments import demo
from tell_plugins.experiments.planning import make_plan
from tell_plugins.experiments.sweep import load_sweep
from tests.conftest import PROJECT

LINES = ("base model", "word counting", "SFT", "SFT, equal steps", "TELL", "TELL, held")


@pytest.fixture
def small(model, tmp_path, monkeypatch) -> Path:
    """The demo's sweep on a small random model, with few general rows, under `tmp_path`."""
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
def test_the_demo(small, capfd):
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
    assert "- TELL, held against SFT, equal steps (equal steps, " in text
    assert "balanced accuracy" in text.partition("- TELL, held against")[2]
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
    plan = make_plan(sweep, small / "demo")
    assert [run.cell.method for run in plan.runs if run.done] == ["word counting"]
