"""`./run.sh check`: every rule, the report, exit codes, and that it is quick."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tell_plugins.core.spec import parse_spec
from tell_plugins.recipe.check_report import report, tuning_of
from tell_plugins.recipe.checked import WARNING
from tell_plugins.recipe.paper import NEUTRAL, departures
from tell_plugins.recipe.recipes import load_recipe
from tell_plugins.recipe.settings import Settings
from tell_plugins.recipe.swift_keys import installed_version, swift_keys
from tests.check_world import BASE, HELD, errors, look, texts
from tests.conftest import PROJECT, error_of, write_rows
from tests.swift_keys_once import keys

# --- a good recipe ------------------------------------------------------------------------------


def test_a_good_recipe_has_no_problems(write, tell):
    said = tell("check", write())
    assert said.splitlines()[-1] == "No problems found."
    assert "  found    no problems\n" in said
    assert "A toy." in said
    for part in ("Sources", "Training", "Row lengths", "Cost"):
        assert f"\n{part}" in said


def test_how_many_problems_there_are_is_said_first_and_last(write, tell):
    lines = tell("check", write(seed="x", strict=None, lora_rank=0), code=1).splitlines()
    assert lines[6] == "  found    2 errors, 1 warning"
    assert lines[-1] == "2 errors, 1 warning"
    assert [line[2] for line in lines if line.startswith(("  error:", "  warning:"))] == list("eew")


def test_several_recipes_end_with_how_many_are_good(write, tell):
    good, bad = str(write("good")), str(write("bad", lora_rank=0))
    assert "1 recipe" not in tell("check", good)
    last = tell("check", good, bad, "nowhere.yaml", code=1).splitlines()[-1]
    assert last == f"3 recipes: 1 good, 2 with errors: {bad}, nowhere.yaml"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("recipes/qwen_jsn.yaml", "recipes/qwen_json.yaml"),
        ("qwen_json", "recipes/qwen_json.yaml"),
    ],
)
def test_a_missing_recipe_names_the_nearest(name, meant):
    caught = error_of(load_recipe, name)
    assert caught.remedy == f"did you mean '{meant}'?"
    assert caught.allowed is None, "a list of them all would hide it"


def test_the_report_tells_sources_and_steps(write):
    checked = look(write())
    assert checked.exposure is not None
    assert (checked.plan.steps, checked.plan.warmup_steps) == (2, 1)
    text = report(checked)
    lines = text.splitlines()
    task = next(line.split() for line in lines if line.startswith("  task "))
    general = next(line.split() for line in lines if line.startswith("  general "))
    assert task[1:5] == ["toy", "train", "10", "0"]
    assert task[6:8] == ["8", "1"]
    assert general[1:5] == ["plain", "train", "40", "0"]
    assert general[6] == "24"
    assert "32 (8 of them task rows, 25.0%)" in text
    assert checked.mixture.hash in text
    assert "no estimate" not in text
    assert "tokens not counted" in text  # the test has no tokenizer
    assert "Not checked\n  rows against max_length: no tokenizer is on this machine" in text


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


def test_a_flag_is_named_as_one(write):
    found = errors(look(write(), "--seed", "x", "--lora_ran", "8"))
    assert any(text.startswith("flag --seed:") for text in found)
    assert any(text.startswith("flag --lora_ran:") for text in found)


def test_flags_win_over_the_file(write):
    checked = look(write(), "--max_steps", "5", "--dataset", "tell/toy:task=4rows/general=0")
    assert (len(checked.mixture), checked.plan.steps) == (4, 5)


# --- the dataset string -------------------------------------------------------------------------


def test_all_problems_of_a_string_are_reported(write):
    text = "tell/toi:tsk=8rows/general=24/order=evne/split=train/split=train"
    found = "\n".join(errors(look(write(dataset=[text]))))
    for says in (
        "did you mean 'task'?",
        "say the unit: 24rows or 24tok",
        "did you mean 'even'?",
        "key 'split' is given twice",
        "unknown card 'toi'",
        "did you mean 'toy'?",
    ):
        assert says in found


def test_general_rows_alone(write, make_card):
    rows = [{"q": f"plain {n}", "r": "x"} for n in range(40)]
    make_card("plain", train=[{"q": "Test question 1", "r": "x"}, *rows], kind="general")
    alone = look(write(dataset=["tell/toy:task=0/general=32rows"]))
    assert errors(alone) == []
    assert alone.entries == (0, 32)
    assert alone.plan.steps == 2
    assert alone.exposure is None
    text = report(alone)
    assert "checked against all held-out rows; general rows that hold one of their" in text
    assert "queries: 1\n" in text
    assert "32 (0 of them task rows, 0.0%)" in text
    assert "steps with a task row" not in text
    unchecked = look(write(dataset=["tell/plain:task=32rows"]))
    assert "overlap: not checked" in report(unchecked)
    (found,) = errors(look(write(dataset=["tell/toy:task=0"])))  # the card's own amount is 2x
    assert "'2x' the task rows is nothing" in found


def test_missing_files_are_all_named_and_the_rest_is_still_told(write, tell):
    path = write(dataset=["tell/halu_cot_json:task=115rows/general=4e6tok"], seed="x")
    printed = tell("check", str(path), code=1)
    for says in (
        "no file 'dev_Halu_CoT_JSON.jsonl'",
        "no file 'test_Halu_CoT_JSON.jsonl'",
        "no file 'alpaca_gpt4_data_en.jsonl'",
        "./run.sh data halu_cot_json",
        "./run.sh data alpaca_en",
        "./run.sh data llama2_tokenizer",
        "'seed' is x",
        "Other than the paper",
        "GiB a process for a row that fills max_length",
    ):
        assert says in printed


def test_steps_are_told_without_the_files_where_the_string_says_enough(write):
    rows = "tell/halu_cot_json:task=115rows/general="
    assert look(write(dataset=[rows + "0"])).plan.steps == 8  # type: ignore[union-attr]
    assert look(write(dataset=[rows + "2x"])).plan.steps == 22  # type: ignore[union-attr]
    assert look(write(dataset=[rows + "0/repeat=2"])).plan.steps == 15  # type: ignore[union-attr]
    assert look(write(dataset=[rows + "4e6tok"])).plan is None


# --- the order, and what may be lost ------------------------------------------------------------


def test_held_rows_are_no_problem_and_cost_memory(write):
    held = look(write(dataset=[HELD], loss_type="tell"))
    assert errors(held) == []
    tuning = tuning_of(held)
    assert (tuning.row_loss, tuning.held) == (True, True)
    assert not tuning_of(look(write(loss_type="tell"))).held


def test_a_broken_model_configuration_is_one_problem_of_a_whole_report(write, tmp_path):
    (tmp_path / "model").mkdir()
    config = tmp_path / "model" / "config.json"
    config.write_text('{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 0}')
    kind = {"model_type": "llama", "template": "chatml"}
    assert errors(look(write(model=str(config.parent), **kind))) == []  # another layout: not known
    config.write_text("{")
    checked = look(write(model=str(config.parent), max_length=None, **kind))
    (found,) = errors(checked)
    assert "config.json: no JSON" in found
    text = report(checked)
    for part in ("Sources", "optimizer steps", "Row lengths", "Cost", "Other than the paper"):
        assert part in text


def test_processes_change_steps_and_may_leave_rows_out(write, monkeypatch):
    monkeypatch.setenv("NPROC_PER_NODE", "3")
    path = write(gradient_accumulation_steps=None, dataset=["tell/toy:task=10rows/general=0"])
    checked = look(path)
    assert checked.plan.training.accumulation == 6  # ms-swift: 16 / 3, rounded up
    assert checked.plan.steps == 1
    lost = next(text for text in errors(checked) if "never trained on" in text)
    assert "1 row never trained on, 1 of task data: 3 processes" in lost


def test_copies_beyond_max_steps_are_no_lost_rows(write):
    """Task rows alone, repeated to another run's steps: the last round is cut."""
    dataset = ["tell/toy:task=10rows/general=0/order=even/repeat=6"]
    checked = look(write(max_steps=3, warmup_ratio=0.0, dataset=dataset))
    assert checked.exposure.unseen == 12
    assert not [text for text in errors(checked) if "never trained on" in text]
    first = ["tell/toy:task=10rows/general=0/order=even/repeat=6"]
    checked = look(write(max_steps=1, gradient_accumulation_steps=1, dataset=first))
    assert [text for text in errors(checked) if "9 rows never trained on, 9 of task data" in text]


