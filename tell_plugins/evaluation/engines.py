"""Which engine answers: ms-swift's own on this machine, or any OpenAI-compatible URL."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from tell_plugins.bridge.protocol import Engine, system_text
from tell_plugins.core.errors import UserError, nearest
from tell_plugins.recipe.recipes import Recipe

LOCAL = ("transformers", "vllm")


def make_engine(
    kind: str,
    recipe: Recipe,
    adapters: Mapping[str, Path],
    *,
    batch_size: int,
    model_name: str | None = None,
) -> Engine:
    """The engine of that kind with the recipe's model, or the model that a URL serves.

    `model_name` is the name under which a server knows the model. Raises UserError for another
    kind, and what the engines raise.
    """
    need_kind(kind, model_name)
    if "://" in kind:
        from tell_plugins.evaluation.url_engine import UrlEngine

        system = system_text(recipe.get("system")) or ""
        return UrlEngine(kind, adapters, model_name=model_name, system=system, workers=batch_size)
    if kind == "vllm":
        from tell_plugins.bridge.vllm_engine import VllmEngine

        return VllmEngine(recipe.values, adapters, batch_size=batch_size)
    from tell_plugins.bridge.engine import LocalEngine

    return LocalEngine(recipe.values, adapters, batch_size=batch_size)


def need_kind(kind: str, model_name: str | None) -> None:
    """Raise UserError for a kind of engine that is none, or that cannot run here."""
    if "://" in kind:
        return
    if kind not in LOCAL:
        match = nearest(kind, LOCAL)
        raise UserError(
            f"unknown engine '{kind}'",
            where="--engine",
            allowed=f"{', '.join(LOCAL)}, or a URL such as http://127.0.0.1:8000/v1",
            remedy=f"did you mean '{match}'?" if match else "leave the option away",
        )
    if model_name is not None:
        raise UserError(
            f"a server's model is named, but engine '{kind}' takes the recipe's",
            where="--model-name",
            remedy="leave it away, or name the server's URL with --engine",
        )
    if kind == "vllm":
        _need_vllm()


def _need_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed",
            where="--engine vllm",
            allowed="transformers, or the URL of a server",
            remedy="pip install vllm (needs a GPU), or serve the model elsewhere with vLLM and "
            "pass --engine http://HOST:PORT/v1",
        )
