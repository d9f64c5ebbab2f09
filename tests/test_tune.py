"""`tune`: parts, rounds, budget, choice and the recipe it writes; made-up runs but for one."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tell_plugins import cli
from tell_plugins.core.cards import load_card
from tell_plugins.core.sources import open_task
from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation.adapters import with_baseline
from tell_plugins.evaluation.differences import Measure, measure_of
from tell_plugins.evaluation.judged import mean
from tell_plugins.experiments import tune
from tell_plugins.experiments.store import EVALUATED, TRAINED, Run
from tell_plugins.experiments.tune import OWN, RUNGS, better_half, fitting, seconds_needed
from tell_plugins.experiments.tune_choice import PARTS, Result, choose, result_of
from tell_plugins.recipe.recipes import load_recipe
from tests.conftest import change, write_rows
from tests.saved_answers import save_answers
from tests.sweep_world import World, task_rows, unrun_world


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    """A small world without a model, whose test rows cannot be read."""
    dataset = "tell/tiny_task:task=all/general=16rows/repeat=2"
    made = unrun_world(tmp_path, monkeypatch, dataset=[dataset])
    (made.cards / "tiny_task" / "test.jsonl").write_text("no row at all")
    return made


class Runs:
    """Does jobs in an instant: a candidate answers the first `right[name]` of ten rows right.

    `drift` is its divergence from the base model a token, `seconds` what a training takes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.right: dict[str, int] = {}
        self.drift: dict[str, float] = {}
        self.failing: set[str] = set()
        self.constant: str | None = None  # the answer to each row, whatever the candidate
        self.seconds = 1.0
        self.resumed = 0  # trainings that were stopped and went on, so nothing says what they took
        self.started: list[str] = []
        self.first: list[str] = []  # what was started at once, at the start
        monkeypatch.setattr(tune, "run_here", self)
        monkeypatch.setattr(tune, "other_answers", lambda runs: [])  # made up, too

    def __call__(self, jobs: Sequence[Run], slots: object) -> None:
        self.first = self.first or [job.label.split(" (")[0] for job in jobs]
        for job in jobs:
            name = job.label.split(" (")[0]
            self.started.append(name)
            if name in self.failing:
                failed = {"step": "train", "exit": "exit code 1", "log": "train.log", "tail": []}
                _write(job.folder / "failed.json", failed)
                continue
            seconds = None if len(self.started) <= self.resumed else self.seconds
            _write(job.folder / TRAINED, {"steps": job.steps, "seconds": seconds})
            for scale in str(job.asked.options.get("scales", "1")).split(","):
                self._answer(job, name, float(scale))
            _write(job.eval_folder / EVALUATED, {"seconds": 1.0})

    def _answer(self, job: Run, name: str, scale: float) -> None:
        recipe = yaml.safe_load((job.eval_folder / "recipe.yaml").read_text())
        card = load_card(recipe["dataset"][0].partition("/")[2].partition(":")[0])
        task = open_task(card, "validation", "card")
        lines = []
        for row, response in enumerate(task.responses):
            number = re.search("[0-9]+", task.plain[row])
            good = int(number[0]) % 10 < self.right.get(name, 5)
            text = self.constant or (response if good else "no JSON")
            ids = bytes(task.ids[row]).hex()
            lines.append({"id": ids, "row": row, "text": text, "finish_reason": "stop"})
        settings = {"card": card.name, "anchor": "card", "scale": scale, "rows": len(lines)}
        folder = job.eval_folder / f"scale{scale}"
        _write(folder / "validation-greedy" / "settings.json", {**settings, "split": "validation"})
        write_rows(folder / "validation-greedy" / "answers.jsonl", lines)
        _write(folder / "general" / "settings.json", {**settings, "split": "general"})
        loss = scale * self.drift.get(name, 1.0)
        kl = [{"loss_sum": loss * 10 + row / 100, "tokens": 10} for row in range(20)]
        write_rows(folder / "general" / "kl.jsonl", kl)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def runs(monkeypatch) -> Runs:
    return Runs(monkeypatch)


def _tune(world: World, *flags: str, recipe: str = "tiny", code: int = 0) -> None:
    out = str(world.root / "out")
    given = [str(world.root / f"{recipe}.yaml"), "--out", out, "--jobs", "1", *flags]
    assert cli.main(["tune", *given]) == code


def _tuned(world: World) -> Any:
    return load_recipe(world.root / "tiny_tuned.yaml")


# --- the whole -----------------------------------------------------------------------------------