# --- lengths ------------------------------------------------------------------------------------


@pytest.fixture
def long_rows(make_card) -> None:
    """A task whose rows of 10, 60 and 100 words stand at lines 1, 2 and 3."""
    make_card(
        "long",
        train=[{"q": f"{n} " * (n - 5), "r": "a b c d e"} for n in (10, 60, 100)],
        anchor="w " * 4,
    )
    make_card("long_plain", train=[{"q": "w " * n, "r": "x"} for n in (5, 90)], kind="general")


@pytest.mark.usefixtures("long_rows")
def test_another_tokenizers_count_is_a_warning(write, words, tmp_path, monkeypatch):
    """A Chinese row has far more tokens by Llama-2's tokenizer than by Qwen's."""
    monkeypatch.setenv("TELL_TOKENIZER", str(words(tmp_path / "llama2")))
    dataset = ["tell/long:task=3rows/general=2rows/overlap=keep/from=long_plain"]
    checked = look(
        write(model="Qwen/Qwen-7B-Chat", target_modules=["c_attn"], dataset=dataset, max_length=80)
    )
    assert errors(checked) == []
    found = [text for text in texts(checked, WARNING) if "over max_length" in text]
    assert "line 3: 104 tokens" in found[0]
    assert "1 general row of 'long_plain'" in found[1]
    assert all("the model may count otherwise" in text for text in found)


