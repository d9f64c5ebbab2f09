"""The embedded model's folder: whole, or an error; never taken for the model when it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tell_plugins.bridge.embedded_model import prepare_model
from tell_plugins.core.errors import UserError


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="a folder is in the way"):
        prepare_model(tmp_path / "model", wheel=tmp_path / "none.whl")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_a_model_that_is_there_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert prepare_model(tmp_path, wheel=tmp_path / "none.whl") == tmp_path
