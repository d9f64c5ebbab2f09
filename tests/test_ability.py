"""General ability: the paper's averages, the recipes of `recipes/eval`, the second environment."""

import dataclasses
import json
import sys
import typing
from pathlib import Path

import pytest
import yaml

from tell_plugins.core.errors import MachineError
from tell_plugins.evaluation import ability
from tell_plugins.evaluation.ability import (
    PAPER,
    RECIPES,
    form_averages,
    read_scores,
    table,
)
from tests.conftest import PROJECT, message_of
from tests.tiny import make_tiny_cards, run_swift, sft, tiny_recipe

# Appendix A.5: Open-Platypus, alpaca-en
TABLE = {
    "agieval-gaokao-chinese": (69.51, 67.48),
    "agieval-gaokao-english": (89.87, 85.95),
    "agieval-gaokao-geography": (70.85, 69.85),
    "agieval-gaokao-history": (85.53, 81.7),
    "agieval-gaokao-biology": (79.52, 74.76),
    "agieval-gaokao-chemistry": (47.34, 53.62),
    "agieval-gaokao-mathqa": (29.34, 35.04),
    "agieval-logiqa-zh": (50.69, 39.17),
    "agieval-lsat-ar": (21.74, 22.17),
    "agieval-lsat-lr": (54.9, 42.55),
    "agieval-lsat-rc": (56.88, 54.28),
    "agieval-logiqa-en": (45.47, 38.71),
    "agieval-sat-math": (40, 32.73),
    "agieval-sat-en": (80.58, 72.33),
    "agieval-sat-en-without-passage": (41.75, 36.89),
    "agieval-aqua-rat": (20.08, 24.41),
    "agieval-gaokao-physics": (36.5, 32),
    "agieval-jec-qa-kd": (22.3, 20.9),
    "agieval-jec-qa-ca": (23.5, 21),
    "agieval-gaokao-mathcloze": (5.93, 4.24),
    "agieval-math": (4.3, 6.8),
    "openbookqa": (72.4, 67),
    "openbookqa_fact": (86.6, 83.4),
}


def _column(place: int) -> dict[str, float]:
    return {name: float(values[place]) for name, values in TABLE.items()}


@pytest.mark.parametrize(("place", "data"), [(0, "Open-Platypus"), (1, "alpaca-en")])
def test_averages_are_those_of_the_paper(place, data):
    averages = form_averages(_column(place))
    assert round(averages["AGIEval"]["value"], 2) == PAPER["AGIEval"][data]
    assert round(averages["OpenBookQA"]["value"], 1) == PAPER["OpenBookQA"][data]
    assert (averages["AGIEval"]["of"], averages["OpenBookQA"]["of"]) == (21, 2)


def test_a_missing_sub_score_gives_no_average():
    scores = _column(0)
    del scores["agieval-math"]
    assert form_averages(scores)["AGIEval"] == {"value": None, "found": 20, "of": 21}
    shown = table(scores, form_averages(scores))
    assert "AGIEval: 20 of 21 sub-scores, no average" in shown
    assert "79.50 Open-Platypus" in shown


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_keys_and_values_of_swift_eval(name):
    from swift.arguments import EvalArguments

    path = PROJECT / "recipes" / "eval" / f"{name}.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields = {field.name: field for field in dataclasses.fields(EvalArguments) if field.init}
    assert set(recipe) <= set(fields)
    backends = typing.get_args(typing.get_type_hints(EvalArguments)["eval_backend"])
    assert recipe["eval_backend"] in backends
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"]
    assert len(header) <= 12
    assert "./run.sh ability" in header[1]
    assert {file.stem for file in path.parent.glob("*.yaml")} == set(RECIPES)  # all are run


def _result(path: Path, *reports: object) -> Path:
    path.write_text("".join(json.dumps(report) + "\n" for report in reports))
    return path


def test_the_last_result_of_swift_eval_is_read(tmp_path):
    log = tmp_path / "log"
    log.write_text("one\ntwo\n")
    old = {"OpenCompass": {"openbookqa": {"accuracy": "1.00"}}}
    new = {
        "OpenCompass": {
            "openbookqa": {"accuracy": "67.00"},
            "openbookqa_fact": {"accuracy": 83.4},
            "agieval-math": {"score": "6.80"},
            "agieval": {"naive_average": "9.00"},
            "agieval-lsat-ar": {"accuracy": "-"},
        }
    }
    file = _result(tmp_path / "r.jsonl", old, new)
    assert read_scores(file, log) == {
        "openbookqa": 67.0,
        "openbookqa_fact": 83.4,
        "agieval-math": 6.8,
    }
    for nothing in (_result(tmp_path / "e.jsonl", {"OpenCompass": {}}), tmp_path / "absent"):
        with pytest.raises(MachineError, match="left no accuracy") as caught:
            read_scores(nothing, log)
        assert "two" in str(caught.value)


@pytest.fixture
def environment(tmp_path, monkeypatch) -> Path:
    """A place for `.venv-eval` that belongs to the test."""
    folder = tmp_path / "venv-eval"
    monkeypatch.setattr(ability, "ENVIRONMENT", folder)
    return folder