@pytest.mark.usefixtures("long_rows")
def test_the_models_own_tokenizer_decides(write, words, tmp_path, monkeypatch):
    model = words(tmp_path / "model")
    (model / "config.json").write_text('{"model_type": "mamba"}')
    path = write(
        model=str(model),
        model_type="llama",
        template="chatml",
        dataset=["tell/long:general=0/overlap=keep"],
        max_length=80,
    )
    checked = look(path)
    found = [text for text in errors(checked) if "max_length" in text]
    assert len(found) == 1
    assert "line 3: 104 tokens" in found[0]
    assert "may count otherwise" not in found[0]
    assert texts(checked, WARNING) == [
        text for text in texts(checked, WARNING) if "near max_length" not in text
    ]
    assert "(the model's own): longest 104 tokens (chat template not included)" in report(checked)
    assert errors(look(path, "--max_length", "104")) == []
    assert len(errors(look(path, "--max_length", "103"))) == 1
    (tmp_path / "system.txt").write_text("a system prompt of seven words in all")
    for system in ("a system prompt of seven words in all", str(tmp_path / "system.txt")):
        assert "longest 112 tokens" in report(look(path, "--system", system))


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


# --- the acceptance cases -----------------------------------------------------------------------


def test_the_papers_15_row_baseline_is_a_no_op(tmp_path, tell):
    dataset = "tell/halu_cot_json:task=15rows/general=0"
    printed = tell("check", "recipes/qwen_json_sft.yaml", "--dataset", dataset, code=1)
    assert "NO-OP: this run trains nothing." in printed
    assert "15 rows at 16 rows a step are 1 optimizer step, 1 of them warm-up" in printed
    assert "learning rate 0 and the adapter stays as it was initialised" in printed
    assert "./run.sh data halu_cot_json" in printed  # the rows are not here


# --- the paper ----------------------------------------------------------------------------------


def test_an_own_tasks_differences_are_listed_on_demand(write, tell):
    path = write(learning_rate=1e-3, max_grad_norm=None)
    assert "\nOther than the paper: 4 settings, which --verbose lists\n" in tell("check", path)
    said = tell("check", path, "--verbose")
    assert "max_grad_norm" in said
    assert "--verbose" not in said
    papers = tell("check", "recipes/qwen_json_sft.yaml", code=1)
    assert "Other than the paper\n  setting " in papers


