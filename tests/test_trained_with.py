"""What lies beside an adapter against what the recipe and the test ask for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tell_plugins.core.errors import UserError
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import parse_spec
from tell_plugins.core.state_files import only_one
from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation.adapters import Adapter, find_adapters
from tell_plugins.evaluation.answers import (
    ANSWERS,
    SETTINGS,
    Prompt,
    Settings,
    answer_all,
    read_saved,
)
from tell_plugins.evaluation.trained_with import as_trained
from tell_plugins.recipe.recipes import Recipe, checkpoints, load_recipe
from tests.chat_server import serving
from tests.conftest import Cli, change, message_of, write_rows
from tests.scripted_engine import ScriptedEngine, answer_by_script
from tests.tiny import WORDS, make_tiny_cards, tiny_recipe
from tests.tiny_adapters import saved_adapter

TRAINED = b"\0\1\0\0"  # a LoRA B matrix that is not zero


@pytest.fixture
def recipe(make_card, tmp_path) -> Path:
    make_tiny_cards(make_card)
    (tmp_path / "model").mkdir()
    return tiny_recipe(tmp_path / "r.yaml", tmp_path / "model", "tell/tiny_task:general=4rows")


@pytest.fixture
def evaluated(recipe, cli, monkeypatch) -> Cli:
    """`evaluated(code, ...)`: what `eval` of that recipe says; an engine answers every question
    with the keys that it was given."""
    keys = ("model", "template", "system")
    answer_by_script(
        monkeypatch, lambda recipe, prompt: json.dumps({key: recipe.get(key) for key in keys})
    )
    return lambda code, *flags: cli(code, "eval", recipe, "--general-rows", 0, *flags)


def trained(folder: Path, **args: Any) -> Path:
    saved_adapter(folder, TRAINED)
    (folder / "args.json").write_text(json.dumps(args))
    return folder


def answered(folder: Path) -> dict[str, Any]:
    texts = {line.text for line in read_saved(folder / "test-greedy").answers}
    assert len(texts) == 1
    found: dict[str, Any] = json.loads(texts.pop())
    return found


def test_the_adapters_own_keys_are_used_and_said(evaluated, tmp_path):
    other = tmp_path / "other_model"
    other.mkdir()
    (other / "config.json").write_text("{}")
    folder = tmp_path / "run" / "checkpoint-2"
    trained(folder, model=str(other), template="llama", system="Be brief.", model_type="llama")
    printed = evaluated(0, "--adapter", "none", folder)
    assert "checkpoint-2: trained with template 'llama', which is used here" in printed
    assert "the recipe says 'chatml'" in printed
    out = tmp_path / "run" / "eval"
    wanted = {"model": str(other), "template": "llama", "system": "Be brief."}
    assert answered(out / "checkpoint-2") == answered(out / "none") == wanted
    settings = json.loads((out / "checkpoint-2" / "test-greedy" / SETTINGS).read_text())
    assert settings["model"] == str(other)


def test_a_flag_of_the_test_wins_and_is_said(evaluated, tmp_path):
    trained(tmp_path / "run" / "checkpoint-2", template="chatml", system="Be brief.")
    said = evaluated(0, "--system", "Sing.")
    assert "trained with system 'Be brief.', tested with --system 'Sing.'" in said
    assert answered(tmp_path / "run" / "eval" / "checkpoint-2")["system"] == "Sing."


@pytest.mark.parametrize(
    ("given", "saved"),
    [
        ({}, {"template": "chatml", "system": None, "use_chat_template": True}),
        ({}, {"new_special_tokens": [], "template_backend": "swift", "quant_bits": None}),
        ({"system": "a\\nb"}, {"system": "a\nb"}),
        ({"model": "owner/Some-Model"}, {"model": "/gone/hub/owner/Some-Model"}),
        ({"model": "owner/Some-Model"}, {"model": "owner/some-model"}),
        ({"response_prefix": "<think>\\n"}, {"response_prefix": "<think>\n"}),
        ({"new_special_tokens": "<a>"}, {"new_special_tokens": ["<a>"]}),
    ],
)
def test_the_same_in_other_words_changes_nothing(given, saved, recipe, tmp_path):
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | given))
    adapter = Adapter("a", trained(tmp_path / "a", **saved))
    found = load_recipe(recipe)
    assert as_trained(found, [adapter], None) == (found, [])


def test_adapters_of_two_templates_or_a_lost_model_stop_it(evaluated, tmp_path):
    one = trained(tmp_path / "a" / "checkpoint-2", template="llama")
    two = trained(tmp_path / "b" / "checkpoint-2", template="chatml")
    said = evaluated(1, "--adapter", one, two)
    assert "checkpoint-2 was trained with template 'llama'" in said
    assert "--template VALUE" in said
    (two / "args.json").write_text(json.dumps({"model": "/gone/model"}))
    evaluated(0, "--adapter", two)  # the recipe's is there
    (tmp_path / "model").rmdir()
    said = evaluated(1, "--adapter", two)
    assert "'/gone/model', which is gone, and so is the recipe's" in said


def test_template_and_type_that_the_recipe_leaves_open_are_compared_with_ms_swifts(
    recipe, tmp_path
):
    found = load_recipe(recipe).with_values(template=None, model_type=None)
    adapter = Adapter("a", trained(tmp_path / "a", model_type="llama", template="llama3"))
    now, notes = as_trained(found, [adapter], lambda values: {"template": "llama3"})
    assert (now.get("template"), now.get("model_type"), len(notes)) == (None, "llama", 1)


def test_rows_asked_that_were_trained_on(evaluated, tmp_path):
    """On purpose for the training split; for a test split it would be a score that is none."""
    spec = parse_spec("tell/tiny_task:task=4rows/general=4rows")
    folder = trained(tmp_path / "run" / "checkpoint-2")
    (folder / "manifest.json").write_text(json.dumps(manifest_of(build_mixture(spec))))
    assert "4 of the 6 rows asked are among the rows" in evaluated(0, "--split", "train")
    assert "rows asked are among" not in evaluated(0)
    rows = [{"q": f"The {word} jumps over the dog.", "r": '{"label": "yes"}'} for word in WORDS]
    write_rows(tmp_path / "cards" / "tiny_task" / "test.jsonl", rows)
    said = evaluated(1, "--out", tmp_path / "again")
    assert "4 of the 6 rows asked are among the rows" in said


def test_the_newest_run_is_told_by_its_name_not_by_its_folders_time(tmp_path):
    names = [
        "v1-20261101-130000/checkpoint-4",
        "v1-20261101-130000/checkpoint-12",
        "v2-20261030-090000/checkpoint-3",
        "v10-20261102-080000/checkpoint-1",
    ]
    for age, name in enumerate(reversed(names)):
        saved_adapter(tmp_path / name, TRAINED)
        saved_adapter(tmp_path / f"{name}-merged", TRAINED)
        os.utime((tmp_path / name).parent, (age * 1000, age * 1000))
    saved_adapter(tmp_path / "checkpoint-99", TRAINED)  # add_version: false
    found = [str(path.relative_to(tmp_path)) for path in checkpoints(tmp_path)]
    assert found == ["checkpoint-99", *names]


def test_a_checkpoint_of_full_tuning_is_a_model(recipe, tmp_path):
    folder = tmp_path / "run" / "v0-20261101-120000" / "checkpoint-2"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (tmp_path / "run" / "v0-20261101-120000" / "checkpoint-3").mkdir()  # half written
    (folder / "model.safetensors.index.json").write_text("{}")
    for named in ([], [str(tmp_path / "run")], [str(folder)]):
        (adapter,) = find_adapters(named, load_recipe(recipe))
        assert adapter.path == folder
        assert adapter.whole
    before = adapter.weights_sha256
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"weights")
    assert adapter.weights_sha256 != before
    with pytest.raises(UserError, match="a model's folder, or none"):
        find_adapters([str(tmp_path)], load_recipe(recipe))


def test_a_recipe_against_its_baseline(evaluated, tmp_path, monkeypatch):
    answer_by_script(monkeypatch, lambda recipe, prompt: '{"label": "yes"}')
    against = ["--general-rows", 2, "--against"]
    assert "no recipe 'r_sft.yaml'" in evaluated(1, *against, "sft")
    baseline = tiny_recipe(
        tmp_path / "r_sft.yaml",
        tmp_path / "model",
        "tell/tiny_task:general=0",
        output_dir=str(tmp_path / "run_sft"),
    )
    assert "did you mean 'sft'?" in evaluated(1, *against, "sfd")
    spec = {"spec": "tell/tiny_task:general=4rows"}
    own = trained(tmp_path / "run" / "v0-20261101-120000" / "checkpoint-3")
    (own / "manifest.json").write_text(json.dumps(spec))
    assert f"./run.sh train {baseline}" in evaluated(1, *against, "sft")
    theirs = trained(tmp_path / "run_sft" / "v0-20261101-120000" / "checkpoint-2")
    (theirs / "manifest.json").write_text(json.dumps({"spec": "tell/tiny_task:general=0"}))
    printed = evaluated(0, *against, "sft")
    tables = printed.partition("difference to")[0]  # they name systems as the sentences do
    assert all(name in tables for name in ("base", "TELL, seed 42", "SFT, seed 42"))
    assert "v0-20261101-120000" not in tables
    assert "difference to SFT, seed 42, in percentage points" in printed
    assert "TELL, seed 42 is not told apart from SFT, seed 42: adherence, " in printed
    folders = {path.parent.name for path in (tmp_path / "run" / "eval").glob("*/test-greedy")}
    label = "v0-20261101-120000--checkpoint"
    assert folders == {"none", f"{label}-3", f"run_sft--{label}-2"}
    for name, loss in ((f"{label}-3", 1.0), (f"run_sft--{label}-2", 3.0)):  # nats a token
        file = (
            tmp_path / "run" / "eval" / name / "general" / elsewhere.FILES[elsewhere.INSTRUCTIONS]
        )
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [line | {"loss_sum": loss * line["tokens"]} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    printed = evaluated(0, *against, "sft")
    better = "TELL, seed 42 is better than SFT, seed 42: loss on foreign instructions (-2.00 ["
    assert better in " ".join(printed.split())
    printed = " ".join(evaluated(0, *against, "sft", "--scales", "0.5,1").split())
    for name in (f"{label}-3", f"{label}-3-scale0.5"):  # the baseline stays as it is
        assert f"{name} is not told apart from SFT, seed 42: adherence, " in printed
    assert not (tmp_path / "run" / "eval" / f"run_sft--{label}-2-scale0.5").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scales", "x"], "'x' is no scale"),
        (["--scales", "0.5,-1"], "'-1' is no scale"),
        (["--scales", "0.5", "--engine", "http://127.0.0.1:9/v1"], "adapters as they are"),
        (["--scales", "0.5"], "not LoRA matrices alone"),
    ],
)
def test_scales_that_cannot_be(flags, message, evaluated, tmp_path):
    folder = trained(tmp_path / "run" / "checkpoint-2")
    (folder / "adapter_config.json").write_text('{"modules_to_save": ["lm_head"]}')
    assert message in evaluated(1, *flags)


_HOLDS = """
import sys, time
from pathlib import Path
from tell_plugins.core.state_files import only_one
with only_one(Path(sys.argv[1]), "eval"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_eval_into_one_folder_is_told_who_is_there(evaluated, tmp_path):
    out, pipe = tmp_path / "out", subprocess.PIPE
    call, holds = ["--adapter", "none", "--out", out], [sys.executable, "-c", _HOLDS, str(out)]
    with subprocess.Popen(holds, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        said = evaluated(1, *call)
        assert f"another eval works in this folder (process {other.pid} on " in said
        assert not (out / "none").exists()
        other.kill()
    evaluated(0, *call)  # a dead one holds nothing
    with only_one(out, "eval"), pytest.raises(UserError, match="another eval works"):
        with only_one(out, "eval"):
            pass


# --- answers of another system prompt, template or adapter never pass as new ones -----------------


@pytest.mark.parametrize("values", [{"system": "Be brief."}, {"model_kwargs": {"a": 1}}])
def test_answers_of_another_system_prompt_or_template_are_not_scored_as_new(
    values, evaluated, recipe, tmp_path
):
    call = ["--adapter", "none", "--general-rows", 2, "--retention-rows", 3, "--out"]
    evaluated(0, *call, tmp_path / "eval")
    before = answered(tmp_path / "eval" / "none")
    change(recipe, learning_rate=0.5, output_dir="elsewhere", device_map="cpu")
    recipe.write_text(recipe.read_text() + "system:\n")
    evaluated(0, *call, tmp_path / "eval")  # none of which changes an answer
    change(recipe, **values)
    said = evaluated(1, *call, tmp_path / "eval")
    assert "the recipe's model keys (system, template and the like) have changed since" in said
    assert "test-greedy" in said
    assert answered(tmp_path / "eval" / "none") == before
    evaluated(0, *call, tmp_path / "other")


def test_what_lies_in_the_folders_is_told_by_content(evaluated, tmp_path):
    """An adapter trained again into the same folder, weights and tokenizer of the model, and the
    scale of an adapter, under unchanged names. What an earlier release did not save is unknown and
    not compared."""
    folder, model = saved_adapter(tmp_path / "run" / "checkpoint-2", TRAINED), tmp_path / "model"
    (model / "model.safetensors").write_bytes(b"one")
    for _ in range(2):  # where nothing changed, all is there
        evaluated(0)
    for file, said in (
        (model / "model.safetensors", "the model's weights, tokenizer or settings have changed"),
        (model / "tokenizer.json", "the model's weights, tokenizer or settings have changed"),
        (folder / "adapter_config.json", "the adapter's settings have changed"),
    ):
        before = file.read_bytes() if file.is_file() else None
        file.write_text('{"lora_alpha": 2}')
        assert said in evaluated(1)
        file.unlink() if before is None else file.write_bytes(before)
    (model / "README.md").write_text("no answer depends on it")
    evaluated(0)
    saved_adapter(folder, b"\0\2\0\0")
    assert "the adapter's weights have changed since" in evaluated(1)
    file = tmp_path / "run" / "eval" / "checkpoint-2" / "test-greedy" / SETTINGS
    settings = json.loads(file.read_text())
    assert len(settings.pop("model_sha256")) == len(settings.pop("adapter_sha256")) == 64
    assert settings.pop("shots") == 0
    file.write_text(json.dumps(settings))
    evaluated(0)
    file.write_text("{")
    assert "no JSON" in evaluated(1)


def test_losses_on_other_held_out_responses_are_not_taken_for_these(evaluated, make_card, tmp_path):
    def general(response: str) -> None:
        rows = [{"q": f"Write about {n}.", "r": f"{response} {n}"} for n in range(20)]
        make_card("plain", train=rows, kind="general")

    call = ["--adapter", "none", "--general-rows", 4, "--retention-rows", 3]
    general("one")
    evaluated(0, *call)
    general("two")
    assert "have changed since" in evaluated(1, *call)

    def taken(pairs: list[tuple[str, str]]) -> list[tuple[float, int]]:
        path = tmp_path / "losses" / elsewhere.LOSSES
        elsewhere.measure(pairs, _scripted().response_losses, path, label="test")
        return elsewhere.read_sums(path.parent)

    assert taken([("q", "one"), ("r", "two")]) == [(3.0, 3), (3.0, 3)]
    assert taken([("q", "one"), ("r", "longer")]) == [(3.0, 3), (6.0, 6)]


def _scripted() -> ScriptedEngine:
    return ScriptedEngine(Recipe(Path("r.yaml"), {"model": "m"}), lambda recipe, prompt: "x")


def test_two_systems_of_one_served_model_are_refused_before_any_answer(recipe, tmp_path, cli):
    folder = saved_adapter(tmp_path / "run" / "checkpoint-2", TRAINED)
    with serving(models=("only",)) as server:
        call = ["--adapter", "none", folder, "--engine", server.url, "--general-rows", 0]
        said = cli(1, "eval", recipe, *call)
    assert "'none' and 'checkpoint-2' would both be answered" in said
    assert server.requests == []


@pytest.mark.parametrize(
    ("split", "longest", "remedy", "limit"),
    [
        ("general", 83, "remedy:  a model with a longer context", None),
        ("test", 87, "--max-new-tokens 3, or a model", 3),
        ("test", 90, "remedy:  a model with a longer context", None),
    ],
)
def test_a_prompt_too_long_for_the_model_is_found_before_any_answer(
    split, longest, remedy, limit, tmp_path
):
    """A context of 90 tokens, and answers of up to 8."""
    engine = _scripted()
    engine.context = 90
    prompts = [Prompt(f"id-{row}", row, "x" * size) for row, size in enumerate((10, longest, 30))]
    settings = Settings(card="c", split=split, anchor="none", rows=3, batch_size=2)

    def answered(limit: int) -> Path:
        more = settings.model_copy(update={"max_new_tokens": limit})
        return answer_all(engine, prompts, more, tmp_path / str(limit), label="test")

    said = message_of(answered, 8)
    assert f"{longest} prompt tokens, which leaves {90 - longest}" in said
    assert remedy in said
    assert not (tmp_path / "8" / ANSWERS).exists()
    assert limit is None or len(answered(limit).read_text().splitlines()) == 3
