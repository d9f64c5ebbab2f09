"""Where a recipe's model is: a folder on this machine, the embedded one, or on a hub."""

from __future__ import annotations

import os
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError, UserError
from tell_plugins.recipe.recipes import TRUE

_PATIENCE = 6.0  # seconds to wait for a hub's first answer


def model_folder(model: str) -> Path | None:
    """The folder that `model` names (`swift sft` runs in the project's root), if there is one."""
    try:
        places = (paths.PROJECT / paths.expanded(model), paths.user_path(model))
    except UserError:  # the home of nobody
        return None
    return next((path for path in places if path.is_dir()), None)


def may_be_hub_id(model: str) -> bool:
    """Whether `model` can be a hub's `owner/name`."""
    return not model.startswith((".", "/", "~", "models/")) and model.count("/") == 1


def is_cached(model: str, hugging_face: bool) -> bool:
    """Whether the hub's client holds a copy of `model` (its config.json at least)."""
    owner, _, name = model.partition("/")
    environ = os.environ.get
    if hugging_face:
        home = environ("HF_HUB_CACHE") or f"{environ('HF_HOME') or '~/.cache/huggingface'}/hub"
        places = [f"models--{owner}--{name}/snapshots/*"]
    else:
        home = environ("MODELSCOPE_CACHE") or "~/.cache/modelscope"
        masked = name.replace(".", "___")  # as ModelScope's client writes it
        kept = (f"{owner}/{masked}", f"{owner}/{name}", f"{owner}--{name}/snapshots/*")
        folders = ("", "models/", "hub/", "hub/models/")
        places = [folder + place for folder in folders for place in kept]
    return any(any(paths.expanded(home).glob(f"{place}/config.json")) for place in places)


def need_model(model: str, flag: bool) -> None:
    """See to it that a hub's model can be had, before anything slow begins.

    ms-swift asks ModelScope, and Hugging Face where `flag`, its `use_hf`, or `$USE_HF` says so.
    Raises MachineError when the model is not on this machine and the hub cannot be reached.
    """
    hugging_face = flag or os.environ.get("USE_HF", "").lower() in TRUE
    if is_cached(model, hugging_face):
        return
    name, other = "ModelScope", ", or try Hugging Face with `--use_hf true`"
    address = "https://" + (os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn")
    if hugging_face:
        name, other = "Hugging Face", ""
        address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    offline = hugging_face and os.environ.get("HF_HUB_OFFLINE", "").lower() in (*TRUE, "on")
    reason = "HF_HUB_OFFLINE is set, so it is not asked for" if offline else _unreachable(address)
    if reason:
        raise MachineError(
            f"model '{model}' is not on this machine, and {name} cannot give it: {reason}",
            remedy="fetch it where there is a network and name its folder: --model FOLDER" + other,
        )


def _unreachable(address: str) -> str | None:
    """Why nothing answers at `address`, None when something does (proxies are used as set)."""
    import requests

    try:
        requests.head(address, timeout=_PATIENCE, allow_redirects=False)
    except requests.RequestException as error:
        return f"no answer from {address} ({type(error).__name__})"
    return None