def test_differences_name_the_paper_its_time_and_the_recipe(write):
    path = write(learning_rate=1e-3, target_modules=["all-linear"], max_grad_norm=None, seed=7)
    settings = Settings(load_recipe(path), keys())
    found = {d.key: d for d in departures(settings, None)}
    assert set(found) == {
        "learning_rate",
        "target_modules",
        "max_grad_norm",
        "seed",
        "split_dataset_ratio",
        "loss_type",
    }
    assert (found["loss_type"].of_its_time, found["loss_type"].recipe) == ("tell", "unset")
    held = departures(settings, parse_spec(HELD))
    assert [d.recipe for d in held if d.key == "dataset: kl"] == ["1"]
    assert (found["learning_rate"].paper, found["learning_rate"].recipe) == ("0.0001", "0.001")
    assert found["max_grad_norm"].of_its_time == "0.5"
    assert (found["max_grad_norm"].recipe, found["max_grad_norm"].given) == ("1", False)
    assert found["target_modules"].of_its_time == "q_proj, k_proj, v_proj"


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("warmup_steps", 500, ("0", "500")),
        ("max_steps", 40, ("-1", "40")),
        ("adam_beta1", 0.8, ("0.9", "0.8")),
        ("adam_epsilon", 1e-4, ("1e-08", "0.0001")),
        ("use_rslora", True, ("false", "true")),
        ("use_dora", "yes", ("false", "true")),
        ("lora_bias", "all", ("none", "all")),
        ("neftune_noise_alpha", 5, ("unset", "5")),
    ],
)
def test_settings_that_override_the_papers_are_told(write, key, value, shown):
    def told(**changes: Any) -> dict[str, tuple[str | None, str]]:
        settings = Settings(load_recipe(write(**changes)), keys())
        return {d.key: (d.of_its_time, d.recipe) for d in departures(settings, None)}

    assert told(**{key: value})[key] == shown
    neutral = {key: value for key, value in NEUTRAL.items() if value != "unset"}
    assert told(**neutral) == told()


# --- cost ---------------------------------------------------------------------------------------


def test_costs_are_estimates(write, words, tmp_path, monkeypatch):
    monkeypatch.setenv("TELL_TOKENIZER", str(words(tmp_path / "words")))
    text = report(look(write()))
    assert "GiB a process at the longest row" in text
    assert "an estimate by formula" in text


@pytest.mark.parametrize(
    "changes",
    [{"tuner_type": "full"}, {"quant_method": "bnb", "quant_bits": 4}, {"model": "quantised"}],
)
def test_what_the_formulas_are_not_for_gets_no_estimate(write, tmp_path, changes):
    sizes = dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size"), 64)
    config = sizes | {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": 99}
    folder = tmp_path / "quantised"
    folder.mkdir()
    model = {"model": str(folder)}
    (folder / "config.json").write_text(json.dumps(config))
    assert "GiB a process" in report(look(write(**model)))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    text = report(look(write(**changes | (model if "model" in changes else {}))))
    assert "no estimate: it is for LoRA on an unquantised model" in text
    assert "GiB" not in text


# --- keys ---------------------------------------------------------------------------------------


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


# --- ids ------------------------------------------------------------------------------------------


def test_the_report_names_the_rule(write, tell):
    printed = tell("check", str(write(strict=None, seed="x")), code=1)
    assert "'seed' is x [tell-value-type]" in printed
    assert "one summary line [tell-strict]" in printed
    printed = tell("check", "recipes/none.yaml", code=1)
    assert "no recipe 'recipes/none.yaml' [tell-recipe]" in printed


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


_NOT_SILENT = {"tell-positions"}  # the paper's rows go beyond Llama-2's positions, and it is said


@pytest.mark.parametrize("path", sorted((PROJECT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_packs_own_recipes_have_no_finding_of_their_own(path):
    """What lies on this machine apart: files that are fetched, packages and what is held out."""
    of_the_machine = {"tell-data-missing", "tell-test-rows-missing", "tell-no-op"}
    found = look(path).findings
    said = [f"{f.rule}: {f.problem}" for f in found if f.rule not in of_the_machine | _NOT_SILENT]
    assert said == []
    if any(f.rule in _NOT_SILENT for f in found):
        assert path.stem.startswith("llama2_is_en")
    if any(f.rule == "tell-no-op" for f in found):
        assert "_sft" in path.stem  # the paper's smallest baseline