def test_the_better_half_goes_on_and_the_best_is_written(world, runs, capsys):
    runs.right = {"learning_rate=0.02": 10, "repeat=4": 8, "general=8rows": 7}
    _tune(world)
    done = {name: runs.started.count(name) for name in set(runs.started)}
    assert done == {
        OWN: PARTS,
        "learning_rate=0.02": PARTS + PARTS,  # and once more at smaller scales
        "repeat=4": 2,
        "general=8rows": 2,
        "learning_rate=0.005": 1,
        "repeat=1": 1,
        "general=32rows": 1,
    }
    tuned = _tuned(world)
    assert tuned.values["learning_rate"] == 0.02
    assert str(tuned.spec) == "tell/tiny_task:general=16rows/repeat=2"
    text = tuned.path.read_text()
    assert "learning_rate=0.02 is better than the recipe's own settings" in text
    assert "No test row was read" in text
    shown = capsys.readouterr().out
    assert "balanced accuracy" in shown
    assert f"next: ./run.sh train {tuned.path}" in shown
    runs.started.clear()
    _tune(world)  # a second call trains nothing
    assert runs.started == []
    assert tuned.path.read_text() == text


CONSTANT = json.dumps({"thought": "0", "label": "no"})
TWO = "there is time for 2 of 4 runs ... 2 of 4 runs each"


@pytest.mark.parametrize(
    ("datasets", "runs_are", "flags", "own", "told"),
    [
        ([], {"failing": {"repeat=4"}}, [], 8, "repeat=4 ... failed, see"),
        ([], {"failing": {OWN}}, [], 1, "own settings failed"),
        (["task:general=30rows"], {}, [], 8, "general=60rows: left out: 60rows asked"),
        ([], {"constant": CONSTANT}, [], 8, "CONTENT NOT LEARNED"),
        ([], {"constant": "no JSON"}, [], 8, "CONTENT NOT LEARNED"),
        ([], {"seconds": 60.0}, ["--minutes", "4"], 4, TWO),
        ([], {"seconds": 60.0, "resumed": 1}, ["--minutes", "4"], 4, TWO),
        ([], {"seconds": 600.0}, ["--minutes", "4"], 1, "too few to try ... for one candidate"),
        (["task:task=7rows"], {}, [], 0, "7 task rows of tell/tiny_task:task=7rows ... too few"),
        (["task", "task:task=8rows"], {}, [], 0, "2 TELL data sets"),
        (["general"], {}, [], 0, "trains no task row"),
        (["task:task=0/general=8rows"], {}, [], 0, "trains no task row"),
        ([], {}, ["--minutes", "0"], 0, "0 is too small"),
        ([], {}, ["--jobs", "0"], 0, "0 is too small"),
    ],
)
def test_what_is_said_and_done(world, runs, capsys, datasets, runs_are, flags, own, told):
    """`own`: runs with the recipe's own settings, at smaller scales too if they are chosen; 1 or
    none where it goes no further."""
    if datasets:
        world.recipe(dataset=[f"tell/tiny_{dataset}" for dataset in datasets])
    vars(runs).update(runs_are, drift={"learning_rate=0.005": 0.1 if "constant" in runs_are else 1})
    _tune(world, *flags, code=int(own < 2))
    shown = "".join(capsys.readouterr())
    assert all(text in shown for text in told.split(" ... "))
    assert runs.started.count(OWN) == own
    if own < 2:
        assert not (world.root / "tiny_tuned.yaml").exists()
    else:
        assert _tuned(world).values["learning_rate"] == 0.01


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_first_round_fills_the_machine_and_a_failure_is_not_tried_again(world, runs, jobs):
    runs.failing = {"learning_rate=0.02"}
    _tune(world, "--jobs", str(jobs))
    assert runs.first == [OWN, "learning_rate=0.02"][:jobs]
    assert runs.started.count("learning_rate=0.02") == 1


def test_a_validation_split_judges_all_seeds(world, runs):
    splits = {name: {"file": f"{name}.jsonl"} for name in ("train", "test", "validation")}
    change(world.cards / "tiny_task", splits=splits)
    write_rows(world.cards / "tiny_task" / "validation.jsonl", task_rows(12, 500))
    _tune(world)
    facts = [json.loads(p.read_text()) for p in (world.root / "out/runs").glob("*/run.json")]
    assert {run["seed"] for run in facts} == {42, 43, 44, 45}
    assert {run["mixture"]["task_rows"] for run in facts} == {16}
    assert "12 rows of the split 'validation'" in _tuned(world).path.read_text()


