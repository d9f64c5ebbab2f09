"""Where a recipe's model is: a folder on this machine, the embedded one, or an id on a hub."""

from __future__ import annotations

from pathlib import Path

from tell_plugins.bridge.embedded_model import model_dir
from tell_plugins.core import paths
from tell_plugins.core.errors import UserError


def model_folder(model: str) -> Path | None:
    """The folder that `model` names (`swift sft` runs in the project's root), if there is one."""
    try:
        places = (paths.PROJECT / paths.expanded(model), paths.user_path(model))
    except UserError:  # the home of nobody
        return None
    return next((path for path in places if path.is_dir()), None)


def is_embedded(model: str) -> bool:
    """Whether it is the embedded model, which `train` and the demo make ready."""
    return (paths.PROJECT / model).resolve() == model_dir().resolve()


def may_be_hub_id(model: str) -> bool:
    """Whether `model` can be a hub's `owner/name`."""
    return not model.startswith((".", "/", "~", "models/")) and model.count("/") == 1
