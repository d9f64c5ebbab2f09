"""Sweeps: files, plans, cards that are made, and runs that survive SIGKILL, here and on Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from threading import Event, Timer
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tell_plugins import cli
from tell_plugins.bridge import embedded_model
from tell_plugins.core.cards import load_card
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.sources import open_split
from tell_plugins.core.spec import Spec, parse_spec
from tell_plugins.core.state_files import write_json
from tell_plugins.core.text import comparison_keys
from tell_plugins.experiments import derived_cards, runner
from tell_plugins.experiments.guard import end_work_in, processes_in
from tell_plugins.experiments.planning import SweepPlan, make_plan
from tell_plugins.experiments.results import study_of
from tell_plugins.experiments.store import Asked, Run
from tell_plugins.experiments.sweep import Cell, Sweep, load_sweep, make_sweep
from tell_plugins.experiments.worker import Worker, whole_checkpoints
from tell_plugins.recipe.recipes import Recipe, load_recipe
from tests.conftest import change, message_of, wait_for
from tests.golden_texts import assert_golden
from tests.sweep_world import World, general_rows, unrun_world


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    return unrun_world(tmp_path, monkeypatch)


def _sweep(world: World, **keys: Any) -> Sweep:
    raw = {"title": "t", "base": str(world.root / "tiny.yaml"), **keys}
    return make_sweep(
        {"evaluate": {"general_rows": 4, "retention_rows": 4}, **raw}, "made", "made.yaml"
    )


def _plan(world: World, **keys: Any) -> Any:
    plan = make_plan(_sweep(world, **keys), world.root / "out")
    assert plan.problems == []
    return plan


# --- files ---------------------------------------------------------------------------------------


WRONG = yaml.safe_load(Path(__file__).with_name("wrong_sweeps.yaml").read_text())


@pytest.mark.parametrize(("changes", "found", "remedy"), WRONG)
def test_wrong_sweep_file(changes, found, remedy):
    raw = {"title": "t", "base": "x.yaml", "methods": {"TELL": None}, **changes}
    caught = message_of(make_sweep, raw, "made", "made.yaml")
    assert "made.yaml" in caught
    assert found in caught
    assert remedy in caught


def test_what_is_no_sweep_file(world):
    """All problems of a file are told at once, but where it is a recipe."""
    (world.root / "wrong.yaml").write_text("titel: x\nbase: y\nseeds: [-1]\n")
    text = message_of(load_sweep, world.root / "wrong.yaml")
    for told in ("did you mean 'title'?", "key 'title' is missing", "seeds.0"):
        assert told in text
    text = message_of(load_sweep, world.root / "tiny.yaml")
    assert "tiny.yaml: this is a recipe, no sweep file" in text
    assert "./run.sh sweep --controls" in text
    assert "unknown key" not in text
    near = "did you mean 'recipes/sweeps/smollm2_fig07.yaml'"
    assert near in message_of(load_sweep, "recipes/sweeps/smolm2_fig07.yaml")


# --- plans ---------------------------------------------------------------------------------------


def _lines(plan: SweepPlan) -> list[str]:
    """Each entry: where it stands, which run and which evaluation it is, its rows and steps."""
    runs = list(dict.fromkeys(entry.id for entry in plan.entries))
    asked = list(dict.fromkeys(entry.evaluation for entry in plan.entries))
    return [
        f"{entry.label}: run {runs.index(entry.id)}, asked {asked.index(entry.evaluation)}, "
        f"{entry.facts.task_rows} x {entry.facts.copies} + {entry.facts.general_rows} rows, "
        f"{entry.steps} steps"
        for entry in plan.entries
    ]


GENERAL_ONLY = {"TELL": None, "general only": {"general_only": "TELL"}}
PLANS: dict[str, dict[str, Any]] = {
    "pinned": {  # a method that sets a key of the grid has one run there
        "methods": {"TELL": None, "SFT": {"general": "0"}},
        "grid": {"general": ["8rows", "16rows"], "task": ["4rows", "8rows"]},
        "seeds": [1, 2],
    },
    "follows_the_grid": {
        "methods": {
            "TELL": {"repeat": {"4rows": 2, "8rows": 1}, "general": "8rows"},
            "SFT": {"general": "0", "equal_steps": "TELL"},
            "once": {"repeat": {"8rows": 1}},
        },
        "grid": {"task": ["4rows", "8rows"]},
    },
    "the_same_run": {
        "methods": {"TELL": None, "SFT": {"general": "0"}},
        "grid": {"general": ["0", "8rows"]},
        "runs": {"written out": {"task": "8rows", "general": "0rows", "repeat": 1}},
    },
    "two_anchors": {"runs": {"with": {}, "without": {"test_anchor": "none"}}},
    "rivals": {"runs": {"TELL": {}, "counting": {"rival": "words"}, "few": {"rival": "shots"}}},
    "general_only": {"methods": GENERAL_ONLY, "grid": {"general": ["8rows", "16rows"]}},
    "two_tasks": {  # the general rows alone are trained once, and asked twice
        "methods": GENERAL_ONLY,
        "grid": {"card": ["tiny_task", "other_task"]},
        "settings": {"task": "8rows", "general": "16rows"},
    },
    "too_few_steps": {
        "runs": {"TELL": {"general": "40rows"}, "B": {"general": "8rows", "equal_steps": "TELL"}}
    },
    "told_once": {"runs": {name: {"task": "4row"} for name in "ABC"}},
    "a_secret": {"settings": {"hub_token": "x"}, "runs": {"A": {}}},
    "not_at_this_point": {
        "methods": {"TELL": {"repeat": {"4rows": 2}}, "S": {"random_text": "TELL"}},
        "grid": {"task": ["4rows", "8rows"]},
    },
    "steps_of_no_run": {  # but a mixture of the recipe's own, which needs no run
        "methods": {"TELL": None},
        "grid": {"task": ["4rows", "6rows"]},
        "runs": {
            "general only": {"general_only": "TELL"},
            "SFT": {"general": "0", "task": "8rows", "equal_steps": "TELL"},
            "TELL, 8 rows": {"task": "8rows"},
            "SFT, 8 rows": {"general": "0", "task": "8rows", "equal_steps": "TELL, 8 rows"},
        },
    },
    "no_such_rival": {"runs": {"TELL": {}, "label scoring": {"rival": "choices"}}},
}


@pytest.mark.parametrize("name", PLANS)
def test_what_is_planned(world, name):
    shutil.copytree(world.cards / "tiny_task", world.cards / "other_task")
    change(world.cards / "other_task", name="other_task")
    plan = make_plan(_sweep(world, **PLANS[name]), world.root / "out")
    text = "\n".join([*_lines(plan), *map(str, plan.problems), ""])
    assert_golden(f"plans/{name}.txt", text, world.root)
    done = {(entry.id, entry.evaluation) for entry in plan.entries}
    assert len(plan.runs) == len(done)
    assert len(plan.bases) == len({entry.asked.card for entry in plan.entries})


# two settings of a sweep's only run, and what they have in common: run, base model, what is asked
SAME: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"learning_rate": 0.02}, "base asked"),
    ({}, {"lora_rank": 2}, "base asked"),
    ({}, {"task": "7rows"}, "base asked"),
    ({}, {"order": "even"}, "base asked"),
    ({}, {"anchor": "none"}, "base"),
    ({}, {"kl": 1}, "base asked"),
    ({"kl": 1}, {"kl": 3}, "base asked"),  # the same rows, another weight
    ({}, {"report_to": ["tensorboard"], "run_name": "x"}, "run base asked"),
    ({}, {"external_plugins": ["own.py"]}, "base asked"),
    ({}, {"attn_impl": "eager"}, "asked"),
    ({}, {"max_model_len": 256}, "asked"),
    ({}, {"system": "Be brief."}, "asked"),
    ({}, {"torch_dtype": "float16", "device_map": "auto"}, "base asked"),  # as the machine can
    ({"use_cpu": False}, {"use_cpu": False, "torch_dtype": "float16"}, "asked"),
    ({"use_cpu": False}, {"use_cpu": False, "device_map": "auto"}, "asked"),
    ({}, {"test_anchor": "none"}, "run base"),
    ({}, {"evaluate": {"shots": 0, "learned": ""}}, "run base asked"),  # as in earlier releases
    ({}, {"evaluate": {"shots": 2}}, "run base"),
    ({}, {"evaluate": {"learned": "bleurt"}}, "run base"),
    ({"rival": "words"}, {"rival": "words", "learning_rate": 0.1}, "run base asked"),
    ({"rival": "words"}, {"rival": "words", "task": "4rows"}, "base asked"),
    ({"rival": "words"}, {"rival": "shots"}, "base asked"),
    ({"rival": "words"}, {}, "base asked"),
    ({}, {"processes": "1"}, "run base asked"),
    ({}, {"processes": "2"}, "base asked"),  # other steps from the same rows
]


def _ids(world: World, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    more = dict(settings)
    monkeypatch.setenv("NPROC_PER_NODE", more.pop("processes", ""))
    evaluate = {"general_rows": 4, "retention_rows": 4, **more.pop("evaluate", {})}
    (entry,) = _plan(world, runs={"A": more}, evaluate=evaluate).entries
    return {"run": entry.id, "base": entry.base.id, "asked": entry.evaluation}


@pytest.mark.parametrize(("first", "second", "same"), SAME)
def test_what_makes_another_run(world, first, second, same, monkeypatch):
    ids = [_ids(world, settings, monkeypatch) for settings in (first, second)]
    assert [name for name in ids[0] if ids[0][name] == ids[1][name]] == same.split()


def test_other_data_is_another_run_and_so_is_another_seed(world):
    first, second = _plan(world, runs={"A": {}}, seeds=[1, 2]).entries
    assert (first.recipe.values["seed"], first.spec.seed) == (1, 1)
    assert (first.facts.hash == second.facts.hash, first.id == second.id) == (False, False)
    assert first.evaluation == second.evaluation
    file = world.cards / "tiny_task" / "train.jsonl"
    file.write_text(file.read_text().replace("number", "numeral"))
    assert _plan(world, runs={"A": {}}, seeds=[1]).entries[0].id != first.id


def test_what_a_rival_learns_from(world):
    """The task rows of its point, with the anchor of the test in front."""
    runs = {"counting": {"rival": "words"}, "examples": {"rival": "shots", "test_anchor": "none"}}
    for run, more in zip(_plan(world, runs=runs).entries, ("", "/anchor=none"), strict=True):
        assert run.planned["exposure"] is None
        assert (run.prepare().trained, run.steps) == (True, 0)
        asked = load_recipe(run.eval_folder / "recipe.yaml").spec
        assert asked == parse_spec(f"tell/tiny_task:task=8rows/general=0{more}")


@pytest.mark.parametrize(("task", "general"), [(1, 47), (5, 9), (8, 1), (15, 24)])
def test_repeated_task_rows_take_equal_steps(world, task, general):
    """The last round is cut short, no earlier one: all rows are seen as often, or once less."""
    sft = {"general": "0", "order": "even", "equal_steps": "TELL"}
    runs = {"TELL": {"general": f"{general}rows"}, "SFT": sft}
    tell, sft = _plan(world, settings={"task": f"{task}rows"}, runs=runs).entries
    assert sft.steps == tell.steps
    assert sft.equal_steps == tell
    seen = build_mixture(sft.spec).row[: sft.steps * sft.planned["rows_per_step"]]
    counts = Counter(seen.tolist())
    assert len(counts) == task
    assert max(counts.values()) - min(counts.values()) <= 1


def test_every_model_has_its_base(world):
    models = [str(world.root / name) for name in ("model", "larger")]
    plan = _plan(world, methods={"TELL": None, "SFT": {"general": "0"}}, grid={"model": models})
    assert [base.cell.at for base in plan.bases] == [{"model": model} for model in models]
    assert len({base.label for base in plan.bases}) == 2
    study = study_of(plan, "")
    names = {base.run: base.at["model"] for base in study.bases}
    assert [names[entry.base] for entry in study.entries] == [
        entry.at["model"] for entry in study.entries
    ]


# --- cards that are made -------------------------------------------------------------------------


def test_what_a_worker_asks_of_eval(world, monkeypatch):
    anchors = {"without": {"test_anchor": "none"}, "counting": {"rival": "words"}}
    evaluate = {"general_rows": 4, "retention_rows": 4, "shots": 2}
    plan = _plan(world, runs={"with": {}, **anchors}, evaluate=evaluate)
    asked: list[list[str]] = []
    monkeypatch.setattr(Worker, "call", lambda self, step, job, command, log: asked.append(command))
    for run in plan.everything:
        write_json(
            run.prepare().folder / "trained.json", {"steps": 3, "checkpoint": "checkpoint-3"}
        )
        Worker({}, Event()).evaluate(run)
    adapters = [Path(command[command.index("--adapter") + 1]).name for command in asked]
    assert adapters == ["none", "checkpoint-3", "checkpoint-3", "words"]
    assert all(command[command.index("--shots") + 1] == "2" for command in asked)
    assert ["--anchor" in command for command in asked] == [False, False, True, False]
    general = [command[command.index("--general-rows") + 1] for command in asked]
    assert general == ["4", "4", "4", "0"]


def test_held_out_rows_are_the_same_for_every_seed_and_never_trained(world):
    plan = _plan(world, runs={"A": {"general": "all"}}, seeds=[1, 2, 3])
    sources = {entry.spec.sources for entry in plan.entries}
    assert sources == {("tiny_general_less4",)}
    card = load_card("tiny_general_less4")
    held = open_split(card, "heldout").all_texts()
    trained = open_split(card, "train").all_texts()
    everything = open_split(load_card("tiny_general"), "train").all_texts()
    assert len(held) == 4
    assert sorted(held + trained) == sorted(everything)


def test_rows_that_ask_the_same_as_a_held_out_row_do_not_train(world):
    rows = [*general_rows(20), *({"q": row["q"].upper(), "r": "x"} for row in general_rows(20))]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (world.cards / "tiny_general" / "train.jsonl").write_text(text)
    os.environ["TELL_CARDS"] += os.pathsep + str(world.root / "made")
    name = derived_cards.with_held_out(load_card("tiny_general"), 5, world.root / "made")
    held = [query for query, _ in open_split(load_card(name), "heldout").all_texts()]
    trained = [query for query, _ in open_split(load_card(name), "train").all_texts()]
    assert not set(comparison_keys(held)) & set(comparison_keys(trained))


def test_held_out_rows_are_those_of_the_card_or_are_enough(world):
    card = load_card("sample_general")
    assert derived_cards.with_held_out(card, 40, world.root / "made") == "sample_general"
    assert not (world.root / "made").exists()
    card = load_card("tiny_general")
    message = message_of(derived_cards.with_held_out, card, 60, world.root / "made")
    assert "60 rows to be held out of 60" in message


def test_what_is_made_of_the_general_rows_of_another(world):
    """They alone; and in place of them random text that keeps lengths and words, nothing else."""
    runs = {
        "TELL": {},
        "general": {"general_only": "TELL"},
        "random": {"random_text": "TELL", "equal_steps": "TELL"},
    }
    entries = _plan(world, runs=runs, seeds=[3]).entries
    tell, general, random = (build_mixture(entry.spec) for entry in entries)
    rows = derived_cards.general_rows_of(tell)
    assert general.task is None
    assert sorted(rows) == sorted(general.sources[-1].rows.all_texts())
    made = derived_cards.general_rows_of(random)
    lengths = [Counter((len(q.split()), len(r.split())) for q, r in part) for part in (rows, made)]
    assert lengths[0] == lengths[1]
    words = [Counter(" ".join(map(" ".join, part)).split()) for part in (rows, made)]
    assert words[0] == words[1]
    assert not set(rows) & set(made)
    assert entries[0].steps == entries[2].steps
    rows = [("a b c", "d e"), ("f g", "h i j k")]
    once, again = (derived_cards.shuffled_words(rows, 1) for _ in range(2))
    assert once == again == [("b i k", "f c"), ("g e", "d h a j")]
    assert derived_cards.shuffled_words(rows, 2) != once


def test_cards_of_other_sweeps_are_in_nobodys_way(world, monkeypatch):
    """A run's recipe says which cards it needs by hand; a later sweep makes its own."""
    first = world.root / "out" / "cards"
    _plan(world, runs={"TELL": {}, "general": {"general_only": "TELL"}})
    named = os.pathsep.join([str(world.cards), str(first)])
    monkeypatch.setenv("TELL_CARDS", named)
    assert load_card("tiny_general_less4").folder.parent == first
    sweep = str(world.sweep(evaluate={"general_rows": 4, "retention_rows": 4}))
    for out in (world.root / "out", world.root / "other"):
        monkeypatch.setenv("TELL_CARDS", named)
        assert _main("sweep", sweep, "--dry-run", "--out", str(out)) == 0


