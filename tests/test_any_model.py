"""`new --model` with a model that no recipe here trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tell_plugins.cli import main
from tell_plugins.preparation.task_recipe import parameters
from tests.conftest import write_rows
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.newest


def new(tmp_path: Path, *flags: str) -> int:
    """`./run.sh new own FLAGS` for a task of 40 rows, in the test's own folders."""
    rows = [{"query": f"Is {n} odd?", "response": "yes" if n % 2 else "no"} for n in range(40)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    own = ["--train", str(file), "--anchor", "Say yes or no.", "--recipes", str(tmp_path / "r")]
    return main(["new", "own", *own, *flags])


@pytest.mark.parametrize(
    ("model", "stem", "rate", "checkpointing"),
    [
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3-4b-instruct-2507", 1e-4, True),
        ("LLM-Research/Llama-3.2-1B-Instruct", "llama-3.2-1b-instruct", 4e-4, True),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct", 1e-3, False),
    ],
)
def test_an_id_that_ms_swift_knows(
    model: str,
    stem: str,
    rate: float,
    checkpointing: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert new(tmp_path, "--model", model) == 0
    said = capsys.readouterr().out
    assert f"learning rate {rate:g}, not measured for it" in said
    for variant in ("", "_sft"):
        values = yaml.safe_load((tmp_path / "r" / f"{stem}_own{variant}.yaml").read_text())
        assert (values["model"], values["learning_rate"]) == (model, rate)
        assert values["gradient_checkpointing"] is checkpointing
        assert values["target_modules"] == ["all-linear"]
        assert values["output_dir"] == f"output/{stem}_own{variant}"


def test_a_hybrid_model_answers_without_a_think_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ms-swift 4.0 lets it think in answers and 4.6 does not; the rows have no thoughts."""
    assert new(tmp_path, "--model", "Qwen/Qwen3-4B") == 0
    assert "ms-swift 4.0 would let it think in answers, 4.6 not" in capsys.readouterr().out
    for variant in ("", "_sft"):
        recipe = tmp_path / "r" / f"qwen3-4b_own{variant}.yaml"
        assert yaml.safe_load(recipe.read_text())["enable_thinking"] is False


def test_a_folder_whose_type_has_to_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(make_tiny_model(tmp_path / "my_model"))
    assert new(tmp_path, "--model", model) == 1
    error = capsys.readouterr().err
    assert "LlamaForCausalLM may be several" in error
    assert "--model-type TYPE" in error
    assert not (tmp_path / "r").exists()
    assert new(tmp_path, "--model", model, "--model-type", "llama", "--template", "chatml") == 0
    recipe = tmp_path / "r" / "my-model_own.yaml"
    values = yaml.safe_load(recipe.read_text())
    assert (values["model_type"], values["template"]) == ("llama", "chatml")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Qwen/Qwen3-4C", "did you mean 'qwen3-4b'?"),
        ("nobody/knows-this", "say what it is: --model-type TYPE"),
        ("smolm2", "did you mean 'smollm2'?"),
        ("./gone", "no folder './gone'"),
    ],
)
def test_what_is_no_model(
    model: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(tmp_path, "--model", model) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_type_that_ms_swift_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert new(tmp_path, "--model", "a/b", "--model-type", "qwen33") == 1
    assert "'model_type' is 'qwen33', which ms-swift" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("Qwen/Qwen2.5-14B-Instruct", 14e9),
        ("HuggingFaceTB/SmolLM-360M-Instruct", 360e6),
        ("x/Qwen3-30B-A3B", 30e9),
        ("Qwen/Qwen3-0.6B", 0.6e9),
        ("x/phi-4", None),
    ],
)
def test_the_size_is_read_from_the_name(model: str, size: float | None) -> None:
    assert parameters(model) == size
