"""Every recipe: its form, its keys, the paper's values, its mixture, and a run on a small model."""

import json
import math
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tell_plugins.core.cards import card_names, load_card
from tell_plugins.core.manifest import manifest_of
from tell_plugins.core.mixture import build_mixture
from tell_plugins.core.spec import ALL
from tell_plugins.recipe.check import inspect
from tell_plugins.recipe.models import GIB, memory, shape_of
from tell_plugins.recipe.paper import FIXED, OF_ITS_TIME, departures
from tell_plugins.recipe.recipes import load_recipe
from tell_plugins.recipe.schedule import plan, training_of
from tests.conftest import PROJECT, in_preloaded_process
from tests.golden_texts import assert_golden
from tests.recipe_world import (
    EMBEDDED,
    PAPER,
    RECIPES,
    TODAYS,
    architecture,
    environment,
    logged,
    make_data,
    make_model,
    only_run,
    scaled,
    small_copy,
)
from tests.tiny import run_swift, sft

OWN_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CARD_GIB = 24
# the longest document with its chat template: tokens, and those of its answer (is_en: at most)
LONGEST = {"en_is": (3563, 2356), "is_en": (6320, 2300)}


def every(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


# --- what there is -------------------------------------------------------------------------------


def test_what_each_recipe_trains(tmp_path):
    recipes = map(load_recipe, [*PAPER, *EMBEDDED])
    lines = [f"{one.name}: {one.text('model')} on {one.dataset_text}\n" for one in recipes]
    assert_golden("recipes.txt", "".join(lines), tmp_path)


# --- form ----------------------------------------------------------------------------------------


@every(RECIPES)
def test_header_and_banners_have_their_fixed_order(path):
    lines = path.read_text().splitlines()
    header = lines[: lines.index("")]
    assert len(header) <= 12
    assert all(line.startswith("# ") and len(line) <= 100 for line in header)
    marks = [match[1] for line in header if (match := re.match(r"# (\w+): ", line))]
    assert marks == ["Launch", "Needs", "First", "Result", "Differs"]
    assert not header[0].startswith("# Launch")
    assert f"recipes/{path.name}" in header[1]
    text = " ".join(line[2:].strip() for line in header)
    assert "estimate" in text or "measured" in text  # "not measured" too
    assert "rows that weigh the same" in text
    for name in re.findall(r"\./run\.sh data (\w+)", text):
        assert name in card_names() or name == "llama2_tokenizer"
    banners = re.findall(r"^# --- (\w+) -+$", path.read_text(), re.M)
    assert banners == ["model", "dataset", "training", "output"]


@every(RECIPES)
def test_the_header_says_what_a_user_must_fetch(path):
    recipe = load_recipe(path)
    card = load_card(recipe.spec.card)
    header = path.read_text().split("\n\n")[0]
    for name in (card.name, *recipe.spec.general_of(card)[1]):
        files = [load_card(name).folder / s.file for s in load_card(name).splits.values()]
        if not all(file.is_file() for file in files):
            told = name if name != "halu_cot_json_spans" else "halu_cot_json --rebuild"
            assert f"./run.sh data {told}" in header.replace("\n#          ", " ")


@every(RECIPES)
def test_the_name_decides_model_and_output(path):
    recipe = load_recipe(path)
    assert recipe.values["output_dir"] == f"output/{path.stem}"
    same = [other for other in RECIPES if architecture(other) == architecture(path)]
    assert {load_recipe(other).values["model"] for other in same} == {recipe.values["model"]}
    assert recipe.values["external_plugins"] == ["tell_plugins/register.py"]
    assert "add_version" not in recipe.values  # a second run gets a folder of its own
    assert recipe.values["loss_type"] == "tell"
    assert recipe.values["gradient_checkpointing"] is recipe.flag("gradient_checkpointing")


# --- the paper -----------------------------------------------------------------------------------


@every(PAPER)
def test_only_named_things_differ_from_the_paper(path):
    recipe = load_recipe(path)
    found = {d.key: d for d in departures(recipe, recipe.spec)}
    assert set(found) <= {"split_dataset_ratio", "max_length"}
    assert {*FIXED, *OF_ITS_TIME} - {"split_dataset_ratio"} <= set(recipe.values), "written out"
    assert recipe.values["per_device_train_batch_size"] == 1
    header = path.read_text().split("\n\n")[0].replace("\n#          ", " ")
    assert "no 1 % validation split" in header
    if "max_length" in found:
        assert f"max_length {recipe.values['max_length']}" in header
        assert "documents in silence" in header
    modules = ["c_attn"] if architecture(path) == "qwen" else ["q_proj", "k_proj", "v_proj"]
    assert recipe.values["target_modules"] == modules


@pytest.mark.parametrize(("stem", "rows", "largest"), [("en_is", 71, 3429), ("is_en", 56, 6186)])
def test_translation_recipes_hold_the_longest_document(stem, rows, largest):
    """Rows and Llama-2 tokens of the official files; 134 tokens are Llama-2's chat template."""
    for path in [path for path in PAPER if stem in path.stem]:
        assert int(load_recipe(path).values["max_length"]) >= largest + 134
    general = load_recipe(PROJECT / "recipes" / f"gemma_{stem}_general.yaml").spec
    assert general.general.number == 40 * rows


def block(path: Path) -> dict[str, Any]:
    """What makes a run besides its data and the place of its results."""
    values = load_recipe(path).values
    return {key: value for key, value in values.items() if key not in ("dataset", "output_dir")}


@pytest.mark.parametrize(
    ("main", "variants"),
    [
        ("qwen_json", ["sft", "general", "platypus"]),
        ("llama2_json", ["sft", "general"]),
        ("llama2_en_is", ["noanchor"]),
        ("llama2_is_en", ["noanchor"]),
        ("gemma_is_en", ["sft", "general"]),
        ("gemma_en_is", ["sft", "general"]),
        ("smollm2_sample", ["sft", "sft_steps", "general"]),
        *((path.stem.removesuffix("_sft"), ["sft"]) for path in TODAYS if "_sft" in path.stem),
    ],
)
def test_a_variant_differs_in_its_data_alone(main, variants):
    folder = PROJECT / "recipes"
    for variant in variants:
        assert block(folder / f"{main}_{variant}.yaml") == block(folder / f"{main}.yaml")


@every([*PAPER, *TODAYS])
def test_it_fits_24_gib_by_the_written_estimate(path):
    recipe = load_recipe(path)
    shape = shape_of(recipe.values["model"])
    if shape is None:
        assert "memory not estimated" in path.read_text().split("\n\n")[0]
        return
    longest = next((rows for name, rows in LONGEST.items() if name in path.stem), None)
    rows = np.array([longest or (2048, 2048)])
    assert int(recipe.values["max_length"]) >= rows[0, 0]
    need = sum(memory(shape, recipe, rows, held=recipe.spec.kl > 0).values()) / GIB
    assert need < CARD_GIB
    header = path.read_text().split("\n\n")[0]
    assert [int(number) for number in re.findall(r"(\d+) GiB", header)] == [math.ceil(need)]
    assert "estimate" in header


# --- the embedded model's recipes ----------------------------------------------------------------


def test_the_repeated_baseline_takes_the_steps_of_the_main_run():
    steps = {}
    for name in ("smollm2_sample_hold", "smollm2_sample_sft_steps"):
        recipe = load_recipe(PROJECT / "recipes" / f"{name}.yaml")
        steps[name] = plan(len(build_mixture(recipe.spec)), training_of(recipe)).steps
    assert len(set(steps.values())) == 1, steps


def test_the_sample_baselines_use_the_same_rows():
    def specs(name: str) -> Any:
        return build_mixture(load_recipe(PROJECT / "recipes" / f"{name}.yaml").spec)

    tell, sft = specs("smollm2_sample"), specs("smollm2_sample_sft")
    steps, general = specs("smollm2_sample_sft_steps"), specs("smollm2_sample_general")
    for other in (sft, steps):
        assert sorted(other.sources[0].used) == sorted(tell.sources[0].used)
    assert sorted(general.sources[0].used) == sorted(tell.sources[1].used)


@pytest.mark.parametrize("path", EMBEDDED, ids=[path.stem for path in EMBEDDED])
def test_embedded_recipes_need_no_network_and_no_gpu(path):
    values = load_recipe(path).values
    assert values["use_cpu"] is True
    assert values["check_model"] is False
    assert values["model_type"] == "llama"
    # of the model's own chat template, which a server uses and ms-swift's `chatml` leaves out
    assert (values["template"], values["system"]) == ("chatml", OWN_SYSTEM)


# --- mixtures ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with small data of every card and a small model of every architecture."""
    root = tmp_path_factory.mktemp("recipes")
    (root / "data").mkdir()
    (root / "cards").mkdir()
    with mock.patch.dict(os.environ, {"TELL_CARDS": str(root / "cards")}):
        make_data(root / "data")
    (root / "recipes").mkdir()
    another_family(root / "recipes")
    for path in {architecture(path): path for path in [*RECIPES, root / ANOTHER]}.values():
        make_model(load_recipe(path), root / "models")
    return root


ANOTHER = Path("recipes/mistral_json.yaml")


def another_family(folder: Path) -> Path:
    """A recipe for a model that nothing here names: of Qwen3's, with another model's id."""
    text = (PROJECT / "recipes" / "qwen3_json.yaml").read_text()
    model = load_recipe(PROJECT / "recipes" / "qwen3_json.yaml").values["model"]
    text = text.replace(model, "LLM-Research/Mistral-7B-Instruct-v0.3")
    path = folder / ANOTHER.name
    path.write_text(text.replace("qwen3_json", path.stem))
    return path


def test_a_model_of_another_family_takes_one_file(tmp_path, monkeypatch):
    """Checked, and a pattern for `new`, beside the pack's; below it trains as they do."""
    from tell_plugins.core import paths
    from tell_plugins.preparation import task_recipe

    shutil.copytree(PROJECT / "recipes", tmp_path / "recipes")
    path = another_family(tmp_path / "recipes")
    monkeypatch.setattr(paths, "RECIPES", tmp_path / "recipes")
    recipe = load_recipe(path)
    assert inspect(recipe, data=False).findings == []
    assert task_recipe.recipe_of("mistral", None, None, "json")[0].path == path


@pytest.fixture
def small_world(world, monkeypatch) -> Path:
    for key, value in environment(world, world / "models" / "Llama-2-7b-chat-ms").items():
        if key.startswith("TELL_"):
            monkeypatch.setenv(key, value)
    return world


@every(RECIPES)
@pytest.mark.usefixtures("small_world")
def test_its_mixture_is_built_from_local_files(path):
    spec = scaled(load_recipe(path).spec)
    mixture = build_mixture(spec)
    rows = list(mixture.rows())
    manifest = manifest_of(mixture)
    assert len(rows) == manifest["rows"] == len(mixture)
    assert build_mixture(spec).hash == manifest["hash"]
    channels = [row["channel"] for row in rows]
    assert ("_general" in path.stem) == (mixture.task is None)
    if mixture.task is None:
        assert set(channels) == {"general"}
        tell = build_mixture(spec.with_values(task=ALL))  # the one that it is the baseline of
        mine = [row["messages"] for row in tell.rows() if row["channel"] == "general"]
        assert [row["messages"] for row in rows] == mine
        return
    task = [row for row in rows if row["channel"] == "task"]
    anchor = mixture.task.anchor.text
    assert all(row["messages"][0]["content"].startswith(anchor) for row in task)
    assert ("noanchor" in path.stem) == (anchor == "")
    assert ("general" in channels) == ("_sft" not in path.stem)
    assert all(
        not row["messages"][0]["content"].startswith(anchor or "\0")
        for row in rows
        if row["channel"] != "task"
    )
    assert len(task) == 8 * spec.repeat or spec.task.unit == "all"


# --- one training of each kind -------------------------------------------------------------------


def _kinds() -> dict[str, list[Path]]:
    """Recipes by training block: those of a kind differ in their data and its length alone."""
    kinds: dict[str, list[Path]] = {"": [ANOTHER]}
    for path in RECIPES:
        made = {key: value for key, value in block(path).items() if key != "max_length"}
        kinds.setdefault(json.dumps(made, sort_keys=True), []).append(path)
    return {paths[0].stem: paths for paths in kinds.values()}


KINDS = _kinds()


@pytest.fixture(scope="module")
def trainings(world) -> dict[str, tuple[str, Path]]:
    """One real `swift sft` of each kind: what it printed, and its folder."""

    def train(path: Path) -> tuple[str, tuple[str, Path]]:
        recipe = load_recipe(world / path)  # an absolute path stays as it is
        model = world / "models" / recipe.values["model"].rpartition("/")[2]
        copy = small_copy(recipe, model, world)
        printed = run_swift(*sft(copy), env=environment(world, model))
        return path.stem, (printed, only_run(world / "out" / path.stem))

    # the TELL recipe of each kind where there is one, so that both channels are seen
    chosen = [min(paths, key=lambda p: len(p.stem)) for paths in KINDS.values()]
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = dict(pool.map(train, chosen))
    return {kind: results[min(KINDS[kind], key=lambda p: len(p.stem)).stem] for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_and_leaves_adapter_manifest_and_anchor(kind, trainings):
    from safetensors import safe_open

    printed, run = trainings[kind]
    recipe = load_recipe(run.parents[1].parent / f"{run.parent.name}.yaml")
    steps = logged(run)
    assert len(steps) >= 2
    assert "dropped" not in printed.replace("lora_dropout", "")
    checkpoint = run / f"checkpoint-{len(steps)}"
    for folder in (run, checkpoint):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["spec"] == str(recipe.spec)
        assert (folder / "anchor.txt").is_file()
    with safe_open(checkpoint / "adapter_model.safetensors", "pt") as adapter:
        names = list(adapter.keys())
        weights = {name: adapter.get_tensor(name) for name in names}
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in names}
    targets = set(recipe.values["target_modules"])
    assert modules == targets if targets != {"all-linear"} else len(modules) == 7
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
    # the first step has learning rate 0, the others train
    assert any(bool(w.abs().max() > 0) for name, w in weights.items() if "lora_B" in name)
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    dropout = 0.0 if recipe.path.stem.startswith("smollm2_sample") else 0.05  # the paper's
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (8, 32, dropout)
    if recipe.values.get("enable_channel_loss"):
        assert any({"loss_task", "loss_general"} <= set(line) for line in steps)
    first = printed.split("[INPUT] ", 1)[1]  # with the system prompt of its time
    assert first.startswith(SYSTEM.get(kind.partition("_")[0], ""))


SYSTEM = {
    "qwen": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "llama2": "<s>[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always",
    "gemma": "<bos><start_of_turn>user\n",
    "smollm2": f"<|im_start|>system\n{OWN_SYSTEM}<|im_end|>\n<|im_start|>user\n",
}


@pytest.mark.slow
def test_a_row_beyond_the_context_of_llama_2_trains(world):
    """llama2_is_en keeps documents of up to 6,186 tokens; the model's context is 4,096."""
    path = PROJECT / "recipes" / "llama2_is_en.yaml"
    model = world / "models" / "Llama-2-7b-chat-ms"
    home = world / "long"
    shutil.copytree(world / "data", home / "data")
    target = home / "data" / "is_en_news" / "dev-is-en.jsonl"
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    rows[0]["query"] += " x" * 2500  # 5,000 tokens of this tokenizer
    target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    copy = small_copy(load_recipe(path), model, home, max_steps=2)
    run_swift(*sft(copy), env=environment(world, model) | {"TELL_DATA_HOME": str(home / "data")})
    assert len(logged(only_run(home / "out" / path.stem))) == 2


# --- Qwen's remote code --------------------------------------------------------------------------


@pytest.mark.slow
def test_a_qwen_model_generates_with_the_fix(world):
    """The stand-in's forward pass refuses a cache object, as the remote code does."""
    refused, shape = in_preloaded_process(_generate, world / "models" / "Qwen-7B-Chat")
    assert refused
    assert shape == (1, 5)


def _generate(folder: Path) -> tuple[bool, tuple[int, ...]]:
    """Whether the model refuses to generate without the fix, and its answer's shape with it."""
    import torch
    from transformers import AutoModelForCausalLM

    from tell_plugins.bridge.patches import let_qwen_generate

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    prompt = torch.tensor([[5, 6, 7]])
    refused = False
    try:
        model.generate(prompt, max_new_tokens=2, do_sample=False)
    except AssertionError:
        refused = True
    let_qwen_generate()
    return refused, tuple(model.generate(prompt, max_new_tokens=2, do_sample=False).shape)