# --- the listing ---------------------------------------------------------------------------------


def _main(*arguments: str) -> int:
    return cli.main(list(arguments))


@pytest.mark.parametrize(
    ("changes", "code", "told", "wrong"),
    [
        ({}, 0, ["TELL (task=8rows), seed 42", "5 runs, 5 left", "unknown until a run is"], ""),
        ({}, 0, ["no-op: every step has learning rate 0", "how much learning rate the task"], ""),
        ({"methods": {"TELL": {}, "odd": {"anchor": "no"}}}, 1, ["TELL (task=8rows)"], "'no'"),
        ({"settings": {"generl": 0}}, 1, [], "unknown setting"),  # no plan as if it were not there
        ({"evaluate": {"rows": 5000}}, 1, [], "5000 rows asked, split 'test' has"),
    ],
)
def test_dry_run_lists_and_writes_nothing(world, capsys, changes, code, told, wrong):
    out = world.root / "out"
    assert _main("sweep", str(world.sweep(**changes)), "--dry-run", "--out", str(out)) == code
    shown = capsys.readouterr()
    assert all(text in shown.out for text in told)
    assert bool(shown.out) == bool(told)
    assert wrong in shown.err
    assert not out.exists()


def test_dry_run_with_a_rate_counts_tokens_flops_and_time(world, capsys, monkeypatch):
    shutil.rmtree(world.root / "model")
    monkeypatch.setenv("TELL_TOKENIZER", str(world.model()))
    assert _main("sweep", str(world.sweep()), "--dry-run", "--rate", "10") == 0
    text = capsys.readouterr().out
    assert "tokens to train" in text
    assert "FLOPs" in text
    assert "at 10 tokens a second (--rate)" in text
    [line] = [line.split() for line in text.splitlines() if line.startswith("TELL (task=8rows)")]
    assert line[4:6] == ["32", "2"]  # rows and steps
    assert 0 <= float(line[6]) <= 8  # the exposure of its task rows, at most all of them


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "arguments are required: file"),
        (["--controls", "RECIPE", "FILE"], "small.yaml"),
        (["FILE", "--task", "3rows"], "--task goes with --controls"),
        (["--controls", "RECIPE", "--seeds", "a"], "bad seeds 'a'"),
        (["FILE", "--dry-run", "--rate", "0"], "0 is too small"),
        (["FILE", "--jobs", "0"], "0 is too small"),
        (["FILE", "--ray", "local", "--jobs", "0"], "0 is too small"),
        (["FILE", "--dryrun"], "unknown flag 'dryrun'"),
        (["FILE", "--dryrun"], "did you mean 'dry_run'?"),
        (["FILE", "--learning_rat", "1"], "did you mean 'learning_rate'?"),
        (["FILE", "--output_dir", "x"], "'--output_dir' is set by the sweep"),
        (["FILE", "--hub_token", "hf_x"], "flag --hub_token: 'hub_token' would be kept"),
        (["--controls", "RECIPE", "--hub_token", "hf_x"], "'hub_token' would be kept"),
    ],
)
def test_wrong_arguments(world, capsys, arguments, told):
    places = {"FILE": str(world.sweep()), "RECIPE": str(world.root / "tiny.yaml")}
    given = [places.get(part, part) for part in arguments]
    assert _main("sweep", *given, "--out", str(world.root / "out")) == 1
    shown = capsys.readouterr().err
    assert told in shown
    assert "hf_x" not in shown


