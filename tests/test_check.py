"""`./run.sh check`: whole reports, exit codes, what is good, and how ms-swift is asked."""

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tell_plugins.cli import main
from tell_plugins.core.errors import MachineError
from tell_plugins.recipe import mixture_rules, recipes
from tell_plugins.recipe.check_report import report
from tell_plugins.recipe.checked import PARTS, WARNING
from tell_plugins.recipe.paper import NEUTRAL
from tell_plugins.recipe.recipes import load_recipe
from tell_plugins.recipe.swift_keys import installed_version, swift_keys
from tests.check_world import BASE, HELD, errors, look, texts
from tests.conftest import PROJECT, error_of, write_rows
from tests.golden_texts import assert_golden
from tests.swift_keys_once import keys

# --- whole reports --------------------------------------------------------------------------------

HALU = "tell/halu_cot_json:task=115rows/general="  # its files are not here
LONG = "tell/long:task=3rows/general=2rows/overlap=keep/from=long_plain"
WORDS_MODEL = {"model": "{}/model", "model_type": "llama", "template": "chatml", "max_length": 80}
OVERRIDING = {  # what of ms-swift overrides or changes the paper's settings
    **{"warmup_steps": 500, "max_steps": 40, "adam_beta1": 0.8, "adam_epsilon": 1e-4},
    **{"use_rslora": True, "use_dora": "yes", "lora_bias": "all", "neftune_noise_alpha": 5},
}
OTHERWISE = {"target_modules": ["all-linear"], "learning_rate": 1e-3, "max_grad_norm": None}
# what is changed of a good recipe, `processes` in the environment; and the flags
REPORTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "good": ({}, []),
    "three_problems": ({"seed": "x", "strict": None, "lora_rank": 0}, []),
    "flags": ({}, ["--max_steps", "5", "--dataset", "tell/toy:task=4rows/general=0"]),
    "wrong_flags": ({}, ["--seed", "x", "--lora_ran", "8"]),
    "wrong_string": (
        {"dataset": ["tell/toy:tsk=8rows/general=24/order=evne/split=train/split=train"]},
        [],
    ),
    "general_rows_alone": ({"dataset": ["tell/toy:task=0/general=32rows/from=leaky"]}, []),
    "times_no_rows": ({"dataset": ["tell/toy:task=0"]}, []),
    "general_card": ({"dataset": ["tell/plain:task=32rows"]}, []),
    "held": ({"dataset": [HELD], "loss_type": "tell"}, []),
    "no_files": ({"dataset": [HALU.replace("115rows", "1e4tok") + "4e6tok"], "seed": "x"}, []),
    "by_the_string": ({"dataset": [HALU + "2x/repeat=2"]}, []),
    "no_op": ({"dataset": ["tell/toy:task=8rows/general=0"]}, []),
    "three_processes": (
        {
            "processes": "3",
            "gradient_accumulation_steps": None,
            "dataset": ["tell/toy:task=10rows/general=0"],
        },
        [],
    ),
    "broken_model": (
        {"model": "{}/broken", "model_type": "llama", "template": "chatml", "max_length": None},
        [],
    ),
    "own_tokenizer": ({**WORDS_MODEL, "dataset": [LONG]}, []),
    "system_prompt": ({**WORDS_MODEL, "dataset": [LONG]}, ["--system", "{}/system.txt"]),
    "another_tokenizer": ({"dataset": [LONG], "max_length": 80, "tokenizer": True}, []),
    "full_tuning": ({"tuner_type": "full", "learning_rate": 1e-3, "max_grad_norm": None}, []),
    "otherwise": ({**OTHERWISE, "seed": 7, "dataset": [HELD], "loss_type": "tell"}, ["verbose"]),
    "overriding": (OVERRIDING, ["verbose"]),
    "neutral": ({k: value for k, value in NEUTRAL.items() if value != "unset"}, ["verbose"]),
    "quantised": ({"quant_method": "bnb", "quant_bits": 4}, []),
    "quantised_model": ({**WORDS_MODEL, "model": "{}/quantised"}, []),
}


