"""Whether a hub's model is on this machine already, and whether its hub can be reached."""

from __future__ import annotations

import os
from pathlib import Path

from tell_plugins.core import paths
from tell_plugins.core.errors import MachineError
from tell_plugins.recipe.settings import TRUE

_PATIENCE = 6.0  # seconds to wait for a hub's first answer


def uses_hugging_face(flag: bool) -> bool:
    """Whether ms-swift asks Hugging Face; without `use_hf` or `$USE_HF` it asks ModelScope."""
    return flag or os.environ.get("USE_HF", "").lower() in TRUE


def is_cached(model: str, hugging_face: bool) -> bool:
    """Whether the hub's client holds a copy of `model` (its config.json at least)."""
    owner, _, name = model.partition("/")
    if hugging_face:
        places = [f"models--{owner}--{name}/snapshots/*/config.json"]
        home = _hugging_face_cache()
    else:
        masked = name.replace(".", "___")  # as ModelScope's client writes it
        places = [
            f"{prefix}{folder}/config.json"
            for prefix in ("", "models/", "hub/", "hub/models/")
            for folder in (f"{owner}/{masked}", f"{owner}/{name}", f"{owner}--{name}/snapshots/*")
        ]
        home = _modelscope_cache()
    return any(any(home.glob(place)) for place in places)


def _hugging_face_cache() -> Path:
    named = os.environ.get("HF_HUB_CACHE")
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return paths.expanded(named or f"{home}/hub")


def _modelscope_cache() -> Path:
    return paths.expanded(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope")


def need_model(model: str, flag: bool) -> None:
    """See to it that a hub's model can be had, before anything slow begins.

    Raises MachineError when it is not on this machine and the hub cannot be reached.
    """
    hugging_face = uses_hugging_face(flag)
    if is_cached(model, hugging_face):
        return
    name = "Hugging Face" if hugging_face else "ModelScope"
    reason: str | None
    if hugging_face and os.environ.get("HF_HUB_OFFLINE", "").lower() in (*TRUE, "on"):
        reason = "HF_HUB_OFFLINE is set, so it is not asked for"
    else:
        reason = _unreachable(_endpoint(hugging_face))
    if reason:
        other = "" if hugging_face else ", or try Hugging Face with `--use_hf true`"
        raise MachineError(
            f"model '{model}' is not on this machine, and {name} cannot give it: {reason}\n"
            f"  remedy:  fetch it where there is a network and name its folder: --model FOLDER"
            f"{other}"
        )


def _endpoint(hugging_face: bool) -> str:
    if hugging_face:
        return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return "https://" + (os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn")


def _unreachable(address: str) -> str | None:
    """Why nothing answers at `address`, None when something does (proxies are used as set)."""
    import requests

    try:
        requests.head(address, timeout=_PATIENCE, allow_redirects=False)
    except requests.RequestException as error:
        return f"no answer from {address} ({type(error).__name__})"
    return None