# --- running -------------------------------------------------------------------------------------


def test_one_sweep_a_folder(world, capsys):
    out = world.root / "out"
    out.mkdir()
    with FileLock(out / ".lock"):
        assert _main("sweep", str(world.sweep()), "--out", str(out)) == 1
    assert "another sweep works in this folder" in capsys.readouterr().err


GPUS = [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}]


@pytest.mark.parametrize(
    ("gpus", "threads", "jobs", "needs_gpu", "places"),
    [
        ("4,6", None, None, True, GPUS),
        ("4,6", None, 1, True, GPUS[:1]),
        ("4,6", None, 3, False, [{"OMP_NUM_THREADS": "2"}] * 3),
        ("", None, 3, True, [{"OMP_NUM_THREADS": "2"}] * 3),
        ("", "5", 3, False, [{}] * 3),
    ],
)
def test_what_each_run_sees_of_the_machine(monkeypatch, gpus, threads, jobs, needs_gpu, places):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(runner, "cores", lambda: 8)
    assert runner.slots(jobs, needs_gpu=needs_gpu, models=[]) == places
    if places == GPUS:
        said = message_of(runner.slots, 3, needs_gpu=True, models=[])
        assert "3 runs at once and 2 GPUs" in said


def test_on_a_cpu_there_is_a_run_a_core_as_far_as_memory_goes(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "cores", lambda: 4)
    small, embedded = str(tmp_path), str(embedded_model.model_dir())
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(2**30)
    for gigabytes, model, wanted in [
        (64, embedded, 4),
        (9, embedded, 2),
        (2, embedded, 1),
        (64, small, 4),
        (16, small, 2),
        (64, "Qwen/Qwen3-4B", 1),  # its size is not known
    ]:
        free = SimpleNamespace(available=gigabytes * 2**30)
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: free)
        assert len(runner.slots(None, needs_gpu=False, models=[model])) == wanted
    assert len(runner.slots(3, needs_gpu=False, models=[small])) == 3  # the user's word


