"""What answered: answers of another system prompt, template or adapter never pass as new ones."""

import json
from pathlib import Path

import pytest

from tell_plugins.evaluation import elsewhere
from tell_plugins.evaluation.answers import (
    ANSWERS,
    SETTINGS,
    Prompt,
    Settings,
    answer_all,
    read_saved,
)
from tell_plugins.recipe.recipes import Recipe
from tests.chat_server import serving
from tests.conftest import Cli, change, message_of
from tests.scripted_engine import ScriptedEngine, answer_by_script
from tests.tiny import make_tiny_cards, tiny_recipe
from tests.tiny_adapters import saved_adapter


@pytest.fixture
def recipe(make_card, tmp_path) -> Path:
    make_tiny_cards(make_card)
    return tiny_recipe(tmp_path / "r.yaml", tmp_path / "model", "tell/tiny_task:general=4rows")


@pytest.fixture
def evaluated(recipe, cli, monkeypatch) -> Cli:
    """`evaluated(code, ...)`: what `eval` of that recipe says; an engine answers every question
    with the recipe's system prompt."""
    answer_by_script(monkeypatch, lambda recipe, prompt: str(recipe.get("system")))
    return lambda code, *flags: cli(code, "eval", recipe, *flags)


@pytest.mark.parametrize("values", [{"system": "Be brief."}, {"model_kwargs": {"a": 1}}])
def test_answers_of_another_system_prompt_or_template_are_not_scored_as_new(
    values, evaluated, recipe, tmp_path
):
    call = ["--adapter", "none", "--general-rows", 2, "--retention-rows", 3, "--out"]
    evaluated(0, *call, tmp_path / "eval")
    change(recipe, **values)
    said = evaluated(1, *call, tmp_path / "eval")
    assert "the recipe's model keys (system, template and the like) have changed since" in said
    assert "test-greedy" in said
    kept = read_saved(tmp_path / "eval" / "none" / "test-greedy").answers
    assert {line.text for line in kept} == {"None"}
    evaluated(0, *call, tmp_path / "other")


def test_what_does_not_change_an_answer_is_free(evaluated, recipe, tmp_path):
    call = ["--adapter", "none", "--general-rows", 0, "--out", tmp_path / "eval"]
    evaluated(0, *call)
    change(recipe, learning_rate=0.5, output_dir="elsewhere", device_map="cpu")
    recipe.write_text(recipe.read_text() + "system:\n")
    evaluated(0, *call)


def test_what_lies_in_the_folders_is_told_by_content(evaluated, tmp_path):
    """An adapter trained again into the same folder, weights and tokenizer of the model, and the
    scale of an adapter, under unchanged names."""
    folder = saved_adapter(tmp_path / "run" / "checkpoint-2", b"\0\1\0\0")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    for _ in range(2):  # where nothing changed, all is there
        evaluated(0, "--general-rows", 0)
    for file, said in (
        (model / "model.safetensors", "the model's weights, tokenizer or settings have changed"),
        (model / "tokenizer.json", "the model's weights, tokenizer or settings have changed"),
        (folder / "adapter_config.json", "the adapter's settings have changed"),
    ):
        before = file.read_bytes() if file.is_file() else None
        file.write_text('{"lora_alpha": 2}')
        assert said in evaluated(1, "--general-rows", 0)
        file.unlink() if before is None else file.write_bytes(before)
    (model / "README.md").write_text("no answer depends on it")
    evaluated(0, "--general-rows", 0)
    saved_adapter(folder, b"\0\2\0\0")
    assert "the adapter's weights have changed since" in evaluated(1, "--general-rows", 0)


def test_losses_on_other_held_out_responses_are_not_taken_for_these(evaluated, make_card, tmp_path):
    def general(response: str) -> None:
        rows = [{"q": f"Write about {n}.", "r": f"{response} {n}"} for n in range(20)]
        make_card("plain", train=rows, kind="general")

    call = ["--adapter", "none", "--general-rows", 4, "--retention-rows", 3]
    general("one")
    evaluated(0, *call)
    general("two")
    assert "have changed since" in evaluated(1, *call)
    engine = ScriptedEngine(Recipe(Path("r.yaml"), {"model": "m"}), lambda recipe, prompt: "x")

    def taken(pairs: list[tuple[str, str]]) -> list[tuple[float, int]]:
        path = tmp_path / "losses" / elsewhere.LOSSES
        elsewhere.measure(pairs, engine.response_losses, path, label="test")
        return elsewhere.read_sums(path.parent)

    assert taken([("q", "one"), ("r", "two")]) == [(3.0, 3), (3.0, 3)]
    assert taken([("q", "one"), ("r", "longer")]) == [(3.0, 3), (6.0, 6)]


def test_answers_of_an_earlier_release_are_accepted(evaluated, tmp_path):
    """It saved no hashes of model keys and weights, and no examples: what is unknown is not
    compared."""
    saved_adapter(tmp_path / "run" / "checkpoint-2", b"\0\1\0\0")
    evaluated(0, "--general-rows", 0)
    file = tmp_path / "run" / "eval" / "checkpoint-2" / "test-greedy" / SETTINGS
    settings = json.loads(file.read_text())
    assert len(settings.pop("model_sha256")) == len(settings.pop("adapter_sha256")) == 64
    assert settings.pop("shots") == 0
    file.write_text(json.dumps(settings))
    evaluated(0, "--general-rows", 0)
    file.write_text("{")
    assert "no JSON" in evaluated(1, "--general-rows", 0)


def test_two_systems_of_one_served_model_are_refused_before_any_answer(recipe, tmp_path, cli):
    folder = saved_adapter(tmp_path / "run" / "checkpoint-2", b"\0\1\0\0")
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
    engine = ScriptedEngine(Recipe(Path("r.yaml"), {"model": "m"}), lambda recipe, prompt: "x")
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