def test_the_recipe_that_is_written_is_the_old_one_but_for_the_choice(world, runs):
    given = {"learning_rate": 5e-06, "val_dataset": ["tell/tiny_task:split=test"]}
    path = world.recipe(dataset=["tell/tiny_task:general=16rows"], **given)
    path.write_text("# An old header.\n" + path.read_text().replace("lora", "lora  # a comment", 1))
    runs.right = {"learning_rate=1e-05": 10}
    _tune(world)
    tuned, old = _tuned(world), load_recipe(path)
    changed = {"learning_rate": 1e-05, "output_dir": "output/tiny_tuned"}
    assert tuned.values == {**old.values, "dataset": [str(old.spec)], **changed}
    assert "# a comment" in tuned.path.read_text()
    assert "An old header" not in tuned.path.read_text()


def test_a_tuned_recipe_has_the_baseline_of_the_first(world):
    tuned = load_recipe(world.recipe("tiny_tuned", output_dir=str(world.root / "tuned")))
    world.recipe("tiny_sft", output_dir=str(world.root / "sft"))
    for folder in ("tuned", "sft"):
        _write(world.root / folder / "checkpoint-1" / "adapter_config.json", {})
    found = with_baseline(tuned, "sft", [])
    assert [Path(name).parent.name for name in found[1:]] == ["tuned", "sft"]


@pytest.mark.parametrize(
    ("keys", "answer", "measure"),
    [
        ({"metric": "label"}, lambda i: "odd" if i % 2 else "even", "balanced_accuracy"),
        ({"metric": "number"}, lambda i: f"It is {i}.", "exact_match"),
        ({"metric": "text"}, lambda i: f"The number {i}, no other.", "chrf++"),
        (
            {"metric": "json", "answer": {"schema": "schema.json"}},
            lambda i: json.dumps({"thought": f"number {i}", "label": "yes"}),
            "field_f1",
        ),
    ],
)
def test_each_metric_has_a_measure(world, keys, answer, measure):
    folder = world.cards / "tiny_task"
    change(folder, **{"answer": None, **keys})
    right = [answer(i) for i in range(40)]
    rows = [{"q": f"Is {i} an odd number?", "r": text} for i, text in enumerate(right)]
    for split in ("train", "test"):
        write_rows(folder / f"{split}.jsonl", rows)
    judges = open_task(load_card("tiny_task"), "test", "card")

    def result(name: str, said: list[str]) -> Result:
        saved = save_answers(world.root / name / "a" / "b", "tiny_task", said)
        return result_of(name, [saved.parents[1]], judges)

    own, good = result("own", [*right[:8], *["no JSON"] * 32]), result("good", right)
    assert good.key[1] == measure
    assert good.is_better_than(own)
    assert good.learned


# --- what is refused -----------------------------------------------------------------------------


def test_another_recipe_of_that_name_stays(world, runs, capsys):
    text = world.recipe("tiny_tuned").read_text()
    _tune(world, code=1)
    assert "not written by tune" in capsys.readouterr().err
    assert (world.root / "tiny_tuned.yaml").read_text() == text


def test_turns_and_an_anchor_in_the_rows_stay(world, runs):
    folder = world.cards / "tiny_task"
    columns = {"query": "q", "response": "r", "history": "h"}
    change(folder, columns=columns, anchor="inline")
    rows = [
        {**row, "h": [[f"Odd or even:\n{row['q']}", "Well."]] * (i % 2)}
        for i, row in enumerate(task_rows(16))
    ]
    for row in rows[::2]:
        row["q"] = f"Odd or even:\n{row['q']}"
    write_rows(folder / "train.jsonl", rows)
    _tune(world)
    parts = [
        json.loads(line)
        for path in (world.root / "out/cards").glob("tiny_task_part_*/validation.jsonl")
        for line in path.open()
    ]
    assert sum("history" in row for row in parts) == 8
    assert {row["query"] for row in parts} == {row["q"] for row in rows}


# --- rounds and budget ---------------------------------------------------------------------------


def test_time_is_that_of_the_dearest_candidates():
    costs = {OWN: [1.0] * 4, "a": [2.0] * 4, "b": [1.0] * 4, "c": [3.0] * 4}
    # four once, two a second time (own and c), the same two twice more
    assert seconds_needed([OWN, "a", "b", "c"], costs, RUNGS) == 7 + 4 + 8
    assert fitting([OWN, "a", "b", "c"], costs, RUNGS, 18) == [OWN, "a", "b"]
    assert fitting([OWN, "c"], costs, RUNGS, 10) == [OWN]


def test_candidates_that_do_not_fit_are_dropped(world, runs, capsys):
    runs.seconds = 60.0
    _tune(world, "--minutes", "10")
    assert "dropped, it does not fit into the" in capsys.readouterr().out
    assert 2 < len(set(runs.started)) < 7
    _tune(world, "--minutes", "3", code=0)  # what is done costs nothing


