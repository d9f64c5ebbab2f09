"""What answered: answers of another system prompt, template or adapter never pass as new ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tell_plugins.bridge.protocol import DECODINGS
from tell_plugins.cli import main
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation import retention
from tell_plugins.evaluation.answers import SETTINGS, Prompt, Settings, answer_all, read_answers
from tell_plugins.recipe.recipes import Recipe
from tests.conftest import MakeCard
from tests.scripted_engine import ScriptedEngine, answer_by_script
from tests.test_engines import serving
from tests.tiny import make_tiny_cards, tiny_recipe
from tests.tiny_adapters import saved_adapter


@pytest.fixture
def recipe(make_card: MakeCard, tmp_path: Path) -> Path:
    make_tiny_cards(make_card)
    return tiny_recipe(tmp_path / "r.yaml", tmp_path / "model", "tell/tiny_task:general=4rows")


@pytest.fixture
def says_its_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that answers every question with the recipe's system prompt."""
    answer_by_script(monkeypatch, lambda recipe, prompt: str(recipe.get("system")))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("system", "Be brief."),
        ("model_kwargs", {"a": 1}),
    ],
)
def test_answers_of_another_system_prompt_or_template_are_not_scored_as_new(
    key: str,
    value: Any,
    says_its_system: None,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call = ["eval", str(recipe), "--adapter", "none", "--general-rows", "2"]
    call += ["--retention-rows", "3"]
    call += ["--out", str(tmp_path / "eval")]
    assert main(call) == 0
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | {key: value}))
    assert main(call) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "the recipe's model keys (system, template and the like) have changed since" in text
    assert "test-greedy" in text
    kept = read_answers(tmp_path / "eval" / "none" / "test-greedy")
    assert {line.text for line in kept} == {"None"}
    assert main([*call[:-1], str(tmp_path / "other")]) == 0


def test_what_does_not_change_an_answer_is_free(
    says_its_system: None, recipe: Path, tmp_path: Path
) -> None:
    call = ["eval", str(recipe), "--adapter", "none", "--general-rows", "0"]
    call += ["--out", str(tmp_path / "eval")]
    assert main(call) == 0
    more = {"learning_rate": 0.5, "output_dir": "elsewhere", "device_map": "cpu", "system": None}
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | more))
    assert main(call) == 0


