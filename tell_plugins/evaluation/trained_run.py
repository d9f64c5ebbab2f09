"""A trained run as its checkpoint tells it: weights, settings, mixture and anchor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tell_plugins.bridge.protocol import MODEL_KEYS
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError
from tell_plugins.evaluation.adapters import Adapter, at_scales, trained_folder
from tell_plugins.evaluation.trained_with import ARGS


@dataclass(frozen=True)
class Run:
    """A trained run: its checkpoint, what ms-swift saved beside it, and its mixture's manifest."""

    adapter: Adapter
    args: dict[str, Any]
    manifest: dict[str, Any]
    anchor: str

    @property
    def folder(self) -> Path:
        assert self.adapter.path is not None
        return self.adapter.path

    @property
    def model(self) -> str:
        """The model that it was trained on, as ms-swift was told."""
        return str(self.args["model"])

    @property
    def values(self) -> dict[str, Any]:
        """The keys of a recipe that say which model answers, and through which template."""
        saved = {key: self.args[key] for key in MODEL_KEYS if self.args.get(key) is not None}
        return saved | ({"model": str(self.folder)} if self.adapter.whole else {})


def read_run(text: str, scale: float = 1.0) -> Run:
    """The run that `text` names. Raises UserError for a folder that is none of TELL's."""
    folder = trained_folder(text, "RUN")
    (adapter,) = at_scales([Adapter(folder.name, folder)], [scale])
    manifest, saved = adapter.manifest(), adapter.saved(ARGS)
    for found, name in ((manifest, "manifest.json"), (saved, ARGS)):
        if not found:
            raise UserError(
                f"no {name}, so nothing says how it was trained",
                where=paths.shown(folder),
                allowed="a checkpoint of `./run.sh train`",
                remedy="restore the file",
            )
    assert manifest is not None
    anchor = folder / "anchor.txt"
    text = anchor.read_bytes().decode() if anchor.is_file() else ""
    return Run(adapter, saved, manifest, text)