@pytest.fixture
def beside(make_card, words, tmp_path, monkeypatch) -> Path:
    """Cards and models beside the good recipe's, and a tokenizer that counts words."""
    plain = [{"q": f"plain {n}", "r": "x"} for n in range(40)]
    make_card("leaky", train=[{"q": "Test question 1", "r": "x"}, *plain], kind="general")
    long = [{"q": f"{n} " * (n - 5), "r": "a b c d e"} for n in (10, 60, 100)]  # words of each row
    make_card("long", train=long, anchor="w " * 4)
    make_card("long_plain", train=[{"q": "w " * n, "r": "x"} for n in (5, 90)], kind="general")
    (words(tmp_path / "model") / "config.json").write_text('{"model_type": "mamba"}')
    sizes = dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size"), 64)
    config = sizes | {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 99}
    quantised = json.dumps(config | {"quantization_config": {"bits": 4}})
    for name, text in (("broken", "{"), ("quantised", quantised)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    (tmp_path / "system.txt").write_text("a system prompt of seven words in all")
    return tmp_path


@pytest.mark.parametrize("name", REPORTS)
def test_the_report(name, write, beside, words, monkeypatch):
    changes, flags = REPORTS[name]
    changes = {key: _placed(value, beside) for key, value in changes.items()}
    monkeypatch.setenv("NPROC_PER_NODE", changes.pop("processes", ""))
    if changes.pop("tokenizer", False):
        monkeypatch.setenv("TELL_TOKENIZER", str(words(beside / "llama2")))
    verbose = flags == ["verbose"]
    checked = look(write(**changes), *(_placed(flag, beside) for flag in flags if not verbose))
    assert_golden(f"check/{name}.txt", report(checked, verbose) + "\n", beside)


def _placed(value: Any, folder: Path) -> Any:
    return value.replace("{}", str(folder)) if isinstance(value, str) else value


def test_several_recipes_end_with_how_many_are_good(write, tell):
    good, bad = str(write("good")), str(write("bad", lora_rank=0))
    assert "1 recipe" not in tell("check", good)
    assert "weight_decay" in tell("check", write("other", weight_decay=0.5), "--verbose")
    last = tell("check", good, bad, "nowhere.yaml", code=1).splitlines()[-1]
    assert last == f"3 recipes: 1 good, 2 with errors: {bad}, nowhere.yaml"
    assert "no recipe 'nowhere.yaml' [tell-recipe]" in tell("check", "nowhere.yaml", code=1)


@pytest.mark.parametrize("name", ["recipes/qwen_jsn.yaml", "qwen_json"])
def test_a_missing_recipe_names_the_nearest(name):
    assert error_of(load_recipe, name).remedy == "did you mean 'recipes/qwen_json.yaml'?"


# --- keys and values ----------------------------------------------------------------------------


def test_a_key_of_a_later_release_is_told_apart(write):
    checked = look(write(text="ENV: {A: b}\n"))
    if keys().takes_yaml_first:
        assert errors(checked) == []
    else:
        assert "set these variables in the shell" in errors(checked)[0]


@pytest.mark.parametrize(
    "line",
    [
        *('adam_epsilon: "1e-8"', "adam_epsilon: 1e-8", "adam_epsilon: 1e-9", "use_cpu: yes"),
        *('use_cpu: "true"', 'save_strategy: "no"', "deepspeed: zero2", "lr_scheduler_kwargs: {}"),
        *("report_to: tensorboard", "run_name: 12"),
    ],
)
def test_values_that_ms_swift_reads_well(write, line):
    assert errors(look(write(text=f"{line}\n"))) == []


@pytest.mark.parametrize("name", ["2024-02-31", "007", "0123456", "2024_10_01", "1.10", "0x1F"])
def test_a_name_that_looks_like_a_number_stays_as_it_is(write, name):
    recipe = load_recipe(write(run_name=None, output_dir=None, text=f"run_name: {name}\n"))
    assert recipe.argv()[-2:] == ["--run_name", name]
    assert load_recipe(write(output_dir=None, text=f"output_dir: {name}\n")).output_dir == Path(
        name
    )
    other = recipe.with_values(run_name="other")
    assert other.argv()[-2:] == ["--run_name", "other"]


def test_copies_beyond_max_steps_are_no_lost_rows(write):
    """Task rows alone, repeated to another run's steps: the last round is cut."""
    dataset = ["tell/toy:task=10rows/general=0/order=even/repeat=6"]
    checked = look(write(max_steps=3, warmup_ratio=0.0, dataset=dataset))
    assert checked.exposure.unseen == 12
    assert not [text for text in errors(checked) if "never trained on" in text]
    checked = look(write(max_steps=1, gradient_accumulation_steps=1, dataset=dataset))
    assert [text for text in errors(checked) if "9 rows never trained on, 9 of task data" in text]


def test_the_12_documents_that_2048_tokens_would_lose(real_home, tmp_path):
    write_rows(
        real_home / "alpaca_gpt4_data_en.jsonl",
        [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}."} for n in range(2840)],
    )
    for name in ("llama2_en_is", "gemma_en_is"):  # by Llama-2 tokens
        checked = look(PROJECT / "recipes" / f"{name}.yaml", "--max_length", "2048")
        (found,) = [text for text in texts(checked, WARNING) if "over max_length" in text]
        assert "12 task rows" in found
        assert "dev-en-is.jsonl" in found
        for line, tokens in {2: "2,231", 15: "3,418", 27: "2,111", 58: "2,239"}.items():
            assert f"line {line}: {tokens} tokens" in found
    assert errors(look(PROJECT / "recipes" / "gemma_en_is.yaml")) == []
    assert errors(look(PROJECT / "recipes" / "llama2_en_is.yaml")) == []


@pytest.mark.slow
def test_another_ms_swift_is_asked_once(tmp_path, monkeypatch, capfd):
    version, asked = installed_version(), "asking ms-swift which settings it knows"
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # where another one was asked
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == "ms-swift" else "0"
    )
    before = swift_keys()
    assert asked in capfd.readouterr().err
    (file,) = (tmp_path / "cache" / "swift_keys").glob(f"{version}-*.json")
    assert before.keys == json.loads(file.read_text())["keys"] == keys().keys
    assert swift_keys() == before
    assert asked not in capfd.readouterr().err