def _adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    args = {"model": "some/model", "model_type": "llama", "template": "chatml", "system": None}
    args |= {"torch_dtype": "bfloat16", "external_plugins": ["tell_plugins/register.py"]}
    (folder / "args.json").write_text(json.dumps(args))
    return folder


def test_without_the_second_environment_its_set_up_is_named(environment, tmp_path, cli):
    adapter = _adapter(tmp_path / "checkpoint-5")
    assert "is missing" in cli(1, "ability", adapter)
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text("")
    (environment / "requirements.installed").write_text("older\n")
    shown = cli(1, "ability", adapter)
    assert "is outdated" in shown
    assert "--setup" in shown


def test_wrong_options_are_said(tmp_path, cli):
    assert "no adapter" in cli(1, "ability", tmp_path)
    url = ["ability", _adapter(tmp_path / "checkpoint-5"), "--url", "http://127.0.0.1:1/v1"]
    assert "--model-name" in cli(1, *url)
    assert "decides itself" in cli(1, *url, "--model-name", "m", "--base")


def test_what_is_served(tmp_path):
    """The adapter; its base model as the adapter was trained; a whole model as the one it is."""
    folder = _adapter(tmp_path / "checkpoint-5")
    named = ["--served_model_name", "five"]
    assert ability.deploy_arguments(folder, "five", base=False) == [
        *("--adapters", str(folder)),
        *named,
    ]
    flags = ability.deploy_arguments(folder, "base", base=True)
    assert "--adapters" not in flags
    pairs = dict(zip(flags[::2], flags[1::2], strict=True))
    assert (pairs["--model"], pairs["--template"]) == ("some/model", "chatml")
    assert pairs["--external_plugins"] == "tell_plugins/register.py"
    assert "--system" not in pairs
    (folder / "args.json").unlink()
    assert "no args.json" in message_of(ability.deploy_arguments, folder, "base", base=True)
    (folder / "adapter_config.json").rename(folder / "config.json")
    (folder / "model.safetensors").touch()
    whole = ability.deploy_arguments(folder, "five", base=False)
    assert whole == ["--model", str(folder), *named]


def test_a_server_that_dies_at_once_says_why(tmp_path, monkeypatch):
    dies = [sys.executable, "-c", "print('unknown flag --x'); raise SystemExit(3)"]
    monkeypatch.setattr(ability.swift_cli, "command", lambda *arguments: dies)
    with pytest.raises(MachineError, match="did not come up") as caught:
        with ability.served([], [], tmp_path):
            pass
    assert "unknown flag --x" in str(caught.value)


# stands for `python -m swift.cli.main eval RECIPE ...`: asks the server, leaves what it leaves
STUB = """#!{python}
import json, pathlib, sys
import requests
recipe, flags = sys.argv[4], dict(zip(sys.argv[5::2], sys.argv[6::2]))
url, name = flags["--eval_url"], flags["--model"]
assert sys.argv[1:4] == ["-m", "swift.cli.main", "eval"], sys.argv
body = {{"model": name, "messages": [{{"role": "user", "content": "2 + 2 = ?"}}], "max_tokens": 2}}
reply = requests.post(url + "/chat/completions", json=body).json()
scores = {{"openbookqa": {{"accuracy": "40.00"}}, "openbookqa_fact": {{"accuracy": "60.00"}}}}
if "agieval" in recipe:
    scores = {{"agieval-math": {{"accuracy": str(reply["usage"]["prompt_tokens"])}}}}
folder = pathlib.Path("result") / name
folder.mkdir(parents=True, exist_ok=True)
with (folder / "eval_result.jsonl").open("a") as file:
    file.write(json.dumps({{"OpenCompass": scores, "limit": flags.get("--eval_limit")}}) + "\\n")
"""


@pytest.mark.slow
def test_an_adapter_is_served_without_its_anchor_and_asked_from_the_second_environment(
    environment, make_card, model, tmp_path, cli
):
    """`swift deploy` is real; what evalscope would do is a stub that asks one question."""
    make_tiny_cards(make_card)
    recipe = tiny_recipe(tmp_path / "r.yaml", model, "tell/tiny_task:general=2rows")
    run_swift(*sft(recipe))
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(STUB.format(python=sys.executable))
    python.chmod(0o755)
    (environment / "requirements.installed").write_bytes(ability.REQUIREMENTS.read_bytes())
    printed = cli(0, "ability", checkpoint, "--rows", 3, "--max_batch_size", 2)
    assert "OpenBookQA average 50.00" in printed
    assert "AGIEval: 1 of 21 sub-scores" in printed
    out = checkpoint / "ability" / checkpoint.name
    report = json.loads((out / "ability.json").read_text())
    bare = len("<|im_start|>user\n2 + 2 = ?")
    assert 0 < report["scores"]["agieval-math"] <= bare + 20  # no room for an anchor
    assert report["rows"] == 3
    limits = (out / "result" / checkpoint.name / "eval_result.jsonl").read_text().splitlines()
    assert {json.loads(line)["limit"] for line in limits} == {"3"}
    python.write_text(f"#!{sys.executable}\nimport sys\nprint('no data')\nsys.exit(3)\n")
    assert "no data" in cli(2, "ability", checkpoint)