def test_an_adapter_trained_again_into_the_same_folder_is_another(
    says_its_system: None,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = saved_adapter(tmp_path / "run" / "checkpoint-2", b"\0\1\0\0")
    call = ["eval", str(recipe), "--general-rows", "0"]
    assert main(call) == 0
    assert main(call) == 0  # nothing changed: all is there
    saved_adapter(folder, b"\0\2\0\0")
    assert main(call) == 1
    assert "the adapter's weights have changed since" in " ".join(capsys.readouterr().err.split())


def test_what_lies_in_the_folders_is_told_by_content(
    says_its_system: None, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights and tokenizer of the model, and the scale of an adapter, under unchanged names."""
    folder = saved_adapter(tmp_path / "run" / "checkpoint-2", b"\0\1\0\0")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    call = ["eval", str(recipe), "--general-rows", "0"]
    assert main(call) == 0
    for file, said in (
        (model / "model.safetensors", "the model's weights, tokenizer or settings have changed"),
        (model / "tokenizer.json", "the model's weights, tokenizer or settings have changed"),
        (folder / "adapter_config.json", "the adapter's settings have changed"),
    ):
        before = file.read_bytes() if file.is_file() else None
        file.write_text('{"lora_alpha": 2}')
        assert main(call) == 1
        assert said in " ".join(capsys.readouterr().err.split())
        file.unlink() if before is None else file.write_bytes(before)
    (model / "README.md").write_text("no answer depends on it")
    assert main(call) == 0


def test_losses_on_other_held_out_responses_are_not_taken_for_these(
    says_its_system: None,
    recipe: Path,
    make_card: MakeCard,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def general(response: str) -> None:
        rows = [{"q": f"Write about {n}.", "r": f"{response} {n}"} for n in range(20)]
        make_card("plain", train=rows, kind="general")

    general("one")
    call = ["eval", str(recipe), "--adapter", "none", "--general-rows", "4"]
    call += ["--retention-rows", "3"]
    assert main(call) == 0
    general("two")
    assert main(call) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "have changed since" in text
    pairs = [("q", "one"), ("r", "two")]
    engine = ScriptedEngine(Recipe(Path("r.yaml"), {"model": "m"}), lambda recipe, prompt: "x")

    def taken(pairs: list[tuple[str, str]]) -> list[tuple[float, int]]:
        path = tmp_path / "losses" / retention.LOSSES
        retention.measure(pairs, engine.response_losses, path, label="test")
        return retention.read(path.parent)

    assert taken(pairs) == [(3.0, 3), (3.0, 3)]
    assert taken([("q", "one"), ("r", "longer")]) == [(3.0, 3), (6.0, 6)]


def test_answers_of_an_earlier_release_are_accepted(
    says_its_system: None, recipe: Path, tmp_path: Path
) -> None:
    """It saved no hashes of model keys and weights: what is unknown is not compared."""
    saved_adapter(tmp_path / "run" / "checkpoint-2", b"\0\1\0\0")
    call = ["eval", str(recipe), "--general-rows", "0"]
    assert main(call) == 0
    file = tmp_path / "run" / "eval" / "checkpoint-2" / "test-greedy" / SETTINGS
    settings = json.loads(file.read_text())
    assert len(settings.pop("model_sha256")) == len(settings.pop("adapter_sha256")) == 64
    file.write_text(json.dumps(settings))
    assert main(call) == 0


def test_two_systems_of_one_served_model_are_refused_before_any_answer(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved_adapter(tmp_path / "run" / "checkpoint-2", b"\0\1\0\0")
    with serving(models=("only",)) as server:
        call = ["eval", str(recipe), "--adapter", "none", str(folder), "--engine", server.url]
        assert main([*call, "--general-rows", "0"]) == 1
    assert "'none' and 'checkpoint-2' would both be answered" in capsys.readouterr().err
    assert server.asked == []


@pytest.mark.parametrize(
    ("split", "lengths", "remedy", "mended"),
    [
        ("general", [10, 82, 95, 30, 120], "--retention-rows 2, or a model", {"rows": 2}),
        ("general", [83, 10], "--retention-rows 0, or a model", {"rows": 0}),
        ("test", [10, 87, 30], "--max-new-tokens 3, or a model", {"max_new_tokens": 3}),
        ("test", [10, 90, 30], "remedy:  a model with a longer context", None),
    ],
)
def test_the_remedy_for_a_prompt_that_does_not_fit_is_one(
    split: str, lengths: list[int], remedy: str, mended: dict[str, int] | None, tmp_path: Path
) -> None:
    """A context of 90 tokens, and answers of up to 8."""
    engine = ScriptedEngine(Recipe(Path("r.yaml"), {"model": "m"}), lambda recipe, prompt: "x")
    engine.context = 90
    prompts = [Prompt(f"id-{row}", row, "x" * length) for row, length in enumerate(lengths)]

    def answered(rows: int, max_new_tokens: int) -> int:
        settings = Settings(
            card="c",
            split=split,
            anchor="none",
            rows=rows,
            max_new_tokens=max_new_tokens,
            batch_size=2,
        )
        folder = tmp_path / f"{rows} {max_new_tokens}"
        asked = prompts[:rows]
        answer_all(engine, asked, DECODINGS["greedy"], settings, folder, label="test")
        return len(read_answers(folder))

    given = {"rows": len(prompts), "max_new_tokens": 8}
    with pytest.raises(UserError, match="prompt tokens, which leaves") as caught:
        answered(**given)
    assert remedy in str(caught.value)
    if mended is not None:
        given |= mended
        assert answered(**given) == given["rows"]