# --- each situation has its finding ---------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": ["tell/toy:task=8rows/general=0"], "gradient_accumulation_steps": 2},  # SFT
        {"model": "{}/gemma"},
        {"model": "{}/llama", "model_type": "llama", "template": "chatml"},
        {"model": "{}/qwen2", "model_type": "qwen2", "template": "qwen2_5"},
        {"model": "Qwen/Qwen2.5-0.5B-Instruct", "use_cpu": True},
        {"model": "somebody/a-model-of-2030", "target_modules": ["c_attn"], "template": "chatml"},
        {"model_type": "mine", "external_plugins": ["tell_plugins/register.py", "mine.py"]},
        {"system": "It costs $US 5."},
    ],
)
def test_what_is_good_or_not_known_has_no_finding(write, situations, changes):
    model = str(changes.get("model", BASE["model"])).replace("{}", str(situations))
    assert look(write(**{**changes, "model": model})).findings == []


@pytest.mark.parametrize("path", sorted((PROJECT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_packs_own_recipes_have_no_finding_of_their_own(path):
    """What lies on this machine apart: files that are fetched, packages and what is held out."""
    known = {"tell-data-missing", "tell-test-rows-missing"}
    if path.stem.startswith("llama2_is_en"):
        known.add("tell-positions")  # the paper's rows go beyond Llama-2's, and it is said
    if "_sft" in path.stem:
        known.add("tell-no-op")  # the paper's smallest baseline
    assert [f"{f.rule}: {f}" for f in look(path).findings if f.rule not in known] == []


# --- for programs

SCHEMA = json.loads((PROJECT / "tell_plugins" / "recipe" / "check.schema.json").read_text())


Said = Callable[..., tuple[int, Any]]


@pytest.fixture
def said(capsys) -> Said:
    """The exit code and the whole standard output of `check --json`, which must fit the schema."""

    def run(*arguments: str | Path) -> tuple[int, Any]:
        code = main(["check", "--json", *map(str, arguments)])
        found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        jsonschema.validate(found, SCHEMA, jsonschema.Draft202012Validator)
        return code, found

    return run


def parts_of(found: dict[str, Any]) -> set[str]:
    reasons = {each["part"]: each["why"] for each in found["not_checked"]}
    assert all(reasons.values())
    assert {*found["ran"], *reasons} == set(PARTS)
    assert len(found["ran"]) + len(reasons) == len(PARTS)
    return set(reasons)


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [("good", {}, 0), ("warning", {"strict": None}, 0), ("problems", {"seed": "x"}, 1)],
)
def test_the_whole_object(name, changes, code, write, said, tmp_path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    ran = SCHEMA["$defs"]["recipe"]["properties"]["ran"]
    assert tuple(ran["items"]["enum"]) == PARTS
    given, found = said(write(**changes))
    assert given == code
    assert_golden(f"check/{name}.json", json.dumps(found, indent=2) + "\n", tmp_path)


def test_with_the_models_tokenizer_everything_is_looked_at(write, words, tmp_path, said):
    model = words(tmp_path / "model")
    (model / "config.json").write_text("{}")
    path = write(model=str(model), model_type="llama", template="chatml", target_modules=None)
    code, found = said(path)
    assert (code, found["findings"]) == (0, [])
    assert parts_of(found) == set()
    code, found = said(path, "--max_length", "3")
    assert code == 1
    assert {each["id"] for each in found["findings"]} == {"tell-row-long", "tell-general-long"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"dataset": ["tell/toy:tsk=1rows"]}, {"data", "schedule"}),
        ({"dataset": ["tell/halu_cot_json:task=1e4tok/general=4e6tok"]}, {"data", "schedule"}),
        ({"dataset": ["tell/halu_cot_json:task=115rows/general=0"]}, {"data"}),
        ({"dataset": ["tell/toy:task=99rows"]}, {"data"}),
        ({"dataset": ["tell/plain:task=32rows"]}, {"held_out_rows"}),
        ({"dataset": ["tell/half:general=24rows/overlap=keep"]}, {"held_out_rows"}),
        ({"dataset": ["tell/toy:task=0/general=24rows"]}, set()),
        ({"dataset": [HELD], "loss_type": "tell"}, set()),
        ({"lr_scheduler_type": "polynomial"}, {"schedule"}),
        ({"learning_rate": float("inf")}, {"schedule"}),
        ({"max_length": "x"}, set()),
    ],
)
def test_what_was_not_checked_says_why(write, make_card, said, changes, parts):
    folder = make_card("half", train=[{"q": f"q {n}", "r": "a"} for n in range(9)], test=[])
    (folder / "test.jsonl").unlink()
    _, found = said(write(**changes))
    without = {"control_tokens", "lengths"}  # the test has no tokenizer
    unread = {"held_out_rows"} if "data" in parts else set()
    assert parts_of(found) == parts | without | unread
    assert (found["sources"] is None) == ("data" in parts)
    assert (found["steps"] is None) == ("schedule" in parts)


def test_several_recipes_are_a_list(write, said):
    code, found = said(str(write("good")), str(write("bad", seed="x")), "nowhere.yaml")
    assert code == 1
    names = [each["recipe"].rpartition("/")[2] for each in found if each["findings"]]
    assert (len(found), names) == (3, ["bad.yaml", "nowhere.yaml"])
    assert found[2]["findings"][0]["id"] == "tell-recipe"
    assert parts_of(found[2]) == set(PARTS)


def test_what_cannot_be_judged_is_exit_code_2(write, monkeypatch, said):
    def fail(*_: object) -> None:
        raise MachineError("ms-swift could not tell which settings it knows")

    good = str(write())
    with monkeypatch.context() as patched:
        patched.setattr(recipes, "swift_keys", fail)
        code, found = said(good)
        assert (code, found["findings"], found["ran"]) == (2, [], [])
        assert "could not tell which settings it knows" in found["not_checked"][0]["why"]
        code, found = said("nowhere.yaml", good)
        assert (code, found[0]["findings"][0]["id"]) == (2, "tell-recipe")
    monkeypatch.setattr(mixture_rules, "build_mixture", fail)
    assert said(good)[0] == 2
