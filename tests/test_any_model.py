"""`new --model` with a model that no recipe here trains."""

import pytest

from tell_plugins.recipe.models import parameters_of
from tests.tiny import make_tiny_model

pytestmark = pytest.mark.newest


@pytest.fixture
def rows(own) -> str:
    """A file of forty rows."""
    return own.table(
        [{"query": f"Is {n} odd?", "response": "yes" if n % 2 else "no"} for n in range(40)]
    )


@pytest.mark.parametrize(
    ("model", "stem", "rate", "checkpointing"),
    [
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3-4b-instruct-2507", 1e-4, True),
        ("LLM-Research/Llama-3.2-1B-Instruct", "llama-3.2-1b-instruct", 4e-4, True),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct", 1e-3, False),
    ],
)
def test_an_id_that_ms_swift_knows(model, stem, rate, checkpointing, own, rows):
    assert f"learning rate {rate:g}, not measured for it" in own.new(rows, "--model", model)
    for variant in ("", "_sft"):
        values = own.recipe(f"{stem}_own{variant}").values
        assert (values["model"], values["learning_rate"]) == (model, rate)
        assert values["gradient_checkpointing"] is checkpointing
        assert values["target_modules"] == ["all-linear"]
        assert values["output_dir"] == f"output/{stem}_own{variant}"


def test_a_hybrid_model_answers_without_a_think_block(own, rows):
    """ms-swift 4.0 lets it think in answers and 4.6 does not; the rows have no thoughts."""
    said = own.new(rows, "--model", "Qwen/Qwen3-4B")
    assert "ms-swift 4.0 would let it think in answers, 4.6 not" in said
    for variant in ("", "_sft"):
        assert own.recipe(f"qwen3-4b_own{variant}").values["enable_thinking"] is False


def test_a_folder_whose_type_has_to_be_named(own, rows):
    model = str(make_tiny_model(own.folder / "my_model"))
    message = own.fails(rows, "--model", model)
    assert "LlamaForCausalLM may be several" in message
    assert "--model-type TYPE" in message
    own.new(rows, "--model", model, "--model-type", "llama", "--template", "chatml")
    values = own.recipe("my-model_own").values
    assert (values["model_type"], values["template"]) == ("llama", "chatml")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["Qwen/Qwen3-4C"], "did you mean 'qwen3-4b'?"),
        (["nobody/knows-this"], "say what it is: --model-type TYPE"),
        (["smolm2"], "did you mean 'smollm2'?"),
        (["./gone"], "no folder './gone'"),
        (["a/b", "--model-type", "qwen33"], "'model_type' is 'qwen33', which ms-swift"),
    ],
)
def test_what_is_no_model(flags, said, own, rows):
    assert said in own.fails(rows, "--model", *flags)


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
def test_the_size_is_read_from_the_name(model, size):
    assert parameters_of(model) == size