def _run(folder: Path, evaluation: str = "e") -> Run:
    return Run(
        **{"folder": folder, "evaluation": evaluation, "label": folder.name, "id": folder.name},
        **{"steps": 3, "needs_gpu": True, "recipe": Recipe(folder, {}), "spec": Spec("t")},
        **{"cell": Cell("a", {}, 1, {}), "asked": Asked("tell/t", "card", {}), "about": {}},
    )


def test_no_gpu_has_two_runs_at_once(tmp_path, monkeypatch):
    spans: list[tuple[str, float, float]] = []

    def do(worker: Worker, job: Run) -> None:
        start = time.time()
        time.sleep(0.1)
        spans.append((worker.environment["CUDA_VISIBLE_DEVICES"], start, time.time()))

    monkeypatch.setattr(Worker, "do", do)
    jobs = [_run(tmp_path / f"run{i}") for i in range(6)]
    runner.run_here(jobs, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "1")])
    assert len(spans) == 6
    for gpu in ("0", "1"):
        mine = sorted((start, end) for name, start, end in spans if name == gpu)
        assert len(mine) >= 2
        assert all(first[1] <= second[0] for first, second in pairwise(mine))


def test_how_far_a_run_is(tmp_path):
    job = _run(tmp_path / "run")
    (job.folder / "train").mkdir(parents=True)
    lines = [json.dumps({"global_step/max_steps": f"{step}/3"}) for step in (1, 2)]
    (job.folder / "train" / "logging.jsonl").write_text("\n".join(lines))
    assert runner.how_far(job) == "run: step 2/3"
    write_json(job.folder / "trained.json", {"steps": 3})
    assert runner.how_far(job) == "run"
    (job.eval_folder / "task").mkdir(parents=True)
    (job.eval_folder / "task" / "answers.jsonl").write_text("{}\n{}\n")
    assert runner.how_far(job) == "run: 2 answers"


