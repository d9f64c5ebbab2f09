"""Every sweep file: found by globbing, read, and planned over stand-in data."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tell_plugins import cli
from tell_plugins.core import anchors
from tell_plugins.core.cards import Card
from tell_plugins.evaluation.paper_numbers import published
from tell_plugins.experiments.planning import SweepPlan, make_plan
from tell_plugins.experiments.sweep import load_sweep
from tests.conftest import PROJECT
from tests.recipe_world import make_data

FILES = sorted((PROJECT / "recipes" / "sweeps").glob("*.yaml"))
PAPER = [path for path in FILES if not path.stem.startswith(("smollm2", "demo", "study"))]
TWINS = [path for path in FILES if path.stem.startswith("smollm2")]
FIGURES = {"05", "06", "07", "08", "09", "10", "11", "12", "13", "14", "15", "16"}


def _name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("files", [PAPER, TWINS], ids=["paper", "twins"])
def test_every_figure_has_its_sweep(files):
    assert len(files) == (12 if files is PAPER else 11)
    found = {
        number for path in files for number in re.findall(r"\d\d", path.stem.partition("fig")[2])
    }
    if files is TWINS:
        found.add("08")  # the embedded model's task is that of Figure 7 already
    assert found == FIGURES
    assert any(path.stem.endswith("a5") for path in files)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_header_and_names(path):
    """How to launch it, what it needs, and that what it names is there."""
    text = path.read_text(encoding="utf-8")
    header, body = text.split("title:", 1)
    assert all(line.startswith("# ") for line in header.splitlines())
    assert len(header.splitlines()) <= 12
    for part in (f"./run.sh sweep recipes/sweeps/{path.name}", "# Data:", "# Ours:"):
        assert part in header
    sweep = load_sweep(path)
    base = (PROJECT / sweep.base).read_text(encoding="utf-8")
    counted = re.search(r"\d(?:e\d+)?tok\b|open_platypus", body + base.split("\n\n", 1)[1])
    assert counted is None or "./run.sh data llama2_tokenizer" in header
    published(sweep.plot.paper, sweep.name)
    assert sweep.plot.reference in sweep.named()


def test_twins_fit_a_small_machine():
    for path in TWINS:
        sweep = load_sweep(path)
        assert sweep.base == "recipes/smollm2_json.yaml"
        assert sweep.evaluate.rows <= 200


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """Files for every card, large enough for every amount; a tokenizer that counts letters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    root = tmp_path_factory.mktemp("stand_ins")
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    make_data(root / "data", _size)
    tokenizer.save(str(root / "data" / "tokenizer.json"))
    return root


def _size(card: Card, split: str) -> tuple[int, int]:
    """Rows, and letters of each: as many rows as the official files where that matters."""
    if split != "train":
        return 520, 5  # rows that a sweep may ask
    sizes = {"alpaca_en": (6000, 720), "open_platypus": (6000, 720), "alpaca_en_demo": (999, 90)}
    sizes |= {"en_is_news": (71, 90), "is_en_news": (56, 90)}
    return sizes.get(card.name, (920, 1100))


@pytest.fixture
def at_hand(stand_ins, monkeypatch) -> Iterator[Path]:
    """The stand-in files are what the machine has; self-written anchors are there."""
    monkeypatch.setenv("TELL_DATA_HOME", str(stand_ins / "data"))
    monkeypatch.setenv("TELL_CACHE", str(stand_ins / "cache"))
    monkeypatch.setenv("TELL_TOKENIZER", str(stand_ins / "data" / "tokenizer.json"))
    own, files, file = stand_ins / "anchor.txt", anchors.anchor_files, Card.file
    own.write_text("Do it.")
    monkeypatch.setattr(anchors, "anchor_files", lambda card: [*files(card), "self_written"])
    monkeypatch.setattr(
        Card, "file", lambda card, name: own if name == "self_written.txt" else file(card, name)
    )
    return stand_ins


@cache
def _plan(path: Path, root: Path) -> SweepPlan:
    return make_plan(load_sweep(path), root)


@pytest.mark.parametrize("path", FILES, ids=_name)
def test_plan(path, at_hand):
    sweep, plan = load_sweep(path), _plan(path, at_hand)
    assert plan.problems == []
    assert len(plan.entries) == len(sweep.cells())
    told = re.search(r"(\d+) runs", path.read_text(encoding="utf-8"))
    assert told is None or int(told[1]) == len(plan.everything)  # the base model counted
    assert all(run.about["trained_tokens"] for run in plan.runs if not run.cell.rival)


@pytest.mark.parametrize("path", PAPER, ids=_name)
def test_paper_sweeps_name_the_papers_amounts(path, at_hand):
    plan = _plan(path, at_hand)
    for entry in plan.entries:
        values = entry.recipe.values
        assert (values["lora_rank"], values["learning_rate"], values["seed"]) == (8, 1e-4, 42)
        assert entry.planned["rows_per_step"] == 16
    if path.stem in ("fig11", "fig12"):
        rows = {entry.facts.task_rows for entry in plan.entries}
        assert rows == {"fig11": {15, 115}, "fig12": {115, 883}}[path.stem]


def _ids(plan: SweepPlan) -> set[tuple[str, str]]:
    return {(run.id, run.evaluation) for run in plan.everything}


@pytest.mark.parametrize("path", TWINS, ids=_name)
def test_twins_train_wherever_the_paper_does(path, at_hand):
    """Its SFT with 15 rows alone is one step at learning rate 0."""
    plan = _plan(path, at_hand)
    idle = {run.facts.task_rows for run in plan.runs if run.planned["no_op"]}
    assert idle <= {15}
    told = re.search(r"(\d+)(?: of them are| are| of them) shared with (.+)", path.read_text())
    if told is not None:
        names = re.findall(r"smollm2_\w+", told[2])
        others = [PROJECT / "recipes" / "sweeps" / f"{name}.yaml" for name in names]
        seen = set().union(*(_ids(_plan(other, at_hand)) for other in others))
        assert int(told[1]) == len(_ids(plan) & seen)


def test_twins_run_on_the_real_data(real_home, monkeypatch, capsys):
    """English to Icelandic is at hand beside the project, the other direction is not."""
    path = str(PROJECT / "recipes" / "sweeps" / "smollm2_fig09_10.yaml")
    assert cli.main(["sweep", path, "--dry-run"]) == 1
    shown = capsys.readouterr()
    assert "TELL (card=en_is_news), seed 42" in shown.out
    assert "others cannot be planned (1)" in shown.out
    assert "./run.sh data is_en_news" in shown.err