def test_where_all_four_runs_no_longer_fit_fewer_are_compared(world, runs, monkeypatch, capsys):
    """A round took longer than was estimated; what is done of the next counts all the same."""
    runs.seconds, runs.right = 60.0, {"learning_rate=0.02": 10}
    left = iter([10_000.0, 150.0])
    monkeypatch.setattr(tune.Trial, "left", lambda trial: next(left, 0.0))
    _tune(world)
    shown = capsys.readouterr().out
    assert "2 candidates, 2 of 4 runs each" in shown
    assert f"2 of {PARTS} runs each." in shown
    assert (runs.started.count(OWN), runs.started.count("learning_rate=0.02")) == (2, 2)


# --- the choice ----------------------------------------------------------------------------------


def _result(name: str, hits: Sequence[float], kl: float) -> Result:
    column = mean(hits)
    ids = np.array([f"{row:03}" for row in range(len(hits))])
    drift = measure_of(range(20), elsewhere.column([(kl * 10 + n / 100, 10) for n in range(20)]))
    return Result(name, 4, ("number", "exact_match"), Measure(ids, column.stats, column), drift)


_HALF = [1] * 20 + [0] * 20
_LESS = ("a row less, and nearer", [1] * 19 + [0] * 21, 0.1)
_MORE = ("a row more, and farther", [1] * 21 + [0] * 19, 0.9)


@pytest.mark.parametrize(
    ("chosen", "own", "others"),
    [
        ("best", (_HALF, 0.1), [("good", [1] * 35 + [0] * 5, 0.5), ("best", [1] * 40, 2.0)]),
        # of what is not told apart, the nearer to the base model
        (OWN, (_HALF, 0.5), [_LESS, _MORE]),
        ("nearer", (_HALF, 0.5), [("nearer", _HALF, 0.2), _LESS, _MORE]),
        (OWN, ([0] * 20, 0.5), [("trains less", [0] * 20, 0.1)]),  # nothing is learned
        (OWN, ([1] * 10, 0.5), [("diverged", [1] * 10, float("nan"))]),
    ],
)
def test_the_choice(chosen, own, others):
    results = [_result(*other) for other in ((OWN, *own), *others)]
    learned = [replace(result, learned=result.score > 0) for result in results]
    assert choose(learned).name == chosen


def test_a_run_that_diverged_ranks_last():
    drifts = {OWN: 0.5, "diverged": float("nan"), "equal": 0.9}
    results = [_result(name, [1] * 10, kl) for name, kl in drifts.items()]
    assert better_half(results) == [OWN, "equal"]


def test_each_label_is_in_each_fold_and_nothing_told_apart_changes_nothing(world, runs, capsys):
    _tune(world)
    told = "nothing is told apart as better than the recipe's own settings; they stay"
    assert told in capsys.readouterr().out
    assert told in _tuned(world).path.read_text()
    assert _tuned(world).values["learning_rate"] == 0.01
    held: list[str] = []
    for folder in (world.root / "out/cards").glob("tiny_task_part_*"):
        parts = {
            split: [json.loads(line) for line in (folder / f"{split}.jsonl").open()]
            for split in ("train", "validation")
        }
        assert not (folder / "test.jsonl").exists()
        for rows in parts.values():
            assert {json.loads(row["response"])["label"] for row in rows} == {"yes", "no"}
        assert len(parts["train"]) == 12
        held += [row["query"] for row in parts["validation"]]
    assert sorted(held) == sorted(row["q"] for row in task_rows(16))


# --- for real ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_candidates_for_real(tmp_path, monkeypatch, capsys):
    """Trained, asked and judged, at smaller scales too; there is no file of test rows."""
    world = World(tmp_path)
    world.recipe(dataset=["tell/tiny_task:general=16rows"])
    (world.cards / "tiny_task" / "test.jsonl").unlink()
    for name, value in world.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tune, "RUNGS", (1,))
    two = {OWN: {}, "learning_rate=0.02": {"learning_rate": 0.02}}
    monkeypatch.setattr(tune, "candidates", lambda recipe: two)
    _tune(world, "--jobs", "2")
    shown = capsys.readouterr().out
    assert "2 candidates, judged by 16 task rows" in shown
    assert "scale 0.5" in shown
    kl = [float(line.split()[-2]) for line in shown.splitlines() if line.strip().startswith(OWN)]
    assert kl[0] > 0
    assert _tuned(world).spec.card == "tiny_task"