class _Ray:
    """As much of Ray as a sweep sees: every task fails in its training, one after the other."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self) -> None:
        self.given: list[tuple[str, str]] = []

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        return lambda function: SimpleNamespace(remote=self._task)

    def _task(self, job: Run) -> object:
        self.given.append((job.folder.name, job.evaluation))
        failure = {"step": "train", "exit": "exit code 1", "log": "train.log", "tail": ["no"]}
        (job.folder / "failed.json").write_text(json.dumps(failure))
        return object()

    def wait(self, handles: list[object], **options: Any) -> tuple[list[object], list[object]]:
        return handles[:1], handles[1:]

    def get(self, handle: object) -> None:
        return None


def test_on_ray_what_shares_a_failed_training_is_not_started(tmp_path):
    names = [("a", "one"), ("a", "two"), ("a", "three"), ("b", "one")]
    jobs = [_run(tmp_path / run, asked) for run, asked in names]
    for job in jobs:
        job.folder.mkdir(exist_ok=True)
    ray = _Ray()
    runner.run_with(ray, jobs, at_once=1, needs_gpu=False)
    assert ray.given == [("a", "one"), ("b", "one")]
    assert all(job.failure for job in jobs)


def test_ctrl_c_ends_what_runs(tmp_path, monkeypatch):
    """A run that is ended has not failed."""

    def train(worker: Worker, job: Run) -> dict[str, Any]:
        Timer(0.5, worker.stop.set).start()
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        worker.call("train", job, sleeper, job.folder / "train.log")
        return {}

    monkeypatch.setattr(Worker, "train", train)
    job = _run(tmp_path / "run")
    start = time.monotonic()
    runner.run_here([job], [{}])
    assert time.monotonic() - start < 20
    assert (job.done, job.failure) == (False, {})


def test_what_a_killed_sweep_left_behind_is_ended(tmp_path):
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    marked = {**os.environ, "TELL_SWEEP_RUN": str(tmp_path / "run")}
    other = {**os.environ, "TELL_SWEEP_RUN": str(tmp_path / "run2")}
    mine = subprocess.Popen(sleeper, env=marked, start_new_session=True)
    theirs = subprocess.Popen(sleeper, env=other)
    try:
        time.sleep(0.3)
        assert end_work_in(tmp_path / "run") >= 1
        assert mine.wait(10) == -signal.SIGKILL
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


def test_half_written_checkpoints_are_no_checkpoints(tmp_path):
    for step, state in ((5, '{"global_step": 5, "max_steps": 9}'), (9, '{"global_st')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-7").mkdir()
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["checkpoint-5"]


# --- for real ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_world(tmp_path_factory) -> World:
    """A world with a model."""
    made = World(tmp_path_factory.mktemp("world"))
    made.recipe()
    made.sweep(grid={"task": ["8rows"]})
    return made


@pytest.fixture(scope="module")
def undisturbed(real_world) -> Path:
    """The folder of a sweep of two runs that nobody disturbed."""
    out = real_world.root / "undisturbed"
    text = real_world.call("sweep", _file(real_world), "--jobs", "2", "--out", str(out))
    assert "all 3 runs are done" in text
    return out


def _file(world: World) -> str:
    return str(world.root / "small.yaml")


def _results(world: World, out: Path) -> dict[str, bytes]:
    """Everything that a sweep found out: tables, answers, losses, adapters."""
    report = out.with_name(f"{out.name}-report")
    world.call("report", str(out), "--out", str(report))
    found = {str(p.relative_to(report)): p.read_bytes() for p in report.glob("tables/*")}
    for pattern in ("answers.jsonl", "losses.jsonl", "adapter_model.safetensors", "manifest.json"):
        for path in (out / "runs").rglob(pattern):
            found[str(path.relative_to(out))] = path.read_bytes()
    return found


def _kill(process: subprocess.Popen[str], out: Path) -> None:
    """SIGKILL the sweep itself; all that worked for it must be gone soon after."""
    assert processes_in(out)
    process.kill()
    process.communicate()
    wait_for(lambda: not processes_in(out), seconds=30)


@pytest.mark.slow
def test_a_sweep_killed_twice_ends_like_an_undisturbed_one(real_world, undisturbed):
    out = real_world.root / "killed"
    command = ["sweep", _file(real_world), "--jobs", "2", "--out", str(out)]

    first = real_world.start(*command)  # killed while runs train
    wait_for(lambda: list((out / "runs").glob("tiny*/train/args.json")), first)
    _kill(first, out)
    assert not list((out / "runs").glob("tiny*/eval/*/evaluated.json"))

    second = real_world.start(*command)  # killed while a trained run is asked
    wait_for(lambda: list((out / "runs").glob("tiny*/eval/*/eval.log")), second)
    _kill(second, out)

    text = real_world.call(*command)
    assert "all 3 runs are done" in text
    assert "0 done" not in text.splitlines()[0]
    expected, found = _results(real_world, undisturbed), _results(real_world, out)
    assert found.keys() == expected.keys()
    assert len([name for name in found if name.endswith("safetensors")]) == 2
    for name, content in expected.items():
        assert found[name] == content, name


@pytest.mark.slow
def test_a_second_call_does_nothing_and_another_sweep_shares_runs(real_world, undisturbed):
    text = real_world.call("sweep", _file(real_world), "--out", str(undisturbed))
    assert "3 runs, 3 done, 0 to do" in text
    other = real_world.sweep("other", methods={"mine": {}}, grid={"task": ["8rows"]})
    text = real_world.call("sweep", str(other), "--dry-run", "--out", str(undisturbed))
    assert "2 runs, 0 left" in text
    # tokens are those of the model's own tokenizer, where Llama-2's is not here
    more = real_world.sweep("more", grid={"task": ["4rows", "8rows"]})
    text = real_world.call("sweep", str(more), "--dry-run", "--out", str(undisturbed))
    assert "5 runs, 2 left" in text
    assert "tokens a second (the finished runs here)" in text


@pytest.mark.slow
def test_failed_runs_are_kept_and_tried_again_on_request(real_world):
    out = real_world.root / "failing"
    broken = real_world.recipe("broken", max_length=8)  # strict: the rows do not fit
    sweep = real_world.sweep(
        "failing", base=str(broken), grid={}, methods={}, runs={"A": {}}, plot={}
    )
    command = ["sweep", str(sweep), "--out", str(out)]
    text = real_world.call(*command, code=1)
    assert "failed: A, seed 42 (train: exit code 1)" in text
    assert "failed: A, seed 42: train ended with exit code 1" in text
    (log,) = out.glob("runs/tiny*/train.log")
    assert "max_length" in log.read_text()
    (failed,) = out.glob("runs/tiny*/failed.json")
    assert json.loads(failed.read_text())["tail"]
    again = real_world.call(*command, code=1)
    assert "1 failed earlier (--retry-failed tries them again)" in again
    assert "0 to do" in again
    retried = real_world.call(*command, "--retry-failed", code=1)
    assert "1 to do" in retried
    assert log.read_text().count("$ ") == 2  # the log goes on
    report = real_world.call("report", str(out))
    assert "report.html" in report
    assert "1 of 2 runs failed: A" in (out / "report.html").read_text()


@pytest.mark.slow
def test_ray_gives_the_same(real_world, undisturbed, monkeypatch):
    """A local cluster of two workers, one run at a time each."""
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves the tasks
    ray = pytest.importorskip("ray", reason="Ray is optional: pip install ray")
    from ray.cluster_utils import Cluster

    out = real_world.root / "ray"
    other = real_world.sweep("other", methods={"TELL": {}}, grid={"task": ["8rows"]})
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        text = real_world.call("sweep", str(other), "--ray", cluster.address, "--out", str(out))
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert "all 2 runs are done" in text
    assert "given to Ray" in text
    for path in out.glob("runs/*/**/*.jsonl"):
        if path.name in ("answers.jsonl", "losses.jsonl"):
            assert path.read_bytes() == (undisturbed / path.relative_to(out)).read_bytes(), path
    (adapter,) = out.rglob("adapter_model.safetensors")
    assert adapter.read_bytes() == (undisturbed / adapter.relative_to(out)).read_bytes()


def test_no_ray_cluster(world, capsys):
    pytest.importorskip("ray", reason="Ray is optional: pip install ray")
    out = str(world.root / "out")
    assert _main("sweep", str(world.sweep()), "--ray", "127.0.0.1:1", "--out", out) == 1
    assert "no Ray cluster at '127.0.0.1:1'" in capsys.readouterr().err
