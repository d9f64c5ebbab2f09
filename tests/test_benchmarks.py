"""The benchmark at tiny sizes: every part runs for real and says what it should."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import gpu, parts
from benchmarks.measure import Case, by_turns, ratio, run_child
from benchmarks.parts import Target
from benchmarks.world import TASK_ROWS, World, general_texts, make_world
from tell_plugins.core.cards import load_card
from tell_plugins.core.errors import MachineError
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import parse_spec


@pytest.fixture(autouse=True)
def forked(monkeypatch) -> None:
    """Measured processes have the session's caches, not their own: so `preloaded` forks them."""
    whole = World.environment

    def environment(world: World, **folders: Path) -> dict[str, str]:
        caches = {"HF_HOME", "HF_HUB_OFFLINE", "MODELSCOPE_CACHE"}
        own = {key: text for key, text in whole(world, **folders).items() if key not in caches}
        return {**own, **{key: os.environ[key] for key in caches & os.environ.keys()}}

    monkeypatch.setattr(World, "environment", environment)


def test_the_world_is_the_same_for_everyone(tmp_path, monkeypatch):
    worlds = [make_world(tmp_path / name, [60, 200]) for name in ("a", "b")]
    for name in ("general_60.jsonl", "general_200.jsonl", "task_200.jsonl", "tokenizer.json"):
        assert (worlds[0].folder / name).read_bytes() == (worlds[1].folder / name).read_bytes()
    monkeypatch.setenv("TELL_CARDS", str(tmp_path / "a" / "cards"))
    monkeypatch.setenv("TELL_DATA_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("TELL_TOKENIZER", str(worlds[0].tokenizer))
    mixture = build_mixture(parse_spec(worlds[0].spec(200)))
    assert len(mixture) == 200 + TASK_ROWS
    assert load_card("bench_task_200").kind == "task"


def test_rows_are_as_long_as_alpacas():
    rows = list(general_texts(4000))
    assert len({row["instruction"] for row in rows}) == 4000
    words = sorted(len(row["output"].split()) for row in rows)
    assert 60 < words[2000] < 90
    assert words[400] < 35
    assert words[3600] > 170
    assert 0.3 < sum(bool(row["input"]) for row in rows) / 4000 < 0.4


def test_ratios_are_taken_round_by_round():
    """Noise that both sides of a round suffer does not show."""
    order: list[str] = []
    values = {"a": iter([2.0, 20.0, 4.0]), "b": iter([1.0, 10.0, 2.0])}

    def case(name: str) -> Case:
        def run() -> dict[str, float]:
            order.append(name)
            return {"seconds": next(values[name])}

        return Case(name, run, prepare=lambda: order.append(f"prepare {name}"))

    one, other = case("a"), case("b")
    by_turns([one, other], 3)
    assert order == ["prepare a", "a", "prepare b", "b"] * 3
    assert ratio(one, other, "seconds") == 2.0
    assert one.median("seconds") == 4.0
    met = [(1.2, 1.2, False), (1.21, 1.2, False), (0.8, 0.8, True), (0.79, 0.8, True)]
    assert [Target("x", a, b, at_least=least).is_met for a, b, least in met] == [
        *(True, False, True, False)
    ]


@pytest.mark.slow
def test_a_measured_process_that_fails_says_why(tmp_path):
    world = make_world(tmp_path, [20])
    env = world.environment(tell_cache=tmp_path / "c", swift_cache=tmp_path / "c")
    with pytest.raises(MachineError, match="unknown card 'nothing'"):
        run_child(["write", "tell/nothing", str(tmp_path / "x.jsonl")], env)


@pytest.mark.slow
def test_checking(tmp_path, capsys):
    flags = ["--quick", "--sizes", "300", "--part", "checking", "--work", str(tmp_path)]
    assert bench.main(flags) == 0
    text = capsys.readouterr().out
    assert "Checking a recipe of 300 general rows" in text
    assert "check / mix, nothing cached" in text
    assert not (tmp_path / "checking").exists()


def test_counting(tmp_path, capsys):
    out = tmp_path / "out.json"
    code = bench.main(["--quick", "--sizes", "300", "--part", "counting", "--out", str(out)])
    assert code == 0
    text = capsys.readouterr().out
    assert "fresh rows" in text
    assert "TokenCounter.lengths" in text
    assert "not judged" in text
    results = json.loads(out.read_text())
    assert results["parts"][0]["targets"][0]["value"] > 0
    assert results["machine"]["cores"] >= 1
    assert "ms-swift" in results["machine"]["packages"]


@pytest.mark.slow
def test_building_and_starting(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "_HELD_STEPS", 1)
    flags = ["--quick", "--sizes", "20", "--rounds", "1", "--work", str(tmp_path)]
    wanted = [part for name in ("mixtures", "starting", "holding") for part in ("--part", name)]
    assert bench.main([*flags, *wanted]) == 0
    text = capsys.readouterr().out
    for name in (
        "ms-swift, first time",
        "TELL, lengths cached",
        "JSON lines file",
        "general rows held by KL",
    ):
        assert name in text
    assert text.count("ms-swift, load_from_cache_file") == 1
    assert not list(tmp_path.glob("swift_*")), "caches do not stay"


def test_growth_is_that_of_the_largest_size(tmp_path, monkeypatch):
    def measured(rows: int) -> dict[str, Case]:
        cases = {name: Case(name, dict) for name in ("TELL, lengths cached", "ms-swift")}
        for factor, case in enumerate(cases.values(), start=1):
            case.samples.append({"seconds": factor * rows, "peak_mb": factor * (100 + rows)})
        return cases

    monkeypatch.setattr(parts, "_measure_load", lambda _, rows, *__, **___: measured(rows))
    part = parts.mixtures(make_world(tmp_path, [20]), [100, 200, 300], 1, cold=False)
    assert [target.value for target in part.targets] == [0.5, 0.5, 2.0]
    assert [target.is_met for target in part.targets] == [True, True, False]


@pytest.mark.slow
def test_answering(tmp_path, capsys):
    flags = ["--quick", "--part", "answers", "--prompts", "5", "--work", str(tmp_path)]
    assert bench.main([*flags, "--out", str(tmp_path / "out.json")]) == 0
    text = capsys.readouterr().out
    assert "Answering 5 prompts (made up" in text
    assert "one row at a time" in text
    (part,) = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert [row[-1] for row in part["rows"]] == ["40", "40"]  # 8 new tokens each
    speed, same = part["targets"]
    assert speed["value"] > 0
    assert same["value"] >= 0.5  # ties of a random model apart, both say the same


def test_answers_without_their_data_are_left_out_or_an_error(monkeypatch, tmp_path, capsys):
    part = parts.Part("t", ("a",), [("b",)], [Target("x", 1.0, 2.0)])
    for name in ("mixtures", "checking", "counting", "starting", "holding"):
        monkeypatch.setattr(parts, name, lambda *_, **__: part)
    flags = ["--sizes", "20", "--work", str(tmp_path)]
    assert bench.main(flags) == 0
    assert "answers are left out" in capsys.readouterr().err
    assert bench.main([*flags, "--part", "answers"]) == 1
    assert "./run.sh data halu_cot_json" in capsys.readouterr().err


def test_a_missed_target_is_exit_code_1(monkeypatch, tmp_path):
    part = parts.Part("t", ("a",), [("b",)], [Target("x", 2.0, 1.0)])
    monkeypatch.setattr(parts, "counting", lambda *_: part)
    flags = ["--part", "counting", "--sizes", "20", "--work", str(tmp_path)]
    assert bench.main(flags) == 1
    assert bench.main([*flags, "--quick"]) == 0


@pytest.mark.slow
def test_the_plan_for_a_gpu_runs_with_small_models(tmp_path, monkeypatch, capsys):
    held = "Qwen3-4B, general rows held by KL"
    monkeypatch.setattr(gpu, "CASES", {held: gpu.CASES[held]})
    assert bench.main(["--quick", "--part", "gpu", "--work", str(tmp_path)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(held)]
    assert "no GPU" in row
    assert float(row.split()[-1].replace(",", "")) > 0  # tokens a second
    assert not (tmp_path / "gpu_model").exists()
